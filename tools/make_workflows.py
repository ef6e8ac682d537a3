"""Make the shared workflows (UI format) from the graphs that the tests run (API format).

    python dev.py workflows

``tests/graphs/NAME.json`` is the one source of a graph. This runs it in a real ComfyUI and writes, for the template
browser, ``workflows/NAME.json`` and a thumbnail ``workflows/NAME.jpg`` of what the run made.
"""

from __future__ import annotations

import json
import re
import tempfile
import uuid
from pathlib import Path

from comfy_server import ComfyServer
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
PACK_ID = "bayesdiff"
COLUMN_WIDTH, ROW_GAP, NODE_WIDTH = 380, 60, 320
# Widgets that the page adds by itself after the one that they belong to.
CONTROL_AFTER_GENERATE = "fixed"


def widget_inputs(info: dict) -> list[tuple[str, dict]]:
    """Names and options of a node's inputs that are widgets, in the order in which their values are stored."""
    found = []
    for name, spec in connections_and_widgets(info):
        if isinstance(spec[0], list) or spec[0] in ("INT", "FLOAT", "STRING", "BOOLEAN", "COMBO"):
            found.append((name, spec[1] if len(spec) > 1 else {}))
    return found


def has_control(name: str, options: dict) -> bool:
    """Whether the page adds a control to a widget: where it is asked to, and where nothing is said of a seed."""
    return options.get("control_after_generate", name in ("seed", "noise_seed"))


def connections_and_widgets(info: dict) -> list[tuple[str, list]]:
    inputs = {**info["input"].get("required", {}), **info["input"].get("optional", {})}
    order = [*info["input_order"].get("required", []), *info["input_order"].get("optional", [])]
    return [(name, inputs[name]) for name in order]


def depths(graph: dict) -> dict[str, int]:
    """Column of each node: one further right than the rightmost node that it reads."""
    known: dict[str, int] = {}

    def depth(node_id: str) -> int:
        if node_id not in known:
            sources = [value[0] for value in graph[node_id]["inputs"].values() if isinstance(value, list)]
            known[node_id] = 1 + max((depth(source) for source in sources), default=-1)
        return known[node_id]

    for node_id in graph:
        depth(node_id)
    return known


def to_ui(name: str, graph: dict, object_info: dict, version: str, note: str) -> dict:
    """The UI form (version 0.4) of an API graph."""
    nodes, links, columns = [], [], {}
    outgoing: dict[tuple[str, int], list[int]] = {}
    incoming: dict[tuple[str, str], int] = {}
    for node_id, node in graph.items():
        info = object_info[node["class_type"]]
        slots = [key for key, _ in connections_and_widgets(info) if isinstance(node["inputs"].get(key), list)]
        for slot, key in enumerate(slots):
            source, output = node["inputs"][key]
            link_type = object_info[graph[source]["class_type"]]["output"][output]
            links.append([len(links) + 1, int(source), output, int(node_id), slot, link_type])
            outgoing.setdefault((source, output), []).append(len(links))
            incoming[node_id, key] = len(links)
    column_of = depths(graph)
    for order, (node_id, node) in enumerate(sorted(graph.items(), key=lambda item: column_of[item[0]])):
        info = object_info[node["class_type"]]
        values = []
        for key, options in widget_inputs(info):
            values.append(node["inputs"][key])
            if has_control(key, options):
                values.append(CONTROL_AFTER_GENERATE)
        slots = [(key, spec) for key, spec in connections_and_widgets(info) if (node_id, key) in incoming]
        height = 60 + 24 * (max(len(slots), len(info["output"])) + len(values))
        if info["output_node"]:
            height += 240
        column = columns.setdefault(column_of[node_id], [0])
        ours = info["python_module"].startswith("custom_nodes.")
        nodes.append(
            {
                "id": int(node_id),
                "type": node["class_type"],
                "pos": [column_of[node_id] * COLUMN_WIDTH, column[0]],
                "size": [NODE_WIDTH, height],
                "flags": {},
                "order": order,
                "mode": 0,
                "inputs": [{"name": key, "type": spec[0], "link": incoming[node_id, key]} for key, spec in slots],
                "outputs": [
                    {"name": label, "type": kind, "links": outgoing.get((node_id, slot), [])}
                    for slot, (label, kind) in enumerate(zip(info["output_name"], info["output"]))
                ],
                "title": node["_meta"]["title"],
                "properties": {
                    "Node name for S&R": node["class_type"],
                    "cnr_id": PACK_ID if ours else "comfy-core",
                    "ver": version if ours else "0.3.75",
                },
                "widgets_values": values,
            }
        )
        column[0] += height + ROW_GAP
    nodes.append(
        {
            "id": max(int(node_id) for node_id in graph) + 1,
            "type": "MarkdownNote",
            "pos": [0, -260],
            "size": [700, 200],
            "flags": {},
            "order": len(nodes),
            "mode": 0,
            "inputs": [],
            "outputs": [],
            "title": "What this does",
            "properties": {"cnr_id": "comfy-core", "ver": "0.3.75"},
            "widgets_values": [note],
        }
    )
    return {
        "id": str(uuid.uuid5(uuid.NAMESPACE_URL, f"bayesdiff/{name}")),
        "revision": 0,
        "last_node_id": max(node["id"] for node in nodes),
        "last_link_id": len(links),
        "nodes": nodes,
        "links": links,
        "groups": [],
        "config": {},
        "extra": {"ds": {"scale": 0.6, "offset": [80, 320]}},
        "version": 0.4,
    }


def to_api(workflow: dict, object_info: dict) -> dict:
    """The API form of a UI graph, as the page would queue it."""
    links = {link[0]: [str(link[1]), link[2]] for link in workflow["links"]}
    graph = {}
    for node in workflow["nodes"]:
        if node["type"] == "MarkdownNote":
            continue
        inputs, values = {}, iter(node["widgets_values"])
        for key, options in widget_inputs(object_info[node["type"]]):
            inputs[key] = next(values)
            if has_control(key, options):
                next(values)
        inputs |= {slot["name"]: links[slot["link"]] for slot in node["inputs"]}
        if next(values, None) is not None:
            raise ValueError(f"Node {node['id']} ({node['type']}) has more widget values than inputs.")
        graph[str(node["id"])] = {"class_type": node["type"], "inputs": inputs, "_meta": {"title": node["title"]}}
    return graph


NOTES = {
    "quickstart": (
        "## BayesDiff quick start\n"
        "1. A small **demo model** draws four emoji; nothing is downloaded.\n"
        "2. A **Laplace head** is fitted on the model's own samples: what its last layer could also have been.\n"
        "3. **KSampler (BayesDiff)** returns the stock KSampler's latent and how unsure the model is of each part.\n"
        "4. The least certain part becomes a **mask**, and the stock inpainting route draws it again.\n\n"
        "Choose another prompt in *Demo model*, or put your own checkpoint, prompts and VAE in its place."
    )
}


# Nodes whose first picture is in the thumbnail.
THUMBNAILS = {"quickstart": ["13", "15", "16", "17"]}


def make_thumbnail(pictures: list[Path], path: Path, side: int = 192) -> None:
    """Four pictures in a square."""
    sheet = Image.new("RGB", (2 * side, 2 * side), "white")
    for place, picture in enumerate(pictures):
        tile = Image.open(picture).convert("RGB").resize((side, side), Image.Resampling.LANCZOS)
        sheet.paste(tile, (place % 2 * side, place // 2 * side))
    sheet.save(path, quality=90)


def main() -> None:
    version = re.search(r'^version = "(.+)"', (ROOT / "pyproject.toml").read_text(encoding="utf-8"), re.M)[1]
    with tempfile.TemporaryDirectory() as folder, ComfyServer(Path(folder)) as server:
        object_info = server.object_info()
        for path in sorted((ROOT / "tests" / "graphs").glob("*.json")):
            graph = json.loads(path.read_text(encoding="utf-8"))
            workflow = to_ui(path.stem, graph, object_info, version, NOTES[path.stem])
            target = ROOT / "workflows" / path.name
            target.write_text(json.dumps(workflow, indent=1) + "\n", encoding="utf-8")
            pictures = server.files(server.run(graph))
            make_thumbnail([pictures[node_id][0] for node_id in THUMBNAILS[path.stem]], target.with_suffix(".jpg"))
            print(target.relative_to(ROOT))


if __name__ == "__main__":
    main()

"""Make the shared workflows (UI format) from the graphs that the tests run (API format).

    python dev.py workflows [NAME ...]

``tests/graphs/NAME.json`` is the one source of a graph. In a node's ``_meta`` stand its title, the group that it is
drawn in, and whether it is muted, which leaves it out of a run. This runs each graph in a real ComfyUI and writes, for
the template browser, ``workflows/NAME.json`` and a thumbnail ``workflows/NAME.jpg`` of what the run made; a graph that
needs a model file gets a card that says so.
"""

from __future__ import annotations

import json
import re
import sys
import tempfile
import uuid
from pathlib import Path

from comfy_server import ComfyServer
from PIL import Image, ImageDraw, ImageFont
from workflow_texts import MODELS, NOTES, THUMBNAILS

ROOT = Path(__file__).resolve().parent.parent
PACK_ID = "bayesdiff"
# Sizes in the page's own units: a slot and a widget are this high, a title bar lies above a node's position.
SLOT, WIDGET, TITLE, GROUP_TITLE = 20, 24, 30, 60
NODE_WIDTH, GAP, MARGIN, COLUMN_HEIGHT, ROW_WIDTH = 320, 50, 20, 1170, 4100
TEXT_HEIGHT, PICTURE_HEIGHT = 100, 260
# The panel that the page gives this node in place of its widgets.
VIEWER, PANEL_WIDTH, PANEL_HEIGHT = "BayesDiffUncertaintyViewer", 560, 640
NOTE_SIZE = [760, 170]
COLOUR, MUTED_COLOUR = "#3f789e", "#666666"
ACTIVE, MUTED = 0, 2
# Widgets that the page adds by itself after the one that they belong to.
CONTROL_AFTER_GENERATE = "fixed"


def runnable(graph: dict) -> dict:
    """The graph without its muted nodes, as the page would queue it."""
    return {node_id: node for node_id, node in graph.items() if not node["_meta"].get("muted")}


def connections_and_widgets(info: dict) -> list[tuple[str, list]]:
    inputs = {**info["input"].get("required", {}), **info["input"].get("optional", {})}
    order = [*info["input_order"].get("required", []), *info["input_order"].get("optional", [])]
    return [(name, inputs[name]) for name in order]


def is_widget(spec: list) -> bool:
    kind = isinstance(spec[0], list) or spec[0] in ("INT", "FLOAT", "STRING", "BOOLEAN", "COMBO")
    return kind and not options_of(spec).get("forceInput")


def options_of(spec: list) -> dict:
    return spec[1] if len(spec) > 1 else {}


def widget_inputs(info: dict) -> list[tuple[str, dict]]:
    """Names and options of a node's inputs that are widgets, in the order in which their values are stored."""
    return [(name, options_of(spec)) for name, spec in connections_and_widgets(info) if is_widget(spec)]


def has_control(name: str, options: dict) -> bool:
    """Whether the page adds a control to a widget: where it is asked to, and where nothing is said of a seed."""
    return options.get("control_after_generate", name in ("seed", "noise_seed"))


def depths(graph: dict) -> dict[str, int]:
    """Column of each node: one further right than the rightmost node of the same graph that it reads."""
    known: dict[str, int] = {}

    def depth(node_id: str) -> int:
        if node_id not in known:
            sources = [value[0] for value in graph[node_id]["inputs"].values() if isinstance(value, list)]
            known[node_id] = 1 + max((depth(source) for source in sources if source in graph), default=-1)
        return known[node_id]

    for node_id in graph:
        depth(node_id)
    return known


def group_name(node: dict) -> str:
    return node["_meta"]["group"]


def node_height(info: dict) -> int:
    """Of a node without its title bar: slots, widgets, and room for the text or the pictures that it shows."""
    slots = [name for name, spec in connections_and_widgets(info) if not is_widget(spec)]
    height = 16 + SLOT * max(len(slots), len(info["output"]), 1)
    if info["name"] == VIEWER:
        return height + PANEL_HEIGHT
    for name, options in widget_inputs(info):
        height += WIDGET * (1 + has_control(name, options)) + (TEXT_HEIGHT if options.get("multiline") else 0)
    if info["output_node"] and "IMAGE" in [spec[0] for _, spec in connections_and_widgets(info)]:
        height += PICTURE_HEIGHT
    if info["name"] == "PreviewAny":
        height += 2 * TEXT_HEIGHT
    return height


def node_width(info: dict) -> int:
    return PANEL_WIDTH if info["name"] == VIEWER else NODE_WIDTH


def place(graph: dict, object_info: dict) -> tuple[dict[str, list[int]], list[dict]]:
    """Positions of nodes, and the groups around them: in the order of the graph, from left to right, in rows."""
    positions, groups, left, top, row_bottom = {}, [], 0, 0, 0
    for name in dict.fromkeys(group_name(node) for node in graph.values()):
        members = {node_id: node for node_id, node in graph.items() if group_name(node) == name}
        inside, width, height = place_group(members, object_info)
        if left and left + width > ROW_WIDTH:
            left, top = 0, row_bottom + GAP
        for node_id, (x, y) in inside.items():
            positions[node_id] = [left + x, top + y]
        muted = any(node["_meta"].get("muted") for node in members.values())
        groups.append(
            {
                "id": len(groups) + 1,
                "title": name,
                "bounding": [left, top, width, height],
                "color": MUTED_COLOUR if muted else COLOUR,
                "font_size": 24,
                "flags": {},
            }
        )
        left, row_bottom = left + width + MARGIN, max(row_bottom, top + height)
    return positions, groups


def place_group(members: dict, object_info: dict) -> tuple[dict[str, tuple[int, int]], int, int]:
    """Positions of a group's nodes in it, column by column, and its width and height."""
    positions, column_of, x, bottom = {}, depths(members), MARGIN, 0
    for column in range(1 + max(column_of.values())):
        y, width = GROUP_TITLE + TITLE, NODE_WIDTH
        for node_id in (node_id for node_id in members if column_of[node_id] == column):
            height = node_height(object_info[members[node_id]["class_type"]])
            if y > GROUP_TITLE + TITLE and y + height > COLUMN_HEIGHT:
                x, y = x + NODE_WIDTH + GAP, GROUP_TITLE + TITLE
            positions[node_id] = (x, y)
            bottom, y = max(bottom, y + height), y + height + GAP
            width = max(width, node_width(object_info[members[node_id]["class_type"]]))
        x += width + GAP
    return positions, x - GAP + MARGIN, bottom + MARGIN


def to_ui(name: str, graph: dict, object_info: dict, version: str) -> dict:
    """The UI form (version 0.4) of an API graph."""
    nodes, links = [], []
    outgoing: dict[tuple[str, int], list[int]] = {}
    incoming: dict[tuple[str, str], int] = {}
    slots_of = {
        node_id: [item for item in connections_and_widgets(object_info[node["class_type"]]) if not is_widget(item[1])]
        for node_id, node in graph.items()
    }
    for node_id, node in graph.items():
        for slot, (key, _) in enumerate(slots_of[node_id]):
            if key not in node["inputs"]:
                continue
            source, output = node["inputs"][key]
            link_type = object_info[graph[source]["class_type"]]["output"][output]
            links.append([len(links) + 1, int(source), output, int(node_id), slot, link_type])
            outgoing.setdefault((source, output), []).append(len(links))
            incoming[node_id, key] = len(links)
    positions, groups = place(graph, object_info)
    for order, (node_id, node) in enumerate(graph.items()):
        info = object_info[node["class_type"]]
        values = []
        for key, options in widget_inputs(info):
            values.append(node["inputs"][key])
            if has_control(key, options):
                values.append(CONTROL_AFTER_GENERATE)
        ours = info["python_module"].startswith("custom_nodes.")
        properties = {
            "Node name for S&R": node["class_type"],
            "cnr_id": PACK_ID if ours else "comfy-core",
            "ver": version if ours else "0.3.75",
        }
        if models := [MODELS[value] | {"name": value} for value in values if value in MODELS]:
            properties["models"] = models
        nodes.append(
            {
                "id": int(node_id),
                "type": node["class_type"],
                "pos": positions[node_id],
                "size": [node_width(info), node_height(info)],
                "flags": {},
                "order": order,
                "mode": MUTED if node["_meta"].get("muted") else ACTIVE,
                "inputs": [
                    {"name": key, "type": spec[0], "link": incoming.get((node_id, key))}
                    for key, spec in slots_of[node_id]
                ],
                "outputs": [
                    {"name": label, "type": kind, "links": outgoing.get((node_id, slot), [])}
                    for slot, (label, kind) in enumerate(zip(info["output_name"], info["output"]))
                ],
                "title": node["_meta"]["title"],
                "properties": properties,
                "widgets_values": values,
            }
        )
    nodes.append(
        {
            "id": max(int(node_id) for node_id in graph) + 1,
            "type": "MarkdownNote",
            "pos": [0, -NOTE_SIZE[1] - 30],
            "size": NOTE_SIZE,
            "flags": {},
            "order": len(nodes),
            "mode": 0,
            "inputs": [],
            "outputs": [],
            "title": "What this does",
            "properties": {"cnr_id": "comfy-core", "ver": "0.3.75"},
            "widgets_values": [NOTES[name]],
        }
    )
    return {
        "id": str(uuid.uuid5(uuid.NAMESPACE_URL, f"bayesdiff/{name}")),
        "revision": 0,
        "last_node_id": max(node["id"] for node in nodes),
        "last_link_id": len(links),
        "nodes": nodes,
        "links": links,
        "groups": groups,
        "config": {},
        "extra": {"ds": {"scale": 0.6, "offset": [180, 480]}},
        "version": 0.4,
    }


def to_api(workflow: dict, object_info: dict) -> dict:
    """The API form of a UI graph, as the page would queue it, with each node's group and whether it is muted."""
    links = {link[0]: [str(link[1]), link[2]] for link in workflow["links"]}
    graph = {}
    for node in workflow["nodes"]:
        if node["type"] == "MarkdownNote":
            continue
        inputs, values = {}, iter(node["widgets_values"])
        for key, options in widget_inputs(object_info[node["type"]]):
            # The page gives a widget that a saved graph does not know its default.
            inputs[key] = next(values, options.get("default"))
            if has_control(key, options):
                next(values)
        if next(values, None) is not None:
            raise ValueError(f"Node {node['id']} ({node['type']}) has more widget values than inputs.")
        inputs |= {slot["name"]: links[slot["link"]] for slot in node["inputs"] if slot["link"] is not None}
        meta = {"title": node["title"], "group": surrounding_group(node, workflow["groups"])}
        if node["mode"] == MUTED:
            meta["muted"] = True
        graph[str(node["id"])] = {"class_type": node["type"], "inputs": inputs, "_meta": meta}
    return graph


def surrounding_group(node: dict, groups: list[dict]) -> str:
    """Title of the one group that a node, title bar and all, lies in."""
    (x, y), (width, height) = node["pos"], node["size"]
    around = []
    for group in groups:
        left, top, group_width, group_height = group["bounding"]
        across = left <= x and x + width <= left + group_width
        if across and top + GROUP_TITLE <= y - TITLE and y + height <= top + group_height:
            around.append(group["title"])
    (title,) = around
    return title


def make_thumbnail(pictures: list[Path], path: Path, side: int = 384) -> None:
    """Four pictures in a square, or one of any shape."""
    sheet = Image.new("RGB", (side, side), "white")
    tile = side if len(pictures) == 1 else side // 2
    for place, picture in enumerate(pictures):
        image = Image.open(picture).convert("RGB")
        scale = tile / max(image.size)
        image = image.resize([round(scale * length) for length in image.size], Image.Resampling.LANCZOS)
        corner = [place % 2 * tile + (tile - image.width) // 2, place // 2 * tile + (tile - image.height) // 2]
        sheet.paste(image, corner)
    sheet.save(path, quality=90)


def make_card(title: str, lines: list[str], path: Path, side: int = 384) -> None:
    """A thumbnail for what cannot be run here: a name and what it needs."""
    card = Image.new("RGB", (side, side), "#20252c")
    draw, middle = ImageDraw.Draw(card), side // 2
    draw.rectangle((12, 12, side - 13, side - 13), outline=COLOUR, width=3)
    draw.text((middle, middle - 50), title, fill="white", font=ImageFont.load_default(60), anchor="mm")
    for row, line in enumerate(lines):
        draw.text((middle, middle + 30 + 34 * row), line, fill="#b9c4d0", font=ImageFont.load_default(24), anchor="mm")
    card.save(path, quality=90)


def main(names: list[str]) -> None:
    version = re.search(r'^version = "(.+)"', (ROOT / "pyproject.toml").read_text(encoding="utf-8"), re.M)[1]
    with tempfile.TemporaryDirectory() as folder, ComfyServer(Path(folder)) as server:
        object_info = server.object_info()
        for path in sorted((ROOT / "tests" / "graphs").glob("*.json")):
            if names and path.stem not in names:
                continue
            graph = json.loads(path.read_text(encoding="utf-8"))
            target = ROOT / "workflows" / path.name
            workflow = to_ui(path.stem, graph, object_info, version)
            target.write_text(json.dumps(workflow, indent=1) + "\n", encoding="utf-8")
            thumbnail = THUMBNAILS[path.stem]
            if isinstance(thumbnail, dict):
                make_card(thumbnail["title"], thumbnail["lines"], target.with_suffix(".jpg"))
            else:
                pictures = server.files(server.run(runnable(graph)))
                chosen = [pictures[node_id][number] for node_id, number in thumbnail]
                make_thumbnail(chosen, target.with_suffix(".jpg"))
            print(target.relative_to(ROOT), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])

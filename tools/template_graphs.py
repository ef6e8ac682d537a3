"""The official templates as graphs in the API format: read from their package, with their subgraphs unfolded."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import nodes

MUTED, BYPASSED = 2, 4
CONTROLS = {"fixed", "increment", "decrement", "randomize"}
# A choice that brings inputs of its own.
DYNAMIC = "COMFY_DYNAMICCOMBO_V3"
WIDGETS = {"INT", "FLOAT", "STRING", "BOOLEAN", "COMBO", DYNAMIC}
SAMPLERS = ("KSampler", "KSamplerAdvanced", "SamplerCustom", "SamplerCustomAdvanced")
# Ends of a subgraph, as links name them.
INSIDE, OUTSIDE = -10, -20
# ``{node: {"class_type": ..., "inputs": {name: value or [node, slot]}}}``
Graph = dict[str, dict]
Link = list


@dataclasses.dataclass(frozen=True)
class Template:
    """One template: its name, what it makes (image or video), its use, and its graph as the page saves it."""

    name: str
    kind: str
    use: int
    saved: dict


def read_templates(folder: Path) -> list[Template]:
    """All of a folder that holds ``index.json``, the most used first."""
    found = []
    for module in json.loads((folder / "index.json").read_text(encoding="utf-8")):
        for entry in module["templates"]:
            path = folder / f"{entry['name']}.json"
            if path.exists():
                saved = json.loads(path.read_text(encoding="utf-8"))
                found.append(Template(entry["name"], module["type"], entry.get("usage") or 0, saved))
    return sorted(found, key=lambda template: -template.use)


def is_link(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and isinstance(value[0], str) and isinstance(value[1], int)


def take(values: list) -> Any:
    """The next value of a widget; the page saves how a seed goes on behind the seed."""
    value = values.pop(0)
    if values and isinstance(values[0], str) and values[0] in CONTROLS:
        values.pop(0)
    return value


def by_schema(declared: dict, values: list, prefix: str = "") -> dict[str, Any]:
    """Values of widgets in the order in which the host at hand declares them; takes what it reads off the list."""
    found: dict[str, Any] = {}
    for name, spec in {**declared.get("required", {}), **declared.get("optional", {})}.items():
        of, options = spec[0], spec[1] if len(spec) > 1 else {}
        is_widget = isinstance(of, list) or set(of.split(",")) <= WIDGETS
        if not values or not is_widget or options.get("forceInput"):
            continue
        found[prefix + name] = value = take(values)
        if of == DYNAMIC:
            chosen = next((option for option in options["options"] if option["key"] == value), {})
            found |= by_schema(chosen.get("inputs", {}), values, f"{prefix}{name}.")
    return found


def widget_values(node: dict) -> dict[str, Any]:
    """Values of a node's widgets by their names."""
    values = node.get("widgets_values") or []
    if isinstance(values, dict):
        return values
    left = list(values)
    names = [entry["widget"]["name"] for entry in node.get("inputs", []) if entry.get("widget")]
    found = {name: take(left) for name in names if left}
    if not left or node["type"] not in nodes.NODE_CLASS_MAPPINGS:
        return found
    return by_schema(nodes.NODE_CLASS_MAPPINGS[node["type"]].INPUT_TYPES(), list(values))


class Scope:
    """One graph, or one use of a subgraph, while it is unfolded.

    Args:
        inputs: what comes in from outside, by slot: a link, a value or None.
    """

    def __init__(self, saved: dict, subgraphs: dict[str, dict], prefix: str, inputs: list, graph: Graph):
        self.subgraphs, self.prefix, self.inputs, self.graph = subgraphs, prefix, inputs, graph
        self.nodes = {node["id"]: node for node in saved["nodes"]}
        self.links = {}
        for link in saved.get("links", []):
            if isinstance(link, dict):
                parts = [link[key] for key in ("id", "origin_id", "origin_slot", "target_id", "target_slot")]
            else:
                parts = link[:5]
            self.links[parts[0]] = parts[1:]
        self.overrides: dict[tuple[str, str], Any] = {}
        self.scopes: dict[int, Scope] = {}

    def input_of(self, node: dict, entry: dict) -> Any:
        """What an input gets: a link or a value; None where nothing is connected."""
        link = entry.get("link")
        return None if link is None or link not in self.links else self.origin(*self.links[link][:2])

    def origin(self, node_id: int, slot: int) -> Any:
        """Where a link begins: a link to a node of the whole graph, a value, or None."""
        if node_id == INSIDE:
            given = self.inputs[slot] if slot < len(self.inputs) else None
            return self.shown(slot) if given is None else given
        node = self.nodes.get(node_id)
        if node is None or node.get("mode") == MUTED:
            return None
        inputs = node.get("inputs", [])
        if node["type"] == "Reroute":
            return self.input_of(node, inputs[0])
        if node["type"] == "PrimitiveNode":
            return (node.get("widgets_values") or [None])[0]
        if node.get("mode") == BYPASSED:
            kind = node["outputs"][slot]["type"]
            same = [entry for entry in inputs if entry["type"] == kind]
            at = [entry for entry in inputs[slot : slot + 1] if entry["type"] == kind]
            return self.input_of(node, (at or same)[0]) if same else None
        if node["type"] in self.subgraphs:
            return self.inside(node).output(slot)
        return [self.add(node), slot]

    def shown(self, slot: int) -> Any:
        """The value of the widget that an input of this subgraph stands for; None where it stands for none."""
        for origin_id, origin_slot, target_id, target_slot in self.links.values():
            node = self.nodes.get(target_id)
            if (origin_id, origin_slot) == (INSIDE, slot) and node and node["type"] not in self.subgraphs:
                name = node["inputs"][target_slot]["name"]
                own = self.overrides.get((str(target_id), name), widget_values(node).get(name))
                if own is not None:
                    return own
        return None

    def output(self, slot: int) -> Any:
        for origin_id, origin_slot, target_id, target_slot in self.links.values():
            if target_id == OUTSIDE and target_slot == slot:
                return self.origin(origin_id, origin_slot)
        return None

    def inside(self, node: dict) -> Scope:
        """The scope of a subgraph that stands in this one."""
        if node["id"] not in self.scopes:
            saved = self.subgraphs[node["type"]]
            shown = node.get("properties", {}).get("proxyWidgets") or []
            values = node.get("widgets_values") or []
            own = dict(zip((tuple(map(str, entry[:2])) for entry in shown), values if isinstance(values, list) else []))
            widgets = [entry["name"] for entry in saved.get("inputs", []) if entry["type"] in WIDGETS]
            fits = not shown and isinstance(values, list) and len(widgets) == len(values)
            named = dict(zip(widgets, values)) if fits else {} if shown else widget_values(node)
            by_name = {entry["name"]: entry for entry in node.get("inputs", [])}
            inputs = []
            for entry in saved.get("inputs", []):
                found = self.input_of(node, by_name.get(entry["name"], {}))
                name = entry["name"]
                inputs.append(own.get(("-1", name), named.get(name)) if found is None else found)
            scope = Scope(saved, self.subgraphs, f"{self.prefix}{node['id']}:", inputs, self.graph)
            scope.overrides = {key: value for key, value in own.items() if key[0] != "-1"}
            self.scopes[node["id"]] = scope
        return self.scopes[node["id"]]

    def add(self, node: dict) -> str:
        """Put a node, and all that it needs, into the graph; its name there."""
        name = f"{self.prefix}{node['id']}"
        if name in self.graph:
            return name
        self.graph[name] = {"class_type": node["type"], "inputs": {}}
        inputs = widget_values(node)
        for (owner, widget), value in self.overrides.items():
            if owner == str(node["id"]) and value is not None:
                inputs[widget] = value
        for entry in node.get("inputs", []):
            found = self.input_of(node, entry)
            if found is not None:
                inputs[entry["name"]] = found
        self.graph[name]["inputs"] = inputs
        return name

    def add_samplers(self) -> None:
        """Put every active sampler into the graph, and all that it needs."""
        for node in self.nodes.values():
            if node.get("mode") in (MUTED, BYPASSED):
                continue
            if node["type"] in self.subgraphs:
                self.inside(node).add_samplers()
            elif node["type"] in SAMPLERS:
                self.add(node)


def unfolded(saved: dict) -> Graph:
    """All samplers of a saved graph, and what they need, without subgraphs; empty where nothing samples."""
    subgraphs = {part["id"]: part for part in saved.get("definitions", {}).get("subgraphs", [])}
    graph: Graph = {}
    Scope(saved, subgraphs, "", [], graph).add_samplers()
    return graph

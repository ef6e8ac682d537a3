"""What is to be made: which images, from which workflow, and the graph of each."""

from __future__ import annotations

import copy
import dataclasses
import json
import math
from collections.abc import Iterator
from pathlib import Path

from . import Problem

Graph = dict[str, dict]
# Our samplers, and which output is the uncertainty; score and percentile follow it.
SAMPLERS = {"BayesDiffKSampler": 1, "BayesDiffKSamplerAdvanced": 1, "BayesDiffSamplerCustomAdvanced": 2}
# Where an image's own noise does not come from. Another seed there would fit another head or load another model.
ASIDE = {"model", "clip", "vae", "head", "options", "positive", "negative", "guider", "sampler", "sigmas"}
SEEDS, TEXTS = ("seed", "noise_seed"), ("text", "prompt")
# Nodes behind the sampler that make other images of its latent.
CHANGES = ("Sampler", "Repair", "Resample", "BestOfN", "Filter")
SAVES = ("images", "latents", "maps")


@dataclasses.dataclass(frozen=True)
class Task:
    """One run of the workflow.

    Attributes:
        number: of the run, from 0.
        seed: of its noise.
        inputs: what else differs from run to run, by ``node.input``.
    """

    number: int
    seed: int
    inputs: dict[str, object]


def read_workflow(path: Path) -> Graph:
    """A workflow in ComfyUI's API format.

    Raises:
        Problem: the file is not there or is no such workflow.
    """
    try:
        graph = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise Problem(f"Expected a workflow in API format, but {path} cannot be read as one ({error}).") from None
    if isinstance(graph, dict) and "nodes" in graph:
        raise Problem(
            f"Expected a workflow in API format, got in {path.name} one for the page; save it with Export (API)."
        )
    nodes = list(graph.values()) if isinstance(graph, dict) else []
    if not nodes or not all(isinstance(node, dict) and isinstance(node.get("inputs"), dict) for node in nodes):
        raise Problem(
            f"Expected a workflow in API format, got something else in {path.name}; save it with Export (API)."
        )
    return graph


def links(node: dict) -> Iterator[tuple[str, list]]:
    """The inputs of a node that are connected, with node and output that they come from."""
    for name, value in node["inputs"].items():
        if isinstance(value, list) and len(value) == 2 and isinstance(value[0], str):
            yield name, value


def upstream(graph: Graph, start: list[str], without: set[str] = frozenset()) -> list[str]:
    """The nodes that some nodes need, nearest first; not through inputs of the names ``without``."""
    found = list(dict.fromkeys(start))
    for node_id in found:
        found += [
            source
            for name, (source, _) in links(graph[node_id])
            if name not in without and source in graph and source not in found
        ]
    return list(dict.fromkeys(found))


def find_sampler(graph: Graph, named: str | None) -> str:
    """The sampler (BayesDiff) whose images are made: the one that is named, else the last.

    Raises:
        Problem: there is none, or several are last.
    """
    ours = [node_id for node_id, node in graph.items() if node.get("class_type") in SAMPLERS]
    if not ours:
        raise Problem(
            "Expected a workflow with a sampler (BayesDiff), got one without; put KSampler (BayesDiff) in place of its "
            "KSampler."
        )
    earlier = {node for last in ours for node in upstream(graph, [last]) if node != last}
    last = [node_id for node_id in ours if node_id not in earlier]
    if named is None and len(last) == 1:
        return last[0]
    if named not in ours:
        raise Problem(
            f"Expected --sampler to name one of the samplers (BayesDiff) {', '.join(ours)}, got {named or 'nothing'}."
        )
    return named


def find_seeds(graph: Graph, sampler: str) -> list[str]:
    """The seeds of the image's noise, as ``node.input``: those of the sampler and of what its latent comes from.

    Raises:
        Problem: there is none.
    """
    found = []
    for node_id in upstream(graph, [sampler], ASIDE):
        connected = dict(links(graph[node_id]))
        for name in graph[node_id]["inputs"]:
            if name in SEEDS and name not in connected:
                found.append(f"{node_id}.{name}")
            elif name in SEEDS:
                found.append(f"{connected[name][0]}.value")
    found = [address for address in dict.fromkeys(found) if has_input(graph, address)]
    if not found:
        raise Problem(
            "Expected a seed to vary, found none in the sampler's nodes; name it with --seed-input NODE.INPUT."
        )
    return found


def find_prompt(graph: Graph, sampler: str) -> str:
    """The text of the positive prompt, as ``node.input``: the nearest one.

    Raises:
        Problem: there is none.
    """
    inputs = graph[sampler]["inputs"]
    start = next((inputs[name] for name in ("positive", "guider") if isinstance(inputs.get(name), list)), None)
    nodes = upstream(graph, [start[0]], {"negative", "model", "clip", "vae"}) if start else []
    for node_id in nodes:
        for name in TEXTS:
            if isinstance(graph[node_id]["inputs"].get(name), str):
                return f"{node_id}.{name}"
    raise Problem("Expected a prompt to vary, found no text at the sampler's positive; name it with --prompt-input.")


def has_input(graph: Graph, address: str) -> bool:
    node_id, _, name = address.rpartition(".")
    return name in graph.get(node_id, {}).get("inputs", {})


def with_inputs(graph: Graph, inputs: dict[str, object]) -> Graph:
    """A copy of the graph with other values, by ``node.input``."""
    changed = copy.deepcopy(graph)
    for address, value in inputs.items():
        node_id, _, name = address.rpartition(".")
        changed[node_id]["inputs"][name] = value
    return changed


@dataclasses.dataclass(frozen=True)
class Plan:
    """All runs of a workflow: each prompt, with each combination of inputs, with each seed.

    Attributes:
        workflow: in API format.
        sampler: the node whose images are made.
        seed_inputs: where the seed goes, as ``node.input``.
        first_seed, seeds: the first one and how many.
        prompt_input, prompts: where the prompt goes, and the prompts; empty leaves that of the workflow.
        grid: values by ``node.input``.
        save: some of ``SAVES``.
        early: share of the steps after which a first pass scores; None for one pass.
    """

    workflow: Graph
    sampler: str
    seed_inputs: list[str]
    first_seed: int
    seeds: int
    prompt_input: str | None = None
    prompts: list[str] = dataclasses.field(default_factory=list)
    grid: dict[str, list] = dataclasses.field(default_factory=dict)
    save: list[str] = dataclasses.field(default_factory=lambda: list(SAVES))
    early: float | None = None

    def __post_init__(self):
        if self.count < 1:
            raise Problem(f"Expected at least one image to make, got {self.count}; give --seeds a number from 1 on.")
        for address in [*self.seed_inputs, *self.grid, *filter(None, [self.prompt_input])]:
            if not has_input(self.workflow, address):
                raise Problem(f"Expected NODE.INPUT of the workflow, got {address}; see the ids in the file.")
        if self.early is not None:
            if not 0 < self.early < 1:
                raise Problem(f"Expected --early between 0 and 1, got {self.early:g}.")
            self.early_sampler(self.workflow)

    @property
    def count(self) -> int:
        points = [max(1, len(self.prompts)), *map(len, self.grid.values())]
        return self.seeds * math.prod(points)

    def task(self, number: int) -> Task:
        place, seed = divmod(number, self.seeds)
        inputs: dict[str, object] = {}
        for address, values in reversed(self.grid.items()):
            place, i = divmod(place, len(values))
            inputs[address] = values[i]
        if self.prompts:
            inputs[self.prompt_input] = self.prompts[place]
        return Task(number, self.first_seed + seed, inputs)

    def workflow_of(self, task: Task) -> Graph:
        """The user's own workflow, as it makes the images of a task."""
        return with_inputs(self.workflow, task.inputs | dict.fromkeys(self.seed_inputs, task.seed))

    def graph_of(self, task: Task, early: bool = False) -> Graph:
        """What a worker runs: the sampler with all that it needs, and what saves and tells."""
        whole = self.workflow_of(task)
        if early:
            whole[self.sampler] = self.early_sampler(whole)
        output = SAMPLERS[whole[self.sampler]["class_type"]]
        added = {
            "farm_scores": node("PreviewAny", source=[self.sampler, output + 1]),
            "farm_percentiles": node("PreviewAny", source=[self.sampler, output + 2]),
        }
        if not early:
            added |= self.saving(whole, output, f"{task.number:07}")
        needed = [source for one in added.values() for _, (source, _) in links(one) if source in whole]
        return {node_id: whole[node_id] for node_id in upstream(whole, needed)} | added

    def saving(self, whole: Graph, output: int, prefix: str) -> Graph:
        added = {}
        if "latents" in self.save:
            added["farm_latents"] = node("SaveLatent", samples=[self.sampler, 0], filename_prefix=prefix)
        decoder = find_decoder(whole, self.sampler)
        if decoder and "images" in self.save:
            added["farm_decoded"] = decoder
            added["farm_images"] = node("SaveImage", images=["farm_decoded", 0], filename_prefix=prefix)
        if decoder and "maps" in self.save:
            look = dict(scale="each image", opacity=0.85)
            uncertainty, vae = [self.sampler, output], decoder["inputs"]["vae"]
            added["farm_map"] = node("BayesDiffUncertaintyMap", uncertainty=uncertainty, vae=vae, **look)
            added["farm_maps"] = node("SaveImage", images=["farm_map", 1], filename_prefix=f"{prefix}_map")
        return added

    def early_sampler(self, graph: Graph) -> dict:
        """The sampler as it stops after the early share of its steps, at an image that is as good as finished.

        Raises:
            Problem: it cannot.
        """
        inputs, kind = dict(graph[self.sampler]["inputs"]), graph[self.sampler]["class_type"]
        steps, numbers = inputs.get("steps"), [inputs.get("steps"), inputs.get("denoise", 1.0)]
        if kind == "BayesDiffSamplerCustomAdvanced" or not all(isinstance(n, (int, float)) for n in numbers):
            raise Problem(
                "Expected a KSampler (BayesDiff) with its own steps for --early, got another; leave out --early."
            )
        if inputs.pop("denoise", 1.0) != 1:
            raise Problem("Expected a denoise of 1 for --early, got less; leave out --early.")
        if kind == "BayesDiffKSampler":
            inputs |= dict(noise_seed=inputs.pop("seed"), add_noise="enable", start_at_step=0, end_at_step=steps)
        first, last = inputs["start_at_step"], min(inputs["end_at_step"], steps)
        inputs["end_at_step"] = first + max(2, round(self.early * (last - first)))
        inputs["return_with_leftover_noise"] = "disable"
        return {"class_type": "BayesDiffKSamplerAdvanced", "inputs": inputs}


def node(class_type: str, **inputs) -> dict:
    return {"class_type": class_type, "inputs": inputs}


def find_decoder(graph: Graph, sampler: str) -> dict | None:
    """How the workflow decodes the sampler's latent: the nearest VAE Decode after it, else one with its VAE."""
    decoders = [one for one in graph.values() if one["class_type"].startswith("VAEDecode") and "vae" in one["inputs"]]
    near = []
    for one in decoders:
        way = upstream(graph, [source for _, (source, _) in links(one)])
        later = [graph[i]["class_type"] for i in set(way) - set(upstream(graph, [sampler]))]
        if sampler in way and not any(word in kind for kind in later for word in CHANGES):
            near.append((len(later), one))
    if near:
        return min(near, key=lambda pair: pair[0])[1]
    vaes = [link for one in [*decoders, *graph.values()] for name, link in links(one) if name == "vae"]
    return node("VAEDecode", samples=[sampler, 0], vae=vaes[0]) if vaes else None

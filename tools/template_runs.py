"""Runs a template twice on the host's own executor, with its own samplers and with ours, and compares."""

from __future__ import annotations

import asyncio
import copy
from typing import Any, NamedTuple

import execution
import nodes
import torch
from bayesdiff import comfy_entrypoint
from bayesdiff.host.fit import FitSettings, as_examples, fit_head
from bayesdiff.host.latents import empty_latent
from bayesdiff.host.nested import by_part
from server import PromptServer
from template_files import FILE, MODELS, declared, register
from template_graphs import SAMPLERS, WIDGETS, Graph, is_link

# Small sizes for whatever decides about them.
SIZES = {
    "width": 128, "height": 128, "length": 9, "video_frames": 9, "megapixels": 0.0164, "frames_number": 9,
    "largest_size": 128, "longer_edge": 128, "longer_size": 128, "resize_type.longer_size": 128, "size": 128,
    "resize_type.megapixels": 0.0164, "resize_type.width": 128, "resize_type.height": 128, "batch_length": 9,
    "frame_idx": 8, "amount": 9,
}  # fmt: skip
# Inputs by which a latent goes through a node that leaves it as it is, or only enlarges it.
THROUGH = {
    "LatentUpscale": "samples", "LatentUpscaleBy": "samples", "LTXVLatentUpsampler": "samples",
    "LTXVSeparateAVLatent": "av_latent", "LTXVConcatAVLatent": "video_latent", "LTXVImgToVideoInplace": "latent",
}  # fmt: skip
# Types of links that a model goes along to a sampler; the last three are those of nodes that pass on whatever comes.
MODEL_LINKS = {"MODEL", "GUIDER", "*", "COMFY_MATCHTYPE_V3", None}
TEXT = "a picture"
GUIDES = ("keyframe_idxs", "guide_attention_entries")
OURS = {
    "KSampler": "BayesDiffKSampler", "KSamplerAdvanced": "BayesDiffKSamplerAdvanced",
    "SamplerCustomAdvanced": "BayesDiffSamplerCustomAdvanced", "SamplerCustom": "BayesDiffSamplerCustomAdvanced",
}  # fmt: skip
# Of a sampler of ours, where its uncertainty is among its outputs.
UNCERTAINTY = {"BayesDiffKSampler": 1, "BayesDiffKSamplerAdvanced": 1, "BayesDiffSamplerCustomAdvanced": 2}
KEPT: dict[str, list] = {}


class Keep:
    """Keeps what it gets, always as a list: a graph may work through one."""

    INPUT_IS_LIST = True
    OUTPUT_NODE, RETURN_TYPES, FUNCTION, CATEGORY = True, (), "run", "test"

    @classmethod
    def INPUT_TYPES(cls) -> dict:
        return {"required": {"value": ("*",), "key": ("STRING",)}}

    @classmethod
    def VALIDATE_INPUTS(cls, **given):
        return True

    def run(self, value, key):
        KEPT[key[0]] = value
        return {}


class SmallHead:
    """A Laplace head of the model that a sampler gets, from random latents: quick, and of no meaning."""

    RETURN_TYPES, FUNCTION, CATEGORY = ("LAPLACE_HEAD",), "run", "test"

    @classmethod
    def INPUT_TYPES(cls) -> dict:
        given = {"model": ("MODEL",), "positive": ("CONDITIONING",), "latent": ("LATENT",)}
        return {"required": given, "optional": {"negative": ("CONDITIONING",)}}

    def run(self, model, positive, latent, negative=None):
        generator, empty = torch.Generator().manual_seed(0), empty_latent(model, latent)
        data = as_examples(
            by_part(lambda part: torch.randn(part.shape, generator=generator), empty), without_guides(positive)
        )
        cfg = 1.0 if negative is None else 3.0
        return (
            fit_head(model, data, without_guides(negative or positive), FitSettings(cfg, 2, own_images=1, steps=2)),
        )


def without_guides(prompt: list) -> list:
    """A prompt without guides between the frames of LTX: those want the noise mask of their own latent."""
    return [[text, {key: value for key, value in more.items() if key not in GUIDES}] for text, more in prompt]


class Quiet:
    """What the executor and the nodes tell of their progress goes nowhere."""

    client_id = last_node_id = last_prompt_id = None
    sockets_metadata: dict = {}  # noqa: RUF012

    def send_sync(self, *message) -> None:
        pass

    def send_progress_text(self, *message) -> None:
        pass


def prepare_host() -> None:
    """Load the host's own nodes, ours, and those that stand for files."""
    PromptServer.instance = Quiet()
    asyncio.run(nodes.init_builtin_extra_nodes())

    async def ours() -> list[type]:
        return await (await comfy_entrypoint()).get_node_list()

    for node in asyncio.run(ours()):
        nodes.NODE_CLASS_MAPPINGS[node.GET_SCHEMA().node_id] = node
    register()
    nodes.NODE_CLASS_MAPPINGS |= {"TestKeep": Keep, "TestHead": SmallHead}


class Failed(Exception):
    """A graph stopped: in which node, and why."""

    def __init__(self, node: str, kind: str, error: str, text: str):
        self.node, self.kind, self.error, self.text = node, kind, error, text
        super().__init__(f"{kind}: {text}")


def run_graph(graph: Graph) -> dict[str, list]:
    """What the graph's TestKeep nodes got.

    Raises:
        Failed: a node failed.
    """
    KEPT.clear()
    torch.manual_seed(0)  # for nodes that draw without a seed of their own
    executor = execution.PromptExecutor(
        Quiet(), cache_type=execution.CacheType.CLASSIC, cache_args={"lru": 0, "ram": 0.0, "ram_inactive": 0.0}
    )
    keepers = [name for name, node in graph.items() if node["class_type"] == "TestKeep"]
    executor.execute(copy.deepcopy(graph), "test", {}, keepers)
    for event, message in executor.status_messages:
        if event == "execution_error":
            text = " ".join(str(message["exception_message"]).split())[:300]
            raise Failed(message["node_id"], message["node_type"], message["exception_type"], text)
    return dict(KEPT)


def defaults(kind: str) -> dict[str, Any]:
    """Values of inputs that a node got after a template was saved."""
    inputs = nodes.NODE_CLASS_MAPPINGS[kind].INPUT_TYPES() if kind in nodes.NODE_CLASS_MAPPINGS else {}
    specs = {name: spec[1] for name, spec in inputs.get("required", {}).items() if len(spec) > 1}
    return {name: options["default"] for name, options in specs.items() if "default" in options}


def made_small(graph: Graph) -> Graph:
    """Sizes made small, texts made plain, and nothing left that no sampler needs."""
    small = copy.deepcopy(graph)
    for node in small.values():
        types = declared(node["class_type"])
        node["inputs"] = defaults(node["class_type"]) | node["inputs"]
        for name, value in node["inputs"].items():
            if types.get(name) == "STRING" and is_link(value) and not is_text_alone(graph, value[0]):
                node["inputs"][name] = TEXT
            elif name in SIZES and (is_link(value) or isinstance(value, (int, float)) and value > SIZES[name]):
                node["inputs"][name] = SIZES[name]
        if node["class_type"] in nodes.NODE_CLASS_MAPPINGS and not hasattr(
            nodes.NODE_CLASS_MAPPINGS[node["class_type"]], "GET_SCHEMA"
        ):
            node["inputs"] = {name: value for name, value in node["inputs"].items() if name in types}
    wanted, found = [name for name, node in small.items() if node["class_type"] in SAMPLERS], {}
    while wanted:
        name = wanted.pop()
        if name not in found:
            found[name] = small[name]
            wanted += [value[0] for value in small[name]["inputs"].values() if is_link(value)]
    return found


def is_text_alone(graph: Graph, name: str) -> bool:
    """Whether a node, and all that it needs, works on texts and numbers, and so stays as it is."""
    types = declared(graph[name]["class_type"])
    plain = types and all(isinstance(of, list) or set(str(of).split(",")) <= WIDGETS for of in types.values())
    links = [value for value in graph[name]["inputs"].values() if is_link(value)]
    return bool(plain) and all(is_text_alone(graph, link[0]) for link in links)


def samplers_of(graph: Graph) -> list[str]:
    """Names of a graph's samplers, each after those that its latent comes from."""
    found: list[str] = []

    def visit(name: str, seen: frozenset[str] = frozenset()) -> None:
        if name in seen or name in found:
            return
        for value in graph[name]["inputs"].values():
            if is_link(value):
                visit(value[0], seen | {name})
        if graph[name]["class_type"] in SAMPLERS and name not in found:
            found.append(name)

    for name in graph:
        visit(name)
    return found


def missing_nodes(graph: Graph) -> list[str]:
    return sorted({node["class_type"] for node in graph.values()} - nodes.NODE_CLASS_MAPPINGS.keys())


def model_files(graph: Graph) -> list[str]:
    """Files of the models that a graph loads."""
    return [
        str(node["inputs"][name])
        for node in graph.values()
        for name in ("unet_name", "ckpt_name")
        if name in node["inputs"]
    ]


def needed(graph: Graph, name: str, kinds: set | None = None) -> list[str]:
    """What a node needs, nearest first, without what other samplers need; only along links of these types."""
    left = [name]
    for now in left:
        types = declared(graph[now]["class_type"])
        for key, value in graph[now]["inputs"].items():
            if not is_link(value) or value[0] in left or kinds and types.get(key) not in kinds:
                continue
            if graph[value[0]]["class_type"] not in SAMPLERS:
                left.append(value[0])
    return left[1:]


def file_of(graph: Graph, sampler: str) -> str:
    """File of the model that a sampler asks."""
    along = needed(graph, sampler, MODEL_LINKS) + needed(graph, sampler)
    return next(iter(model_files({name: graph[name] for name in along})), "") or model_files(graph)[0]


def with_files(graph: Graph) -> Graph:
    """The graph, in which whatever encodes for a sampler knows the file of its model."""
    found = copy.deepcopy(graph)
    for sampler in samplers_of(graph):
        file = file_of(graph, sampler)
        for name in needed(graph, sampler):
            if FILE in declared(graph[name]["class_type"]).values():
                found[name]["inputs"].setdefault("model_file", file)
    return found


def kept(graph: Graph, links: dict[str, list]) -> Graph:
    """The graph, with a node that keeps what each link brings."""
    return graph | {
        f"keep {key}": {"class_type": "TestKeep", "inputs": {"value": link, "key": key}} for key, link in links.items()
    }


def came_from(graph: Graph, link: Any) -> str | None:
    """The sampler that a latent comes from, through nodes that leave it as it is or enlarge it; None for none."""
    while is_link(link):
        node = graph[link[0]]
        if node["class_type"] in UNCERTAINTY:
            return link[0]
        link = node["inputs"].get(THROUGH.get(node["class_type"], ""))
    return None


class Asked(NamedTuple):
    """What a sampler asks: its model and its prompts, as links."""

    model: Any
    positive: Any
    negative: Any = None


def asked(graph: Graph, inputs: dict) -> Asked | None:
    """What stands behind a sampler or its guider; None where that cannot be seen."""
    while "model" not in inputs:
        if not is_link(inputs.get("guider")):
            return None
        inputs = graph[inputs["guider"][0]]["inputs"]
    positive = next((inputs[name] for name in ("positive", "conditioning", "cond1") if name in inputs), None)
    return Asked(inputs["model"], positive, inputs.get("negative")) if positive else None


def with_ours(graph: Graph) -> tuple[Graph, dict[str, str | None]]:
    """The graph with our samplers in place of its own, and which sampler's uncertainty each goes on from."""
    found, before = copy.deepcopy(graph), {}
    for name in samplers_of(graph):
        node = found[name]
        kind, inputs = node["class_type"], node["inputs"]
        ask = asked(found, inputs)
        if kind == "SamplerCustom":  # its twin is SamplerCustomAdvanced with a CFGGuider
            guider = {key: inputs[key] for key in ("model", "positive", "negative", "cfg")}
            found[f"{name} guider"] = {"class_type": "CFGGuider", "inputs": guider}
            noise = "RandomNoise" if inputs.get("add_noise", True) else "DisableNoise"
            seed = {"noise_seed": inputs["noise_seed"]} if noise == "RandomNoise" else {}
            found[f"{name} noise"] = {"class_type": noise, "inputs": seed}
            inputs = {key: inputs[key] for key in ("sampler", "sigmas", "latent_image")}
            inputs |= {"guider": [f"{name} guider", 0], "noise": [f"{name} noise", 0]}
        inputs |= {"quality": "instant", "members": 2}
        if ask is not None:
            latent = {"latent": inputs["latent_image"]}
            prompts = {key: value for key, value in ask._asdict().items() if value is not None}
            found[f"{name} head"] = {"class_type": "TestHead", "inputs": prompts | latent}
            inputs["head"] = [f"{name} head", 0]
        found[name] = {"class_type": OURS[kind], "inputs": inputs}
        before[name] = came_from(found, inputs["latent_image"])
        if before[name] is not None:
            earlier = before[name]
            inputs["uncertainty"] = [earlier, UNCERTAINTY[found[earlier]["class_type"]]]
    return found, before


def without_heads(graph: Graph) -> Graph:
    """The graph with our samplers, none of which has a head."""
    found = copy.deepcopy(graph)
    for node in found.values():
        node["inputs"].pop("head", None)
    return found


def forget() -> None:
    """Let go of the models of the last graph."""
    MODELS.clear()

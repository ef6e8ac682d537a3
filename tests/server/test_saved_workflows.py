"""Workflows that were saved with release 0.1 load, run, and make what they made then.

``tests/graphs/v0.1/`` holds the workflows as that release shared them, and the latents, variances and scores that they
made. They were recorded by this file in a checkout of that release, with BAYESDIFF_RECORD naming the folder to write.

Posterior draws have an identity since then (number k of a seed), so a seed's draws are others. What does not depend on
a draw is the same to the bit, on a machine that computes as the recording one did. What depends on draws agrees within
their Monte Carlo error.
"""

from __future__ import annotations

import json
import math
import os
from pathlib import Path

import comfy_server
import make_workflows
import pytest
import safetensors.torch
import torch
from measure import spearman

HERE = Path(__file__).resolve().parent
SAVED = HERE.parent / "graphs" / "v0.1"
RECORD = os.environ.get("BAYESDIFF_RECORD")
WORKFLOWS = {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in sorted(SAVED.glob("*.json"))}
NEED_FILES = {"sd15", "sdxl", "flux"}  # of models
RUN_HERE = sorted(WORKFLOWS.keys() - NEED_FILES)
# These nodes draw. All that they put out depends on it, but for a sampler's latents.
CHOOSERS = {"BayesDiffBestOfN", "BayesDiffRepair"}
SAMPLERS = {"BayesDiffKSampler", "BayesDiffKSamplerAdvanced", "BayesDiffSamplerCustomAdvanced"}


@pytest.fixture(scope="module")
def probed(tmp_path_factory):
    """A server with the probe and the pack. It computes on one thread: how many there are changes the last bits."""
    folder = tmp_path_factory.mktemp("probed")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        with comfy_server.ComfyServer(folder, arguments=("--cache-classic",), packs=(HERE / "probe",)) as server:
            yield server


@pytest.fixture(scope="module")
def object_info(probed):
    return probed.object_info()


def with_probes(graph: dict, object_info: dict) -> dict:
    """The graph with a probe at every latent, uncertainty and list of scores that it makes."""
    probes = {}
    for node_id, node in graph.items():
        info = object_info[node["class_type"]]
        for slot, (kind, name) in enumerate(zip(info["output"], info["output_name"])):
            of_ours = node["class_type"].startswith("BayesDiff")
            if kind in ("LATENT", "UNCERTAINTY") or kind == "FLOAT" and of_ours:
                key = f"{node_id}.{name.replace(' ', '_')}"
                probes[key] = {"class_type": "Probe", "inputs": {"value": [node_id, slot], "name": key}}
    return graph | probes


def probe(server, graph: dict, object_info: dict) -> dict[str, torch.Tensor]:
    """What the probes of a graph wrote; those after an output that is blocked write nothing."""
    output = server.folder / "output"
    for path in output.glob("*.safetensors"):
        path.unlink()
    server.run(with_probes(graph, object_info))
    return {
        path.name.removesuffix(".safetensors"): safetensors.torch.load_file(path)["value"]
        for path in sorted(output.glob("*.safetensors"))
    }


def arithmetic(server, object_info) -> torch.Tensor:
    """What the stock sampler makes of the demo model: it shows whether two machines round alike."""
    inputs = {"model": ["1", 0], "positive": ["1", 1], "negative": ["1", 2], "latent_image": ["2", 0]}
    settings = dict(seed=1, steps=6, cfg=3.0, sampler_name="dpmpp_2m", scheduler="karras", denoise=1.0)
    graph = {
        "1": {"class_type": "BayesDiffDemoModel", "inputs": {"prompt": "owl"}},
        "2": {"class_type": "EmptyLatentImage", "inputs": {"width": 128, "height": 128, "batch_size": 4}},
        "3": {"class_type": "KSampler", "inputs": inputs | settings},
    }
    return probe(server, graph, object_info)["3.LATENT"]


@pytest.fixture(scope="module")
def then() -> dict[str, torch.Tensor]:
    return safetensors.torch.load_file(SAVED / "made.safetensors")


@pytest.fixture(scope="module")
def rounds_alike(probed, object_info, then) -> bool:
    return torch.equal(arithmetic(probed, object_info), then["arithmetic"])


def depends_on_draws(graph: dict, object_info: dict, node_id: str, slot: int) -> bool:
    """Whether posterior draws took part in an output."""
    node = graph[node_id]
    kind = object_info[node["class_type"]]["output"][slot]
    if node["class_type"] in CHOOSERS or node["class_type"] in SAMPLERS and kind != "LATENT":
        return True
    sources = [value for value in node["inputs"].values() if isinstance(value, list)]
    return any(depends_on_draws(graph, object_info, *source) for source in sources)


if RECORD:

    def test_record(probed, object_info):
        made = {"arithmetic": arithmetic(probed, object_info)}
        for name in RUN_HERE:
            graph = make_workflows.runnable(make_workflows.to_api(WORKFLOWS[name], object_info))
            made |= {f"{name}.{key}": value for key, value in probe(probed, graph, object_info).items()}
        safetensors.torch.save_file(made, Path(RECORD) / "made.safetensors")


@pytest.mark.parametrize("name", WORKFLOWS)
def test_a_saved_workflow_still_means_what_it_meant(object_info, name):
    """Every node is known, every value lands in its own input, every link has its type."""
    graph = make_workflows.to_api(WORKFLOWS[name], object_info)
    for node in graph.values():
        specs = dict(make_workflows.connections_and_widgets(object_info[node["class_type"]]))
        assert node["inputs"].keys() <= specs.keys()
        for key, value in node["inputs"].items():
            options = make_workflows.options_of(specs[key]).get("options") or specs[key][0]
            if not isinstance(value, list) and isinstance(options, list) and "_name" not in key:  # names of files
                assert value in options, (node["class_type"], key)


def is_newer(graph: dict, key: str) -> bool:
    """Whether an output has come since then."""
    node_id, output = key.split(".")
    new_latent = output == "latent" and graph[node_id]["class_type"] == "BayesDiffUncertaintyToMask"
    return output in ("percentiles", "frame_scores") or new_latent


@pytest.mark.parametrize("name", RUN_HERE)
def test_a_saved_workflow_makes_what_it_made(probed, object_info, then, rounds_alike, name):
    graph = make_workflows.runnable(make_workflows.to_api(WORKFLOWS[name], object_info))
    now = probe(probed, graph, object_info)
    before = {key.removeprefix(f"{name}."): value for key, value in then.items() if key.startswith(f"{name}.")}
    assert {key for key in now if not is_newer(graph, key)} == before.keys()
    exact = 0
    for key in before:
        value = now[key]
        node_id, output = key.split(".")
        names = [name.replace(" ", "_") for name in object_info[graph[node_id]["class_type"]]["output_name"]]
        assert value.shape == before[key].shape, key
        if depends_on_draws(graph, object_info, node_id, names.index(output)):
            agrees(key, value, before[key], same_images=graph[node_id]["class_type"] in SAMPLERS)
        else:
            exact += 1
            tolerance = 0.0 if rounds_alike else 1e-3
            assert torch.allclose(value, before[key], rtol=tolerance, atol=tolerance * float(value.abs().max())), key
    assert exact or name == "best_of_n", "the sampler's own latent does not depend on draws"


# How far two estimates from two sets of draws lie apart, by `python dev.py bench draws` on the prompt of most of these
# workflows: over eight sets, the logarithm of a mean variance has a standard deviation of 0.45, that of a mean score
# 0.24, and the least Spearman correlation of two maps is 0.78 (0.72 with --quality precise). A difference has √2 times
# that deviation; three of it.
VARIANCES, SCORES, MAPS = 3 * 2**0.5 * 0.45, 3 * 2**0.5 * 0.24, 0.7


def agrees(key: str, value: torch.Tensor, old: torch.Tensor, same_images: bool) -> None:
    """Two estimates from other draws agree within their Monte Carlo error.

    Behind a choice by uncertainty, or a mask of it, the images are others: then only their kind can be compared.
    """
    assert torch.isfinite(value).all(), key
    if key.lower().endswith("latent") or key.endswith("candidates"):
        assert 0.8 < float(value.std() / old.std()) < 1.25, key
    elif same_images and key.endswith("uncertainty"):
        assert abs(math.log(float(value.mean() / old.mean()))) < VARIANCES, key
        assert spearman(value.mean(1), old.mean(1)) > MAPS, key
    elif same_images:
        assert abs(math.log(float(value.mean() / old.mean()))) < SCORES, key
    else:
        assert (value > 0).all(), key

"""One head for several models, and models that the host loads in pieces or throws out."""

from __future__ import annotations

import comfy.model_management
import nodes
import pytest
import torch
from bayesdiff.bayesdiff_core.posterior.storage import load_head, save_head
from bayesdiff.host.demo_model import load_demo_model
from bayesdiff.nodes.head import FitLaplaceHead
from bayesdiff.nodes.sampler import KSamplerBayesDiff
from in_process import traces
from running import little_memory

RUN = dict(seed=3, steps=3, cfg=3.0, sampler_name="euler", scheduler="normal", denoise=1.0)
EMPTY = {"samples": torch.zeros(2, 4, 8, 8)}


pytestmark = pytest.mark.usefixtures("inference_mode")


def prompts(demo) -> dict:
    return dict(model=demo[0], positive=demo[1], negative=demo[2])


def ours(demo, head, quality="balanced"):
    latent, uncertainty, scores = KSamplerBayesDiff.execute(
        **prompts(demo), **RUN, latent_image=EMPTY, head=head, quality=quality, members=2
    ).args[:3]
    return latent["samples"], uncertainty.variance, scores


def same(first, second) -> bool:
    return all(torch.equal(a, b) for a, b in zip(first[:2], second[:2])) and first[2] == second[2]


def stock(demo) -> torch.Tensor:
    return nodes.KSampler().sample(**prompts(demo), **RUN, latent_image=EMPTY)[0]["samples"]


def fit(demo):
    return FitLaplaceHead.execute(
        **prompts(demo), latent=EMPTY, fit_on="own samples", samples=2, steps=2, cfg=3.0, noise_levels=2,
        structure="low-rank", explained_variance=0.99, seed=0, folder="input",
    ).args[0]  # fmt: skip


@pytest.mark.parametrize("quality", ["balanced", "ensemble"])
def test_one_head_for_a_model_its_clone_and_another_load_of_it(demo, demo_head, tmp_path, quality):
    """In turn and turned about, and the same from its file; no model hears of another."""
    save_head(demo_head, tmp_path / "head.safetensors")
    loaded = load_head(tmp_path / "head.safetensors")
    models = [demo, (demo[0].clone(), *demo[1:]), load_demo_model("owl")]
    before = [traces(model[0]) for model in models]
    expected, plain = ours(demo, demo_head, quality), stock(demo)
    for head in (demo_head, loaded):
        for model in [*models, *models[::-1]]:
            assert same(ours(model, head, quality), expected) and torch.equal(stock(model), plain)
    assert [traces(model[0]) for model in models] == before


@pytest.mark.parametrize("state", ["LOW_VRAM", "NO_VRAM"])
def test_weights_that_are_cast_piece_by_piece(demo, demo_head, monkeypatch, state):
    expected, plain = ours(demo, demo_head, "ensemble")[2], stock(demo)
    model = load_demo_model("owl")
    head = fit(model)
    comfy.model_management.unload_all_models()
    with little_memory(monkeypatch, state):
        # So little memory that the host also calls the network for each prompt alone, which rounds in other ways.
        tight = stock(model)
        assert model[0].model.model_lowvram and model[0].loaded_size() < model[0].model_size(), (
            "not all of it is loaded"
        )
        assert torch.allclose(tight, plain, atol=1e-2)
        before = traces(model[0])
        for quality in ("balanced", "ensemble"):
            latent, _, scores = ours(model, demo_head, quality)
            assert torch.equal(latent, tight) and torch.equal(stock(model), tight)
        assert scores == pytest.approx(expected, rel=1e-2) and traces(model[0]) == before
        assert torch.allclose(fit(model).precision.values, head.precision.values, rtol=1e-2)
    comfy.model_management.unload_all_models()
    assert torch.equal(stock(model), plain)


def test_a_model_that_is_thrown_out_between_runs(demo, demo_head):
    expected, plain = ours(demo, demo_head, "ensemble"), stock(demo)
    for _ in range(2):
        comfy.model_management.unload_all_models()
        comfy.model_management.soft_empty_cache()
        assert comfy.model_management.loaded_models() == []
        assert same(ours(demo, demo_head, "ensemble"), expected) and torch.equal(stock(demo), plain)

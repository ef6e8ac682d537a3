"""Our samplers return the stock sampler's latent, bit for bit, and leave nothing behind."""

from __future__ import annotations

import math
from contextlib import nullcontext

import comfy.samplers
import comfy.utils
import nodes
import pytest
import torch
from bayesdiff.host.last_layer import find_last_layer
from bayesdiff.nodes.sampler import KSamplerAdvancedBayesDiff, SamplerCustomBayesDiff
from comfy_extras.nodes_custom_sampler import (
    BasicGuider,
    CFGGuider,
    DualCFGGuider,
    RandomNoise,
    SamplerCustomAdvanced,
)
from comfy_extras.nodes_perpneg import PerpNegGuider
from factory import sampler_inputs
from in_process import traces
from running import EMPTY, MEMBERS, breaking, ours, stock

pytestmark = pytest.mark.usefixtures("inference_mode")


@pytest.mark.parametrize("cfg", [1.0, 7.0])
@pytest.mark.parametrize("sampler", comfy.samplers.KSampler.SAMPLERS)
def test_latent_is_the_stock_samplers_for_every_sampler(demo, demo_head, sampler, cfg):
    """With guidance and without. The scheduler takes no part: our code reads sigmas off the run alone."""
    settings = dict(sampler_name=sampler, cfg=cfg)
    expected = stock(demo, EMPTY, **settings)
    state = torch.get_rng_state()
    latent, uncertainty, scores = ours(demo, demo_head, EMPTY, **settings, quality="draft")
    assert torch.equal(latent["samples"], expected["samples"])
    assert torch.equal(torch.get_rng_state(), state), (
        "the global generator must stand where the stock sampler leaves it"
    )
    assert uncertainty.variance.shape == latent["samples"].shape
    assert torch.isfinite(uncertainty.variance).all() and (uncertainty.variance.flatten(1).sum(1) > 0).all()
    assert scores == pytest.approx(uncertainty.variance.sqrt().mean((1, 2, 3)).tolist())


@pytest.mark.parametrize("scheduler", comfy.samplers.KSampler.SCHEDULERS)
@pytest.mark.parametrize("quality", ["balanced", "ensemble"])
def test_latent_is_the_stock_samplers_for_every_scheduler(demo, demo_head, scheduler, quality):
    expected = stock(demo, EMPTY, scheduler=scheduler)
    latent = ours(demo, demo_head, EMPTY, scheduler=scheduler, quality=quality)[0]
    assert torch.equal(latent["samples"], expected["samples"])


@pytest.mark.parametrize("sampler", comfy.samplers.KSampler.SAMPLERS)
def test_latent_is_the_stock_samplers_beside_an_ensemble(demo, demo_head, sampler):
    expected = stock(demo, EMPTY, sampler_name=sampler)
    state = torch.get_rng_state()
    latent, uncertainty, scores = ours(demo, demo_head, EMPTY, sampler_name=sampler)
    assert torch.equal(latent["samples"], expected["samples"])
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.isfinite(uncertainty.variance).all() and (uncertainty.variance.flatten(1).sum(1) > 0).all()
    assert scores == pytest.approx(uncertainty.variance.sqrt().mean((1, 2, 3)).tolist())


@pytest.mark.parametrize("quality", ["balanced", "ensemble"])
@pytest.mark.parametrize("cfg", [1.0, 7.0])
def test_image_to_image_with_a_mask_and_a_batch_index(demo, demo_head, cfg, quality):
    start = stock(demo, EMPTY)
    mask = torch.zeros(1, 16, 16)
    mask[:, 4:12, 4:12] = 1
    latent = start | {"noise_mask": mask, "batch_index": [5, 2], "note": "kept"}
    expected = stock(demo, latent, cfg=cfg, denoise=0.6)
    result, uncertainty, _ = ours(demo, demo_head, latent, cfg=cfg, denoise=0.6, quality=quality)
    assert torch.equal(result["samples"], expected["samples"])
    assert result["note"] == "kept" and result["batch_index"] == [5, 2] and "noise_mask" in result
    inside = mask[0].bool()
    std = uncertainty.std_map()
    # Outside the mask nothing is denoised; what is left there is float32 rounding.
    assert std[:, ~inside].max() < 1e-4 * std[:, inside].mean()


@pytest.mark.parametrize("quality", ["balanced", "ensemble"])
def test_nothing_survives_a_run(demo, demo_head, quality):
    model, *_ = demo
    before, first = traces(model), stock(demo, EMPTY)
    ours(demo, demo_head, EMPTY, quality=quality)
    assert traces(model) == before
    assert torch.equal(stock(demo, EMPTY)["samples"], first["samples"])


class Broken(RuntimeError):
    pass


@pytest.mark.parametrize("error", [Broken, KeyboardInterrupt, torch.OutOfMemoryError])
@pytest.mark.parametrize(("quality", "call"), [("ensemble", 0), ("ensemble", 5), ("ensemble", 9), ("precise", 7)])
def test_nothing_survives_an_error_at_any_stage(demo, demo_head, error, quality, call):
    """The network fails in the nominal run, in the first member and in a later one: there the image is kept."""
    model, *_ = demo
    before, first = traces(model), stock(demo, EMPTY)
    steps = sampler_inputs(demo)["steps"]
    lost = call < steps or not issubclass(error, Exception)
    with breaking(model, call, error) as broken, pytest.raises(error) if lost else nullcontext():
        latent, uncertainty, scores = ours(demo, demo_head, EMPTY, quality=quality)
        assert torch.equal(latent["samples"], first["samples"]) and all(map(math.isnan, scores))
        assert uncertainty.unknown.startswith("Expected ") and uncertainty.variance.isnan().all()
    assert broken.calls == call + 1
    assert traces(model) == before
    assert torch.equal(stock(demo, EMPTY)["samples"], first["samples"])


def test_uncertainty_is_reproducible_and_follows_the_seed(demo, demo_head):
    for quality in ("balanced", "ensemble"):
        first, again = (ours(demo, demo_head, EMPTY, quality=quality)[1].variance for _ in range(2))
        assert torch.equal(first, again)
        other = ours(demo, demo_head, EMPTY, seed=4, quality=quality)[1].variance
        assert not torch.allclose(first, other, rtol=0.1)


@pytest.mark.parametrize(
    ("quality", "sampler", "run", "total"),
    [
        ("ensemble", "euler", 8, 8 * (1 + MEMBERS)),
        ("balanced", "euler", 8, 8 + 6),
        ("precise", "heun", 15, 15 + 6 * 7),
    ],
)
def test_progress_counts_every_call_of_the_network_once(demo, demo_head, monkeypatch, quality, sampler, run, total):
    """Steps while the run goes on, which may take several calls each; then every call by its number."""
    seen, calls = [], []
    monkeypatch.setattr(comfy.utils, "PROGRESS_BAR_HOOK", lambda value, total, *_, **__: seen.append((value, total)))
    with find_last_layer(demo[0]).watched(calls.append):
        ours(demo, demo_head, EMPTY, steps=8, quality=quality, sampler_name=sampler)
    assert len(calls) == total
    assert [value for value, _ in seen] == [*range(1, 9), *range(run + 1, total + 1)]
    assert {of for _, of in seen[8:]} == {total}


@pytest.mark.parametrize("steps", [1, 2])
def test_a_run_of_few_steps(demo, demo_head, steps):
    expected = stock(demo, EMPTY, steps=steps)
    latent, uncertainty, _ = ours(demo, demo_head, EMPTY, steps=steps, quality="draft")
    assert torch.equal(latent["samples"], expected["samples"]) and uncertainty.variance.min() >= 0
    assert uncertainty.members == 1 and uncertainty.variance.mean() > 0


def test_nothing_to_denoise_is_no_uncertainty(demo, demo_head):
    start = stock(demo, EMPTY)
    for quality in ("balanced", "ensemble"):
        latent, uncertainty, scores = ours(demo, demo_head, start, denoise=0.0, quality=quality)
        assert torch.equal(latent["samples"], stock(demo, start, denoise=0.0)["samples"])
        assert uncertainty.variance.shape == latent["samples"].shape and not uncertainty.variance.any()
        assert scores == [0.0, 0.0]


@pytest.mark.parametrize("quality", ["balanced", "ensemble"])
def test_a_run_in_stages(demo, demo_head, quality):
    """The stock advanced sampler in two stages, and ours in place of either."""

    def settings(latent, first: bool) -> dict:
        inputs = sampler_inputs(demo, steps=8, start_at_step=0 if first else 4, end_at_step=4 if first else 100)
        del inputs["denoise"]
        switch = "enable" if first else "disable"
        inputs |= dict(noise_seed=inputs.pop("seed"), latent_image=latent)
        return inputs | dict(add_noise=switch, return_with_leftover_noise=switch)

    first = nodes.KSamplerAdvanced().sample(**settings(EMPTY, True))[0]
    second = nodes.KSamplerAdvanced().sample(**settings(first, False))[0]
    more = dict(head=demo_head, quality=quality, members=2)
    latent, early, *_ = KSamplerAdvancedBayesDiff.execute(**settings(EMPTY, True), **more).args
    assert torch.equal(latent["samples"], first["samples"])
    latent, late, *_ = KSamplerAdvancedBayesDiff.execute(**settings(first, False), **more).args
    assert torch.equal(latent["samples"], second["samples"])
    assert early.variance.mean() > 0 and late.variance.mean() > 0


GUIDERS = {
    "CFGGuider": lambda model, a, b: CFGGuider.execute(model, a, b, 3.0),
    "BasicGuider": lambda model, a, b: BasicGuider.execute(model, a),
    "DualCFGGuider": lambda model, a, b: DualCFGGuider.execute(model, a, b, b, 3.0, 2.0, "regular"),
    "PerpNegGuider": lambda model, a, b: PerpNegGuider.execute(model, a, b, b, 3.0, 1.0),
}


def custom(demo, guider) -> dict:
    """Inputs of SamplerCustomAdvanced."""
    sampling = demo[0].get_model_object("model_sampling")
    return dict(
        noise=RandomNoise.execute(5)[0],
        guider=guider,
        sampler=comfy.samplers.sampler_object("euler_ancestral"),
        sigmas=comfy.samplers.calculate_sigmas(sampling, "karras", 7),
        latent_image=EMPTY,
    )


@pytest.mark.parametrize("quality", ["balanced", "ensemble"])
@pytest.mark.parametrize("name", GUIDERS)
def test_any_guider_with_custom_sigmas(demo, demo_head, name, quality):
    model, positive, negative, _ = demo
    inputs = custom(demo, GUIDERS[name](model, positive, negative)[0])
    expected, expected_denoised = SamplerCustomAdvanced.execute(**inputs).args
    latent, denoised, uncertainty, *_ = SamplerCustomBayesDiff.execute(
        **inputs, head=demo_head, quality=quality, members=2
    ).args
    assert torch.equal(latent["samples"], expected["samples"])
    assert torch.equal(denoised["samples"], expected_denoised["samples"])
    assert uncertainty.variance.shape == latent["samples"].shape and uncertainty.variance.mean() > 0
    assert inputs["guider"].model_patcher is model and not model.wrappers


class TwiceGuider(comfy.samplers.CFGGuider):
    """Samples, and samples once more from what it got."""

    def sample(self, noise, latent_image, *args, **kwargs):
        first = super().sample(noise, latent_image, *args, **kwargs)
        return super().sample(noise, first, *args, **kwargs)


@pytest.mark.parametrize("quality", ["balanced", "ensemble"])
def test_a_guider_that_samples_twice_keeps_what_belongs_to_the_last_run(demo, demo_head, quality):
    model, positive, negative, _ = demo
    found = {}
    for kind in (comfy.samplers.CFGGuider, TwiceGuider):
        guider = kind(model)
        guider.set_conds(positive, negative)
        guider.set_cfg(3.0)
        inputs = custom(demo, guider)
        expected, expected_denoised = SamplerCustomAdvanced.execute(**inputs).args
        latent, denoised, found[kind], *_ = SamplerCustomBayesDiff.execute(
            **inputs, head=demo_head, quality=quality, members=2
        ).args
        assert torch.equal(latent["samples"], expected["samples"])
        assert torch.equal(denoised["samples"], expected_denoised["samples"])
    once, twice = found.values()
    assert len(once.trajectory) == 4
    assert [moment.sigma for moment in twice.trajectory] == [moment.sigma for moment in once.trajectory]
    for first, last in zip(once.trajectory, twice.trajectory):
        assert not torch.equal(first.latent, last.latent), "the second run starts from another latent"
        assert torch.isfinite(last.variance).all() and (last.variance > 0).all()
    assert twice.members == once.members and twice.deviations.shape == once.deviations.shape
    assert torch.isfinite(twice.variance).all() and (twice.variance > 0).all()

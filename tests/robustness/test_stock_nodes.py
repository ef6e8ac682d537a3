"""The host's own nodes as people put them before a sampler: few steps, masks, batches, schedules, two samplers."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import NamedTuple

import comfy.model_management
import nodes
import pytest
import torch
from bayesdiff.host.fit import FitSettings, as_examples, fit_head
from comfy_extras import (
    nodes_differential_diffusion,
    nodes_freelunch,
    nodes_model_advanced,
    nodes_tomesd,
)
from families import FAMILIES
from in_process import traces
from running import ours, stock

pytestmark = pytest.mark.usefixtures("inference_mode")


class Case(NamedTuple):
    """What comes into a sampler.

    Attributes:
        setup: model, positive, negative, and whatever follows.
        settings: changes to those of :func:`~factory.sampler_inputs`.
        own_head: whether it needs one, because the demo model's is of a model of another kind.
    """

    setup: tuple
    latent: dict
    settings: dict
    own_head: bool = False


def by(node, *inputs):
    """The first output of a stock node, which newer hosts have written anew."""
    if hasattr(node, "execute"):
        return node.execute(*inputs).args[0]
    return getattr(node(), node.FUNCTION)(*inputs)[0]


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def slopes(count: int, side: int = 128) -> torch.Tensor:
    """Soft masks ``(count, side, side)`` that rise to the right, each one further up."""
    rise = torch.linspace(0, 1, side).expand(side, side)
    return torch.stack([rise.roll(number * side // count, dims=1) for number in range(count)])


EMPTY = {"samples": torch.zeros(2, 4, 16, 16)}


def patched(demo, *patches: Callable, latent: dict = EMPTY, **settings) -> Case:
    """The demo model under patches, which take a model and give one."""
    model = demo[0]
    for patch in patches:
        model = patch(model)
    return Case((model, *demo[1:]), latent, settings)


def lcm(demo, steps: int) -> Case:
    few = dict(steps=steps, cfg=1.0, sampler_name="lcm", scheduler="sgm_uniform")
    case = patched(demo, lambda model: by(nodes_model_advanced.ModelSamplingDiscrete, model, "lcm", False), **few)
    return case._replace(own_head=True)


def differential_diffusion(demo) -> Case:
    """With a mask for each image."""
    latent = {"samples": noise(2, 4, 16, 16), "noise_mask": slopes(2)}
    node = nodes_differential_diffusion.DifferentialDiffusion
    return patched(demo, lambda model: by(node, model), latent=latent, steps=5, denoise=0.8)


def fixed_seeds(demo) -> Case:
    # On newer hosts these two import each other, which goes well in this order alone.
    importlib.import_module("comfy_extras.nodes_post_processing")
    node = importlib.import_module("comfy_extras.nodes_latent").LatentBatchSeedBehavior
    return patched(demo, latent=by(node, EMPTY, "fixed"))


def one_patched_model_in_two_samplers(demo) -> Case:
    """The second at another size."""
    first = patched(
        demo,
        lambda model: by(nodes_freelunch.FreeU_V2, model, 1.3, 1.4, 0.9, 0.2),
        lambda model: by(nodes_tomesd.TomePatchModel, model, 0.3),
    )
    larger = by(nodes.LatentUpscaleBy, stock(first.setup, EMPTY, steps=2), "bilinear", 1.5)
    return first._replace(latent=larger, settings=dict(denoise=0.5))


def two_shifts(demo) -> Case:
    family = FAMILIES["Flux"]
    model = by(nodes_model_advanced.ModelSamplingFlux, family.build(), 1.15, 0.5, 1024, 1024)
    model = by(nodes_model_advanced.ModelSamplingAuraFlow, model, 3.0)
    latent = {"samples": torch.zeros(2, 16, 8, 8)}
    return Case((model, family.conditioning(1), family.conditioning(2)), latent, dict(cfg=1.0), own_head=True)


def repeated_with_masks_of_another_batch(demo) -> Case:
    latent = {"samples": noise(1, 4, 16, 16), "noise_mask": (slopes(3) > 0.5).float()}
    return patched(demo, latent=by(nodes.RepeatLatentBatch, latent, 2), denoise=0.6)


def composite(demo) -> Case:
    latents = ({"samples": noise(2, 4, side, side, seed=side)} for side in (16, 8))
    return patched(demo, latent=by(nodes.LatentComposite, *latents, 32, 32, "normal", 8), denoise=0.6)


def masked_then_enlarged(demo) -> Case:
    masked = by(nodes.SetLatentNoiseMask, {"samples": noise(2, 4, 16, 16)}, slopes(1))
    latent = by(nodes.LatentUpscale, masked, "nearest-exact", 192, 192, "disabled")
    return patched(demo, latent=latent, denoise=0.6)


def prompts_with_a_gap(demo) -> Case:
    """At some of the steps no positive prompt counts."""
    model, positive, negative, vae = demo
    first = by(nodes.ConditioningSetTimestepRange, positive, 0.0, 0.3)
    last = by(nodes.ConditioningSetTimestepRange, negative, 0.6, 1.0)
    setup = (model, by(nodes.ConditioningCombine, first, last), negative, vae)
    return Case(setup, EMPTY, dict(steps=8))


CASES = {
    "LCM, 2 steps": lambda demo: lcm(demo, 2),
    "LCM, 4 steps": lambda demo: lcm(demo, 4),
    "DifferentialDiffusion": differential_diffusion,
    "fixed seeds": fixed_seeds,
    "one patched model in two samplers": one_patched_model_in_two_samplers,
    "two shifts": two_shifts,
    "repeated, with masks of another batch": repeated_with_masks_of_another_batch,
    "composite": composite,
    "masked, then enlarged": masked_then_enlarged,
    "prompts with a gap": prompts_with_a_gap,
}


def quick_head(setup: tuple, latent: dict, cfg: float):
    model, positive, negative, *_ = setup
    data = as_examples(noise(2, *latent["samples"].shape[1:]), positive)
    return fit_head(model, data, negative, FitSettings(cfg, levels=2, own_images=0))


@pytest.mark.parametrize("name", CASES)
def test_the_stock_latent_and_what_is_known_of_it(demo, demo_head, name):
    setup, latent, settings, own_head = CASES[name](demo)
    head = quick_head(setup, latent, settings["cfg"]) if own_head else demo_head
    expected = stock(setup, latent, **settings)["samples"]
    before, state = traces(setup[0]), torch.get_rng_state()
    for quality in ("instant", "draft"):
        found, uncertainty, _ = ours(setup, head, latent, quality, **settings)
        assert torch.equal(found["samples"], expected)
        assert not uncertainty.unknown and uncertainty.variance.isfinite().all() and uncertainty.variance.max() > 0
        assert traces(setup[0]) == before and torch.equal(torch.get_rng_state(), state)
    assert torch.equal(stock(setup, latent, **settings)["samples"], expected)


@pytest.mark.parametrize("at", [1, 5, 6])
def test_models_that_are_unloaded_inside_a_call(demo, demo_head, at):
    """As where another thread wants the memory: in the run, or in the calls that come after it."""
    expected, calls = stock(demo, EMPTY)["samples"], []

    def unload(*_):
        calls.append(1)
        if len(calls) == at:
            comfy.model_management.unload_all_models()

    handle = demo[0].model.diffusion_model.register_forward_pre_hook(unload)
    try:
        found, uncertainty, _ = ours(demo, demo_head, EMPTY, "balanced")
    finally:
        handle.remove()
    assert len(calls) > at and torch.equal(found["samples"], expected)
    assert not uncertainty.unknown and uncertainty.variance.isfinite().all()
    assert torch.equal(ours(demo, demo_head, EMPTY, "balanced")[1].variance, uncertainty.variance)

"""Resampling on the demo model: it goes on where the run was, and only where it is told to."""

from __future__ import annotations

import dataclasses

import comfy.model_management
import nodes
import pytest
import torch
from bayesdiff.nodes.resample import Resample
from bayesdiff.nodes.sampler import KSamplerBayesDiff
from running import breaking

RUN = dict(steps=6, cfg=3.0, sampler_name="euler", scheduler="normal", denoise=1.0)
SEED = 3
EMPTY = {"samples": torch.zeros(2, 4, 16, 16)}


pytestmark = pytest.mark.usefixtures("inference_mode")


def sampled(demo, head, latent=EMPTY, **changes):
    model, positive, negative, _ = demo
    output = KSamplerBayesDiff.execute(
        model=model, seed=SEED, positive=positive, negative=negative, latent_image=latent, head=head, quality="draft",
        members=2, **(RUN | changes),
    )  # fmt: skip
    return output.args[:2]


@pytest.fixture(scope="module")
def images(demo, demo_head):
    with torch.inference_mode():
        return sampled(demo, demo_head)


def resampled(demo, images, mask=None, **changes):
    model, positive, negative, _ = demo
    latent, uncertainty = images
    settings = dict(start_at=0.4, variations=2, strength=1.0, include_original=True, seed=SEED) | RUN
    return Resample.execute(
        model=model, positive=positive, negative=negative, latent_image=latent, uncertainty=uncertainty, mask=mask,
        **(settings | changes),
    ).args[0]  # fmt: skip


def stopped_and_resumed(demo, step, sampler="euler", latent=EMPTY):
    """The stock KSampler (Advanced) in two stages."""
    model, positive, negative, _ = demo
    prompts = (3.0, sampler, "normal", positive, negative)
    noisy = nodes.KSamplerAdvanced().sample(model, "enable", SEED, 6, *prompts, latent, 0, step, "enable")[0]
    return nodes.KSamplerAdvanced().sample(model, "disable", SEED, 6, *prompts, noisy, step, 10000, "disable")[0]


@pytest.mark.parametrize("sampler", ["euler", "heun"])
def test_no_strength_gives_the_image_itself(demo, demo_head, sampler):
    """Bit for bit what the stock sampler in two stages gives, which is the image but for rounding."""
    images = sampled(demo, demo_head, sampler_name=sampler)
    original = images[0]["samples"]
    found = resampled(demo, images, strength=0.0, sampler_name=sampler)["samples"].unflatten(0, (2, 3))
    assert torch.equal(found[:, 0], original)
    expected = stopped_and_resumed(demo, 2, sampler)["samples"]
    for variation in (found[:, 1], found[:, 2]):
        assert torch.equal(variation, expected)
        assert torch.allclose(variation, original, atol=2e-3)


@pytest.mark.parametrize("sampler", ["dpmpp_2m", "euler_ancestral", "dpmpp_sde", "uni_pc", "euler_cfg_pp"])
def test_other_samplers_start_anew_as_the_stock_one_does(demo, demo_head, sampler):
    model, positive, negative, _ = demo
    images = sampled(demo, demo_head, sampler_name=sampler)
    settings = dict(strength=0.0, variations=1, include_original=False)
    found = resampled(demo, images, sampler_name=sampler, **settings)["samples"]
    noisy = {"samples": images[1].trajectory[1].latent}
    expected = nodes.KSamplerAdvanced().sample(
        model, "disable", SEED, 6, 3.0, sampler, "normal", positive, negative, noisy, 2, 10000, "disable"
    )[0]["samples"]
    assert torch.equal(found, expected)


def test_variations_differ_and_stay_near_the_image(demo, images):
    original = images[0]["samples"]

    def distance(**changes):
        found = resampled(demo, images, include_original=False, **changes)["samples"].unflatten(0, (2, 2))
        assert not torch.equal(found[:, 0], found[:, 1])
        return float((found - original[:, None]).square().mean().sqrt())

    assert 0 < distance(strength=0.3) < distance() < distance(strength=3.0)
    assert distance() < float((original[0] - original[1]).square().mean().sqrt()), "nearer than another image"


@pytest.mark.parametrize("masks", [1, 2])
def test_outside_the_mask_nothing_changes(demo, images, masks):
    mask = torch.zeros(masks, 128, 128)
    mask[:, 32:96, 32:96] = 1
    original = images[0]["samples"]
    found = resampled(demo, images, mask, strength=3.0)
    samples, inside = found["samples"].unflatten(0, (2, 3)), torch.zeros(16, 16, dtype=torch.bool)
    inside[4:12, 4:12] = True
    change = (samples - original[:, None]).abs()
    assert not change[:, 0].any()
    assert change[..., ~inside].max() < 1e-4 and change[:, 1:, :, inside].mean() > 0.1
    # With nothing drawn, what surrounds the mask is seen as in the run, so that the inside nearly stays too.
    still = resampled(demo, images, mask, strength=0.0)["samples"].unflatten(0, (2, 3)) - original[:, None]
    assert still.abs().mean() < 0.2 * change[:, 1:].mean()


def test_a_noise_mask_of_the_latent_counts_and_all_keys_stay(demo, demo_head, images):
    mask = torch.zeros(2, 16, 16)
    mask[0, 2:8], mask[1, 8:14] = 1, 1
    start = images[0] | {"noise_mask": mask, "batch_index": [5, 2], "note": "kept"}
    latent, uncertainty = sampled(demo, demo_head, start, denoise=0.6)
    found = resampled(demo, (latent, uncertainty), denoise=0.6, strength=4.0)
    assert found["note"] == "kept" and found["batch_index"] == [5, 5, 5, 2, 2, 2]
    assert torch.equal(found["noise_mask"], mask.repeat_interleave(3, 0))
    change = (found["samples"] - latent["samples"].repeat_interleave(3, 0)).abs().amax(1)
    outside = mask.repeat_interleave(3, 0) == 0
    assert change[outside].max() < 1e-4 and change[[1, 2, 4, 5]].amax((1, 2)).min() > 0.05


def test_a_single_image_from_each_of_its_points(demo, demo_head):
    latent, uncertainty = sampled(demo, demo_head, {"samples": torch.zeros(1, 4, 16, 16)})
    # Of six steps, those nearest to 0.2, 0.4, 0.6 and 0.8.
    assert len(uncertainty.trajectory) == 4
    found = [
        resampled(demo, (latent, uncertainty), start_at=share, variations=1)["samples"] for share in (0.1, 0.5, 0.9)
    ]
    assert all(samples.shape == (2, 4, 16, 16) and torch.equal(samples[:1], latent["samples"]) for samples in found)
    assert len({float(samples[1].sum()) for samples in found}) == 3


def test_wrong_settings_are_one_sentence(demo, images):
    with pytest.raises(ValueError, match="no step at its sigma .*; set steps"):
        resampled(demo, images, steps=7)
    with pytest.raises(ValueError, match="no step at its sigma"):
        resampled(demo, images, scheduler="karras")
    with pytest.raises(ValueError, match="Expected at least 2 steps"):
        resampled(demo, images, steps=1)
    latent, uncertainty = images
    with pytest.raises(ValueError, match="keeps its trajectory"):
        resampled(demo, (latent, dataclasses.replace(uncertainty, trajectory=())))
    with pytest.raises(ValueError, match="Expected the latent that the uncertainty belongs to"):
        resampled(demo, ({"samples": latent["samples"][:1]}, uncertainty))
    with pytest.raises(ValueError, match="Expected one mask, or one for each of the 2 images, got 3"):
        resampled(demo, images, torch.ones(3, 16, 16))


class Broken(RuntimeError):
    pass


@pytest.mark.parametrize("error", [Broken, KeyboardInterrupt, comfy.model_management.InterruptProcessingException])
def test_nothing_survives_an_error(demo, images, error):
    model = demo[0]
    state, before = torch.get_rng_state(), repr(model.wrappers) + repr(sorted(model.model_options))
    expected = stopped_and_resumed(demo, 2)["samples"]

    with breaking(model, 5, error) as broken, pytest.raises(error):  # in the second variation
        resampled(demo, images)
    assert repr(model.wrappers) + repr(sorted(model.model_options)) == before and broken.calls == 6
    assert not [m for m in model.model.diffusion_model.modules() if m._forward_hooks or m._forward_pre_hooks]
    torch.set_rng_state(state)
    assert torch.equal(stopped_and_resumed(demo, 2)["samples"], expected)

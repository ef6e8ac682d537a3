"""Runs that few make: no step at all, a layer of another's, calls by name. The stock latent, and no number made up."""

from __future__ import annotations

import copy
import math

import comfy.samplers
import node_helpers
import nodes
import pytest
import torch
import torch.nn.functional as F
from bayesdiff.bayesdiff_core.estimators.moments import Moments
from bayesdiff.bayesdiff_core.estimators.paper import Paper
from bayesdiff.host.settings import Guidance
from bayesdiff.nodes.best_of_n import KSamplerBestOfN
from bayesdiff.nodes.options import UncertaintyOptionsNode
from bayesdiff.nodes.sampler import KSamplerAdvancedBayesDiff, KSamplerBayesDiff, SamplerCustomBayesDiff
from comfy.patcher_extension import WrappersMP
from comfy_extras.nodes_custom_sampler import (
    BasicScheduler,
    CFGGuider,
    DisableNoise,
    FlipSigmas,
    RandomNoise,
    SamplerCustomAdvanced,
)
from comfy_extras.nodes_hypertile import HyperTile
from factory import fit_own_head, sampler_inputs
from families import EVERY, FAMILIES
from running import options, ours, scaled, stock

EMPTY = {"samples": torch.zeros(2, 4, 16, 16)}
RUN = dict(steps=4, seed=3)
QUALITIES = ["no head", "instant", "draft", "ensemble"]

pytestmark = pytest.mark.usefixtures("inference_mode")


def sample(demo, head, latent: dict, quality: str, **settings) -> tuple:
    return ours(demo, None if quality == "no head" else head, latent, quality.replace("no head", "instant"), **settings)


def custom(demo, head, quality: str, latent: dict = EMPTY, before=None, **parts) -> tuple:
    """The stock node's latent, and ours with its uncertainty."""
    model, positive, negative, _ = demo
    given = (
        dict(
            noise=RandomNoise.execute(3).args[0],
            guider=CFGGuider.execute(model, positive, negative, 3.0).args[0],
            sampler=comfy.samplers.sampler_object("euler"),
            sigmas=BasicScheduler.execute(model, "normal", 4, 1.0).args[0],
            latent_image=latent,
        )
        | parts
    )
    expected = SamplerCustomAdvanced.execute(**given).args[0]["samples"]
    head, quality = (None, "instant") if quality == "no head" else (head, quality)
    found, _, uncertainty, *_ = SamplerCustomBayesDiff.execute(
        **given, quality=quality, members=2, head=head, uncertainty=before
    ).args
    return expected, found["samples"], uncertainty


# ---------------------------------------------------------------- no step


@pytest.fixture(scope="module", params=["instant", "draft"])
def finished(request, demo, demo_head):
    with torch.inference_mode():
        return request.param, *ours(demo, demo_head, EMPTY, request.param, **RUN)[:2]


def test_a_stage_without_a_step_keeps_what_is_known(demo, demo_head, finished):
    """At denoise 0, and where a stage begins at the last step."""
    quality, latent, before = finished
    inputs = sampler_inputs(demo, denoise=0.0)
    own = dict(latent_image=latent, head=demo_head, quality=quality, members=2, uncertainty=before)
    found, uncertainty, scores, *_ = KSamplerBayesDiff.execute(**inputs, **own).args
    assert torch.equal(found["samples"], stock(demo, latent, denoise=0.0)["samples"])
    assert torch.equal(uncertainty.variance, before.variance) and scores == before.scores().tolist()
    assert torch.equal(uncertainty.deviations, before.deviations) and uncertainty.members == before.members
    del inputs["denoise"]
    last = dict(noise_seed=inputs.pop("seed"), add_noise="disable", start_at_step=4, end_at_step=9)
    found, uncertainty, *_ = KSamplerAdvancedBayesDiff.execute(
        **inputs, **own, **last, return_with_leftover_noise="disable"
    ).args
    assert torch.equal(found["samples"], latent["samples"])
    assert torch.equal(uncertainty.variance, before.variance)


@pytest.mark.parametrize("sigmas", [[], [0.0]], ids=["no sigma", "one sigma"])
def test_what_is_left_of_split_sigmas_may_be_no_step(demo, demo_head, finished, sigmas):
    quality, latent, before = finished
    expected, found, uncertainty = custom(demo, demo_head, quality, latent, before, sigmas=torch.tensor(sigmas))
    assert torch.equal(found, expected) and torch.equal(uncertainty.variance, before.variance)


def test_an_empty_latent_of_other_channels_is_widened_and_that_is_all():
    family = FAMILIES["Flux"]
    flux, empty = (
        (family.build(), family.conditioning(1), family.conditioning(2), None),
        {"samples": torch.zeros(1, 4, 16, 16)},
    )
    expected = stock(flux, empty, cfg=1.0, denoise=0.0)["samples"]
    found, uncertainty, _ = ours(flux, None, empty, "instant", cfg=1.0, denoise=0.0)
    assert torch.equal(found["samples"], expected) and not uncertainty.unknown and not uncertainty.variance.any()


def best_of_n(demo, head, model=None, latent=EMPTY, **changes) -> tuple:
    given = sampler_inputs(demo, **changes) | ({} if model is None else {"model": model})
    return KSamplerBestOfN.execute(
        **given, latent_image=latent, head=head, candidates=3, keep=2, share=0.5, quality="quick", batch_size=1,
        score_finished=False,
    ).args  # fmt: skip


def test_best_of_n_of_images_that_are_not_sampled(demo, demo_head, finished):
    latent = best_of_n(demo, demo_head, latent=finished[1], denoise=0.0)[0]
    assert torch.equal(latent["samples"], finished[1]["samples"][[0, 1]])


# ---------------------------------------------------------------- random numbers


def test_best_of_n_under_a_patch_that_draws_random_numbers(demo, demo_head):
    """What the ranking predicted stands for a call that would have drawn some, so it is not used again."""
    model, latent = HyperTile.execute(demo[0], 32, 4, 1, False)[0], {"samples": torch.zeros(1, 4, 32, 32)}
    found = best_of_n(demo, demo_head, model, latent, **RUN)[0]
    for image, number in zip(found["samples"], found["batch_index"]):
        of_one = latent | {"batch_index": [number]}
        assert torch.equal(image[None], stock((model, *demo[1:]), of_one, **RUN)["samples"])


def test_members_of_a_second_stage_draw_the_random_numbers_of_the_run(demo, demo_head):
    """A stage that adds no noise does not seed them."""
    inputs = sampler_inputs((HyperTile.execute(demo[0], 32, 4, 1, False)[0], *demo[1:]), steps=6)
    del inputs["denoise"]
    inputs |= dict(
        noise_seed=inputs.pop("seed"), add_noise="disable", start_at_step=2, end_at_step=9,
        return_with_leftover_noise="disable", latent_image=stock(demo, {"samples": torch.zeros(1, 4, 32, 32)}),
    )  # fmt: skip
    torch.manual_seed(7)
    expected, state = nodes.KSamplerAdvanced().sample(**inputs)[0]["samples"], torch.get_rng_state()

    def ensemble(head):
        torch.manual_seed(7)
        found, uncertainty, *_ = KSamplerAdvancedBayesDiff.execute(
            **inputs, head=head, quality="ensemble", members=2
        ).args
        assert torch.equal(found["samples"], expected) and torch.equal(torch.get_rng_state(), state)
        return uncertainty.variance.mean()

    assert ensemble(scaled(demo_head, 1e-12)) < 1e-6 * ensemble(demo_head)


# ---------------------------------------------------------------- what remembers


class EveryTimeAnother:
    """Noise of another pack's, which counts on."""

    seed = 3

    def __init__(self):
        self.seeds = iter(range(100))

    def generate_noise(self, latent: dict) -> torch.Tensor:
        generator = torch.Generator().manual_seed(next(self.seeds))
        return torch.randn(latent["samples"].shape, generator=generator)


def test_noise_that_is_another_in_every_run_is_no_variance_of_an_ensemble(demo, demo_head):
    first = EveryTimeAnother()
    expected = custom(demo, demo_head, "instant", noise=first)[0]
    guider = CFGGuider.execute(*demo[:3], 3.0).args[0]
    found, _, uncertainty, *_ = SamplerCustomBayesDiff.execute(
        noise=EveryTimeAnother(), guider=guider, sampler=comfy.samplers.sampler_object("euler"),
        sigmas=BasicScheduler.execute(demo[0], "normal", 4, 1.0).args[0], latent_image=EMPTY, quality="ensemble",
        members=2, head=demo_head,
    ).args  # fmt: skip
    assert torch.equal(found["samples"], expected)
    assert "ends in the same image when it is done again" in uncertainty.unknown


# ---------------------------------------------------------------- a layer or a network of another's


class Delegate:
    """A guider around another one, which samples with the model that it holds."""

    def __init__(self, guider):
        self.guider, self.model_patcher = guider, guider.model_patcher

    def sample(self, *inputs, **named):
        return self.guider.sample(*inputs, **named)


@pytest.mark.parametrize("quality", QUALITIES)
def test_a_guider_with_a_model_of_its_own_is_unknown(demo, demo_head, quality):
    guider = Delegate(CFGGuider.execute(*demo[:3], 3.0).args[0])
    expected, found, uncertainty = custom(demo, demo_head, quality, guider=guider)
    assert torch.equal(found, expected)
    assert "goes past it" in uncertainty.unknown or "go past it" in uncertainty.unknown


def with_last_layer_of_its_own(demo) -> tuple:
    """The demo model with a last layer put in the place of its own, as an object patch."""
    model = demo[0].clone()
    model.add_object_patch("diffusion_model.out.2", copy.deepcopy(demo[0].model.diffusion_model.out[2]))
    return model, *demo[1:]


@pytest.mark.parametrize("quality", ["instant", "draft", "ensemble"])
def test_a_last_layer_that_a_clone_puts_in_its_place(demo, demo_head, quality):
    """In turn with the model as it is, whose layer stays away as long as the other model is loaded."""
    other, variances = with_last_layer_of_its_own(demo), []
    expected = stock(demo, EMPTY, **RUN)["samples"]
    for setup in (demo, other, demo):
        found, uncertainty, _ = ours(setup, demo_head, EMPTY, quality, **RUN)
        assert torch.equal(found["samples"], expected) and not uncertainty.unknown
        variances.append(uncertainty.variance)
    assert torch.equal(variances[0], variances[1]) and torch.equal(variances[0], variances[2])


def with_another_end(demo) -> tuple:
    """The demo model with all that follows its blocks put in the place of its own."""
    model = demo[0].clone()
    model.add_object_patch("diffusion_model.out", copy.deepcopy(demo[0].model.diffusion_model.out))
    return model, *demo[1:]


@pytest.mark.parametrize("quality", ["draft", "ensemble"])
def test_a_last_layer_that_is_never_called_is_unknown(demo, demo_head, quality):
    other = with_another_end(demo)
    expected = stock(other, EMPTY, **RUN)["samples"]
    stock(demo, EMPTY, **RUN)  # the layer as it was stands in its place again
    found, uncertainty, _ = ours(other, demo_head, EMPTY, quality, **RUN)
    assert torch.equal(found["samples"], expected) and uncertainty.variance.isnan().all()
    assert "calls the last layer that the Laplace head is of" in uncertainty.unknown


@pytest.mark.parametrize("estimator", [Moments(every=1, draws=1), Paper(every=1, draws=1)], ids=["moments", "paper"])
def test_a_recursion_of_what_the_last_layer_shows_is_unknown_where_that_cannot_be_seen(demo, demo_head, estimator):
    other = with_another_end(demo)
    expected = stock(other, EMPTY, **RUN)["samples"]
    stock(demo, EMPTY, **RUN)
    found, uncertainty, _ = ours(other, demo_head, EMPTY, options=options(estimator), **RUN)
    assert torch.equal(found["samples"], expected) and uncertainty.variance.isnan().all()
    assert "'deviations'" in uncertainty.unknown


# ---------------------------------------------------------------- what other packs do around a sampler


def wrapped(demo, wrapper) -> tuple:
    model = demo[0].clone()
    model.add_wrapper_with_key(WrappersMP.OUTER_SAMPLE, "another pack", wrapper)
    return model, *demo[1:]


@pytest.mark.parametrize("quality", QUALITIES)
def test_a_wrapper_that_names_what_it_passes_on(demo, demo_head, quality):
    def by_name(executor, noise, latent_image, sampler, sigmas, denoise_mask, callback, disable_pbar, seed, **more):
        return executor(
            noise, latent_image, sampler, sigmas, denoise_mask=denoise_mask, callback=callback,
            disable_pbar=disable_pbar, seed=seed, **more,
        )  # fmt: skip

    setup = wrapped(demo, by_name)
    expected = stock(setup, EMPTY, **RUN)["samples"]
    found, uncertainty, _ = sample(setup, demo_head, EMPTY, quality, **RUN)
    assert torch.equal(found["samples"], expected) and not uncertainty.unknown


@pytest.mark.parametrize("quality", ["no head", "instant", "draft"])
def test_a_wrapper_that_samples_more_than_it_returns_is_unknown(demo, demo_head, quality):
    def with_margin(executor, noise, latent_image, *inputs, **named):
        larger = (F.pad(part, (0, 4, 0, 4)) for part in (noise, latent_image))
        return executor(*larger, *inputs, **named)[..., :16, :16]

    setup = wrapped(demo, with_margin)
    expected = stock(setup, EMPTY, **RUN)["samples"]
    found, uncertainty, scores = sample(setup, demo_head, EMPTY, quality, **RUN)
    assert torch.equal(found["samples"], expected)
    assert uncertainty.variance.shape == expected.shape and uncertainty.variance.isnan().all()
    assert "resizes it afterwards" in uncertainty.unknown


@pytest.mark.parametrize("quality", ["no head", "instant", "draft"])
def test_images_that_go_through_sigmas_of_their_own_are_unknown(demo, demo_head, quality):
    def each_its_own(model, x, sigmas, extra_args=None, callback=None, disable=None):
        share = torch.linspace(1, 0.5, len(x))
        x = x * share[:, None, None, None]
        for sigma, then in zip(sigmas, sigmas[1:]):
            denoised = model(x, sigma * share, **extra_args)
            x = denoised + (x - denoised) * (then / sigma)
        return x

    expected, found, uncertainty = custom(demo, demo_head, quality, sampler=comfy.samplers.KSAMPLER(each_its_own))
    assert torch.equal(found, expected)
    assert "takes all images through the same sigmas" in uncertainty.unknown


@pytest.mark.parametrize("quality", QUALITIES)
def test_a_sampler_with_gradients_gets_none_of_ours(demo, demo_head, quality):
    """What is kept of a step would hold all that the step computed."""

    def guided(model, x, sigmas, extra_args=None, callback=None, disable=None):
        with torch.inference_mode(False), torch.enable_grad():
            x, sigmas = x.clone(), sigmas.clone()
            for sigma, then in zip(sigmas, sigmas[1:]):
                x = x.detach().requires_grad_(True)
                denoised = model(x, sigma.expand(len(x)), **extra_args)
                x = denoised + (x - denoised) * (then / sigma)
            return x.detach()

    expected, found, uncertainty = custom(demo, demo_head, quality, sampler=comfy.samplers.KSAMPLER(guided))
    assert torch.equal(found, expected) and not uncertainty.unknown
    assert not uncertainty.variance.requires_grad and not uncertainty.deviations.requires_grad
    assert not any(moment.variance.requires_grad or moment.latent.requires_grad for moment in uncertainty.trajectory)


# ---------------------------------------------------------------- sigmas


@pytest.mark.parametrize("quality", QUALITIES)
def test_sigmas_that_rise_are_unknown_but_to_whole_runs(demo, demo_head, quality):
    """From an image back to noise."""
    rising = FlipSigmas.execute(BasicScheduler.execute(demo[0], "normal", 6, 1.0).args[0]).args[0]
    latent = stock(demo, EMPTY, **RUN)
    expected, found, uncertainty = custom(
        demo, demo_head, quality, latent, sigmas=rising, noise=DisableNoise.execute().args[0]
    )
    assert torch.equal(found, expected)
    assert ("takes noise away" in uncertainty.unknown) == (quality != "ensemble")


@pytest.mark.parametrize("quality", QUALITIES)
def test_an_image_that_breaks_in_its_last_step_is_unknown(demo, demo_head, quality):
    """After the last prediction: a step from zero to zero divides by it."""
    sigmas = torch.cat([BasicScheduler.execute(demo[0], "normal", 4, 1.0).args[0], torch.zeros(1)])
    expected, found, uncertainty = custom(demo, demo_head, quality, sigmas=sigmas)
    assert expected.isnan().all() and found.isnan().all() and uncertainty.variance.isnan().all()
    assert "got NaN or infinity in 2 of 2 images" in uncertainty.unknown


@pytest.mark.parametrize("quality", ["instant", "draft", "ensemble"])
def test_points_to_keep_that_no_run_has(demo, demo_head, quality):
    wanted = UncertaintyOptionsNode.execute(
        "as quality says", "picture", torch.tensor([math.inf, 1e30, -1.0, math.nan])
    )
    expected = stock(demo, EMPTY, **RUN)["samples"]
    found, uncertainty, _ = ours(demo, demo_head, EMPTY, quality, options=wanted.args[0], **RUN)
    assert torch.equal(found["samples"], expected) and not uncertainty.unknown
    assert len({moment.sigma for moment in uncertainty.trajectory}) == 1


# ---------------------------------------------------------------- guidance and prompts


class OwnScale(comfy.samplers.CFGGuider):
    """Mixes two predictions by a number that it calls otherwise."""

    def predict_noise(self, x, timestep, model_options=None, seed=None):
        prompts = [self.conds["negative"], self.conds["positive"]]
        first, second = comfy.samplers.calc_cond_batch(self.inner_model, prompts, x, timestep, model_options)
        return first + 7.0 * (second - first)


def test_a_guider_with_a_scale_of_its_own_is_not_read_as_one_without_guidance(demo, demo_head):
    """A single step has the variance of its prediction, which would be that of the prompt alone."""
    guider = OwnScale(demo[0])
    guider.set_conds(demo[1], demo[2])
    sigmas = torch.tensor([14.6, 0.0])
    expected, found, uncertainty = custom(demo, demo_head, "instant", guider=guider, sigmas=sigmas)
    assert torch.equal(found, expected) and "at least two predictions" in uncertainty.unknown


def test_a_prompt_that_runs_blocks_of_its_own_for_a_part_of_the_run_is_no_cache(caplog):
    """References do so in some families."""
    family = EVERY["OmniGen 2"]
    model, plain, negative = family.build(), family.conditioning(1), family.conditioning(2)
    pictured = node_helpers.conditioning_set_values(plain, {"reference_latents": [torch.ones(1, *family.latent[1:])]})
    parts = (nodes.ConditioningSetTimestepRange().set_range(*part)[0] for part in ((pictured, 0, 0.5), (plain, 0.5, 1)))
    setup, latent = (model, sum(parts, []), negative, None), {"samples": torch.zeros(family.latent)}
    head = fit_own_head(model, Guidance(plain, negative, 3.0), family.latent[1:], 2, 2, 2)
    run = RUN | dict(steps=8)
    expected = stock(setup, latent, **run)["samples"]
    found, uncertainty, _ = ours(setup, head, latent, "balanced", **run)
    assert torch.equal(found["samples"], expected) and not uncertainty.unknown
    assert "a cache on the model" not in caplog.text

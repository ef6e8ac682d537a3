"""Samplers that return the latent and how unsure the model is of it."""

from __future__ import annotations

import logging

from comfy_api.latest import io

from ..bayesdiff_core.estimators.registry import NO_HEAD, make_quality
from ..bayesdiff_core.reading.uncertainty import Uncertainty
from ..host.compat import search_words
from ..host.latents import check_latent, warn_of_mixed_masks
from ..host.posterior import NoPosterior, Posterior, posterior_of
from ..host.run.progress import Progress
from ..host.run.sample import Sampled, sample_with_uncertainty
from ..host.run.stock import CustomRun, Run
from ..host.settings import RunSettings
from .inputs import (
    CATEGORY,
    FEWEST_MEMBERS,
    MOST_MEMBERS,
    before_input,
    denoise_input,
    read_out,
    sampler_outputs,
    schedule_inputs,
    seed_input,
    uncertainty_inputs,
)
from .options import UncertaintyOptions


def members_problem(members: int | None) -> str | None:
    """One sentence if ``members`` is out of range, None if it is valid or not known yet."""
    if members is None or FEWEST_MEMBERS <= members <= MOST_MEMBERS:
        return None
    return (
        f"Expected at least {FEWEST_MEMBERS} ensemble members to measure a spread and at most {MOST_MEMBERS}, got "
        f"{members}; set members to 8 or so."
    )


class UncertainSampler(io.ComfyNode):
    """What our samplers have in common."""

    @classmethod
    def validate_inputs(cls, members) -> bool | str:
        return members_problem(members) or True


def check(
    head, model, latent: dict, members: int, seed: int, before: Uncertainty | None = None
) -> Posterior | NoPosterior:
    """Check what the user gave, before any work: the posterior of ``model``, if there is a head."""
    if problem := members_problem(members):
        raise ValueError(problem)
    check_latent(model, latent)
    warn_of_mixed_masks(latent)
    # Draw k of one head is the same W in every stage.
    return posterior_of(head, model, seed if before is None else before.handover.seed)


def sample(
    run: Run,
    latent: dict,
    posterior: Posterior | NoPosterior,
    quality: str,
    members: int,
    options: UncertaintyOptions | None,
    before: Uncertainty | None = None,
) -> Sampled:
    options = options or UncertaintyOptions()
    estimator = options.estimator or (NO_HEAD if isinstance(posterior, NoPosterior) else make_quality(quality, members))
    if estimator is NO_HEAD:
        logging.info(
            "BayesDiff: no Laplace head is connected, so the uncertainty is a first look: how much the image was yet "
            "to change in the run. Fit Laplace Head makes it better."
        )
    progress = Progress(posterior.model, options.map_preview)
    return sample_with_uncertainty(run, latent, posterior, estimator, options.save_at, progress, before)


class KSamplerBayesDiff(UncertainSampler):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="BayesDiffKSampler",
            display_name="KSampler (BayesDiff)",
            category=CATEGORY,
            **search_words("sample with uncertainty", "Bayesian sampler", "confidence"),
            description="Returns the stock KSampler's latent, bit for bit, plus a map of how unsure the model is.",
            inputs=[
                io.Model.Input("model", tooltip="The model used for denoising the input latent."),
                seed_input(),
                *schedule_inputs(),
                denoise_input(),
                *uncertainty_inputs(),
                before_input(),
            ],
            outputs=[
                io.Latent.Output("latent", display_name="latent", tooltip="The stock KSampler's latent, bit for bit."),
                *sampler_outputs(),
            ],
        )

    @classmethod
    def execute(
        cls, model, seed, latent_image, quality, members, head=None, options=None, uncertainty=None, **settings
    ) -> io.NodeOutput:
        run_settings = RunSettings(**settings)

        def run(model, latent):
            return run_settings.sample(model, latent, seed)

        posterior = check(head, model, latent_image, members, seed, uncertainty)
        sampled = sample(run, latent_image, posterior, quality, members, options, uncertainty)
        return io.NodeOutput(sampled.latent, *read_out(sampled.uncertainty))


class KSamplerAdvancedBayesDiff(UncertainSampler):
    @classmethod
    def define_schema(cls) -> io.Schema:
        switch = ["enable", "disable"]
        return io.Schema(
            node_id="BayesDiffKSamplerAdvanced",
            display_name="KSampler Advanced (BayesDiff)",
            category=CATEGORY,
            **search_words("sample with uncertainty", "Bayesian sampler", "confidence"),
            description="Returns the stock KSampler (Advanced)'s latent, bit for bit, plus a map of how unsure the "
            "model is. For runs in stages: connect the uncertainty of the stage before.",
            inputs=[
                io.Model.Input("model", tooltip="The model used for denoising the input latent."),
                io.Combo.Input("add_noise", options=switch, tooltip="Whether to add noise to the latent first."),
                seed_input("noise_seed"),
                *schedule_inputs(),
                io.Int.Input("start_at_step", default=0, min=0, max=10000, tooltip="First step of this stage."),
                io.Int.Input("end_at_step", default=10000, min=0, max=10000, tooltip="Step to stop before."),
                io.Combo.Input(
                    "return_with_leftover_noise",
                    options=switch[::-1],
                    tooltip="Enable to leave the noise of later steps in the latent, for another stage.",
                ),
                *uncertainty_inputs(),
                before_input(),
            ],
            outputs=[
                io.Latent.Output(
                    "latent", display_name="latent", tooltip="The stock KSampler (Advanced)'s latent, bit for bit."
                ),
                *sampler_outputs(),
            ],
        )

    @classmethod
    def execute(
        cls,
        model,
        add_noise,
        noise_seed,
        latent_image,
        start_at_step,
        end_at_step,
        return_with_leftover_noise,
        quality,
        members,
        head=None,
        options=None,
        uncertainty=None,
        **settings,
    ) -> io.NodeOutput:
        run_settings = RunSettings(**settings)
        stage = dict(
            disable_noise=add_noise == "disable",
            start_step=start_at_step,
            last_step=end_at_step,
            force_full_denoise=return_with_leftover_noise == "disable",
        )

        def run(model, latent):
            return run_settings.sample(model, latent, noise_seed, **stage)

        posterior = check(head, model, latent_image, members, noise_seed, uncertainty)
        sampled = sample(run, latent_image, posterior, quality, members, options, uncertainty)
        return io.NodeOutput(sampled.latent, *read_out(sampled.uncertainty))


class SamplerCustomBayesDiff(UncertainSampler):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="BayesDiffSamplerCustomAdvanced",
            display_name="SamplerCustomAdvanced (BayesDiff)",
            category=CATEGORY,
            **search_words("sample with uncertainty", "Bayesian sampler", "confidence"),
            description="Returns the stock SamplerCustomAdvanced's latents, bit for bit, plus a map of how unsure the "
            "model is. Takes any guider, sampler and sigmas.",
            inputs=[
                io.Noise.Input("noise", tooltip="Starting noise; its seed also seeds the draws."),
                io.Guider.Input("guider", tooltip="Model, prompts and how to mix them."),
                io.Sampler.Input("sampler", tooltip="The sampling algorithm."),
                io.Sigmas.Input("sigmas", tooltip="Sigmas of the steps."),
                io.Latent.Input("latent_image", tooltip="The latent to denoise; its noise mask is honoured."),
                *uncertainty_inputs(),
                before_input(),
            ],
            outputs=[
                io.Latent.Output(
                    "latent", display_name="latent", tooltip="The stock SamplerCustomAdvanced's output, bit for bit."
                ),
                io.Latent.Output("denoised_latent", display_name="denoised latent", tooltip="The denoised output."),
                *sampler_outputs(),
            ],
        )

    @classmethod
    def execute(
        cls, noise, guider, sampler, sigmas, latent_image, quality, members, head=None, options=None, uncertainty=None
    ) -> io.NodeOutput:
        run = CustomRun(noise, guider, sampler, sigmas)
        posterior = check(head, guider.model_patcher, latent_image, members, noise.seed, uncertainty)
        sampled = sample(run, latent_image, posterior, quality, members, options, uncertainty)
        return io.NodeOutput(sampled.latent, run.denoised, *read_out(sampled.uncertainty))

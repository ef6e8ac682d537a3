"""Samplers that return the latent and how unsure the model is of it."""

from __future__ import annotations

import copy

import comfy.samplers
from comfy_api.latest import io
from comfy_extras.nodes_custom_sampler import SamplerCustomAdvanced
from nodes import common_ksampler

from ..bayesdiff_core.estimators.deviations import Deviations
from ..bayesdiff_core.estimators.ensemble import Ensemble
from ..host.last_layer import check_head, check_latent
from ..host.sampling import Run, Wishes, sample_with_uncertainty
from ..host.schema import search_words
from .options import UncertaintyOptions
from .types import CATEGORY, LaplaceHeadType, UncertaintyOptionsType, UncertaintyType

ENSEMBLE = "ensemble"
FEWEST, MOST = 2, 256  # members of an ensemble
# Chosen on the frontier of fidelity and cost, see docs/sampling.md.
QUALITIES = {
    "draft": Deviations(states=5, share=0.25),
    "balanced": Deviations(states=7, share=1.0),
    "precise": Deviations(states=8, share=3.0),
}


def uncertainty_inputs() -> list[io.Input]:
    """What our samplers ask beyond the stock ones."""
    return [
        LaplaceHeadType.Input("head", tooltip="Laplace head of this model, fitted or loaded."),
        io.Combo.Input(
            "quality",
            options=[*QUALITIES, ENSEMBLE],
            default="balanced",
            tooltip="At most 1.25, 2 and 4 times the network calls of plain sampling at 20 steps; more "
            "calls, less noise in the map. Ensemble: samples every member from start to end, the reference.",
        ),
        io.Int.Input(
            "members",
            default=8,
            min=FEWEST,
            max=MOST,
            tooltip="For quality 'ensemble' only: draws of the model's last layer. Each samples the picture once more.",
        ),
        UncertaintyOptionsType.Input(
            "options", optional=True, tooltip="For experts: another estimator, the trajectory's variance, the preview."
        ),
    ]


def uncertainty_outputs() -> list[io.Output]:
    return [
        UncertaintyType.Output("uncertainty", display_name="uncertainty", tooltip="Variance of every latent cell."),
        io.Float.Output(
            "scores", display_name="scores", is_output_list=True, tooltip="One score a picture: higher is less certain."
        ),
    ]


def schedule_inputs() -> list[io.Input]:
    """Steps, guidance and noise levels as the stock KSampler asks for them."""
    return [
        io.Int.Input("steps", default=20, min=1, max=10000, tooltip="Number of denoising steps."),
        io.Float.Input(
            "cfg",
            default=8.0,
            min=0.0,
            max=100.0,
            step=0.1,
            round=0.01,
            tooltip="Classifier-free guidance: how closely the picture follows the prompt.",
        ),
        io.Combo.Input("sampler_name", options=comfy.samplers.KSampler.SAMPLERS, tooltip="The sampling algorithm."),
        io.Combo.Input(
            "scheduler", options=comfy.samplers.KSampler.SCHEDULERS, tooltip="How noise is removed over steps."
        ),
        io.Conditioning.Input("positive", tooltip="What the picture should show."),
        io.Conditioning.Input("negative", tooltip="What the picture should not show."),
        io.Latent.Input("latent_image", tooltip="The latent to denoise; a noise mask in it is honoured."),
    ]


def seed_input(name: str) -> io.Input:
    return io.Int.Input(
        name,
        default=0,
        min=0,
        max=0xFFFFFFFFFFFFFFFF,
        control_after_generate=True,
        tooltip="Seed of the noise, and of the draws of the last layer.",
    )


def members_problem(members: int | None) -> str | None:
    """One sentence if ``members`` cannot be, None where it can or is not known yet."""
    if members is None or FEWEST <= members <= MOST:
        return None
    return (
        f"Expected at least {FEWEST} ensemble members to measure a spread and at most {MOST}, got {members}; set "
        "members to 8 or so."
    )


class UncertainSampler(io.ComfyNode):
    """What our samplers have in common."""

    @classmethod
    def validate_inputs(cls, members) -> bool | str:
        return members_problem(members) or True


def sample(
    run: Run, model, latent: dict, head, quality: str, members: int, options: UncertaintyOptions | None, seed: int
):
    """Check what the user gave, then sample: ``(latent, denoised latent, uncertainty)``."""
    if problem := members_problem(members):
        raise ValueError(problem)
    check_latent(model, latent)
    layer = check_head(head, model)
    estimator = Ensemble(members) if quality == ENSEMBLE else QUALITIES[quality]
    if options is not None and options.estimator is not None:
        estimator = options.estimator
    wishes = Wishes() if options is None else options.wishes
    return sample_with_uncertainty(run, model, layer, head, estimator, seed, wishes)


class KSamplerBayesDiff(UncertainSampler):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="BayesDiffKSampler",
            display_name="KSampler (BayesDiff)",
            category=CATEGORY,
            **search_words("sample with uncertainty", "Bayesian sampler", "confidence"),
            description="The stock KSampler, latent for latent, and beside it how unsure the model is of every part of "
            "the picture.",
            inputs=[
                io.Model.Input("model", tooltip="The model used for denoising the input latent."),
                seed_input("seed"),
                *schedule_inputs(),
                io.Float.Input(
                    "denoise",
                    default=1.0,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    tooltip="Amount of denoising; below 1 keeps the structure of the input latent.",
                ),
                *uncertainty_inputs(),
            ],
            outputs=[
                io.Latent.Output("latent", display_name="latent", tooltip="The stock KSampler's latent, bit for bit."),
                *uncertainty_outputs(),
            ],
        )

    @classmethod
    def execute(
        cls, model, seed, steps, cfg, sampler_name, scheduler, positive, negative, latent_image, denoise, head, quality,
        members, options=None,
    ) -> io.NodeOutput:  # fmt: skip
        def run(model):
            return common_ksampler(
                model, seed, steps, cfg, sampler_name, scheduler, positive, negative, latent_image, denoise=denoise
            )[0]

        latent, _, uncertainty = sample(run, model, latent_image, head, quality, members, options, seed)
        return io.NodeOutput(latent, uncertainty, uncertainty.scores().tolist())


class KSamplerAdvancedBayesDiff(UncertainSampler):
    @classmethod
    def define_schema(cls) -> io.Schema:
        switch = ["enable", "disable"]
        return io.Schema(
            node_id="BayesDiffKSamplerAdvanced",
            display_name="KSampler Advanced (BayesDiff)",
            category=CATEGORY,
            **search_words("sample with uncertainty", "Bayesian sampler", "confidence"),
            description="The stock KSampler (Advanced), latent for latent, and beside it the uncertainty. Of a run in "
            "stages it sees its own stage alone.",
            inputs=[
                io.Model.Input("model", tooltip="The model used for denoising the input latent."),
                io.Combo.Input("add_noise", options=switch, tooltip="Whether noise is added to the latent at first."),
                seed_input("noise_seed"),
                *schedule_inputs(),
                io.Int.Input("start_at_step", default=0, min=0, max=10000, tooltip="First step of this stage."),
                io.Int.Input("end_at_step", default=10000, min=0, max=10000, tooltip="Step to stop before."),
                io.Combo.Input(
                    "return_with_leftover_noise",
                    options=switch[::-1],
                    tooltip="Enable to leave the noise of the steps to come in the latent, for another stage.",
                ),
                *uncertainty_inputs(),
            ],
            outputs=[
                io.Latent.Output(
                    "latent", display_name="latent", tooltip="The stock KSampler (Advanced)'s latent, bit for bit."
                ),
                *uncertainty_outputs(),
            ],
        )

    @classmethod
    def execute(
        cls, model, add_noise, noise_seed, steps, cfg, sampler_name, scheduler, positive, negative, latent_image,
        start_at_step, end_at_step, return_with_leftover_noise, head, quality, members, options=None,
    ) -> io.NodeOutput:  # fmt: skip
        def run(model):
            return common_ksampler(
                model, noise_seed, steps, cfg, sampler_name, scheduler, positive, negative, latent_image,
                disable_noise=add_noise == "disable", start_step=start_at_step, last_step=end_at_step,
                force_full_denoise=return_with_leftover_noise == "disable",
            )[0]  # fmt: skip

        latent, _, uncertainty = sample(run, model, latent_image, head, quality, members, options, noise_seed)
        return io.NodeOutput(latent, uncertainty, uncertainty.scores().tolist())


class SamplerCustomBayesDiff(UncertainSampler):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="BayesDiffSamplerCustomAdvanced",
            display_name="SamplerCustomAdvanced (BayesDiff)",
            category=CATEGORY,
            **search_words("sample with uncertainty", "Bayesian sampler", "confidence"),
            description="The stock SamplerCustomAdvanced with any guider, sampler and sigmas, latent for latent, and "
            "beside it the uncertainty.",
            inputs=[
                io.Noise.Input("noise", tooltip="Noise to start from; its seed is the draws' too."),
                io.Guider.Input("guider", tooltip="Model, prompts and how they are mixed."),
                io.Sampler.Input("sampler", tooltip="The sampling algorithm."),
                io.Sigmas.Input("sigmas", tooltip="Noise levels of the steps."),
                io.Latent.Input("latent_image", tooltip="The latent to denoise; a noise mask in it is honoured."),
                *uncertainty_inputs(),
            ],
            outputs=[
                io.Latent.Output(
                    "latent", display_name="latent", tooltip="The stock SamplerCustomAdvanced's output, bit for bit."
                ),
                io.Latent.Output("denoised_latent", display_name="denoised latent", tooltip="Its denoised output."),
                *uncertainty_outputs(),
            ],
        )

    @classmethod
    def execute(
        cls, noise, guider, sampler, sigmas, latent_image, head, quality, members, options=None
    ) -> io.NodeOutput:
        def run(model):
            guiding = copy.copy(guider)
            # Its options stay its own; the host adds the model's wrappers to them.
            guiding.model_patcher = model
            return SamplerCustomAdvanced.execute(noise, guiding, sampler, sigmas, latent_image)[0]

        model = guider.model_patcher
        latent, denoised, uncertainty = sample(run, model, latent_image, head, quality, members, options, noise.seed)
        return io.NodeOutput(latent, denoised, uncertainty, uncertainty.scores().tolist())

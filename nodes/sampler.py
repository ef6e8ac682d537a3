"""Samplers that return the latent and how unsure the model is of it."""

from __future__ import annotations

import comfy.samplers
from comfy_api.latest import io
from nodes import common_ksampler

from ..host.last_layer import check_head, check_latent
from ..host.sampling import sample_with_ensemble
from .types import CATEGORY, LaplaceHeadType, UncertaintyType


class KSamplerBayesDiff(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="BayesDiffKSampler",
            display_name="KSampler (BayesDiff)",
            category=CATEGORY,
            description="The stock KSampler, latent for latent, and beside it how unsure the model is of every part of "
            "the picture.",
            inputs=[
                io.Model.Input("model", tooltip="The model used for denoising the input latent."),
                io.Int.Input(
                    "seed",
                    default=0,
                    min=0,
                    max=0xFFFFFFFFFFFFFFFF,
                    control_after_generate=True,
                    tooltip="Seed of the noise, and of the draws of the last layer.",
                ),
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
                io.Combo.Input(
                    "sampler_name", options=comfy.samplers.KSampler.SAMPLERS, tooltip="The sampling algorithm."
                ),
                io.Combo.Input(
                    "scheduler", options=comfy.samplers.KSampler.SCHEDULERS, tooltip="How noise is removed over steps."
                ),
                io.Conditioning.Input("positive", tooltip="What the picture should show."),
                io.Conditioning.Input("negative", tooltip="What the picture should not show."),
                io.Latent.Input("latent_image", tooltip="The latent to denoise; a noise mask in it is honoured."),
                io.Float.Input(
                    "denoise",
                    default=1.0,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    tooltip="Amount of denoising; below 1 keeps the structure of the input latent.",
                ),
                LaplaceHeadType.Input("head", tooltip="Laplace head of this model, fitted or loaded."),
                io.Int.Input(
                    "members",
                    default=8,
                    min=2,
                    max=256,
                    tooltip="Draws of the model's last layer. Each samples the picture once more; more make a smoother "
                    "map.",
                ),
            ],
            outputs=[
                io.Latent.Output("latent", tooltip="The stock KSampler's latent, bit for bit."),
                UncertaintyType.Output("uncertainty", tooltip="Variance of every latent cell."),
                io.Float.Output("scores", is_output_list=True, tooltip="One score a picture: higher is less certain."),
            ],
        )

    @classmethod
    def validate_inputs(cls, members) -> bool | str:
        return members_problem(members) or True

    @classmethod
    def execute(
        cls, model, seed, steps, cfg, sampler_name, scheduler, positive, negative, latent_image, denoise, head, members
    ) -> io.NodeOutput:
        if problem := members_problem(members):
            raise ValueError(problem)
        check_latent(model, latent_image)
        layer = check_head(head, model)

        def run(model):
            return common_ksampler(
                model, seed, steps, cfg, sampler_name, scheduler, positive, negative, latent_image, denoise=denoise
            )[0]

        latent, uncertainty = sample_with_ensemble(run, model, layer, head, members, seed)
        return io.NodeOutput(latent, uncertainty, uncertainty.scores().tolist())


def members_problem(members: int | None) -> str | None:
    """One sentence if ``members`` cannot be, None where it can or is not known yet."""
    if members is None or members >= 2:
        return None
    return f"Expected at least 2 ensemble members to measure a spread, got {members}; set members to 8 or so."

"""An uncertainty for a first look, without a Laplace head."""

from __future__ import annotations

from comfy_api.latest import io

from ..bayesdiff_core.estimators.redrawing import Redrawing
from ..bayesdiff_core.estimators.registry import REDRAW
from ..bayesdiff_core.estimators.renoising import Renoising
from ..host.compat import ADVANCED, search_words
from ..host.latents import check_latent, require_content
from ..host.settings import Guidance
from ..host.uses.redraw import redraw
from ..host.uses.renoise import renoise
from .inputs import CATEGORY, cfg_input, uncertainty_outputs

RENOISE = "re-noise"


class UncertaintyWithoutHead(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="BayesDiffRenoise",
            display_name="Uncertainty without a Head (BayesDiff)",
            category=CATEGORY,
            **search_words("confidence", "variance"),
            description="Draws finished latents again from half-way and measures what changes, or adds noise several "
            "times and measures how far predictions disagree. Needs no fit and works on any latent of the model.",
            inputs=[
                io.Model.Input("model", tooltip="The model that the latent was sampled with."),
                io.Conditioning.Input("positive", tooltip="The prompt that it was sampled with."),
                io.Conditioning.Input("negative", tooltip="Its negative prompt."),
                io.Latent.Input("latent", tooltip="Finished latents from any sampler or VAE Encode."),
                cfg_input("Guidance of the predictions; ideally the sampler's cfg."),
                io.Int.Input(
                    "draws",
                    default=5,
                    min=2,
                    max=256,
                    tooltip="Re-noise only: noise draws per level, one network call each. More give a less noisy map.",
                ),
                io.Int.Input(
                    "levels", default=1, min=1, max=64, tooltip="Re-noise only: number of levels on the schedule."
                ),
                io.Float.Input(
                    "highest",
                    default=0.5,
                    min=0.01,
                    max=0.99,
                    step=0.01,
                    **ADVANCED,
                    tooltip="Re-noise only: highest level, as a share of the schedule: higher looks at larger shapes.",
                ),
                io.Float.Input(
                    "lowest",
                    default=0.5,
                    min=0.01,
                    max=0.99,
                    step=0.01,
                    **ADVANCED,
                    tooltip="Re-noise only: lowest level, on the same scale: lower looks at details.",
                ),
                io.Int.Input(
                    "seed",
                    default=0,
                    min=0,
                    max=0xFFFFFFFFFFFFFFFF,
                    control_after_generate=False,
                    tooltip="Seed of the noise.",
                ),
                # Saved graphs store numbers by position: what came later stands last.
                io.Combo.Input(
                    "method",
                    options=[REDRAW.name, RENOISE],
                    default=REDRAW.name,
                    optional=True,
                    tooltip="Redraw: samples the image again from half-way; what is far from anything real changes "
                    "most. Re-noise: how far single predictions disagree.",
                ),
                io.Float.Input(
                    "redraw_from",
                    default=REDRAW.level,
                    min=0.05,
                    max=50.0,
                    step=0.05,
                    optional=True,
                    **ADVANCED,
                    tooltip="Redraw only: how much noise to start from, as a multiple of the signal. Too much draws "
                    "another image.",
                ),
                io.Int.Input(
                    "redraw_steps",
                    default=REDRAW.steps,
                    min=1,
                    max=100,
                    optional=True,
                    **ADVANCED,
                    tooltip="Redraw only: steps, a network call each.",
                ),
            ],
            outputs=uncertainty_outputs(),
        )

    @classmethod
    def execute(
        cls,
        model,
        positive,
        negative,
        latent,
        cfg,
        seed,
        method=RENOISE,
        redraw_from=REDRAW.level,
        redraw_steps=REDRAW.steps,
        **renoising,
    ) -> io.NodeOutput:
        check_latent(model, latent)
        require_content(latent, "add noise to")
        guidance, samples = Guidance(positive, negative, cfg), latent["samples"]
        if method == RENOISE:  # what graphs of 0.1 mean, which know no method
            uncertainty = renoise(model, samples, guidance, Renoising(**renoising), seed)
        else:
            uncertainty = redraw(model, samples, guidance, Redrawing(redraw_from, redraw_steps), seed)
        return io.NodeOutput(uncertainty, uncertainty.scores().tolist())

"""An uncertainty for a first look, without a Laplace head."""

from __future__ import annotations

from comfy_api.latest import io

from ..bayesdiff_core.estimators.renoising import Renoising
from ..host.compat import ADVANCED, search_words
from ..host.latents import check_latent, require_content
from ..host.settings import Guidance
from ..host.uses.renoise import renoise
from .inputs import CATEGORY, cfg_input, uncertainty_outputs


class UncertaintyWithoutHead(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="BayesDiffRenoise",
            display_name="Uncertainty without a Head (BayesDiff)",
            category=CATEGORY,
            **search_words("confidence", "variance"),
            description="Adds noise to finished latents several times and measures how far the model's predictions "
            "disagree. Needs no fit and works on any latent of the model, but tells less than a Laplace head.",
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
                    tooltip="Noise draws per level, one network call each. More give a less noisy map.",
                ),
                io.Int.Input("levels", default=1, min=1, max=64, tooltip="Number of levels on the schedule."),
                io.Float.Input(
                    "highest",
                    default=0.5,
                    min=0.01,
                    max=0.99,
                    step=0.01,
                    **ADVANCED,
                    tooltip="Highest level, as a share of the schedule: higher looks at larger shapes.",
                ),
                io.Float.Input(
                    "lowest",
                    default=0.5,
                    min=0.01,
                    max=0.99,
                    step=0.01,
                    **ADVANCED,
                    tooltip="Lowest level, on the same scale: lower looks at details.",
                ),
                io.Int.Input(
                    "seed",
                    default=0,
                    min=0,
                    max=0xFFFFFFFFFFFFFFFF,
                    control_after_generate=False,
                    tooltip="Seed of the noise.",
                ),
            ],
            outputs=uncertainty_outputs(),
        )

    @classmethod
    def execute(cls, model, positive, negative, latent, cfg, seed, **renoising) -> io.NodeOutput:
        check_latent(model, latent)
        require_content(latent, "add noise to")
        guidance = Guidance(positive, negative, cfg)
        uncertainty = renoise(model, latent["samples"], guidance, Renoising(**renoising), seed)
        return io.NodeOutput(uncertainty, uncertainty.scores().tolist())

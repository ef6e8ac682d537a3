"""An uncertainty for a first look, with no Laplace head."""

from __future__ import annotations

from comfy_api.latest import io

from ..host.last_layer import check_latent
from ..host.renoising import renoise
from ..host.schema import ADVANCED, search_words
from .sampler import uncertainty_outputs
from .types import CATEGORY


class UncertaintyWithoutHead(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="BayesDiffRenoise",
            display_name="Uncertainty without a Head (BayesDiff)",
            category=CATEGORY,
            **search_words("confidence", "variance"),
            description="Noises finished latents again and again and sees how far the model's predictions of them "
            "disagree. Needs no fit and works on any latent of the model; it tells less than a Laplace head.",
            inputs=[
                io.Model.Input("model", tooltip="The model that the latent was sampled with."),
                io.Conditioning.Input("positive", tooltip="The prompt that it was sampled with."),
                io.Conditioning.Input("negative", tooltip="The negative prompt, likewise."),
                io.Latent.Input("latent", tooltip="Finished latents, of any sampler or of VAE Encode."),
                io.Float.Input(
                    "cfg",
                    default=8.0,
                    min=0.0,
                    max=100.0,
                    step=0.1,
                    round=0.01,
                    tooltip="Guidance of the predictions; that of the sampling is best.",
                ),
                io.Int.Input(
                    "draws",
                    default=5,
                    min=2,
                    max=256,
                    tooltip="Draws of noise at each level, one network call each. More make a map less noisy.",
                ),
                io.Int.Input("levels", default=1, min=1, max=64, tooltip="At how many noise levels to do it."),
                io.Float.Input(
                    "highest",
                    default=0.5,
                    min=0.01,
                    max=0.99,
                    step=0.01,
                    **ADVANCED,
                    tooltip="Highest noise level, as a share of the schedule: more looks at larger shapes.",
                ),
                io.Float.Input(
                    "lowest",
                    default=0.5,
                    min=0.01,
                    max=0.99,
                    step=0.01,
                    **ADVANCED,
                    tooltip="Lowest noise level, likewise: less looks at finer detail.",
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
    def execute(
        cls, model, positive, negative, latent, cfg, draws, levels, highest, lowest, seed
    ) -> io.NodeOutput:  # fmt: skip
        check_latent(model, latent)
        if not latent["samples"].any():
            raise ValueError(
                "Expected finished latents to noise again, got an empty latent; connect a sampler's output or VAE "
                "Encode."
            )
        uncertainty = renoise(model, latent["samples"], positive, negative, cfg, highest, lowest, levels, draws, seed)
        return io.NodeOutput(uncertainty, uncertainty.scores().tolist())

"""An image and its members through whatever lies between two stages."""

from __future__ import annotations

from comfy_api.latest import io

from ..bayesdiff_core.reading.members import as_batch, from_batch
from ..host.compat import search_words
from ..host.nested import latent_of
from .inputs import CATEGORY, UncertaintyType, nothing_to_read


class UncertaintyToLatents(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="BayesDiffUncertaintyToLatents",
            display_name="Uncertainty to Latents (BayesDiff)",
            category=CATEGORY,
            **search_words("members", "two stages", "hires fix"),
            description="Returns images and posterior members as one batch of latents, so that any node (upscale, "
            "decode and encode, crop, rotate) changes all of them alike. Latents to Uncertainty turns them back.",
            inputs=[
                UncertaintyType.Input("uncertainty", tooltip="From a sampler (BayesDiff), of a quality with members."),
                io.Int.Input(
                    "members",
                    default=0,
                    min=0,
                    max=256,
                    tooltip="At most this many members per image; 0 for all that the sampler kept. Each is one more "
                    "latent for the nodes that follow.",
                ),
            ],
            outputs=[
                io.Latent.Output(
                    "latents",
                    display_name="latents",
                    tooltip="All images, then the first member of each, then the second, and so on.",
                )
            ],
        )

    @classmethod
    def execute(cls, uncertainty, members) -> io.NodeOutput:
        if nothing := nothing_to_read(cls, uncertainty):
            return nothing
        return io.NodeOutput({"samples": as_batch(uncertainty, members)})


class LatentsToUncertainty(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="BayesDiffLatentsToUncertainty",
            display_name="Latents to Uncertainty (BayesDiff)",
            category=CATEGORY,
            **search_words("members", "two stages", "hires fix"),
            description="Turns a batch that Uncertainty to Latents made, changed by other nodes, back into images and "
            "their uncertainty, for the next sampler.",
            inputs=[
                io.Latent.Input("latents", tooltip="The changed batch, in its order."),
                UncertaintyType.Input("uncertainty", tooltip="What went into Uncertainty to Latents."),
            ],
            outputs=[
                io.Latent.Output("latent", display_name="latent", tooltip="The changed images alone."),
                UncertaintyType.Output("uncertainty_out", display_name="uncertainty", tooltip="Of the changed images."),
            ],
        )

    @classmethod
    def execute(cls, latents, uncertainty) -> io.NodeOutput:
        found = from_batch(latents["samples"], uncertainty)
        return io.NodeOutput({"samples": latent_of(found)}, found)

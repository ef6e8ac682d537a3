"""Clips with sound: the uncertainty of each."""

from __future__ import annotations

from comfy_api.latest import io
from comfy_execution.graph_utils import ExecutionBlocker

from ..host.compat import search_words
from .inputs import CATEGORY, UncertaintyType

NO_SOUND = (
    "Expected the uncertainty of a nested latent, of video with sound, got one that has no sound; take it from a "
    "sampler (BayesDiff) whose latent has both."
)


class SeparateAVUncertainty(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="BayesDiffSeparateAVUncertainty",
            display_name="Separate AV Uncertainty (BayesDiff)",
            category=CATEGORY,
            **search_words("sound", "audio", "nested latent"),
            description="Splits the uncertainty of video with sound, as Separate AV Latent splits its latent. "
            "Uncertainty Score and Plot read that of the sound, over time.",
            inputs=[UncertaintyType.Input("uncertainty", tooltip="From a sampler (BayesDiff), of video with sound.")],
            outputs=[
                UncertaintyType.Output(
                    "video", display_name="video", tooltip="Of the video alone, for all nodes that make maps and masks."
                ),
                UncertaintyType.Output(
                    "audio",
                    display_name="audio",
                    tooltip="Of the sound: for Uncertainty Score, and for Uncertainty Plot over frames.",
                ),
            ],
        )

    @classmethod
    def execute(cls, uncertainty) -> io.NodeOutput:
        video, *others = uncertainty.parts
        return io.NodeOutput(video, others[0] if others else ExecutionBlocker(NO_SOUND))

"""Plots of an uncertainty."""

from __future__ import annotations

from comfy_api.latest import io

from ..bayesdiff_core.drawing.plots import plot_over_frames, plot_over_sigma, plot_scores
from ..bayesdiff_core.reading.scores import DEFAULT, SCORES
from ..host.compat import search_words
from .inputs import CATEGORY, UncertaintyType, nothing_to_read

HISTOGRAM, OVER_SIGMA, OVER_FRAMES = "scores of the batch", "uncertainty over sigma", "uncertainty over frames"


class UncertaintyPlot(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="BayesDiffUncertaintyPlot",
            display_name="Uncertainty Plot (BayesDiff)",
            category=CATEGORY,
            **search_words("histogram", "curve"),
            description="Plots how a batch's scores are spread, how the uncertainty grows during sampling, or which "
            "frames of a clip are unsure.",
            inputs=[
                UncertaintyType.Input("uncertainty", tooltip="From any sampler (BayesDiff)."),
                io.Combo.Input(
                    "plot",
                    options=[HISTOGRAM, OVER_SIGMA, OVER_FRAMES],
                    default=HISTOGRAM,
                    tooltip="Scores: a histogram with each image's number below its bar. Over sigma: the mean "
                    "standard deviation at the sigmas that the sampler kept, from noise to image. Over frames: the "
                    "score of each frame of clips.",
                ),
                io.Combo.Input(
                    "score",
                    options=list(SCORES),
                    default=DEFAULT,
                    tooltip="For the histogram and over frames: which score.",
                ),
                io.Int.Input("width", default=768, min=256, max=4096, step=8, tooltip="In pixels."),
                io.Int.Input("height", default=512, min=192, max=4096, step=8, tooltip="In pixels."),
            ],
            outputs=[io.Image.Output("image", display_name="image", tooltip="One plot for the whole batch.")],
        )

    @classmethod
    def execute(cls, uncertainty, plot, score, width, height) -> io.NodeOutput:
        if nothing := nothing_to_read(cls, uncertainty):
            return nothing
        if plot == OVER_SIGMA:
            sigmas, stds = uncertainty.std_over_sigma()
            return io.NodeOutput(plot_over_sigma(sigmas, stds, width, height))
        uncertainty.require_numbers()
        if plot == OVER_FRAMES:
            if uncertainty.frames == 1:
                raise ValueError(
                    f"Expected the uncertainty of clips for the plot '{OVER_FRAMES}', got that of single images; "
                    "choose another plot."
                )
            return io.NodeOutput(plot_over_frames(uncertainty.frame_scores(score), score, width, height))
        found, percentiles = uncertainty.scores(score).tolist(), uncertainty.percentiles(score)
        return io.NodeOutput(plot_scores(found, score, width, height, percentiles))

"""Uncertainty as inpainting masks."""

from __future__ import annotations

from comfy_api.latest import io

from ..bayesdiff_core import masks
from ..bayesdiff_core.maps import resize_map
from .types import CATEGORY, UncertaintyType


class UncertaintyToMask(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="BayesDiffUncertaintyToMask",
            display_name="Uncertainty to Mask (BayesDiff)",
            category=CATEGORY,
            description="Masks the part of each picture that the model is least sure of, ready for inpainting.",
            inputs=[
                UncertaintyType.Input("uncertainty", tooltip="From any sampler (BayesDiff)."),
                io.Float.Input(
                    "area",
                    default=0.15,
                    min=0.01,
                    max=1.0,
                    step=0.01,
                    tooltip="Share of the picture to mask, before growing.",
                ),
                io.Int.Input("grow", default=8, min=0, max=512, tooltip="Widen the mask by so many pixels."),
                io.Float.Input(
                    "blur",
                    default=0.0,
                    min=0.0,
                    max=128.0,
                    step=0.5,
                    tooltip="Soften the mask's edge, in pixels. Soft masks want Differential Diffusion.",
                ),
            ],
            outputs=[
                io.Mask.Output(
                    "mask",
                    display_name="mask",
                    tooltip="One mask a picture, at the picture's size: 1 is to be redrawn.",
                )
            ],
        )

    @classmethod
    def execute(cls, uncertainty, area, grow, blur) -> io.NodeOutput:
        std = uncertainty.std_map()
        height, width = (side * uncertainty.downscale for side in std.shape[1:])
        mask = masks.most_uncertain_area(resize_map(std, height, width), area)
        return io.NodeOutput(masks.blur(masks.grow(mask, grow), blur))

"""Uncertainty as inpainting masks."""

from __future__ import annotations

from comfy_api.latest import io

from ..bayesdiff_core.reading import masks
from ..bayesdiff_core.reading.maps import normalise_map
from ..host.compat import ADVANCED, search_words
from .inputs import CATEGORY, UncertaintyType, nothing_to_read

AREA, BATCH, VALUE, OTSU = "area share", "quantile of the batch", "value", "Otsu"


class UncertaintyToMask(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="BayesDiffUncertaintyToMask",
            display_name="Uncertainty to Mask (BayesDiff)",
            category=CATEGORY,
            **search_words("confidence mask", "inpaint mask", "fault mask"),
            description="Masks the part of each image that the model is least sure of, ready for inpainting.",
            inputs=[
                UncertaintyType.Input("uncertainty", tooltip="From any sampler (BayesDiff)."),
                io.Float.Input(
                    "area",
                    default=0.15,
                    min=0.01,
                    max=1.0,
                    step=0.01,
                    tooltip="Share of the image to mask, before growing. For 'area share', and for 'quantile of the "
                    "batch', where it is the share of all images together.",
                ),
                io.Int.Input("grow", default=8, min=0, max=512, tooltip="Pixels to widen the mask by."),
                io.Float.Input(
                    "blur",
                    default=0.0,
                    min=0.0,
                    max=128.0,
                    step=0.5,
                    tooltip="Soften the mask's edge, in pixels. Use with Differential Diffusion.",
                ),
                io.Combo.Input(
                    "threshold",
                    options=[AREA, BATCH, VALUE, OTSU],
                    default=AREA,
                    optional=True,
                    tooltip="Area share: as much of every image. Quantile of the batch: more of the less certain "
                    "images, less or nothing of others. Value: what exceeds a standard deviation. Otsu: splits each "
                    "map where its values fall into two groups.",
                ),
                io.Float.Input(
                    "value",
                    default=0.1,
                    min=0.0,
                    max=1000.0,
                    step=0.001,
                    round=0.0001,
                    optional=True,
                    tooltip="For 'value': mask where the standard deviation of the latent exceeds this. Uncertainty "
                    "Map shows the values on its colour bar.",
                ),
                io.Boolean.Input(
                    "fill_holes", default=False, optional=True, tooltip="Also mask what the mask encloses."
                ),
                io.Int.Input(
                    "smallest_island",
                    default=0,
                    min=0,
                    max=1048576,
                    optional=True,
                    **ADVANCED,
                    tooltip="Drop separate parts of fewer pixels than this, before growing; 0 or 1 keeps all.",
                ),
                io.Boolean.Input(
                    "bounding_box",
                    default=False,
                    optional=True,
                    tooltip="Mask the rectangle around everything masked in an image, before growing.",
                ),
                io.Boolean.Input(
                    "soft",
                    default=False,
                    optional=True,
                    tooltip="Inside the mask, use the map's values up to 1 instead of 1 everywhere: less certain "
                    "parts are redrawn more. Use with Differential Diffusion.",
                ),
                io.Boolean.Input(
                    "invert", default=False, optional=True, tooltip="Mask the rest instead: keep what is uncertain."
                ),
            ],
            outputs=[
                io.Mask.Output(
                    "mask",
                    display_name="mask",
                    tooltip="One mask per image, at the image's size: 1 is to be redrawn.",
                )
            ],
        )

    @classmethod
    def execute(
        cls,
        uncertainty,
        area,
        grow,
        blur,
        threshold=AREA,
        value=0.1,
        fill_holes=False,
        smallest_island=0,
        bounding_box=False,
        soft=False,
        invert=False,
    ) -> io.NodeOutput:
        if nothing := nothing_to_read(cls, uncertainty):
            return nothing
        std = uncertainty.maps()
        if threshold == AREA:
            mask = masks.most_uncertain_area(std, area)
        elif threshold == BATCH:
            mask = masks.most_uncertain_of_batch(std, area)
        elif threshold == VALUE:
            mask = masks.above(std, value)
        else:
            mask = masks.otsu(std)
        if fill_holes:
            mask = masks.fill_holes(mask)
        if smallest_island > 1:
            mask = masks.drop_islands(mask, smallest_island)
        if bounding_box:
            mask = masks.bounding_box(mask)
        mask = masks.grow(mask, grow)
        if soft:
            mask = mask * normalise_map(std, per_image=True)
        mask = masks.blur(mask, blur)
        return io.NodeOutput(1 - mask if invert else mask)

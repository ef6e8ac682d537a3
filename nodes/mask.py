"""Uncertainty as inpainting masks, also set in a latent."""

from __future__ import annotations

import torch
from comfy_api.latest import io

from ..bayesdiff_core.reading import clip_masks, masks
from ..bayesdiff_core.reading.maps import normalise_map
from ..host.compat import ADVANCED, search_words
from ..host.latents import check_same_batch, masked
from .inputs import CATEGORY, UncertaintyType, blur_input, grow_input, nothing_to_read, span_inputs

AREA, BATCH, VALUE, OTSU = "area share", "quantile of the batch", "value", "Otsu"


class UncertaintyToMask(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="BayesDiffUncertaintyToMask",
            display_name="Uncertainty to Mask (BayesDiff)",
            category=CATEGORY,
            **search_words("confidence mask", "inpaint mask", "fault mask"),
            description="Masks the part of each image or clip that the model is least sure of, ready for inpainting.",
            inputs=[
                UncertaintyType.Input("uncertainty", tooltip="From any sampler (BayesDiff)."),
                io.Float.Input(
                    "area",
                    default=0.15,
                    min=0.01,
                    max=1.0,
                    step=0.01,
                    tooltip="Share of the image to mask, before growing. For 'area share', and for 'quantile of the "
                    "batch', where it is the share of all images together. Of a clip, the share of all "
                    "frames of its span.",
                ),
                grow_input(),
                blur_input(),
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
                io.Int.Input(
                    "grow_frames",
                    default=0,
                    min=0,
                    max=1024,
                    optional=True,
                    tooltip="Of clips: frames to widen the mask by, before and after.",
                ),
                *span_inputs(),
                io.Latent.Input(
                    "latent",
                    optional=True,
                    tooltip="Latent to set the mask in, for example from VAE Encode (for Inpainting) or "
                    "InpaintModelConditioning. Without it, the sampled latent.",
                ),
            ],
            outputs=[
                io.Mask.Output(
                    "mask",
                    display_name="mask",
                    tooltip="One mask per image or frame, at the image's size: 1 is to be redrawn.",
                ),
                io.Latent.Output(
                    "masked_latent",
                    display_name="latent",
                    tooltip="The latent with the mask as its noise mask, ready for KSampler. Use it instead of Set "
                    "Latent Noise Mask with video models: each image and each frame gets its own mask.",
                ),
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
        grow_frames=0,
        first_frame=0,
        last_frame=-1,
        fade_frames=0,
        latent=None,
    ) -> io.NodeOutput:
        if nothing := nothing_to_read(cls, uncertainty):
            return nothing
        if latent is None:
            latent = {"samples": uncertainty.latent}
        else:
            check_same_batch(latent, uncertainty)
        inside = clip_masks.span(uncertainty.frames, first_frame, last_frame)
        whole = uncertainty.by_clip(uncertainty.maps())
        std = whole[:, inside.bool()]
        if threshold == AREA:
            mask = masks.most_uncertain_area(std, area)
        elif threshold == BATCH:
            mask = masks.most_uncertain_of_batch(std, area)
        elif threshold == VALUE:
            mask = masks.above(std, value)
        else:
            mask = masks.otsu(std)
        mask = torch.zeros_like(whole).index_copy_(1, inside.nonzero().flatten(), mask)
        mask, inside = mask.flatten(0, 1), inside[:, None, None]
        if fill_holes:
            mask = masks.fill_holes(mask)
        if smallest_island > 1:
            mask = masks.drop_islands(mask, smallest_island)
        if bounding_box:
            mask = masks.bounding_box(mask)
        mask = clip_masks.grow_over_time(uncertainty.by_clip(masks.grow(mask, grow)), grow_frames) * inside
        if soft:
            mask = mask * normalise_map(whole, per_image=True)
        mask = uncertainty.by_clip(masks.blur(mask.flatten(0, 1), blur))
        if invert:
            mask = (1 - mask) * inside
        mask = clip_masks.fade(mask, fade_frames).flatten(0, 1)
        return io.NodeOutput(mask, masked(latent, mask, uncertainty.grid))

"""Uncertainty as pictures."""

from __future__ import annotations

from comfy_api.latest import io

from ..bayesdiff_core.maps import colour_map, normalise_map, overlay_map, resize_map
from .types import CATEGORY, UncertaintyType

PER_IMAGE, PER_BATCH = "each image", "whole batch"


class UncertaintyMap(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="BayesDiffUncertaintyMap",
            display_name="Uncertainty Map (BayesDiff)",
            category=CATEGORY,
            description="Shows where the model is unsure: a heat map, the heat map over the picture, and its values.",
            inputs=[
                UncertaintyType.Input("uncertainty", tooltip="From any sampler (BayesDiff)."),
                io.Vae.Input("vae", tooltip="Decodes the picture that lies under the overlay."),
                io.Combo.Input(
                    "scale",
                    options=[PER_IMAGE, PER_BATCH],
                    default=PER_IMAGE,
                    tooltip="Each image: the brightest part of every map is bright, however sure the model is. Whole "
                    "batch: colours compare images.",
                ),
                io.Float.Input(
                    "opacity",
                    default=0.85,
                    min=0.0,
                    max=1.0,
                    step=0.05,
                    tooltip="How much the overlay hides of the most uncertain parts.",
                ),
            ],
            outputs=[
                io.Image.Output("heat_map", display_name="heat map", tooltip="Dark is certain, bright is uncertain."),
                io.Image.Output("overlay", display_name="overlay", tooltip="The heat map over the picture in grey."),
                io.Mask.Output(
                    "map", display_name="map", tooltip="The map's values from 0 to 1, at the picture's size."
                ),
            ],
        )

    @classmethod
    def execute(cls, uncertainty, vae, scale, opacity) -> io.NodeOutput:
        std = uncertainty.std_map()
        image = vae.decode(uncertainty.latent)
        # Families that also make video decode to a row of frames.
        image = image.reshape(-1, *image.shape[-3:])[..., :3]
        values = normalise_map(resize_map(std, *image.shape[1:3]), per_image=scale == PER_IMAGE)
        return io.NodeOutput(colour_map(values), overlay_map(image, values.to(image.device), opacity), values)

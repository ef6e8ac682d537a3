"""Uncertainty as images."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from comfy_api.latest import io

from ..bayesdiff_core.drawing.sheets import sheet, strip_frames, strips, with_colour_bars
from ..bayesdiff_core.reading.maps import COLOUR_MAPS, colour_map, map_tops, normalise_map, overlay_map
from ..bayesdiff_core.reading.uncertainty import Uncertainty
from ..host.compat import ADVANCED, search_words
from ..host.decode import decode, decoded_std, seen_through
from .inputs import CATEGORY, UncertaintyType, nothing_to_read

PER_IMAGE, PER_BATCH = "each image", "whole batch"
LATENT, PIXELS, TILED = "latent", "pixels", "pixels, tiled"


def drawn_rows(uncertainty: Uncertainty, columns: list[torch.Tensor]) -> torch.Tensor:
    """One sheet of the images in these columns; of clips, a strip of frames for each column, one below the other."""
    captions = [f"{i}: {words}" for i, words in enumerate(uncertainty.captions())]
    if uncertainty.frames == 1:
        return sheet(columns, captions)
    rows = [strips(uncertainty.by_clip(column)) for column in columns]
    width = max(row.shape[2] for row in rows)
    rows = [F.pad(row, (0, 0, 0, width - row.shape[2]), value=1.0) for row in rows]
    frames = ", ".join(map(str, strip_frames(uncertainty.frames)))
    return sheet([torch.cat([row.cpu() for row in rows], dim=1)], [f"{words}; frames {frames}" for words in captions])


class UncertaintyMap(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="BayesDiffUncertaintyMap",
            display_name="Uncertainty Map (BayesDiff)",
            category=CATEGORY,
            **search_words("heat map", "confidence", "variance", "error map"),
            description="Shows where the model is unsure: a heat map, the heat map over the image, and its values. Of "
            "clips, one of each for every frame.",
            inputs=[
                UncertaintyType.Input("uncertainty", tooltip="From any sampler (BayesDiff)."),
                io.Vae.Input("vae", tooltip="Decodes the image under the overlay."),
                io.Combo.Input(
                    "scale",
                    options=[PER_IMAGE, PER_BATCH],
                    default=PER_IMAGE,
                    tooltip="Each image: every map uses all colours, however certain the model is; the frames of "
                    "a clip share one scale. Whole batch: compare images by colour.",
                ),
                io.Float.Input(
                    "opacity",
                    default=0.85,
                    min=0.0,
                    max=1.0,
                    step=0.05,
                    tooltip="Opacity of the overlay at the least certain parts.",
                ),
                io.Combo.Input(
                    "resolution",
                    options=[LATENT, PIXELS, TILED],
                    default=LATENT,
                    optional=True,
                    tooltip="Latent: the latent's map, enlarged; quick. Pixels: how far each pixel of the decoded "
                    "image could have differed. This decodes the sampler's posterior members or, if it kept fewer "
                    "than three, draws, which is rougher. Tiled: the same with less memory.",
                ),
                io.Int.Input(
                    "tile_size",
                    default=512,
                    min=64,
                    max=4096,
                    step=32,
                    optional=True,
                    **ADVANCED,
                    tooltip="For 'pixels, tiled': side of a tile in pixels.",
                ),
                io.Combo.Input(
                    "colours",
                    options=list(COLOUR_MAPS),
                    default="inferno",
                    optional=True,
                    tooltip="Colour map of the heat map and the overlay, from certain to uncertain.",
                ),
                io.Boolean.Input(
                    "colour_bar",
                    default=False,
                    optional=True,
                    tooltip="Draw the scale at the right of each heat map, in standard deviations of the latent or, in "
                    "pixels, of colours from 0 to 1. The heat map becomes wider than the image.",
                ),
            ],
            outputs=[
                io.Image.Output("heat_map", display_name="heat map", tooltip="Dark is certain, bright is uncertain."),
                io.Image.Output("overlay", display_name="overlay", tooltip="The heat map over the image in grey."),
                io.Mask.Output("map", display_name="map", tooltip="The map's values from 0 to 1, at the image's size."),
                io.Mask.Output(
                    "std",
                    display_name="std",
                    tooltip="The standard deviations, not scaled: of the latent or, in pixels, of colours.",
                ),
                io.Image.Output("std_image", display_name="std image", tooltip="std as a grey image, not scaled."),
                io.Image.Output(
                    "sheet",
                    display_name="sheet",
                    tooltip="One sheet with a row per image: the image, its heat map, the overlay and its score. "
                    "Of clips, three strips of up to 8 frames.",
                ),
            ],
        )

    @classmethod
    def execute(
        cls, uncertainty, vae, scale, opacity, resolution=LATENT, tile_size=512, colours="inferno", colour_bar=False
    ) -> io.NodeOutput:
        if nothing := nothing_to_read(cls, uncertainty):
            return nothing
        uncertainty.require_images()  # before anything is decoded
        uncertainty = seen_through(vae, uncertainty)
        per_image, tile = scale == PER_IMAGE, tile_size if resolution == TILED else None
        image = decode(vae, uncertainty.latent, tile)
        if resolution == LATENT:
            std = uncertainty.maps(size=image.shape[1:3])
        else:
            std = decoded_std(vae, uncertainty, image, tile)
        of_clips = uncertainty.by_clip(std)
        values = normalise_map(of_clips, per_image).flatten(0, 1)
        heat_map, overlay = colour_map(values, colours), overlay_map(image, values.to(image.device), opacity, colours)
        if colour_bar:
            tops = map_tops(of_clips, per_image).repeat_interleave(uncertainty.frames)
            heat_map = with_colour_bars(heat_map, tops, colours)
        rows = drawn_rows(uncertainty, [image, heat_map, overlay])
        std_image = std[..., None].expand(-1, -1, -1, 3)
        return io.NodeOutput(heat_map, overlay, values, std, std_image, rows)

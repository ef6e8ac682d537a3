"""Variations of an image, from the estimated distribution of its own trajectory."""

from __future__ import annotations

from comfy_api.latest import io

from ..bayesdiff_core.reading import clip_masks
from ..bayesdiff_core.reading.masks import require_finite_mask
from ..host.compat import search_words
from ..host.latents import check_belongs, check_latent, check_mask
from ..host.nested import latent_of, parts_of
from ..host.selection import by_image
from ..host.settings import RunSettings
from ..host.uses.resample import Variations, resample
from .inputs import CATEGORY, UncertaintyType, nothing_to_read, run_inputs, seed_input, span_inputs


class Resample(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="BayesDiffResample",
            display_name="Resample (BayesDiff)",
            category=CATEGORY,
            **search_words("variations", "more like this"),
            description="Makes variations of images: goes back to a point of their sampling, draws from what the model "
            "finds possible there, and finishes again. For more of a good image, or another chance for a bad one.",
            inputs=[
                io.Model.Input("model", tooltip="The model that sampled the images."),
                seed_input(),
                *run_inputs(),
                io.Float.Input(
                    "denoise",
                    default=1.0,
                    min=0.01,
                    max=1.0,
                    step=0.01,
                    tooltip="As in the images' sampler, like all settings above.",
                ),
                io.Latent.Input("latent_image", tooltip="The sampled images."),
                UncertaintyType.Input("uncertainty", tooltip="From the same sampler (BayesDiff)."),
                io.Float.Input(
                    "start_at",
                    default=0.4,
                    min=0.01,
                    max=0.99,
                    step=0.01,
                    tooltip="Share of the steps after which to draw: early changes shapes, late only details. The "
                    "samplers keep the points 0.2, 0.4, 0.6 and 0.8, or those of Uncertainty Options; the nearest is "
                    "used.",
                ),
                io.Int.Input("variations", default=3, min=1, max=256, tooltip="How many per image."),
                io.Float.Input(
                    "strength",
                    default=1.0,
                    min=0.0,
                    max=100.0,
                    step=0.1,
                    tooltip="How far the draws go. 1, the paper's: as far as the model is unsure, hardly visible "
                    "where it is certain. 3 is bold.",
                ),
                io.Boolean.Input("include_original", default=True, tooltip="Put each image before its variations."),
                io.Mask.Input(
                    "mask",
                    optional=True,
                    tooltip="Vary only inside; the rest stays. One mask, one per image, or of clips one per frame. "
                    "Without it, the latent's noise mask is used.",
                ),
                *span_inputs(),
            ],
            outputs=[
                io.Latent.Output(
                    "latent",
                    display_name="latent",
                    tooltip="The first image, its variations, the second image, its variations, and so on; "
                    "batch_index says which image each came from.",
                )
            ],
        )

    @classmethod
    def execute(
        cls,
        model,
        seed,
        latent_image,
        uncertainty,
        start_at,
        variations,
        strength,
        include_original,
        mask=None,
        first_frame=0,
        last_frame=-1,
        fade_frames=0,
        **settings,
    ) -> io.NodeOutput:
        check_latent(model, latent_image)
        check_belongs(latent_image, uncertainty)
        check_mask(mask, latent_image["samples"])
        if nothing := nothing_to_read(cls, uncertainty):
            return nothing
        inside = latent_image.get("noise_mask") if mask is None else mask
        inside = None if inside is None else parts_of(inside)[0]
        require_finite_mask(inside)
        if uncertainty.frames > 1:
            clips = len(uncertainty), uncertainty.cells_in_time, uncertainty.grid
            inside = clip_masks.inside_clips(inside, *clips, first_frame, last_frame)
            if inside is not None:
                inside = clip_masks.fade(inside, fade_frames).expand(len(uncertainty), -1, -1, -1).flatten(0, 1)
        wanted = Variations(start_at, variations, strength, seed)
        found = resample(model, RunSettings(**settings), uncertainty, wanted, inside)
        if include_original:
            found = [latent_of(uncertainty), *found]
        return io.NodeOutput(by_image(latent_image, found))

"""Variations of a picture, from the estimated distribution of its own trajectory."""

from __future__ import annotations

import torch
from comfy_api.latest import io

from ..bayesdiff_core import masks
from ..host.last_layer import check_latent
from ..host.resample import Settings, resample
from ..host.schema import search_words
from ..host.selection import select_latent
from .sampler import schedule_inputs, seed_input
from .types import CATEGORY, UncertaintyType


def check_mask(mask: torch.Tensor | None, pictures: int) -> None:
    """One sentence where there are neither one mask nor as many as pictures."""
    if mask is not None and mask.ndim > 2 and len(mask) not in (1, pictures):
        raise ValueError(
            f"Expected one mask, or one for each of the {pictures} pictures, got {len(mask)}; give as many masks as "
            "there are pictures."
        )


def check_belongs(latent: dict, uncertainty) -> None:
    """One sentence where the latent cannot be the one that the uncertainty is of."""
    got, expected = tuple(latent["samples"].shape), tuple(uncertainty.latent.shape)
    if got != expected:
        raise ValueError(
            f"Expected the latent that the uncertainty belongs to, of shape {expected}, got {got}; connect latent and "
            "uncertainty of one sampler, or filter both together."
        )


def run_inputs() -> list[io.Input]:
    """What the sampler of the picture was told, but for its latent."""
    return [item for item in schedule_inputs() if item.id != "latent_image"]


class Resample(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="BayesDiffResample",
            display_name="Resample (BayesDiff)",
            category=CATEGORY,
            **search_words("variations", "more like this"),
            description="Variations of pictures: goes back to a point of their sampling, draws there from what the "
            "model holds possible, and finishes again. More of a good picture, or another chance for a bad one.",
            inputs=[
                io.Model.Input("model", tooltip="The model that the pictures were sampled with."),
                seed_input("seed"),
                *run_inputs(),
                io.Float.Input(
                    "denoise",
                    default=1.0,
                    min=0.01,
                    max=1.0,
                    step=0.01,
                    tooltip="As in the sampler of the pictures, like all the settings above.",
                ),
                io.Latent.Input("latent_image", tooltip="The sampled pictures."),
                UncertaintyType.Input("uncertainty", tooltip="Theirs, from the same sampler (BayesDiff)."),
                io.Float.Input(
                    "start_at",
                    default=0.4,
                    min=0.01,
                    max=0.99,
                    step=0.01,
                    tooltip="Share of the steps after which to draw: early changes shapes, late only details. The "
                    "samplers keep the points 0.2, 0.4, 0.6 and 0.8, or those of Uncertainty Options; the nearest is "
                    "taken.",
                ),
                io.Int.Input("variations", default=3, min=1, max=256, tooltip="How many of each picture."),
                io.Float.Input(
                    "strength",
                    default=1.0,
                    min=0.0,
                    max=100.0,
                    step=0.1,
                    tooltip="How far the draws go: 1, the paper's, as far as the model is unsure, which hardly shows "
                    "where it is sure; 3 is bold.",
                ),
                io.Boolean.Input(
                    "include_original", default=True, tooltip="Put each picture itself before its variations."
                ),
                io.Mask.Input(
                    "mask",
                    optional=True,
                    tooltip="Vary only inside; the rest stays as it is. Without it, a noise mask in the latent counts.",
                ),
            ],
            outputs=[
                io.Latent.Output(
                    "latent",
                    display_name="latent",
                    tooltip="The first picture, its variations, the second picture, its variations, and so on; "
                    "batch_index tells which picture each came from.",
                )
            ],
        )

    @classmethod
    def execute(
        cls, model, seed, steps, cfg, sampler_name, scheduler, positive, negative, denoise, latent_image, uncertainty,
        start_at, variations, strength, include_original, mask=None,
    ) -> io.NodeOutput:  # fmt: skip
        check_latent(model, latent_image)
        check_belongs(latent_image, uncertainty)
        check_mask(mask, len(latent_image["samples"]))
        inside = latent_image.get("noise_mask") if mask is None else mask
        masks.check_finite(inside)
        settings = Settings(steps, cfg, sampler_name, scheduler, positive, negative, denoise)
        found = resample(model, settings, uncertainty, start_at, variations, strength, seed, inside)
        if include_original:
            found = [uncertainty.latent, *found]
        return io.NodeOutput(by_picture(latent_image, found))


def by_picture(latent: dict, versions: list[torch.Tensor]) -> dict:
    """One LATENT of all versions of the first picture, then all of the second, and so on."""
    count = len(latent["samples"])
    chosen = select_latent(latent, [picture for picture in range(count) for _ in versions])
    return chosen | {"samples": torch.stack(versions, dim=1).flatten(0, 1)}

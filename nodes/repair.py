"""Mend the least certain part of pictures, where that makes the model surer of them."""

from __future__ import annotations

import torch
from comfy_api.latest import io

from ..bayesdiff_core import masks
from ..bayesdiff_core.estimators.deviations import Deviations
from ..bayesdiff_core.maps import resize_map
from ..host.last_layer import check_head, check_latent
from ..host.repair import Attempt, repair
from ..host.resample import Settings
from ..host.schema import search_words
from ..host.selection import cycle
from .resample import by_picture, check_belongs, run_inputs
from .sampler import QUALITIES, seed_input
from .types import CATEGORY, LINE_BREAK, LaplaceHeadType, UncertaintyType

INPAINT, RECTIFY = "inpaint", "rectify"
STATES = 5
# As many members as the qualities of the samplers have at 20 steps, followed along a picture that is there.
JUDGES = {name: Deviations(STATES, fixed_members=of.members(20, of.states)) for name, of in QUALITIES.items()}


class Repair(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="BayesDiffRepair",
            display_name="Repair (BayesDiff)",
            category=CATEGORY,
            **search_words("detailer", "fix", "inpaint"),
            description="Mends the part of each picture that the model is least sure of, scores it again and keeps the "
            "better of the two, for some rounds. A picture that gets no better stays as it was.",
            inputs=[
                io.Model.Input("model", tooltip="The model that mends and judges; best that of the pictures."),
                seed_input("seed"),
                *run_inputs(),
                io.Float.Input(
                    "denoise",
                    default=0.6,
                    min=0.01,
                    max=1.0,
                    step=0.01,
                    tooltip="How much the masked part is redrawn: 1 from scratch, less keeps its structure.",
                ),
                io.Latent.Input(
                    "latent_image",
                    tooltip="Finished pictures, of any sampler. Only inside a noise mask, if it has one.",
                ),
                LaplaceHeadType.Input("head", tooltip="Laplace head of this model, fitted or loaded."),
                io.Combo.Input(
                    "quality",
                    options=list(JUDGES),
                    default="balanced",
                    tooltip="Of the scores: 1, 2 or 7 draws of the last layer, each five network calls a picture and "
                    "round.",
                ),
                io.Int.Input("rounds", default=2, min=0, max=100, tooltip="How often to mend; 0 only scores."),
                io.Float.Input(
                    "area",
                    default=0.15,
                    min=0.01,
                    max=1.0,
                    step=0.01,
                    tooltip="Share of the picture to mend in a round, before growing.",
                ),
                io.Int.Input("grow", default=8, min=0, max=512, tooltip="Widen the mask by so many pixels."),
                io.Combo.Input(
                    "method",
                    options=[INPAINT, RECTIFY],
                    default=INPAINT,
                    tooltip="Inpaint: the stock way, with new noise. Rectify: the paper's, keeps the noise and draws "
                    "the masked part from what the model holds possible at that step; changes less.",
                ),
                UncertaintyType.Input(
                    "uncertainty",
                    optional=True,
                    tooltip="Of the pictures, from their sampler: the first mask is made of it. Without it, the "
                    "pictures are looked at as they are.",
                ),
            ],
            outputs=[
                io.Latent.Output("latent", display_name="latent", tooltip="The best of each picture."),
                UncertaintyType.Output(
                    "best_uncertainty",
                    display_name="uncertainty",
                    tooltip="Of the best, looked at as finished pictures; compare it only with others of this node.",
                ),
                io.Float.Output(
                    "scores", display_name="scores", is_output_list=True, tooltip="Of the best: higher is less certain."
                ),
                io.Latent.Output(
                    "candidates",
                    display_name="candidates",
                    tooltip="Everything: the first picture, what each round made of it, the second picture, and so on.",
                ),
                io.Mask.Output(
                    "masks", display_name="masks", tooltip="What was mended, one mask a candidate; none of a picture."
                ),
                io.String.Output("report", display_name="report", tooltip="Scores of every round, and what was kept."),
            ],
        )

    @classmethod
    def execute(
        cls, model, seed, steps, cfg, sampler_name, scheduler, positive, negative, denoise, latent_image, head, quality,
        rounds, area, grow, method, uncertainty=None,
    ) -> io.NodeOutput:  # fmt: skip
        check_latent(model, latent_image)
        if not latent_image["samples"].any():
            raise ValueError(
                "Expected finished pictures to mend, got an empty latent; connect a sampler's output or VAE Encode."
            )
        masks.check_finite(latent_image.get("noise_mask"))
        if uncertainty is not None:
            check_belongs(latent_image, uncertainty)
        layer = check_head(head, model)
        settings = Settings(steps, cfg, sampler_name, scheduler, positive, negative, denoise)

        def mask_of(found) -> torch.Tensor:
            std = found.std_map()
            size = [side * found.downscale for side in std.shape[1:]]
            std, allowed = resize_map(std, *size), latent_image.get("noise_mask")
            if allowed is not None:
                allowed = cycle(masks.resize_mask(allowed, *size), list(range(len(std))))
                std = std * allowed
            mask = masks.grow(masks.most_uncertain_area(std, area), grow)
            return mask if allowed is None else mask * allowed

        best, attempts = repair(
            model, layer, head, JUDGES[quality], STATES, settings, latent_image, seed, rounds, method == RECTIFY,
            mask_of, uncertainty,
        )  # fmt: skip
        versions = [latent_image["samples"], *(attempt.samples for attempt in attempts)]
        std = best.std_map()
        nothing = torch.zeros(len(std), *(side * best.downscale for side in std.shape[1:]))
        tried = torch.stack([nothing, *(attempt.mask for attempt in attempts)], dim=1).flatten(0, 1)
        return io.NodeOutput(
            latent_image | {"samples": best.latent}, best, best.scores().tolist(), by_picture(latent_image, versions),
            tried, describe(attempts, best.scores()),
        )  # fmt: skip


def describe(attempts: list[Attempt], scores: torch.Tensor) -> str:
    lines = []
    for number, attempt in enumerate(attempts, 1):
        rows = zip(attempt.before.tolist(), attempt.after.tolist(), attempt.kept.tolist())
        for picture, (before, after, kept) in enumerate(rows):
            verdict = "kept" if kept else "dropped"
            lines.append(f"Round {number}, picture {picture}: {before:.4g}, mended {after:.4g}, {verdict}.")
    final = ", ".join(f"{score:.4g}" for score in scores.tolist())
    return LINE_BREAK.join([*lines, f"Scores at the end: {final}. Lower is surer; pictures are numbered from 0."])

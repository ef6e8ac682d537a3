"""Repair the least certain part of images, and keep a repair only if the model is more certain of it."""

from __future__ import annotations

import torch
from comfy_api.latest import io

from ..bayesdiff_core.estimators.registry import DEFAULT_JUDGE, JUDGES, REDRAW
from ..bayesdiff_core.reading import clip_masks, masks
from ..bayesdiff_core.reading.uncertainty import Uncertainty
from ..host.compat import search_words
from ..host.latents import check_belongs, check_latent, is_clip, latent_grid, require_content
from ..host.nested import latent_of, parts_of
from ..host.posterior import posterior_of
from ..host.selection import by_image
from ..host.settings import RunSettings
from ..host.uses.repair import Attempt, RepairPlan, repair
from .inputs import (
    CATEGORY,
    LINE_BREAK,
    UncertaintyType,
    grow_input,
    head_input,
    run_inputs,
    seed_input,
    span_inputs,
)

INPAINT, RECTIFY = "inpaint", "rectify"


class Repair(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="BayesDiffRepair",
            display_name="Repair (BayesDiff)",
            category=CATEGORY,
            **search_words("detailer", "fix", "inpaint"),
            description="Repairs the part of each image that the model is least sure of, scores the result and keeps "
            "the better of the two, in several rounds. An image that does not improve stays as it was.",
            inputs=[
                io.Model.Input("model", tooltip="The model that repairs and scores; ideally the images' own."),
                seed_input(),
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
                    tooltip="Finished images from any sampler. A noise mask in it limits the repair.",
                ),
                head_input("the scores are how much each image changes when it is drawn again."),
                io.Combo.Input(
                    "quality",
                    options=list(JUDGES),
                    default=DEFAULT_JUDGE,
                    tooltip="Of the scores: 1, 2 or 7 posterior members, each five network calls per image and round. "
                    "Redraw: two calls, and no head.",
                ),
                io.Int.Input("rounds", default=2, min=0, max=100, tooltip="Rounds of repair; 0 only scores."),
                io.Float.Input(
                    "area",
                    default=0.15,
                    min=0.01,
                    max=1.0,
                    step=0.01,
                    tooltip="Share of the image to repair per round, before growing; of a clip, of all its frames.",
                ),
                grow_input(),
                io.Combo.Input(
                    "method",
                    options=[INPAINT, RECTIFY],
                    default=INPAINT,
                    tooltip="Inpaint: the stock way, with new noise. Rectify: the paper's, keeps the noise and draws "
                    "the masked part from what the model finds possible at that step; changes less.",
                ),
                UncertaintyType.Input(
                    "uncertainty",
                    optional=True,
                    tooltip="From the images' sampler, for the first mask. Without it, the finished images are scored "
                    "for that mask.",
                ),
                *span_inputs(),
            ],
            outputs=[
                io.Latent.Output("latent", display_name="latent", tooltip="The best of each image."),
                UncertaintyType.Output(
                    "best_uncertainty",
                    display_name="uncertainty",
                    tooltip="Of the best, measured on finished images; compare it only within this node.",
                ),
                io.Float.Output(
                    "scores", display_name="scores", is_output_list=True, tooltip="Of the best: higher is less certain."
                ),
                io.Latent.Output(
                    "candidates",
                    display_name="candidates",
                    tooltip="All versions: the first image, its result of each round, the second image, and so on.",
                ),
                io.Mask.Output(
                    "masks", display_name="masks", tooltip="Mask used for each candidate; empty for originals."
                ),
                io.String.Output("report", display_name="report", tooltip="Scores of each round, and what was kept."),
            ],
        )

    @classmethod
    def execute(
        cls,
        model,
        seed,
        latent_image,
        quality,
        rounds,
        area,
        grow,
        method,
        head=None,
        uncertainty=None,
        first_frame=0,
        last_frame=-1,
        fade_frames=0,
        **settings,
    ) -> io.NodeOutput:
        check_latent(model, latent_image)
        require_content(latent_image, "repair")
        allowed = latent_image.get("noise_mask")
        samples, of_clips = parts_of(latent_image["samples"])[0], is_clip(latent_image["samples"])
        allowed = None if allowed is None else parts_of(allowed)[0]
        masks.require_finite_mask(allowed)
        if of_clips:
            clips = len(samples), samples.shape[2], latent_grid(model)
            allowed = clip_masks.inside_clips(allowed, *clips, first_frame, last_frame)
        if uncertainty is not None:
            check_belongs(latent_image, uncertainty)
        judge = REDRAW if head is None else JUDGES[quality]
        if method == RECTIFY and judge is REDRAW:
            raise ValueError(
                f"Expected a Laplace head and a quality with members for the method '{RECTIFY}', which draws from what "
                f"they find possible, got none; connect a head and choose such a quality, or set method to '{INPAINT}'."
            )
        posterior = posterior_of(head, model, seed)
        plan = RepairPlan(judge, rounds, rectify=method == RECTIFY)

        def mask_of(found: Uncertainty) -> torch.Tensor:
            if not of_clips:
                return masks.repair_mask(found.maps(), area, grow, allowed)
            std = found.by_clip(found.maps())
            inside = None if allowed is None else clip_masks.fit_frames(allowed, std)
            return clip_masks.fade(masks.repair_mask(std, area, grow, inside), fade_frames).flatten(0, 1)

        best, attempts = repair(latent_image, posterior, RunSettings(**settings), plan, mask_of, uncertainty)
        versions = [latent_image["samples"], *(attempt.samples for attempt in attempts)]
        if not best.unknown:
            best.require_images()
        nothing = torch.zeros(len(best) * best.frames, *best.image_size())
        tried = torch.stack([best.by_clip(mask) for mask in (nothing, *(attempt.mask for attempt in attempts))], dim=1)
        scores = best.scores()
        return io.NodeOutput(
            latent_image | {"samples": latent_of(best)},
            best,
            scores.tolist(),
            by_image(latent_image, versions),
            tried.flatten(0, 2),
            f"Nothing was repaired. {best.why_unknown}" if best.unknown else describe(attempts, scores),
        )


def describe(attempts: list[Attempt], scores: torch.Tensor) -> str:
    lines = []
    for number, attempt in enumerate(attempts, 1):
        rows = zip(attempt.before.tolist(), attempt.after.tolist(), attempt.kept.tolist())
        for image, (before, after, kept) in enumerate(rows):
            verdict = "kept" if kept else "dropped"
            lines.append(f"Round {number}, image {image}: {before:.4g}, repaired {after:.4g}, {verdict}.")
    final = ", ".join(f"{score:.4g}" for score in scores.tolist())
    return LINE_BREAK.join([*lines, f"Scores at the end: {final}. Lower is more certain; images are numbered from 0."])

"""Start many images, finish only the most certain, and save the network calls of the rest."""

from __future__ import annotations

import dataclasses

import torch
from comfy_api.latest import io
from comfy_execution.graph_utils import ExecutionBlocker

from ..bayesdiff_core.estimators.registry import DEFAULT_QUALITY, NO_HEAD, RANKINGS
from ..bayesdiff_core.reading.rank import rank
from ..bayesdiff_core.reading.uncertainty import Uncertainty
from ..host.compat import ADVANCED, search_words
from ..host.conditioning import select_conditioning
from ..host.latents import check_latent
from ..host.nested import count_of
from ..host.posterior import posterior_of
from ..host.run.stages import uncertainty_of_latent
from ..host.selection import select_latent
from ..host.settings import RunSettings
from ..host.uses.best_of_n import BestOfN, Plan, best_of_n, require_separate_images
from .inputs import (
    CATEGORY,
    LINE_BREAK,
    UncertaintyType,
    before_input,
    denoise_input,
    head_input,
    schedule_inputs,
    seed_input,
)


class KSamplerBestOfN(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="BayesDiffBestOfN",
            display_name="KSampler Best of N (BayesDiff)",
            category=CATEGORY,
            **search_words("rank seeds", "seed search", "best seed"),
            description="Samples many images for some of their steps, ranks them by how unsure the model is of the "
            "result, and finishes only the best. Returns the stock KSampler's latents, bit for bit.",
            inputs=[
                io.Model.Input("model", tooltip="The model used for denoising the input latent."),
                seed_input(),
                *schedule_inputs(),
                denoise_input(),
                head_input("ranks by how much the image was yet to change, at no network call."),
                io.Int.Input(
                    "candidates",
                    default=16,
                    min=1,
                    max=1024,
                    tooltip="How many images to rank. The latent is repeated to this number, each with its own noise.",
                ),
                io.Int.Input("keep", default=4, min=1, max=1024, tooltip="How many of them to finish."),
                io.Float.Input(
                    "share",
                    default=0.5,
                    min=0.01,
                    max=1.0,
                    step=0.01,
                    tooltip="Share of the steps after which to rank. Later ranks better and saves less.",
                ),
                io.Combo.Input(
                    "quality",
                    options=list(RANKINGS),
                    default=DEFAULT_QUALITY,
                    tooltip="Of the ranking. Quick takes three network calls per image; the others are those of "
                    "KSampler (BayesDiff).",
                ),
                io.Int.Input(
                    "batch_size",
                    default=1,
                    min=1,
                    max=1024,
                    **ADVANCED,
                    tooltip="How many images to sample together. 1 saves most: finishing then repeats no step of the "
                    "ranking. In larger batches, only images that land at their old place are not repeated.",
                ),
                io.Boolean.Input(
                    "score_finished",
                    default=False,
                    tooltip="Also estimate the finished images' uncertainty, at this quality, for maps and masks. "
                    "Costs network calls.",
                ),
                before_input(),
            ],
            outputs=[
                io.Latent.Output(
                    "latent",
                    display_name="latent",
                    tooltip="The kept images, finished, best first; batch_index is the candidate number.",
                ),
                UncertaintyType.Output(
                    "uncertainty_out", display_name="uncertainty", tooltip="Of kept images; needs score_finished."
                ),
                io.Float.Output(
                    "scores",
                    display_name="scores",
                    is_output_list=True,
                    tooltip="Of the kept images: final scores with score_finished, else the early ones.",
                ),
                io.Float.Output(
                    "early_scores",
                    display_name="early scores",
                    is_output_list=True,
                    tooltip="Of all candidates, in order.",
                ),
                io.String.Output("report", display_name="report", tooltip="Images kept and network calls saved."),
            ],
        )

    @classmethod
    def execute(
        cls,
        model,
        seed,
        latent_image,
        candidates,
        keep,
        share,
        quality,
        batch_size,
        score_finished,
        head=None,
        uncertainty=None,
        **settings,
    ) -> io.NodeOutput:
        check_latent(model, latent_image)
        require_separate_images(model)
        before, run_settings = repeat_uncertainty(uncertainty, latent_image, candidates), RunSettings(**settings)
        posterior = posterior_of(head, model, seed if before is None else before.handover.seed)
        ranking = NO_HEAD if head is None else RANKINGS[quality]
        # Without members, what changes between two predictions is all that there is to rank by.
        least = 1 if ranking.calls([1.0]) else 2
        if run_settings.steps < least:
            raise ValueError(
                f"Expected at least {least} steps to rank by what changes in the run, got {run_settings.steps}; give "
                "more steps, or connect a head and choose a quality with members."
            )
        plan = Plan(keep, max(least, round(share * run_settings.steps)), batch_size, score_finished)

        def sample(model, latent, numbers, last_step):
            copies = {}
            positive, negative = (
                select_conditioning(prompt, numbers, candidates, copies)
                for prompt in (run_settings.positive, run_settings.negative)
            )
            of_these = dataclasses.replace(run_settings, positive=positive, negative=negative)
            return of_these.sample(model, latent, seed, last_step=last_step, force_full_denoise=True)

        found = best_of_n(sample, repeat(latent_image, candidates), posterior, ranking, plan, before)
        uncertainty, scores = found.uncertainty, found.scores[found.kept]
        if score_finished:
            scores = uncertainty.scores()
        else:
            uncertainty = ExecutionBlocker(
                "Expected score_finished to be on for the output uncertainty, got it off; switch it on."
            )
        report = describe(found, plan.steps, run_settings.steps)
        return io.NodeOutput(found.latent, uncertainty, scores.tolist(), found.scores.tolist(), report)


def repeat(latent: dict, count: int) -> dict:
    """A LATENT of ``count`` candidates, repeated from the given ones, each with its own noise."""
    size = count_of(latent["samples"])
    numbers = latent.get("batch_index") if size == count else None
    return select_latent(latent, [i % size for i in range(count)]) | {"batch_index": numbers or list(range(count))}


def repeat_uncertainty(uncertainty: Uncertainty | None, latent: dict, count: int) -> Uncertainty | None:
    """The uncertainty of the candidates' latents, see :func:`repeat`."""
    if uncertainty is None:
        return None
    found = uncertainty_of_latent(uncertainty, latent, uncertainty.measures)
    return found.select(torch.arange(count) % len(found))


def describe(found: BestOfN, early: int, steps: int) -> str:
    count, ranked = len(found.scores), rank(found.scores).tolist()
    kept, dropped = (
        ", ".join(f"{i} ({found.scores[i]:.4g})" for i in part) for part in (found.kept, ranked[len(found.kept) :])
    )
    spent = found.ranking + found.finishing
    words = f"{found.saved:.0%} saved" if found.saved >= 0 else f"{-found.saved:.0%} more"
    return LINE_BREAK.join(
        [
            f"Kept {len(found.kept)} of {count}, ranked after {early} of {steps} steps: {kept}",
            f"Dropped {count - len(found.kept)}: {dropped or 'none'}",
            f"Network calls: {found.ranking} to rank and {found.finishing} to finish ({found.replayed} of the ranking "
            f"reused), {spent} in total; sampling all {count} to the end takes {found.whole}, without any score: "
            f"{words}.",
            "Images are numbered from 0, as in the batch; early scores are in brackets.",
        ]
    )

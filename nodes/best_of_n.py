"""Sample many, keep the surest, and save the calls of finishing the rest."""

from __future__ import annotations

from comfy_api.latest import io
from comfy_execution.graph_utils import ExecutionBlocker
from nodes import common_ksampler

from ..bayesdiff_core.estimators.deviations import Deviations
from ..bayesdiff_core.rank import rank
from ..host.best_of_n import BestOfN, best_of_n
from ..host.last_layer import check_head, check_latent
from ..host.schema import ADVANCED, search_words
from ..host.selection import select_conditioning, select_latent
from .sampler import QUALITIES, schedule_inputs, seed_input
from .types import CATEGORY, LINE_BREAK, LaplaceHeadType, UncertaintyType

# One member, followed at three states: enough to rank by, see docs/filter.md.
RANKINGS = {"quick": Deviations(states=3, share=0.25), **QUALITIES}


class KSamplerBestOfN(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="BayesDiffBestOfN",
            display_name="KSampler Best of N (BayesDiff)",
            category=CATEGORY,
            **search_words("rank seeds", "seed search", "best seed"),
            description="Samples many pictures for some of their steps, ranks them by how unsure the model is of what "
            "they become, and samples only the best to the end, as the stock KSampler does.",
            inputs=[
                io.Model.Input("model", tooltip="The model used for denoising the input latent."),
                seed_input("seed"),
                *schedule_inputs(),
                io.Float.Input(
                    "denoise",
                    default=1.0,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    tooltip="Amount of denoising; below 1 keeps the structure of the input latent.",
                ),
                LaplaceHeadType.Input("head", tooltip="Laplace head of this model, fitted or loaded."),
                io.Int.Input(
                    "candidates",
                    default=16,
                    min=1,
                    max=1024,
                    tooltip="How many pictures to rank. The latent is repeated to as many, each with noise of its own.",
                ),
                io.Int.Input("keep", default=4, min=1, max=1024, tooltip="How many of them to sample to the end."),
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
                    default=next(iter(RANKINGS)),
                    tooltip="Of the uncertainty that ranks. Quick takes three calls a picture; the others are those of "
                    "KSampler (BayesDiff).",
                ),
                io.Int.Input(
                    "batch_size",
                    default=1,
                    min=1,
                    max=1024,
                    **ADVANCED,
                    tooltip="How many pictures to sample together. One at a time saves most: finishing then repeats no "
                    "step of the ranking. In larger batches only what lands at its old place is not repeated.",
                ),
                io.Boolean.Input(
                    "score_finished",
                    default=False,
                    tooltip="Also estimate the uncertainty of the finished pictures, at the same quality, for maps and "
                    "masks. Costs calls.",
                ),
            ],
            outputs=[
                io.Latent.Output(
                    "latent",
                    display_name="latent",
                    tooltip="The kept, finished, best first; batch_index tells which candidates they were.",
                ),
                UncertaintyType.Output(
                    "uncertainty", display_name="uncertainty", tooltip="Of the finished; needs score_finished."
                ),
                io.Float.Output(
                    "scores",
                    display_name="scores",
                    is_output_list=True,
                    tooltip="Of the kept: those of the finished pictures with score_finished, else the early ones.",
                ),
                io.Float.Output(
                    "early_scores",
                    display_name="early scores",
                    is_output_list=True,
                    tooltip="Of all candidates, in their order.",
                ),
                io.String.Output("report", display_name="report", tooltip="Which were kept, and the calls saved."),
            ],
        )

    @classmethod
    def execute(
        cls, model, seed, steps, cfg, sampler_name, scheduler, positive, negative, latent_image, denoise, head,
        candidates, keep, share, quality, batch_size, score_finished,
    ) -> io.NodeOutput:  # fmt: skip
        check_latent(model, latent_image)
        layer = check_head(head, model)
        everything = repeat(latent_image, candidates)
        early = max(1, round(share * steps))

        def sample(model, numbers, last_step):
            prompts = (select_conditioning(prompt, numbers, candidates) for prompt in (positive, negative))
            return common_ksampler(
                model, seed, steps, cfg, sampler_name, scheduler, *prompts, select_latent(everything, numbers),
                denoise=denoise, last_step=last_step, force_full_denoise=True,
            )[0]  # fmt: skip

        found = best_of_n(
            sample, model, layer, head, RANKINGS[quality], seed, candidates, batch_size, keep, early, score_finished
        )
        uncertainty, scores = found.uncertainty, found.scores[found.kept]
        if score_finished:
            scores = uncertainty.scores()
        else:
            uncertainty = ExecutionBlocker("Expected score_finished for the output uncertainty; switch it on.")
        return io.NodeOutput(
            found.latent, uncertainty, scores.tolist(), found.scores.tolist(), describe(found, early, steps)
        )


def repeat(latent: dict, count: int) -> dict:
    """The LATENT of ``count`` candidates, repeated from those given, each with noise of its own."""
    size = len(latent["samples"])
    numbers = latent.get("batch_index") if size == count else None
    return select_latent(latent, [i % size for i in range(count)]) | {"batch_index": numbers or list(range(count))}


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
            f"used again), {spent} in all; sampling all {count} to the end takes {found.whole}, without any score: "
            f"{words}.",
            "Pictures are numbered from 0, as in the batch; early scores are in brackets.",
        ]
    )

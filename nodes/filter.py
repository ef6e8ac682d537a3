"""Keep the images that the model is most certain of."""

from __future__ import annotations

import torch
from comfy_api.latest import io
from comfy_execution.graph_utils import ExecutionBlocker

from ..bayesdiff_core.drawing.sheets import contact_sheet, strip_frames, strips
from ..bayesdiff_core.reading import rank
from ..bayesdiff_core.reading.uncertainty import Uncertainty
from ..host.compat import search_words
from ..host.conditioning import Copies
from .batches import (
    BATCHES,
    MISSING,
    PROMPTS,
    aligned,
    describe,
    frames_of_clips,
    one_batch,
    one_prompt_each,
    side_output,
    split_off,
)
from .inputs import CATEGORY, UncertaintyType

KEEP_BEST, DROP_FRACTION, DROP_OUTLIERS, THRESHOLD = (
    "keep the best",
    "drop the worst fraction",
    "drop above mean + n deviations",
    "drop above threshold",
)
RULES = [KEEP_BEST, DROP_FRACTION, DROP_OUTLIERS, THRESHOLD]
BEST_FIRST, AS_BEFORE = "best first", "as in the batch"


def side_outputs(side: str) -> list[io.Output]:
    scores = io.Float.Output(
        f"{side}_scores", display_name=f"{side} scores", is_output_list=True, tooltip=f"Scores of the {side}."
    )
    return [*(side_output(side, kind) for kind in BATCHES), scores]


class FilterByUncertainty(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="BayesDiffFilter",
            display_name="Filter by Uncertainty (BayesDiff)",
            category=CATEGORY,
            **search_words("cull", "reject", "sort a batch", "contact sheet"),
            description="Ranks a batch by its scores, lowest first, and splits it into kept and dropped. All connected "
            "batches are split the same way.",
            is_input_list=True,
            inputs=[
                io.Combo.Input(
                    "rule",
                    options=RULES,
                    default=KEEP_BEST,
                    tooltip="What to drop. Mean + n deviations is the paper's rule. Each rule uses only its own number "
                    "below.",
                ),
                io.Int.Input(
                    "keep", default=1, min=0, max=4096, tooltip=f"For '{KEEP_BEST}': how many; all if there are fewer."
                ),
                io.Float.Input(
                    "fraction",
                    default=0.5,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    tooltip=f"For '{DROP_FRACTION}': share of the batch to drop, rounded to whole images.",
                ),
                io.Float.Input(
                    "deviations",
                    default=1.0,
                    min=0.0,
                    max=10.0,
                    step=0.1,
                    tooltip=f"For '{DROP_OUTLIERS}': n. At 1 about one in six is dropped.",
                ),
                io.Float.Input(
                    "threshold",
                    default=1.0,
                    min=-1e9,
                    max=1e9,
                    step=0.001,
                    round=1e-6,
                    tooltip=f"For '{THRESHOLD}': highest score to keep. Compare only scores of one head, quality "
                    "and sampler settings.",
                ),
                io.Combo.Input(
                    "order",
                    options=[BEST_FIRST, AS_BEFORE],
                    default=BEST_FIRST,
                    tooltip="Order of the kept and of the dropped.",
                ),
                io.Float.Input(
                    "scores",
                    optional=True,
                    force_input=True,
                    tooltip="One per image, lower is better: from any sampler (BayesDiff). Without them, the "
                    "uncertainty is scored as in the samplers.",
                ),
                UncertaintyType.Input("uncertainty", optional=True, tooltip="To score and to split."),
                io.Latent.Input("latent", optional=True, tooltip="Latent to split."),
                io.Image.Input(
                    "images",
                    optional=True,
                    tooltip="Images to split and to show in the contact sheet; of clips their frames, as VAE "
                    "Decode gives them.",
                ),
                io.Mask.Input(
                    "masks",
                    optional=True,
                    tooltip="Masks to split: one per image or one for all; of clips also one per frame.",
                ),
                io.Conditioning.Input(
                    "positive", optional=True, tooltip="Prompt to split, if it differs from image to image."
                ),
                io.Conditioning.Input("negative", optional=True, tooltip="Negative prompt to split."),
            ],
            outputs=[
                *side_outputs("kept"),
                *side_outputs("dropped"),
                io.Image.Output(
                    "contact_sheet",
                    display_name="contact sheet",
                    tooltip="All images by rank, each with its score, its percentile if that is known, and whether it "
                    "was kept. Needs images.",
                ),
                io.String.Output("report", display_name="report", tooltip="What was kept and dropped, in words."),
            ],
        )

    @classmethod
    def validate_inputs(cls, scores=None, uncertainty=None) -> bool | str:
        if scores is None and uncertainty is None:
            return NO_SCORES
        return True

    @classmethod
    def execute(cls, rule, keep, fraction, deviations, threshold, order, scores=None, **given) -> io.NodeOutput:
        given = {kind: parts for kind, parts in given.items() if parts is not None}
        batches = {kind: one_batch(kind, parts) for kind, parts in given.items() if kind not in PROMPTS}
        if scores is None and "uncertainty" not in batches:
            raise ValueError(NO_SCORES)
        values = batches["uncertainty"].scores() if scores is None else torch.tensor(scores, dtype=torch.float64)
        values = values.double().cpu()
        frames = frames_of_clips(batches, len(values))
        batches = {kind: aligned(kind, batch, len(values), frames) for kind, batch in batches.items()}
        batches |= one_prompt_each(given, len(values))

        unknown = not values.isfinite().any()
        kept = (
            torch.ones(len(values), dtype=torch.bool)
            if unknown
            else {
                KEEP_BEST: lambda: rank.keep_best(values, keep[0]),
                DROP_FRACTION: lambda: rank.drop_fraction(values, fraction[0]),
                DROP_OUTLIERS: lambda: rank.drop_outliers(values, deviations[0]),
                THRESHOLD: lambda: rank.keep_below(values, threshold[0]),
            }[rule[0]]()
        )
        ranked = rank.rank(values).tolist()
        walk = ranked if order[0] == BEST_FIRST else range(len(values))
        sides = [[i for i in walk if kept[i]], [i for i in walk if not kept[i]]]
        outputs = []
        for index in sides:
            copies: Copies = {}
            outputs += [split_off(kind, batches, index, values, copies) for kind in [*BATCHES, "scores"]]
        sheet = ExecutionBlocker(MISSING.format("images", "contact sheet"))
        if "images" in batches:
            places = percentiles_of(batches.get("uncertainty"), values)
            labels = [
                f"{place}  ·  {values[i]:.4g}{places[i]}  ·  {'kept' if kept[i] else 'dropped'}"
                for place, i in enumerate(ranked, 1)
            ]
            shown = strips(batches["images"][ranked]) if frames > 1 else batches["images"][ranked]
            side_by_side = len(strip_frames(frames))
            sheet = contact_sheet(shown, labels, kept[ranked].tolist(), side_by_side)
        return io.NodeOutput(*outputs, sheet, describe(sides, values))


def percentiles_of(uncertainty: Uncertainty | None, scores: torch.Tensor) -> list[str]:
    """The percentile of each score in words, where the scores are the uncertainty's own and it knows them."""
    known = None if uncertainty is None else uncertainty.percentiles()
    if known is None or not torch.allclose(uncertainty.scores().double().cpu(), scores, rtol=1e-5, equal_nan=True):
        return [""] * len(scores)
    return [f" ({percentile:.0f} %)" for percentile in known.tolist()]


NO_SCORES = "Expected scores or an uncertainty to rank by, got neither; connect either from a sampler (BayesDiff)."

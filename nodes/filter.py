"""Keep the images that the model is most certain of."""

from __future__ import annotations

import torch
from comfy_api.latest import io
from comfy_execution.graph_utils import ExecutionBlocker

from ..bayesdiff_core.drawing.sheets import contact_sheet
from ..bayesdiff_core.reading import rank
from ..bayesdiff_core.reading.uncertainty import Uncertainty
from ..host.compat import search_words
from ..host.selection import select_conditioning, select_latent
from .inputs import CATEGORY, LINE_BREAK, UncertaintyType

KEEP_BEST, DROP_FRACTION, DROP_OUTLIERS, THRESHOLD = (
    "keep the best",
    "drop the worst fraction",
    "drop above mean + n deviations",
    "drop above threshold",
)
RULES = [KEEP_BEST, DROP_FRACTION, DROP_OUTLIERS, THRESHOLD]
BEST_FIRST, AS_BEFORE = "best first", "as in the batch"
BATCHES = {
    "latent": io.Latent,
    "images": io.Image,
    "masks": io.Mask,
    "positive": io.Conditioning,
    "negative": io.Conditioning,
    "uncertainty": UncertaintyType,
}


def side_outputs(side: str) -> list[io.Output]:
    tooltip = f"The {side}, in the same order in every output. Nodes fed by an empty output do not run."
    scores = io.Float.Output(
        f"{side}_scores", display_name=f"{side} scores", is_output_list=True, tooltip=f"Scores of the {side}."
    )
    return [
        *(
            socket.Output(f"{side}_{kind}", display_name=f"{side} {kind}", tooltip=tooltip)
            for kind, socket in BATCHES.items()
        ),
        scores,
    ]


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
                io.Image.Input("images", optional=True, tooltip="Images to split and to show in the contact sheet."),
                io.Mask.Input("masks", optional=True, tooltip="Masks to split: one per image or one for all."),
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
    def validate_inputs(cls, rule, scores=None, uncertainty=None) -> bool | str:
        if rule[0] is not None and rule[0] not in RULES:
            return f"Expected one of the rules {', '.join(RULES)}, got {rule[0]}; choose one of them."
        if scores is None and uncertainty is None:
            return NO_SCORES
        return True

    @classmethod
    def execute(cls, rule, keep, fraction, deviations, threshold, order, scores=None, **given) -> io.NodeOutput:
        batches = {kind: one_batch(kind, parts) for kind, parts in given.items() if parts is not None}
        if scores is None and "uncertainty" not in batches:
            raise ValueError(NO_SCORES)
        values = batches["uncertainty"].scores() if scores is None else torch.tensor(scores, dtype=torch.float64)
        values = values.double().cpu()
        batches = {kind: aligned(kind, batch, len(values)) for kind, batch in batches.items()}

        kept = {
            KEEP_BEST: lambda: rank.keep_best(values, keep[0]),
            DROP_FRACTION: lambda: rank.drop_fraction(values, fraction[0]),
            DROP_OUTLIERS: lambda: rank.drop_outliers(values, deviations[0]),
            THRESHOLD: lambda: rank.keep_below(values, threshold[0]),
        }[rule[0]]()
        ranked = rank.rank(values).tolist()
        walk = ranked if order[0] == BEST_FIRST else range(len(values))
        sides = [[i for i in walk if kept[i]], [i for i in walk if not kept[i]]]
        outputs = [split_off(kind, batches, index, values) for index in sides for kind in [*BATCHES, "scores"]]
        sheet = ExecutionBlocker(MISSING.format("images", "contact sheet"))
        if "images" in batches:
            places = percentiles_of(batches.get("uncertainty"), values)
            labels = [
                f"{place}  ·  {values[i]:.4g}{places[i]}  ·  {'kept' if kept[i] else 'dropped'}"
                for place, i in enumerate(ranked, 1)
            ]
            sheet = contact_sheet(batches["images"][ranked], labels, kept[ranked].tolist())
        return io.NodeOutput(*outputs, sheet, describe(sides, values))


def percentiles_of(uncertainty: Uncertainty | None, scores: torch.Tensor) -> list[str]:
    """The percentile of each score in words, where the scores are the uncertainty's own and it knows them."""
    known = None if uncertainty is None else uncertainty.percentiles()
    if known is None or not torch.allclose(uncertainty.scores().double().cpu(), scores, rtol=1e-5, equal_nan=True):
        return [""] * len(scores)
    return [f" ({percentile:.0f} %)" for percentile in known.tolist()]


NO_SCORES = "Expected scores or an uncertainty to rank by, got neither; connect either from a sampler (BayesDiff)."
MISSING = "Expected the input {} for the output {}, got nothing there; connect it."


def one_batch(kind: str, parts: list):
    """The batch of one input, which the host passes as a list."""
    if len(parts) > 1:
        raise ValueError(
            f"Expected one batch at the input {kind}, got a list of {len(parts)}; join it first, with Rebatch Images "
            "or Rebatch Latents."
        )
    return parts[0]


def aligned(kind: str, batch, count: int):
    """The batch, after checking that it has ``count`` images."""
    if kind in ("positive", "negative"):
        return batch
    if kind == "masks":
        batch = batch[None] if batch.ndim == 2 else batch
        batch = batch.expand(count, -1, -1) if len(batch) == 1 else batch
    tensor = {"latent": lambda: batch["samples"], "uncertainty": lambda: batch.variance}.get(kind, lambda: batch)()
    if tensor.is_nested or len(tensor) != count:
        got = "a nested latent" if tensor.is_nested else len(tensor)
        raise ValueError(
            f"Expected {count} in the batch at the input {kind}, one per score, got {got}; connect the batch that the "
            "scores belong to."
        )
    return batch


def split_off(kind: str, batches: dict, index: list[int], scores: torch.Tensor):
    """One output: the items of one kind of batch at ``index``."""
    if kind != "scores" and kind not in batches:
        return ExecutionBlocker(MISSING.format(kind, kind))
    if not index:  # the host has no empty batch
        return ExecutionBlocker(None)
    if kind == "scores":
        return scores[index].tolist()
    batch = batches[kind]
    if kind == "latent":
        return select_latent(batch, index)
    if kind in ("positive", "negative"):
        return select_conditioning(batch, index, len(scores))
    if kind == "uncertainty":
        return batch.select(torch.tensor(index))
    return batch[index]


def describe(sides: list[list[int]], scores: torch.Tensor) -> str:
    lines = []
    for name, index in zip(("Kept", "Dropped"), sides):
        numbers = ", ".join(f"{i} ({scores[i]:.4g})" for i in index) or "none"
        lines.append(f"{name} {len(index)} of {len(scores)}: {numbers}")
    unknown = int((~scores.isfinite()).sum())
    if unknown:
        lines.append(f"{unknown} of the scores are not numbers and count as worst.")
    return LINE_BREAK.join([*lines, "Images are numbered from 0, as in the batch; their scores are in brackets."])

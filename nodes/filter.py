"""Keep the images that the model is most certain of."""

from __future__ import annotations

import torch
from comfy_api.latest import io
from comfy_execution.graph_utils import ExecutionBlocker

from ..bayesdiff_core.drawing.sheets import contact_sheet, strip_frames, strips
from ..bayesdiff_core.reading import rank
from ..bayesdiff_core.reading.uncertainty import Uncertainty
from ..host.compat import search_words
from ..host.conditioning import Copies, join_conditionings, select_conditioning
from ..host.selection import join_latents, select_latent
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
PROMPTS = {"positive", "negative"}
FRAMED = {"images": 4, "masks": 3}  # what has frames of clips, and the dimensions of a batch of it


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
    def validate_inputs(cls, rule, scores=None, uncertainty=None) -> bool | str:
        if rule[0] is not None and rule[0] not in RULES:
            return f"Expected one of the rules {', '.join(RULES)}, got {rule[0]}; choose one of them."
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
MISSING = "Expected the input {} for the output {}, got nothing there; connect it."


def one_batch(kind: str, parts: list):
    """The batch of one input: that of a list, whose parts are joined.

    Raises:
        ValueError: the parts differ in size, or in what made them.
    """
    if kind == "masks":
        parts = [part[None] if part.ndim == 2 else part for part in parts]
    if len(parts) == 1 or (kind == "latent" and any(part["samples"].is_nested for part in parts)):
        return parts[0]  # a nested latent is refused later, alone or not
    found = list(dict.fromkeys(likeness(kind, part) for part in parts))
    if len(found) > 1:
        raise ValueError(
            f"Expected parts of one size and kind in the list at the input {kind}, got {' and '.join(found)}; filter "
            "each kind by itself."
        )
    join = {"latent": join_latents, "uncertainty": Uncertainty.join}.get(kind, torch.cat)
    return join(parts)


def likeness(kind: str, part) -> str:
    """In words, what parts that can be joined have in common: the size of one image and, of an uncertainty, more."""
    if kind == "uncertainty":
        size = " x ".join(map(str, part.variance.shape[1:]))
        return f"{size} ({part.estimator}, {len(part.deviations)} members, {len(part.trajectory)} points of the way)"
    return " x ".join(map(str, (part["samples"] if kind == "latent" else part).shape[1:]))


def frames_of_clips(batches: dict, count: int) -> int:
    """How many frames of each of ``count`` clips stand side by side in images and masks; 1 of images."""
    clips = [batches["uncertainty"].variance] if "uncertainty" in batches else []
    clips += [batches["latent"]["samples"]] if "latent" in batches else []
    if "images" in batches and any(not clip.is_nested and clip.ndim == 5 and clip.shape[2] > 1 for clip in clips):
        frames, rest = divmod(len(batches["images"]), count)
        if not rest:
            return frames
    return batches["uncertainty"].frames if "uncertainty" in batches else 1


def aligned(kind: str, batch, count: int, frames: int):
    """The batch, after checking that it has ``count`` images.

    Images and masks of clips come frame by frame, clip after clip; they are returned as ``(count, frames, ...)``.
    """
    if kind == "masks" and len(batch) == 1:
        batch = batch.expand(count, *batch.shape[1:])
    if frames > 1 and kind in FRAMED:
        if kind == "masks" and len(batch) == frames != count:  # of one clip, for all
            batch = batch.repeat(count, *[1] * (batch.ndim - 1))
        if len(batch) == count * frames:
            return batch.unflatten(0, (count, frames))
        if kind == "images" or len(batch) != count:
            raise ValueError(
                f"Expected {count} clips of {frames} frames at the input {kind}, clip after clip, got {len(batch)} "
                "frames; connect what belongs to the scores, as VAE Decode returns it."
            )
    tensor = {"latent": lambda: batch["samples"], "uncertainty": lambda: batch.variance}.get(kind, lambda: batch)()
    if tensor.is_nested or len(tensor) != count:
        got = "a nested latent" if tensor.is_nested else len(tensor)
        raise ValueError(
            f"Expected {count} in the batch at the input {kind}, one per score, got {got}; connect the batch that the "
            "scores belong to."
        )
    return batch


def one_prompt_each(given: dict[str, list], count: int) -> dict[str, list]:
    """The prompts for a batch of ``count``, which may be the parts of a list joined.

    Raises:
        ValueError: a list of prompts that are not one for each part.
    """
    sizes = {
        kind: [len(part["samples"] if kind == "latent" else part) for part in given[kind]]
        for kind in ("latent", "uncertainty", "images")
        if kind in given
    }
    # A single prompt met each part anew: its first row belongs to the first image of every part.
    sampled = sizes.get("latent") or sizes.get("uncertainty") or [count]
    within = [place for size in sampled for place in range(size)]
    found, copies = {}, {}
    for kind in PROMPTS & given.keys():
        parts = given[kind]
        if len(parts) == 1:
            found[kind] = select_conditioning(parts[0], within, max(sampled), copies)
            continue
        of_parts = next((known for known in sizes.values() if len(known) == len(parts)), [1] * len(parts))
        if sum(of_parts) != count:
            raise ValueError(
                f"Expected one prompt at the input {kind}, or a list with one for each part of the batch, got a list "
                f"of {len(parts)} for {count} images; connect the latents of the same list too."
            )
        found[kind] = join_conditionings(parts, of_parts)
    return found


def split_off(kind: str, batches: dict, index: list[int], scores: torch.Tensor, copies: Copies):
    """One output: the items of one kind of batch at ``index``.

    Args:
        copies: for :func:`~..host.conditioning.select_conditioning`; the same for both prompts of a side.
    """
    if kind != "scores" and kind not in batches:
        return ExecutionBlocker(MISSING.format(kind, kind))
    if not index:  # the host has no empty batch
        return ExecutionBlocker(None)
    if kind == "scores":
        return scores[index].tolist()
    batch = batches[kind]
    if kind == "latent":
        return select_latent(batch, index)
    if kind in PROMPTS:
        return select_conditioning(batch, index, len(scores), copies)
    if kind == "uncertainty":
        return batch.select(torch.tensor(index))
    chosen = batch[index]
    return chosen.flatten(0, 1) if kind in FRAMED and chosen.ndim > FRAMED[kind] else chosen


def describe(sides: list[list[int]], scores: torch.Tensor) -> str:
    lines = []
    for name, index in zip(("Kept", "Dropped"), sides):
        numbers = ", ".join(f"{i} ({scores[i]:.4g})" for i in index) or "none"
        lines.append(f"{name} {len(index)} of {len(scores)}: {numbers}")
    unknown = int((~scores.isfinite()).sum())
    if unknown == len(scores):
        lines.append("Nothing is known of any of them, so all are kept.")
    elif unknown:
        lines.append(f"{unknown} of the scores are not numbers and count as worst.")
    return LINE_BREAK.join([*lines, "Images are numbered from 0, as in the batch; their scores are in brackets."])

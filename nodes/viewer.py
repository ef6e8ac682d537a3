"""See a batch with its maps, set the mask, and choose images, all in the page."""

from __future__ import annotations

import re

import torch
import torch.nn.functional as F
from comfy_api.latest import io
from comfy_execution.graph_utils import ExecutionBlocker

from ..bayesdiff_core.reading import levels, masks, rank
from ..bayesdiff_core.reading.levels import Levels
from ..bayesdiff_core.reading.uncertainty import Uncertainty, require_finite
from ..host.compat import search_words
from ..host.conditioning import Copies
from ..host.temp_files import keep_image, keep_levels, with_progress
from .batches import PROMPTS, aligned, describe, frames_of_clips, one_batch, one_prompt_each, side_output, split_off
from .inputs import CATEGORY, LINE_BREAK, UncertaintyType, blur_input, grow_input

AREA, VALUE, PERCENTILE = "area share", "value", "percentile"
ALL, NONE = "all", "none"
# What web/viewer.js looks for in what a run tells the page: what is shown, and what the widgets were, of which other
# nodes may set some.
UI, USED = "bayesdiff_viewer", "bayesdiff_viewer_used"
THUMB = 192
# What the widgets are where a graph in the API format leaves them out.
WIDGETS = {
    "threshold": AREA,
    "area": 0.15,
    "value": 0.1,
    "percentile": 85.0,
    "grow": 8,
    "blur": 0.0,
    "keep": 1,
    "choice": "",
}
# What is split, in the order of the outputs.
KINDS = ["images", "latent", "masks", "positive", "negative", "uncertainty"]


class UncertaintyViewer(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="BayesDiffUncertaintyViewer",
            display_name="Uncertainty Viewer (BayesDiff)",
            category=CATEGORY,
            **search_words("image chooser", "image comparer", "picker", "preview", "heat map", "before and after"),
            description="Shows each image with its map, sets the mask live, and lets you choose which images go on. "
            "Nothing waits: without a choice, the surest images go on.",
            is_output_node=True,
            is_input_list=True,
            inputs=[
                io.Image.Input(
                    "images",
                    tooltip="The images to look at and to choose from; of clips their frames, as VAE Decode gives "
                    "them.",
                ),
                UncertaintyType.Input("uncertainty", tooltip="Of these images, from any sampler (BayesDiff)."),
                io.Combo.Input(
                    "threshold",
                    options=[AREA, VALUE, PERCENTILE],
                    default=WIDGETS["threshold"],
                    optional=True,
                    tooltip="Area share: as much of every image or frame. Value: what exceeds a standard deviation. "
                    "Percentile: what exceeds this percentile of all maps together.",
                ),
                io.Float.Input(
                    "area",
                    default=WIDGETS["area"],
                    min=0.0,
                    max=1.0,
                    step=0.005,
                    round=0.001,
                    optional=True,
                    tooltip="For 'area share': share of the image to mask, before growing.",
                ),
                io.Float.Input(
                    "value",
                    default=WIDGETS["value"],
                    min=0.0,
                    max=1e6,
                    step=0.001,
                    round=1e-6,
                    optional=True,
                    tooltip="For 'value': mask where the standard deviation of the latent exceeds this.",
                ),
                io.Float.Input(
                    "percentile",
                    default=WIDGETS["percentile"],
                    min=0.0,
                    max=100.0,
                    step=0.5,
                    round=0.1,
                    optional=True,
                    tooltip="For 'percentile': mask what is less certain than this percentage of all maps.",
                ),
                grow_input(optional=True),
                blur_input(optional=True),
                io.Int.Input(
                    "keep",
                    default=WIDGETS["keep"],
                    min=1,
                    max=4096,
                    optional=True,
                    tooltip="Without a choice of your own: how many of the surest images go on.",
                ),
                io.String.Input(
                    "choice",
                    default=WIDGETS["choice"],
                    optional=True,
                    tooltip="Your choice: the numbers of the images to keep, from 0 as in the batch, such as 0, 2, 5, "
                    "or all, or none. Empty: the surest go on.",
                ),
                io.Image.Input(
                    "before", optional=True, tooltip="Other images of the same places, to compare with: one or all."
                ),
                io.Latent.Input("latent", optional=True, tooltip="Latent to split with the images."),
                io.Mask.Input("masks", optional=True, tooltip="Masks to split: one per image or one for all."),
                io.Conditioning.Input(
                    "positive", optional=True, tooltip="Prompt to split, if it differs from image to image."
                ),
                io.Conditioning.Input("negative", optional=True, tooltip="Negative prompt to split."),
            ],
            outputs=[
                *(side_output("kept", kind) for kind in KINDS),
                io.Mask.Output(
                    "mask",
                    display_name="mask",
                    tooltip="The mask of each kept image or frame, at its size, as the page shows it: 1 is to be "
                    "redrawn.",
                ),
                io.Int.Output(
                    "numbers",
                    display_name="numbers",
                    is_output_list=True,
                    tooltip="Which images were kept, numbered from 0 as in the batch.",
                ),
                *(side_output("dropped", kind) for kind in KINDS),
                io.String.Output("report", display_name="report", tooltip="What was kept and dropped, in words."),
            ],
        )

    @classmethod
    def validate_inputs(cls, choice=None) -> bool | str:
        try:
            read_choice(choice[0] if choice and isinstance(choice[0], str) else "")
        except ValueError as error:
            return str(error)
        return True

    @classmethod
    def execute(cls, before=None, **given) -> io.NodeOutput:
        used = {name: given.pop(name, [default])[0] for name, default in WIDGETS.items()}
        given = {kind: parts for kind, parts in given.items() if parts is not None}
        batches = {kind: one_batch(kind, parts) for kind, parts in given.items() if kind not in PROMPTS}
        uncertainty = batches["uncertainty"]
        maps, scores = Levels.of(uncertainty), uncertainty.scores().double().cpu()
        frames = frames_of_clips(batches, len(scores))
        batches = {kind: aligned(kind, batch, len(scores), frames) for kind, batch in batches.items()}
        batches |= one_prompt_each(given, len(scores))
        clips = with_frames(batches["images"])
        if before is not None:
            before = one_batch("images", before)
            count = len(scores) * frames if len(before) == 1 else -1
            before = with_frames(aligned("images", before.expand(count, -1, -1, -1), len(scores), frames, "before"))
        # The latent frame that each frame has its map of.
        map_of = uncertainty.grid.cells_of(frames).clamp(max=maps.cells.shape[1] - 1)

        kept, how = choose(used["choice"], used["keep"], scores)
        dropped = [i for i in range(len(scores)) if i not in kept]
        kept_batches, dropped_batches = (split(batches, index, scores) for index in (kept, dropped))
        percentiles = maps.percentiles()
        of_map = {
            AREA: lambda values: levels.most_uncertain(values, used["area"]),
            VALUE: lambda values: levels.above_std(values, used["value"], maps.top),
            PERCENTILE: lambda values: levels.above_percentile(values, used["percentile"], percentiles),
        }[used["threshold"]]
        if not kept:
            mask = ExecutionBlocker(None)
        elif not maps.known[kept].all():
            mask = ExecutionBlocker(why_unknown(uncertainty))
        else:
            size = clips.shape[2:4]
            cells = [[of_map(levels.enlarge(cell, *size)) for cell in maps.cells[i]] for i in kept]
            mask = torch.stack([clip[t] for clip in cells for t in map_of]).float()
            mask = masks.blur(masks.grow(mask, used["grow"]), used["blur"])
        report = how + LINE_BREAK + describe([kept, dropped], scores)
        shown = what_is_shown(clips, before, uncertainty, maps, map_of)
        numbers = kept or ExecutionBlocker(None)
        outputs = *kept_batches, mask, numbers, *dropped_batches, report
        return io.NodeOutput(*outputs, ui={UI: [shown], USED: [used]})


def split(batches: dict, index: list[int], scores: torch.Tensor) -> list:
    """The outputs of one side: the images at ``index`` of every batch."""
    copies: Copies = {}
    return [split_off(kind, batches, index, scores, copies) for kind in KINDS]


def read_choice(text: str) -> list[int] | str:
    """The numbers that a choice names, or ALL, or NONE, or "" where none was made.

    Raises:
        ValueError: it is none of these.
    """
    text = text.strip().lower()
    if text in ("", ALL, NONE):
        return text
    if re.fullmatch(r"\d{1,6}([\s,]+\d{1,6})*,?", text):
        return [int(number) for number in re.findall(r"\d+", text)]
    raise ValueError(
        f"Expected the numbers of the images to keep, such as 0, 2, 5, or all or none, got {text[:60]}; correct the "
        "choice, or empty it to keep the surest."
    )


def choose(choice: str, keep: int, scores: torch.Tensor) -> tuple[list[int], str]:
    """The numbers of the kept images, as in the batch, and in words how they were chosen."""
    count = len(scores)
    named = read_choice(choice)
    if named == NONE:
        return [], "Chosen by hand: none."
    if named == ALL:
        return list(range(count)), "Chosen by hand: all."
    numbers = named if isinstance(named, list) else []
    kept = sorted({i for i in numbers if i < count})
    if kept:
        missing = [str(i) for i in sorted(set(numbers)) if i >= count]
        gone = f" The choice also names {', '.join(missing)}, which this batch does not have." if missing else ""
        return kept, f"Chosen by hand.{gone}"
    if not scores.isfinite().any():
        return list(range(count)), "Automatic: nothing is known of any image, so all are kept."
    why = " The choice names no image of this batch." if numbers else ""
    surest = rank.keep_best(scores, keep).nonzero().flatten().tolist()
    return surest, f"Automatic: the surest {len(surest)} of {count}.{why}"


def why_unknown(uncertainty: Uncertainty) -> str:
    """Why something is unknown, in a sentence; "" if all is known."""
    if uncertainty.unknown:
        return uncertainty.why_unknown
    try:
        require_finite(uncertainty.variance)
    except ValueError as error:
        return str(error)
    return ""


def with_frames(images: torch.Tensor) -> torch.Tensor:
    """Images ``(n, h, w, c)`` as clips of one frame; clips ``(n, frames, h, w, c)`` stay."""
    return images if images.ndim == 5 else images[:, None]


def what_is_shown(
    clips: torch.Tensor, before: torch.Tensor | None, uncertainty: Uncertainty, maps: Levels, map_of: torch.Tensor
) -> dict:
    """What the page needs, sent once: where the files of images and maps are, and their numbers.

    Args:
        clips: ``(n, frames, h, w, c)``.
        before: of the same number of clips and frames.
        map_of: the latent frame of each frame, ``(frames,)``.
    """
    scores = uncertainty.scores().double()
    percentiles = uncertainty.percentiles()
    small = THUMB / max(clips.shape[2:4])
    try:
        each = [
            {
                "images": [keep_image(frame) for frame in frames],
                "thumb": keep_image(thumbnail(frames[len(frames) // 2], small)),
                "before": None if before is None else [keep_image(frame) for frame in before[i]],
                "levels": [keep_levels(cells) for cells in maps.cells[i]] if maps.known[i] else None,
                "score": number(scores[i]),
                "percentile": None if percentiles is None else number(percentiles[i]),
            }
            for i, frames in enumerate(with_progress(clips))
        ]
    except OSError as error:  # the chosen go on all the same
        return {
            "problem": f"Expected room in the temp folder for what the page shows, got '{error.strerror or error}'; "
            "free some and run again."
        }
    return {
        "images": each,
        "order": rank.rank(scores).tolist(),
        "size": list(clips.shape[2:4]),
        "cells": list(maps.cells.shape[2:]),
        "map_of": map_of.tolist(),
        "top": maps.top,
        "percentiles": maps.percentiles(),
        "unknown": why_unknown(uncertainty),
    }


def thumbnail(image: torch.Tensor, scale: float) -> torch.Tensor:
    if scale >= 1:
        return image
    size = [max(1, round(side * scale)) for side in image.shape[:2]]
    return F.interpolate(image.movedim(-1, 0)[None], size=size, mode="area")[0].movedim(0, -1)


def number(value: torch.Tensor) -> float | None:
    """For JSON, which has no NaN."""
    return float(value) if value.isfinite() else None

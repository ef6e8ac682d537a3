"""Batches that stay aligned: joined from lists, checked, and split into kept and dropped."""

from __future__ import annotations

import torch
from comfy_api.latest import io
from comfy_execution.graph_utils import ExecutionBlocker

from ..bayesdiff_core.reading.uncertainty import Uncertainty
from ..host.conditioning import Copies, join_conditionings, select_conditioning
from ..host.nested import count_of, parts_of
from ..host.selection import join_latents, select_latent
from .inputs import LINE_BREAK, UncertaintyType

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
MISSING = "Expected the input {} for the output {}, got nothing there; connect it."


def side_output(side: str, kind: str) -> io.Output:
    """The output of one kind of batch of the kept or of the dropped."""
    tooltip = f"The {side}, in the same order in every output. Nodes fed by an empty output do not run."
    return BATCHES[kind].Output(f"{side}_{kind}", display_name=f"{side} {kind}", tooltip=tooltip)


def one_batch(kind: str, parts: list):
    """The batch of one input: that of a list, whose parts are joined.

    Raises:
        ValueError: the parts differ in size, or in what made them.
    """
    if kind == "masks":
        parts = [part[None] if part.ndim == 2 else part for part in parts]
    if len(parts) == 1:
        return parts[0]
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
    tensors = parts_of(part["samples"]) if kind == "latent" else [part]
    return " and ".join(" x ".join(map(str, tensor.shape[1:])) for tensor in tensors)


def frames_of_clips(batches: dict, count: int) -> int:
    """How many frames of each of ``count`` clips stand side by side in images and masks; 1 of images."""
    clips = [batches["uncertainty"].variance] if "uncertainty" in batches else []
    clips += parts_of(batches["latent"]["samples"])[:1] if "latent" in batches else []
    if "images" in batches and any(clip.ndim == 5 and clip.shape[2] > 1 for clip in clips):
        frames, rest = divmod(len(batches["images"]), count)
        if not rest:
            return frames
    return batches["uncertainty"].frames if "uncertainty" in batches else 1


def aligned(kind: str, batch, count: int, frames: int = 1, name: str = ""):
    """The batch, after checking that it has ``count`` images.

    Images and masks of clips come frame by frame, clip after clip; they are returned as ``(count, frames, ...)``.

    Args:
        name: of the input, if it is not that of its kind.
    """
    name = name or kind
    if kind == "masks" and len(batch) == 1:
        batch = batch.expand(count, *batch.shape[1:])
    if frames > 1 and kind in FRAMED:
        if kind == "masks" and len(batch) == frames != count:  # of one clip, for all
            batch = batch.repeat(count, *[1] * (batch.ndim - 1))
        if len(batch) == count * frames:
            return batch.unflatten(0, (count, frames))
        if kind == "images" or len(batch) != count:
            raise ValueError(
                f"Expected {count} clips of {frames} frames at the input {name}, clip after clip, got {len(batch)} "
                "frames; connect what belongs to the scores, as VAE Decode returns it."
            )
    got = count_of(batch["samples"]) if kind == "latent" else len(batch)
    if got != count:
        raise ValueError(
            f"Expected {count} in the batch at the input {name}, one per score, got {got}; connect the batch that the "
            "scores belong to."
        )
    return batch


def one_prompt_each(given: dict[str, list], count: int) -> dict[str, list]:
    """The prompts for a batch of ``count``, which may be the parts of a list joined.

    Raises:
        ValueError: a list of prompts that are not one for each part.
    """
    sizes = {
        kind: [count_of(part["samples"]) if kind == "latent" else len(part) for part in given[kind]]
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

"""What a CONDITIONING holds for each image of a batch: choosing it, and putting it together again."""

from __future__ import annotations

import copy
import functools
import logging
from collections.abc import Callable
from typing import Any

import comfy.utils
import torch
from comfy.clip_vision import Output
from comfy.controlnet import ControlBase

# Options that belong to all images together: of several pictures in the first, the host makes one guidance.
SHARED = {"unclip_conditioning", "gligen", "hooks"}
# Options of which the host spreads few over many images; of all others it begins again with the first.
SPREAD = {"concat_image", "concat_latent_image", "concat_mask"}
# Options that the host takes for a batch, however many there are.
BATCHES = SPREAD | {"clip_vision_output", "cross_attn_controlnet", "mask", "pooled_output", "reference_latents"}
MASKS = {"concat_mask", "mask"}
# ControlNets that were chosen so far, by the given one.
Copies = dict[ControlBase, ControlBase]


def select_conditioning(conditioning: list, index: list[int], count: int, copies: Copies | None = None) -> list:
    """The CONDITIONING of the images at ``index`` of a batch of ``count``, in that order.

    What is there once for all images stays. What is there for each is chosen: prompts, masks, reference latents,
    CLIP vision, the pictures of ControlNets. Fewer of them than images are repeated as the host repeats them. What
    was given is not changed.

    Args:
        copies: shared by prompts that will be sampled together. The host asks the network about two prompts at once
            only if they hold the same ControlNet, so one that they share has to stay one.
    """
    copies = {} if copies is None else copies
    chosen = []
    for tokens, options in conditioning:
        lengths = {count} if tokens is None else {count, len(tokens)}
        found = {key: select_option(key, value, index, count, lengths, copies) for key, value in options.items()}
        if options.get("set_area_to_bounds") and found["mask"] is not options["mask"]:
            # The host samples an area around all masks, and then uses as many of the first as there are images.
            found["mask"] = torch.cat([found["mask"], options["mask"]])
        chosen.append([None if tokens is None else rows(tokens, index, count), found])
    return chosen


def select_option(key: str, value, index: list[int], count: int, lengths: set[int], copies: Copies):
    """What one option of a prompt holds for the images at ``index``.

    Args:
        lengths: a tensor of as many rows is one of images, whatever the option.
    """

    def pick(tensor: torch.Tensor) -> torch.Tensor:
        length = len(tensor) if tensor.ndim > (2 if key in MASKS else 1) else 1
        is_batch = length > 1 and (key in BATCHES or length in lengths or count % length == 0)
        return rows(tensor, index, count, key in SPREAD) if is_batch else tensor

    if key in SHARED:
        return value
    if key == "control" and isinstance(value, ControlBase):
        return select_control(value, index, count, copies)
    return in_value(key, value, pick, count)


def in_value(key: str, value, pick: Callable[[torch.Tensor], torch.Tensor], count: int) -> Any:
    """The value with all tensors in it picked from; a list holds one for each reference, and each is a batch."""
    if torch.is_tensor(value):
        return pick(value)
    if type(value) in (list, tuple):
        return type(value)(in_value(key, part, pick, count) for part in value)
    if type(value) is dict:
        return {name: in_value(key, part, pick, count) for name, part in value.items()}
    if isinstance(value, Output):
        chosen = copy.copy(value)
        vars(chosen).update({name: pick(part) for name, part in vars(value).items() if torch.is_tensor(part)})
        return chosen
    if count > 1 and any(len(part) == count for part in tensors_of(value).values()):
        warn_once(
            f"BayesDiff: the prompt's '{key}' ({type(value).__name__}) seems to hold something for each image that "
            "cannot be split, so all images keep all of it; apply it after the images are chosen."
        )
    return value


def tensors_of(thing) -> dict[str, torch.Tensor]:
    """Attributes of an object that may be batches."""
    parts = getattr(thing, "__dict__", {})
    return {name: part for name, part in parts.items() if torch.is_tensor(part) and part.ndim > 1}


@functools.cache
def warn_once(sentence: str) -> None:
    logging.warning(sentence)


def select_control(control: ControlBase, index: list[int], count: int, copies: Copies) -> ControlBase:
    """A ControlNet or adapter, with those before it, for the images at ``index``: itself if its hint is for all."""
    if control in copies:
        return copies[control]
    previous = control.previous_controlnet
    previous = None if previous is None else select_control(previous, index, count, copies)
    # Packs keep masks of their own beside the hint, named alike.
    hints = {name: hint for name, hint in tensors_of(control).items() if name.endswith("_original") and len(hint) > 1}
    if is_clip(control):
        hints = {}
    found = {name: rows(hint, index, count) for name, hint in hints.items()}
    chosen = control
    if previous is not control.previous_controlnet or any(found[name] is not hints[name] for name in hints):
        chosen = control.copy()
        chosen.set_previous_controlnet(previous)
        vars(chosen).update(found)
    if chosen is not control and "cond_hint_original" in hints:
        # The host repeats what it joins to the hints to as many as there are hints, not images.
        given = len(hints["cond_hint_original"])
        numbers = row_numbers(given, index, count)
        chosen.extra_concat_orig = [rows(extra, numbers, given) for extra in control.extra_concat_orig]
    copies[control] = chosen
    return chosen


def is_clip(control: ControlBase) -> bool:
    """Whether the host takes several hints for the frames of one clip: the VAE of the hints makes clips."""
    vae = control.vae
    return getattr(vae, "latent_dim", 2) == 3 and not getattr(vae, "not_video", False)


def rows(batch: torch.Tensor, index: list[int], count: int, spread: bool = False) -> torch.Tensor:
    """The rows ``(m, ...)`` of ``(k, ...)`` that the images at ``index`` of ``count`` get; one for all stays one."""
    numbers = row_numbers(len(batch), index, count, spread)
    return batch if len(batch) == 1 or numbers == list(range(len(batch))) else batch[numbers]


def row_numbers(length: int, index: list[int], count: int, spread: bool = False) -> list[int]:
    """Which of ``length`` rows the host gives to each of the images at ``index`` of a batch of ``count``."""
    repeat = comfy.utils.resize_to_batch_size if spread else comfy.utils.repeat_to_batch_size
    return repeat(torch.arange(length), count)[index].tolist()


def join_conditionings(parts: list[list], sizes: list[int]) -> list:
    """One CONDITIONING of a batch whose first ``sizes[0]`` images have the first part, the next the second, and so on.

    The inverse of :func:`select_conditioning`. What is the same in all parts stays as it is.

    Raises:
        ValueError: the parts differ in more than tensors of one size for each image.
    """
    # Each part first has a row for each of its images, as the host repeats them; one for all stays one.
    rows_each = [select_conditioning(part, list(range(size)), size) for part, size in zip(parts, sizes)]
    return join_values([[[tokens, masks_first(options)] for tokens, options in part] for part in rows_each], sizes)


def masks_first(options: dict) -> dict:
    """The options with a mask ``(h, w)`` for all images as ``(1, h, w)``."""
    return {key: value[None] if key in MASKS and value.ndim == 2 else value for key, value in options.items()}


def join_values(values: list, sizes: list[int]) -> Any:
    """One value for all parts; lists and dictionaries are joined one by one."""
    first, kinds = values[0], {type(value) for value in values}
    if all(value is first for value in values):
        return first
    if all(torch.is_tensor(value) for value in values):
        if all(torch.equal(value, first) for value in values) and (first.ndim < 2 or len(first) == 1):
            return first
        if first.ndim > 1 and all(
            value.shape[1:] == first.shape[1:] and len(value) in (1, size) for value, size in zip(values, sizes)
        ):
            return torch.cat([value.expand(size, *value.shape[1:]) for value, size in zip(values, sizes)])
    elif kinds in ({list}, {tuple}) and len({len(value) for value in values}) == 1:
        return type(first)(join_values(list(same), sizes) for same in zip(*values))
    elif kinds == {dict} and all(value.keys() == first.keys() for value in values):
        return {key: join_values([value[key] for value in values], sizes) for key in first}
    elif not any(torch.is_tensor(value) for value in values) and all(value == first for value in values):
        return first
    raise ValueError(
        f"Expected prompts of one length that share everything but what they say, got a list of {len(values)} that "
        "differ in more, such as their ControlNet; filter each part by itself, or apply ControlNets after the filter."
    )

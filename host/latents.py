"""Checks and sizes of latents."""

from __future__ import annotations

import inspect

import comfy.sample
import torch
from comfy.model_patcher import ModelPatcher

from ..bayesdiff_core.estimators.parts import Shapes
from ..bayesdiff_core.reading.clip_masks import cell_masks, frame_masks
from ..bayesdiff_core.reading.grid import LatentGrid
from .nested import by_part, count_of, parts_of, whole
from .said import say


def check_latent(model: ModelPatcher, latent: dict) -> None:
    """Make sure that ``latent`` is one that ``model`` can sample from.

    Raises:
        ValueError: a wrong number of channels. The host widens an empty latent by itself, so that passes.
    """
    samples, latent_format = latent["samples"], model.model.latent_format
    if samples.is_nested:  # its parts have channels of their own, which the host does not tell
        return
    if samples.shape[1] == latent_format.latent_channels or torch.count_nonzero(samples) == 0:
        return
    # Of video with sound the format names the larger number of both.
    channels = parts_of(empty_latent(model, latent))[0].shape[1]
    if samples.shape[1] != channels:
        raise ValueError(
            f"Expected a latent of {channels} channels for this model ({type(latent_format).__name__}), got "
            f"{samples.shape[1]}; encode the image with this model's own VAE or connect an empty latent."
        )


def empty_latent(model: ModelPatcher, latent: dict) -> torch.Tensor:
    """What the host would sample of one image of an empty LATENT of this size: ``(1, ...)``, nested or not.

    Newer hosts tag an empty latent with the pixels of its cells, and resize it for a model of other cells.
    """
    fix = comfy.sample.fix_empty_latent_channels
    tags = {name: latent[name] for name in inspect.signature(fix).parameters if name in latent}
    return fix(model, by_part(lambda part: torch.zeros_like(part[:1]), latent["samples"]), **tags)


def require_content(latent: dict, purpose: str) -> None:
    """Refuse an empty latent where finished images are needed.

    Args:
        purpose: completes "Expected finished latents to ...".

    Raises:
        ValueError: the latent is all zeros.
    """
    if not any(part.any() for part in parts_of(latent["samples"])):
        raise ValueError(
            f"Expected finished latents to {purpose}, got an empty latent; connect a sampler's output or VAE Encode."
        )


def is_clip(samples: torch.Tensor) -> bool:
    """Whether latents ``(n, c, t, h, w)`` have several latent frames; stills of a video family have one."""
    samples = parts_of(samples)[0]
    return samples.ndim == 5 and samples.shape[2] > 1


def check_mask(mask: torch.Tensor | None, samples: torch.Tensor) -> None:
    """Raise one sentence unless there is one mask or one per image; of clips, :func:`host_mask` checks."""
    count = count_of(samples)
    if mask is not None and mask.ndim > 2 and len(mask) not in (1, count) and not is_clip(samples):
        raise ValueError(
            f"Expected one mask, or one for each of the {count} images, got {len(mask)}; connect as many masks "
            "as there are images."
        )


def host_mask(mask: torch.Tensor, samples: torch.Tensor, grid: LatentGrid) -> torch.Tensor:
    """Masks so that the host gives each image and each frame its own, as a noise mask of ``samples``.

    Of latents with a time axis the host takes a mask of fewer than five dimensions for the frames of one clip, whatever
    the batch: it averages the masks of several images, and samples those of frames as if each latent frame held as
    many. So these get a mask of five dimensions, one plane for each latent frame.

    Of a nested latent it is the mask of the first part, the picture; the others (sound) are kept as they are.

    Args:
        mask: of images ``(n, h, w)`` or one for all; of clips see
            :func:`~..bayesdiff_core.reading.clip_masks.frame_masks`.

    Raises:
        ValueError: another number of masks.
    """
    if samples.is_nested:
        picture, *others = samples.unbind()
        return whole([host_mask(mask, picture, grid), *map(torch.zeros_like, others)])
    if samples.ndim != 5:
        return mask
    clips, frames = len(samples), grid.frames_of(samples.shape[2])
    planes = frame_masks(mask, clips, samples.shape[2], grid)
    return cell_masks(planes.expand(clips, frames, -1, -1), grid)


def masked(latent: dict, mask: torch.Tensor, grid: LatentGrid) -> dict:
    """The LATENT with these noise masks, as the stock Set Latent Noise Mask sets them, but each for its own image."""
    samples = latent["samples"]
    planes = mask.reshape(-1, 1, *mask.shape[-2:])
    return latent | {"noise_mask": host_mask(planes, samples, grid)}


def warn_of_mixed_masks(latent: dict) -> None:
    """Tell where the host will mix the masks of a batch, see :func:`host_mask`."""
    samples, mask = latent["samples"], latent.get("noise_mask")
    if mask is None or samples.is_nested or samples.ndim != 5 or mask.ndim >= 5:
        return
    if mask.ndim > 2 and len(mask) > 1 and len(samples) > 1:
        say(
            "ComfyUI takes the masks of a batch of this family for the frames of one clip, and gives all of "
            "the batch their average; use the latent that Uncertainty to Mask (BayesDiff) returns, or sample one at a "
            "time."
        )


def check_belongs(latent: dict, uncertainty) -> None:
    """Raise one sentence if the uncertainty cannot belong to the latent."""
    got = [tuple(part.shape) for part in parts_of(latent["samples"])]
    expected = [tuple(part.latent.shape) for part in uncertainty.parts]
    if got != expected:
        got, expected = (" and ".join(map(str, shapes)) for shapes in (got, expected))
        raise ValueError(
            f"Expected the latent that the uncertainty belongs to, of shape {expected}, got {got}; connect latent and "
            "uncertainty of the same sampler, or filter both together."
        )


def check_same_batch(latent: dict, uncertainty) -> None:
    """Raise one sentence unless a latent has as many images and frames as the uncertainty; its size may differ."""
    samples, expected = parts_of(latent["samples"])[0], uncertainty.latent.shape
    if samples.ndim != len(expected) or samples.shape[:1] + samples.shape[2:-2] != (expected[:1] + expected[2:-2]):
        raise ValueError(
            f"Expected a latent of as many images and frames as the uncertainty has, of shape {tuple(expected)}, got "
            f"one of shape {tuple(samples.shape)}; connect the latent of the same images."
        )


# Latent formats whose cells are not 8 pixels wide; newer hosts tell most of these by themselves.
PIXELS = {
    "ChromaRadiance": 1,
    "Flux2": 16,
    "HunyuanImage21": 32,
    "HunyuanVideo15": 16,
    "LTXV": 32,
    "SC_B": 4,
    "SC_Prior": 42,
    "SD_X4": 4,
    "Wan22": 16,
}
# Latent formats of which a single frame comes again after so many latent frames.
GROUPS = {"MiniMaxH3Video": 5, "MiniMaxH3AV": 5}
# Latent formats of nested latents, and which dimension of their sound ``(n, c, ...)`` is time; 0 of no sound. Of others
# the longest is taken for it.
TIME = {"LTXAV": 2, "MiniMaxH3AV": 3, "TripoSplat": 0}
# Latent formats of video whose frames hold another number than 4 frames of the clip; newer hosts tell by themselves.
FRAMES = {"LTXV": 8, "Mochi": 6, "Cosmos1CV8x8x8": 8}


def latent_grid(model: ModelPatcher) -> LatentGrid:
    """Pixels and frames of a latent cell of this model."""
    latent_format = model.model.latent_format
    name = type(latent_format).__name__
    frames = FRAMES.get(name, 4) if latent_format.latent_dimensions == 3 else 1
    return LatentGrid(
        pixels=PIXELS.get(name) or getattr(latent_format, "spacial_downscale_ratio", 8),
        frames=getattr(latent_format, "temporal_downscale_ratio", frames),
        group=GROUPS.get(name, 0),
    )


def latent_grids(model: ModelPatcher, shapes: Shapes) -> list[LatentGrid]:
    """:func:`latent_grid`, and those of the other parts of a nested latent.

    Args:
        shapes: of its parts, without the batch; none of any other latent.
    """
    name = type(model.model.latent_format).__name__
    longest = [max(range(1, len(shape)), key=shape.__getitem__) + 1 if len(shape) > 1 else 0 for shape in shapes[1:]]
    others = [LatentGrid(pixels=1, time=TIME.get(name, time)) for time in longest]
    return [latent_grid(model), *others]

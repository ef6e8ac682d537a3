"""Checks and sizes of latents."""

from __future__ import annotations

import inspect
import logging

import comfy.sample
import torch
from comfy.model_patcher import ModelPatcher

from ..bayesdiff_core.reading.grid import LatentGrid


def check_latent(model: ModelPatcher, latent: dict) -> None:
    """Make sure that ``latent`` is one that ``model`` can sample from.

    Raises:
        ValueError: nested, or a wrong number of channels. The host widens an empty latent by itself, so that passes.
    """
    samples, latent_format = latent["samples"], model.model.latent_format
    if samples.is_nested:
        raise ValueError(
            "Expected one latent of images or video, got a nested latent (video with sound); sample it with the "
            "stock KSampler."
        )
    if samples.shape[1] != latent_format.latent_channels and torch.count_nonzero(samples) > 0:
        raise ValueError(
            f"Expected a latent of {latent_format.latent_channels} channels for this model "
            f"({type(latent_format).__name__}), got {samples.shape[1]}; encode the image with this model's own VAE "
            "or connect an empty latent."
        )


def empty_latent(model: ModelPatcher, latent: dict) -> torch.Tensor:
    """What the host would sample of one image of an empty LATENT of this size: ``(1, ...)``.

    Newer hosts tag an empty latent with the pixels of its cells, and resize it for a model of other cells.
    """
    fix = comfy.sample.fix_empty_latent_channels
    tags = {name: latent[name] for name in inspect.signature(fix).parameters if name in latent}
    return fix(model, torch.zeros_like(latent["samples"][:1]), **tags)


def require_content(latent: dict, purpose: str) -> None:
    """Refuse an empty latent where finished images are needed.

    Args:
        purpose: completes "Expected finished latents to ...".

    Raises:
        ValueError: the latent is all zeros.
    """
    if not latent["samples"].any():
        raise ValueError(
            f"Expected finished latents to {purpose}, got an empty latent; connect a sampler's output or VAE Encode."
        )


def check_mask(mask: torch.Tensor | None, images: int) -> None:
    """Raise one sentence unless there is one mask or one per image."""
    if mask is not None and mask.ndim > 2 and len(mask) not in (1, images):
        raise ValueError(
            f"Expected one mask, or one for each of the {images} images, got {len(mask)}; connect as many masks as "
            "there are images."
        )


def host_mask(mask: torch.Tensor, samples: torch.Tensor) -> torch.Tensor:
    """A mask of each image ``(n, h, w)``, or one for all, so that the host gives each image its own.

    Of latents with a time axis the host takes a mask of fewer than five dimensions for the frames of one clip, and
    would average those of several images.
    """
    if samples.ndim != 5 or mask.ndim >= 5:
        return mask
    if mask.ndim == 4:
        mask = mask[:, 0]
    return mask if mask.ndim < 3 or len(mask) not in (1, len(samples)) else mask[:, None, None]


def warn_of_mixed_masks(latent: dict) -> None:
    """Tell where the host will mix the masks of a batch of images, see :func:`host_mask`."""
    samples, mask = latent["samples"], latent.get("noise_mask")
    if mask is None or samples.is_nested or samples.ndim != 5 or mask.ndim >= 5 or samples.shape[2] > 1:
        return
    if len(mask) > 1 and len(samples) > 1:
        logging.warning(
            "BayesDiff: ComfyUI takes the masks of a batch of this family for the frames of one clip, and gives all "
            "images their average; sample one image at a time, or use Repair (BayesDiff), which gives each its own."
        )


def check_belongs(latent: dict, uncertainty) -> None:
    """Raise one sentence if the uncertainty cannot belong to the latent."""
    got, expected = tuple(latent["samples"].shape), tuple(uncertainty.latent.shape)
    if got != expected:
        raise ValueError(
            f"Expected the latent that the uncertainty belongs to, of shape {expected}, got {got}; connect latent and "
            "uncertainty of the same sampler, or filter both together."
        )


# Latent formats whose cells are not 8 pixels wide; newer hosts tell by themselves.
PIXELS = {
    "ChromaRadiance": 1,
    "Flux2": 16,
    "HunyuanImage21": 32,
    "HunyuanVideo15": 16,
    "LTXV": 32,
    "SC_B": 4,
    "SC_Prior": 42,
    "Wan22": 16,
}
# Latent formats of video whose frames hold another number than 4 frames of the clip; newer hosts tell by themselves.
FRAMES = {"LTXV": 8, "Mochi": 6, "Cosmos1CV8x8x8": 8}


def latent_grid(model: ModelPatcher) -> LatentGrid:
    """Pixels and frames of a latent cell of this model."""
    latent_format = model.model.latent_format
    name = type(latent_format).__name__
    frames = FRAMES.get(name, 4) if latent_format.latent_dimensions == 3 else 1
    return LatentGrid(
        pixels=getattr(latent_format, "spacial_downscale_ratio", PIXELS.get(name, 8)),
        frames=getattr(latent_format, "temporal_downscale_ratio", frames),
    )

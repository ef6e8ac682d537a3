"""Masks of the most uncertain part of an image, for inpainting."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F


def most_uncertain_area(values: torch.Tensor, area: float) -> torch.Tensor:
    """Hard mask of the ``area`` share of each map with the highest values.

    Args:
        values: ``(n, h, w)``.
        area: share of the cells to mark, in (0, 1].

    Returns:
        ``(n, h, w)`` of zeros and ones; exactly ``ceil(area * h * w)`` ones each.
    """
    flat = values.flatten(1)
    count = math.ceil(area * flat.shape[1])
    mask = torch.zeros_like(flat)
    mask.scatter_(1, flat.topk(count, dim=1).indices, 1.0)
    return mask.reshape(values.shape)


def grow(mask: torch.Tensor, pixels: int) -> torch.Tensor:
    """Dilate masks ``(n, h, w)`` by ``pixels`` in every direction (a square neighbourhood)."""
    if pixels == 0:
        return mask
    return F.max_pool2d(mask[:, None], 2 * pixels + 1, stride=1, padding=pixels)[:, 0]


def blur(mask: torch.Tensor, sigma: float) -> torch.Tensor:
    """Gaussian blur of masks ``(n, h, w)`` with standard deviation ``sigma`` in pixels; edges replicate."""
    if sigma == 0:
        return mask
    radius = math.ceil(3 * sigma)
    offsets = torch.arange(-radius, radius + 1, dtype=mask.dtype, device=mask.device)
    kernel = torch.exp(-0.5 * (offsets / sigma).square())
    kernel = kernel / kernel.sum()
    padded = F.pad(mask[:, None], (radius,) * 4, mode="replicate")
    rows = F.conv2d(padded, kernel.view(1, 1, 1, -1))
    return F.conv2d(rows, kernel.view(1, 1, -1, 1))[:, 0]

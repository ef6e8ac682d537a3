"""Masks of the most uncertain part of an image or a clip, for inpainting."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy
import torch
import torch.nn.functional as F
from scipy import ndimage

# Cells that touch at a corner belong together; a hole is then closed where its border touches at corners alone.
NEIGHBOURS = numpy.ones((3, 3), dtype=bool)


def require_finite_mask(mask: torch.Tensor | None) -> None:
    """Refuse a mask that holds NaN or infinity, which would spread over the whole image.

    Raises:
        ValueError: it does.
    """
    if mask is not None and not mask.isfinite().all():
        raise ValueError("Expected a mask of finite values, got NaN or infinity in it; connect another mask.")


def most_uncertain_area(values: torch.Tensor, area: float) -> torch.Tensor:
    """Hard mask of the ``area`` share of each map with the highest values.

    Args:
        values: ``(n, h, w)``, or ``(n, frames, h, w)`` of clips, not negative.
        area: share of the cells to mark, in (0, 1]; of a clip, of all its frames together.

    Returns:
        zeros and ones of that shape; ``ceil(area * h * w)`` ones each, or fewer: a cell of no uncertainty is never
        marked, so a map of zeros has an empty mask.
    """
    flat = values.flatten(1)
    count = math.ceil(area * flat.shape[1])
    mask = torch.zeros_like(flat)
    mask.scatter_(1, flat.topk(count, dim=1).indices, 1.0)
    return (mask * (flat > 0)).reshape(values.shape)


def most_uncertain_of_batch(values: torch.Tensor, area: float) -> torch.Tensor:
    """The same, of all maps together: a sure image gets a small mask or none, an unsure one a large one."""
    return most_uncertain_area(values.reshape(1, -1, values.shape[-1]), area).reshape(values.shape)


def above(values: torch.Tensor, threshold: float) -> torch.Tensor:
    """Hard mask of what exceeds a value, of the shape of the maps."""
    return (values > threshold).to(values.dtype)


def otsu(values: torch.Tensor, bins: int = 256) -> torch.Tensor:
    """Hard mask of the upper of two classes, split where the variance between them is largest (Otsu 1979), map by map.

    A map of one value has no two classes and an empty mask.

    Args:
        values: ``(n, h, w)``, or ``(n, frames, h, w)`` of clips.
    """
    masks = []
    for image in values.float().cpu():
        low, high = float(image.min()), float(image.max())
        if low == high:
            masks.append(torch.zeros_like(image))
            continue
        counts = torch.histc(image, bins, low, high).double()
        edges = torch.linspace(low, high, bins + 1, dtype=torch.float64)
        middles = (edges[:-1] + edges[1:]) / 2
        below, moment = counts.cumsum(0), (counts * middles).cumsum(0)
        total, mean = below[-1], moment[-1] / below[-1]
        between = (mean * below - moment).square() / (below * (total - below)).clamp(min=1)
        masks.append((image > edges[1:][between.argmax()]).float())
    return torch.stack(masks).to(values)


def each(mask: torch.Tensor, change: Callable[[numpy.ndarray], numpy.ndarray]) -> torch.Tensor:
    """Change masks ``(n, h, w)`` one by one, as arrays of bool."""
    changed = [torch.from_numpy(change(image)) for image in (mask > 0).cpu().numpy()]
    return torch.stack(changed).to(mask)


def fill_holes(mask: torch.Tensor) -> torch.Tensor:
    """Mark what hard masks ``(n, h, w)`` enclose."""
    return each(mask, ndimage.binary_fill_holes)


def drop_islands(mask: torch.Tensor, smallest: int) -> torch.Tensor:
    """Remove the parts of hard masks ``(n, h, w)`` that have fewer than ``smallest`` cells."""

    def drop(image: numpy.ndarray) -> numpy.ndarray:
        labels, _ = ndimage.label(image, NEIGHBOURS)
        keep = numpy.bincount(labels.ravel()) >= smallest
        keep[0] = False
        return keep[labels]

    return each(mask, drop)


def bounding_box(mask: torch.Tensor) -> torch.Tensor:
    """The smallest rectangle around all of each hard mask ``(n, h, w)``; an empty mask stays empty."""

    def box(image: numpy.ndarray) -> numpy.ndarray:
        filled = numpy.zeros_like(image)
        for place in ndimage.find_objects(image.astype(numpy.int8)):
            filled[place] = True
        return filled

    return each(mask, box)


def resize_mask(mask: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """Masks ``(..., h, w)`` as ``(n, height, width)``, without soft edges where there were none."""
    planes = mask.reshape(-1, 1, *mask.shape[-2:]).float()
    return F.interpolate(planes, size=(height, width), mode="nearest-exact")[:, 0]


def grow(mask: torch.Tensor, pixels: int) -> torch.Tensor:
    """Dilate masks ``(n, h, w)`` by ``pixels`` in every direction (a square neighbourhood)."""
    if pixels == 0:
        return mask
    size = 2 * pixels + 1
    rows = F.max_pool2d(mask[:, None], (1, size), stride=1, padding=(0, pixels))
    return F.max_pool2d(rows, (size, 1), stride=1, padding=(pixels, 0))[:, 0]


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


def fit_mask(mask: torch.Tensor, count: int, height: int, width: int) -> torch.Tensor:
    """Masks ``(..., h, w)`` as one per image, ``(count, height, width)``; fewer are repeated, as samplers do."""
    resized = resize_mask(mask, height, width)
    return resized[[i % len(resized) for i in range(count)]]


def repair_mask(values: torch.Tensor, area: float, pixels: int, allowed: torch.Tensor | None = None) -> torch.Tensor:
    """What to repair: the ``area`` share of each map with the highest values, grown by ``pixels``.

    Args:
        values: ``(n, height, width)``, or ``(n, frames, height, width)`` of clips, not negative.
        allowed: of images ``(..., h, w)``, of clips of the shape of ``values``: a mask that the repair stays inside.
    """
    if allowed is not None:
        allowed = fit_mask(allowed, *values.shape) if values.ndim == 3 else allowed
        values = values * allowed
    mask = most_uncertain_area(values, area)
    mask = grow(mask.flatten(0, -3), pixels).reshape(mask.shape)
    return mask if allowed is None else mask * allowed

"""Maps in whole numbers of 16 bits, and masks of them.

A page that was sent the whole numbers can compute the same masks, to the pixel: all is done in integers, or in single
operations on float64 that every machine rounds alike. ``web/viewer/levels.js`` does so, by runs of pixels.
"""

from __future__ import annotations

import dataclasses
import math

import torch

from .uncertainty import Uncertainty

MOST = 65535
# The percentiles are known in these steps of one percent.
TENTHS = 10


@dataclasses.dataclass(frozen=True)
class Levels:
    """Maps of standard deviations in even steps from zero to the highest of the batch.

    Attributes:
        cells: ``(n, t, h, w)`` of int64, 0 to :data:`MOST`; ``t`` latent frames, 1 of images.
        top: the standard deviation of the level :data:`MOST`.
        known: ``(n,)`` of bool; where it is false, nothing is known of the image, and its cells mean nothing.
    """

    cells: torch.Tensor
    top: float
    known: torch.Tensor

    @classmethod
    def of(cls, uncertainty: Uncertainty) -> Levels:
        """The levels of the maps of all images or clips of which something is known.

        Raises:
            ValueError: it is not the uncertainty of images or clips.
        """
        known = uncertainty.variance.isfinite().flatten(1).all(1).cpu()
        times = 1 if uncertainty.frames == 1 else uncertainty.cells_in_time
        cells = torch.zeros(len(known), times, *uncertainty.variance.shape[-2:], dtype=torch.int64)
        top = 0.0
        if known.any():
            std = uncertainty.select(known.nonzero().flatten()).std_map().double().cpu()
            top = float(std.max())
            if top > 0:
                cells[known] = (std / top * MOST).round().long().reshape(-1, *cells.shape[1:])
        return cls(cells, top, known)

    def percentiles(self) -> list[int]:
        """The levels below which 0, 0.1, ... 100 percent of the cells of all known maps lie, 1001 numbers."""
        cells, steps = self.cells[self.known].flatten(), 100 * TENTHS
        at_most = torch.bincount(cells, minlength=MOST + 1).cumsum(0)
        places = torch.arange(steps + 1) * max(len(cells) - 1, 0) // steps
        return torch.searchsorted(at_most, places, right=True).tolist()


def enlarge(cells: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """One map ``(h, w)`` of levels at ``(height, width)``, by the bilinear rule of :func:`~.maps.resize_map`.

    Returns:
        int64, exact: in units of a level over :func:`unit`.
    """
    top, bottom, down = neighbours(cells.shape[0], height)
    left, right, across = neighbours(cells.shape[1], width)
    rows = cells[top] * (2 * height - down)[:, None] + cells[bottom] * down[:, None]
    return rows[:, left] * (2 * width - across) + rows[:, right] * across


def unit(height: int, width: int) -> int:
    """What one level is in a map enlarged to that size."""
    return 4 * height * width


def neighbours(cells: int, pixels: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Of each pixel of a row: the two cells that it lies between, and its way to the second in ``2 * pixels``-ths."""
    place = ((2 * torch.arange(pixels) + 1) * cells - pixels).clamp(min=0)
    first = place // (2 * pixels)
    return first, (first + 1).clamp(max=cells - 1), place % (2 * pixels)


def most_uncertain(values: torch.Tensor, area: float) -> torch.Tensor:
    """Hard mask of the ``area`` share of an enlarged map with the highest values, of bool.

    ``ceil(area * height * width)`` pixels; of equal ones the first, row by row. A pixel of no uncertainty is never
    marked.
    """
    flat = values.flatten()
    count = math.ceil(area * len(flat))
    if count == 0:
        return torch.zeros_like(values, dtype=torch.bool)
    limit = flat.kthvalue(len(flat) - count + 1).values
    mask, ties = flat > limit, flat == limit
    mask |= ties & (ties.cumsum(0) <= count - mask.sum())
    return (mask & (flat > 0)).reshape(values.shape)


def above_std(values: torch.Tensor, std: float, top: float) -> torch.Tensor:
    """Hard mask of what exceeds a standard deviation in an enlarged map, of bool."""
    if top == 0:
        return torch.zeros_like(values, dtype=torch.bool)
    return values.double() > std / top * MOST * unit(*values.shape)


def above_percentile(values: torch.Tensor, percentile: float, percentiles: list[int]) -> torch.Tensor:
    """Hard mask of what exceeds a percentile in an enlarged map, of bool; it is read to a tenth.

    Args:
        percentiles: of :meth:`Levels.percentiles`.
    """
    return values > percentiles[math.floor(percentile * TENTHS + 0.5)] * unit(*values.shape)

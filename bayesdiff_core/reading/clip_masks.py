"""Masks of clips: for each frame or latent frame, by spans of frames, grown and fading over time."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from .grid import LatentGrid
from .masks import require_finite_mask, resize_mask


def frame_masks(mask: torch.Tensor, clips: int, cells: int, grid: LatentGrid) -> torch.Tensor:
    """Masks of a batch of clips, ``(1 or clips, 1 or frames, height, width)``, from however many there are.

    Args:
        mask: ``(k, height, width)``, clip after clip: one for all, one for each clip, one for each frame or latent
            frame of a clip or of all clips. A noise mask may be ``(1 or clips, c, 1 or t, height, width)`` as well.
        cells: latent frames of a clip.

    Raises:
        ValueError: another number of masks, or NaN or infinity in them.
    """
    require_finite_mask(mask)
    frames, size = grid.frames_of(cells), mask.shape[-2:]
    if mask.ndim == 5:
        planes = mask[:, 0]
    else:
        planes = mask.reshape(-1, *size)
        count = len(planes)
        if count in (1, clips):
            planes = planes[:, None]
        else:
            planes = planes.unflatten(0, (-1, next((k for k in (frames, cells) if count in (k, clips * k)), count)))
    if len(planes) not in (1, clips) or planes.shape[1] not in (1, cells, frames):
        raise ValueError(
            f"Expected one mask, one for each of the {clips} clips, or one for each of the {frames} frames of a clip "
            f"or of all clips, got {len(planes) * planes.shape[1]}; give one of these numbers of masks."
        )
    return planes[:, grid.cells_of(frames)] if planes.shape[1] == cells != 1 else planes


def inside_clips(
    mask: torch.Tensor | None, clips: int, cells: int, grid: LatentGrid, first: int, last: int
) -> torch.Tensor | None:
    """What a mask and a span of frames select of clips, ``(1 or clips, frames, height, width)``; None is everything.

    Args:
        mask, clips, cells, grid: see :func:`frame_masks`.
        first, last: see :func:`span`.

    Raises:
        ValueError: another number of masks, or no frame in the span.
    """
    frames = span(grid.frames_of(cells), first, last)
    if mask is None:
        return None if frames.all() else frames[None, :, None, None]
    return frame_masks(mask, clips, cells, grid) * frames[None, :, None, None].to(mask)


def fit_frames(mask: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """Masks ``(1 or n, 1 or frames, h, w)`` for each frame of maps ``(n, frames, height, width)``, at their size."""
    resized = resize_mask(mask, *like.shape[-2:]).unflatten(0, mask.shape[:2])
    return resized.expand(like.shape).to(like)


def cell_masks(frames: torch.Tensor, grid: LatentGrid) -> torch.Tensor:
    """A noise mask that the host takes as it is, ``(n, 1, t, height, width)``, of a mask for each frame of clips.

    A latent frame is redrawn as far as any of its frames is to be.

    Args:
        frames: ``(n, frames, height, width)``.
    """
    return grid.by_cell(frames).amax(2)[:, None]


def grow_over_time(mask: torch.Tensor, frames: int) -> torch.Tensor:
    """Dilate masks of clips ``(n, frames, h, w)`` by so many frames, before and after."""
    if frames == 0:
        return mask
    rows = mask.movedim(1, -1)
    grown = F.max_pool1d(rows.flatten(0, -2)[:, None], 2 * frames + 1, stride=1, padding=frames)
    return grown.reshape(rows.shape).movedim(-1, 1)


def fade(mask: torch.Tensor, frames: int) -> torch.Tensor:
    """Let masks of clips ``(n, frames, h, w)`` fade over so many frames, before and after where they mark something."""
    faded = mask
    for step in range(1, frames + 1):
        faded = torch.maximum(faded, grow_over_time(mask, step) * (1 - step / (frames + 1)))
    return faded


def span(frames: int, first: int, last: int) -> torch.Tensor:
    """Which frames of a clip are from ``first`` to ``last``, ``(frames,)`` of zeros and ones.

    Args:
        first, last: numbered from 0; negative ones count from the end, -1 is the last.

    Raises:
        ValueError: there are none.
    """
    start, end = (number + frames if number < 0 else number for number in (first, last))
    inside = [float(start <= frame <= end) for frame in range(frames)]
    if not any(inside):
        raise ValueError(
            f"Expected a span with some of the {frames} frames, which are numbered from 0, got {first} to {last}; "
            "choose first_frame and last_frame inside the clip, the first not after the last."
        )
    return torch.tensor(inside)

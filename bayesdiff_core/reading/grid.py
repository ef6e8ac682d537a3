"""Pixels and frames of a latent cell."""

from __future__ import annotations

from typing import NamedTuple

import torch


class LatentGrid(NamedTuple):
    """How a VAE's latent cells lie on an image or a clip.

    Attributes:
        pixels: pixels of the decoded image per latent cell, along one side.
        frames: frames of the decoded clip per latent frame; 1 for images. Video VAEs decode the first latent frame to
            a single frame and each later one to this many.
    """

    pixels: int = 8
    frames: int = 1

    def pixels_of(self, cells: int) -> int:
        """Pixels of so many cells."""
        return cells * self.pixels

    def frames_of(self, cells: int) -> int:
        """Frames of so many latent frames."""
        return (cells - 1) * self.frames + 1

    def cells_of(self, frames: int) -> torch.Tensor:
        """The latent frame that each of so many frames is decoded from, ``(frames,)``."""
        return (torch.arange(frames) + self.frames - 1) // self.frames

    def by_cell(self, values: torch.Tensor) -> torch.Tensor:
        """Values of frames ``(n, frames, ...)``, those of each latent frame together: ``(n, t, frames of one, ...)``.

        The only frame of the first latent frame stands there as often as needed.
        """
        first = values[:, :1].expand(-1, self.frames - 1, *values.shape[2:])
        return torch.cat([first, values], dim=1).unflatten(1, (-1, self.frames))

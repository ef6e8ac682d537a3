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
        group: after so many latent frames a single frame comes again, as MiniMax H3's VAE has it; 0 for never.
        time: of sound, which dimension of its latents ``(n, c, ...)`` is time; 0 of images and clips.
    """

    pixels: int = 8
    frames: int = 1
    time: int = 0
    group: int = 0

    def pixels_of(self, cells: int) -> int:
        """Pixels of so many cells."""
        return cells * self.pixels

    def frames_of(self, cells: int) -> int:
        """Frames of so many latent frames."""
        return sum(self.frames_in(cell) for cell in range(cells))

    def frames_in(self, cell: int) -> int:
        """Frames of one latent frame, by its number."""
        return 1 if cell == 0 or (self.group and cell % self.group == 0) else self.frames

    def cells_of(self, frames: int) -> torch.Tensor:
        """The latent frame that each of so many frames is decoded from, ``(frames,)``."""
        found: list[int] = []
        cell = 0
        while len(found) < frames:
            found += [cell] * self.frames_in(cell)
            cell += 1
        return torch.tensor(found[:frames])

    def by_cell(self, values: torch.Tensor) -> torch.Tensor:
        """Values of frames ``(n, frames, ...)``, those of each latent frame together: ``(n, t, frames of one, ...)``.

        The only frame of a latent frame stands there as often as needed.
        """
        cells, places, first = int(self.cells_of(values.shape[1])[-1]) + 1, [], 0
        for cell in range(cells):
            count = self.frames_in(cell)
            places.append([first + frame % count for frame in range(self.frames)])
            first += count
        return values[:, torch.tensor(places)]

"""Pixels and frames of a latent cell."""

from __future__ import annotations

from typing import NamedTuple


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

"""Uncertainty of a finished image with no posterior: how much it changes where the model draws it again.

The image is noised to one level and sampled back in a few steps. What the model would have made otherwise, it changes:
what is unlike anything that it was trained on changes most. Too far back, it draws another image, and the change tells
nothing.
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import torch

from .evidence import blur_box, mean_over_channels


@dataclasses.dataclass(frozen=True)
class Redrawing:
    """How to draw an image again.

    Attributes:
        level: noise over signal to start from. On garments 1.5 to 3 do alike; `dev.py bench usefulness` shows others.
        steps: of the way back, a network call each.
    """

    level: float = 2.0
    steps: int = 2
    name: ClassVar[str] = "redraw"
    measures: ClassVar[str] = "change when redrawn"

    @property
    def levels(self) -> list[float]:
        """Noise over signal at the start of every step: even steps of the share of noise, as a rectified flow has."""
        share = self.level / (1 + self.level)
        shares = [share * (self.steps - step) / self.steps for step in range(self.steps)]
        return [share / (1 - share) for share in shares]


def redrawn_variance(image: torch.Tensor, redrawn: torch.Tensor) -> torch.Tensor:
    """Mean square change of each cell and its neighbours, ``(n, c, ...)``, the same for all channels."""
    cells = blur_box(mean_over_channels((redrawn.float() - image.float()).square()))
    return cells[:, None].expand(image.shape).clone()

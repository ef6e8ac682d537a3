"""Uncertainty with no posterior: how far predictions from the same image, noised again and again, disagree."""

from __future__ import annotations

import dataclasses
import math

import torch


@dataclasses.dataclass(frozen=True)
class Renoising:
    """How often and how far to noise an image again.

    Attributes:
        highest, lowest: share of noise, 1 (all noise) to 0 (none).
        levels: how many shares between them.
        draws: of noise at each of these, at least 2.
    """

    highest: float = 0.5
    lowest: float = 0.5
    levels: int = 1
    draws: int = 5

    @property
    def calls(self) -> int:
        """Network calls that it takes."""
        return self.levels * self.draws

    @property
    def shares(self) -> list[float]:
        """Shares of the schedule, 0 (all noise) to 1 (none), evenly spaced; a single one lies in the middle."""
        if self.levels == 1:
            return [1 - (self.highest + self.lowest) / 2]
        noise = torch.linspace(self.highest, self.lowest, self.levels, dtype=torch.float64)
        return [1 - share for share in noise.tolist()]


def disagreement(predictions: torch.Tensor) -> torch.Tensor:
    """Deviations of repeated predictions whose mean square is their unbiased variance.

    De Vita and Belagiannis (2024): the predicted image is noised M times to one level, predicted again, and the
    variance over the M predictions is the uncertainty. Theirs is of the noise prediction; at one level ``denoised`` is
    affine in it, so the maps are the same but for a factor.

    Args:
        predictions: ``(levels, m, n, ...)``, ``denoised`` of each level's m draws of noise, m at least 2.

    Returns:
        ``(levels * m, n, ...)``; each level is centred on its own mean, as levels differ in it for all draws alike.
    """
    draws = predictions.shape[1]
    centred = predictions - predictions.mean(dim=1, keepdim=True)
    return (centred * math.sqrt(draws / (draws - 1))).flatten(0, 1)

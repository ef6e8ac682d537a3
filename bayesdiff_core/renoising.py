"""Uncertainty with no posterior: how far predictions from the same picture, noised again and again, disagree."""

from __future__ import annotations

import math

import torch


def noise_levels(highest: float, lowest: float, count: int) -> list[float]:
    """``count`` shares of noise from ``highest`` down to ``lowest``, evenly spaced; one alone is their mean."""
    if count == 1:
        return [(highest + lowest) / 2]
    return torch.linspace(highest, lowest, count, dtype=torch.float64).tolist()


def disagreement(predictions: torch.Tensor) -> torch.Tensor:
    """Deviations of repeated predictions whose mean square is their unbiased variance.

    De Vita and Belagiannis (2024): the predicted picture is noised M times to one level, predicted again, and the
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

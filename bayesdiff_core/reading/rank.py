"""Which images of a batch to keep, by their scores: lower is better, and what is not a number counts as worst."""

from __future__ import annotations

import math

import torch


def rank(scores: torch.Tensor) -> torch.Tensor:
    """Positions of ``scores`` ``(n,)``, best first; equal ones stay in the order of the batch."""
    return worst_if_unknown(scores).argsort(stable=True)


def keep_best(scores: torch.Tensor, count: int) -> torch.Tensor:
    """Which of ``scores`` ``(n,)`` are among the ``count`` best, ``(n,)`` of bool; all of them if there are fewer."""
    kept = torch.zeros(len(scores), dtype=torch.bool)
    kept[rank(scores)[:count]] = True
    return kept


def drop_fraction(scores: torch.Tensor, fraction: float) -> torch.Tensor:
    """Which of ``scores`` ``(n,)`` stay without the worst ``fraction`` of them, rounded to whole images."""
    return keep_best(scores, len(scores) - math.floor(fraction * len(scores) + 0.5))


def drop_outliers(scores: torch.Tensor, deviations: float) -> torch.Tensor:
    """Which of ``scores`` ``(n,)`` are at most their mean plus ``deviations`` standard deviations.

    The rule of Kou et al. 2024, section 4.3, who drop about 16 % with one deviation. Mean and standard deviation are
    those of the finite scores.
    """
    finite = scores[scores.isfinite()]
    if len(finite) == 0:
        return torch.zeros(len(scores), dtype=torch.bool)
    limit = finite.mean() + deviations * finite.std(correction=0)
    # The mean of equal scores may be rounded to below them.
    return keep_below(scores, float(torch.maximum(limit, finite.min())))


def keep_below(scores: torch.Tensor, threshold: float) -> torch.Tensor:
    """Which of ``scores`` ``(n,)`` are at most ``threshold``; what is not a number never is."""
    return scores.isfinite() & (scores <= threshold)


def worst_if_unknown(scores: torch.Tensor) -> torch.Tensor:
    """Scores ``(n,)`` with infinity in place of what is not a number."""
    return scores.where(scores.isfinite(), math.inf)

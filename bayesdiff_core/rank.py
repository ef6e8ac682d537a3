"""Which pictures of a batch to keep, by their scores: lower is better, and what is not a number counts as worst."""

from __future__ import annotations

import dataclasses
import math

import torch

from .uncertainty import Uncertainty


def rank(scores: torch.Tensor) -> torch.Tensor:
    """Positions of ``scores`` ``(n,)``, best first; equal ones stay in the order of the batch."""
    return worst_if_unknown(scores).argsort(stable=True)


def keep_best(scores: torch.Tensor, count: int) -> torch.Tensor:
    """Which of ``scores`` ``(n,)`` are among the ``count`` best, ``(n,)`` of bool; all of them if there are fewer."""
    kept = torch.zeros(len(scores), dtype=torch.bool)
    kept[rank(scores)[:count]] = True
    return kept


def drop_fraction(scores: torch.Tensor, fraction: float) -> torch.Tensor:
    """Which of ``scores`` ``(n,)`` stay without the worst ``fraction`` of them, rounded to whole pictures."""
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
    return scores.where(scores.isfinite(), math.inf)


def select(uncertainty: Uncertainty, index: torch.Tensor) -> Uncertainty:
    """The uncertainty of the pictures at ``index`` ``(m,)`` alone, in that order."""
    moments = tuple(
        dataclasses.replace(moment, latent=moment.latent[index], variance=moment.variance[index])
        for moment in uncertainty.trajectory
    )
    return dataclasses.replace(
        uncertainty,
        variance=uncertainty.variance[index],
        latent=uncertainty.latent[index],
        deviations=uncertainty.deviations[:, index],
        trajectory=moments,
    )


def join(parts: list[Uncertainty]) -> Uncertainty:
    """One uncertainty of all pictures of the parts, which one estimator made of batches that follow each other."""
    moments = tuple(
        dataclasses.replace(
            same[0],
            latent=torch.cat([moment.latent for moment in same]),
            variance=torch.cat([moment.variance for moment in same]),
        )
        for same in zip(*(part.trajectory for part in parts))
    )
    return dataclasses.replace(
        parts[0],
        variance=torch.cat([part.variance for part in parts]),
        latent=torch.cat([part.latent for part in parts]),
        deviations=torch.cat([part.deviations for part in parts], dim=1),
        trajectory=moments,
    )

"""What judges of images are read by: distances between sets of features, and how well a score tells good from bad."""

from __future__ import annotations

from collections.abc import Callable

import torch
from scipy.stats import rankdata


def frechet_distance(found: torch.Tensor, reference: torch.Tensor) -> float:
    """Fréchet distance of Gaussians through two sets of features, ``(n, d)`` and ``(m, d)``, d the same.

    ``|μ1 - μ2|² + tr(Σ1 + Σ2 - 2 (Σ1 Σ2)^½)`` (Dowson and Landau 1982). The trace of the root is the sum of the
    singular values of the product of the centred sets, which needs no root of a matrix and allows n < d.
    """
    sets = [features.double() for features in (found, reference)]
    means = [features.mean(0) for features in sets]
    first, second = ((x - mean) / (len(x) - 1) ** 0.5 for x, mean in zip(sets, means))
    root = torch.linalg.svdvals(first @ second.T).sum()
    return float((means[0] - means[1]).square().sum() + first.square().sum() + second.square().sum() - 2 * root)


class Manifold:
    """The union of balls around points ``(n, d)``, each as far as its k-th nearest other one.

    Kynkäänniemi et al. 2019, equation 1.
    """

    def __init__(self, points: torch.Tensor, neighbours: int = 3):
        self.points = points
        self.radii = torch.cdist(points, points).kthvalue(neighbours + 1).values  # the nearest is the point itself

    def share_within(self, points: torch.Tensor) -> float:
        """Share of ``points`` ``(m, d)`` that lie in it."""
        return float((torch.cdist(points, self.points) <= self.radii).any(1).double().mean())


def precision_and_recall(found: Manifold, reference: Manifold) -> tuple[float, float]:
    """Share of the points found within the manifold of the reference, and the reverse."""
    return reference.share_within(found.points), found.share_within(reference.points)


def auroc(scores: torch.Tensor, bad: torch.Tensor) -> float:
    """How often a bad image has the higher score than a good one, ties counting half: area under the ROC curve.

    Args:
        scores: ``(n,)``.
        bad: ``(n,)`` of bool, with both kinds in it.
    """
    ranks = torch.from_numpy(rankdata(scores.numpy()))
    positives, negatives = int(bad.sum()), int((~bad).sum())
    return float((ranks[bad].sum() - positives * (positives + 1) / 2) / (positives * negatives))


def bootstrap_error(statistic: Callable[[torch.Tensor], float], count: int, draws: int = 200) -> float:
    """Standard error of ``statistic(index)`` over samples drawn anew with replacement from ``count``, seed 0.

    Samples for which the statistic is not a number (of one kind alone) do not count.
    """
    generator = torch.Generator().manual_seed(0)
    values = [statistic(torch.randint(count, (count,), generator=generator)) for _ in range(draws)]
    values = torch.tensor(values, dtype=torch.float64)
    return float(values[values.isfinite()].std())


def worst_share(quality: torch.Tensor, share: float) -> torch.Tensor:
    """Which ``share`` of images has the lowest quality ``(n,)``, rounded to whole images: ``(n,)`` of bool."""
    bad = torch.zeros(len(quality), dtype=torch.bool)
    bad[quality.argsort()[: round(share * len(quality))]] = True
    return bad


def ranks_within(values: torch.Tensor, groups: torch.Tensor) -> torch.Tensor:
    """Place of each value among its own group, from 0 to 1, ties sharing theirs: what is left without the groups."""
    found = torch.empty(len(values), dtype=torch.float64)
    for group in groups.unique():
        inside = groups == group
        found[inside] = (torch.from_numpy(rankdata(values[inside].numpy())).to(found) - 0.5) / int(inside.sum())
    return found

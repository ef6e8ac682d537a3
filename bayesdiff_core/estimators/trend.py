"""What a head learned of its own model: how the variance of its images follows what their runs show.

At the fit, a few of the model's own images are sampled, and each is sampled once more under a draw of the posterior.
How far it moved is seen beside the evidence of its run (see :mod:`.evidence`), and a linear trend of its logarithm is
fitted. From then on a run shows its variance for nothing.

*Where* in the image and *how much* in all are learned apart. Where: ridge regression of the logarithm, centred within
each image, on covariates centred likewise; many cells tell it, and logarithms make it robust against the rare draw that
leads to another picture. How much: few images tell it, so only one number is learned, the size of the mean standard
deviation beside what two of the covariates say.
"""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Sequence
from typing import NamedTuple

import torch

from .degrees import effective_channels, log_noise
from .evidence import LEVELS, Evidence, at_levels, log_of
from .trajectory import State

# Standard deviation of what is believed of a slope, per standard deviation of its covariate. Chosen on two models, see
# docs/mathematics.md.
SLOPES = 0.055
# Least and most that the spread of an image's log level around the trend may be said to be: six images of one setting
# tell less of it than the other settings that a head is used at.
LEVEL_SPREAD = 0.5, 1.5


class Seen(NamedTuple):
    """One of the model's own images: what its run showed, and how far a member ended from it.

    Attributes:
        evidence: of a run of n images.
        deviations: ``(k, n, c, ...)`` of k members.
        way: of noise over signal on the way, root mean square deviation of the noisy latent there over that at the end.
    """

    evidence: Evidence
    deviations: torch.Tensor
    way: dict[float, float]


@dataclasses.dataclass(frozen=True)
class Slopes:
    """A linear trend of the logarithm of the variance.

    Attributes:
        where: ``(p,)``, slope of each covariate within an image.
        level: logarithm of the mean standard deviation of images, less what :func:`rough_level` says.
    """

    where: torch.Tensor
    level: float

    def log_variance(self, evidence: Evidence) -> torch.Tensor:
        """Logarithm of the variance of every cell, ``(n, ...)``, its size included."""
        centred = self.within(evidence)
        inside = evidence.inside
        sizes = [
            2 * (level - (image[kept] / 2).exp().mean().log()) if kept.any() else level
            for image, kept, level in zip(centred, inside, self.log_score(evidence))
        ]
        return centred + torch.stack(sizes).reshape(-1, *[1] * (centred.ndim - 1))

    def within(self, evidence: Evidence) -> torch.Tensor:
        """The trend within each image, ``(n, ...)``: its mean over what is denoised is zero."""
        # gamma², which comes last, may not have been seen at the fit.
        covariates = evidence.covariates[: len(self.where)]
        trend = torch.tensordot(self.where.to(evidence.change), covariates, dims=1)
        return centre(trend, evidence.inside)

    def log_score(self, evidence: Evidence) -> torch.Tensor:
        """Logarithm of the mean standard deviation of each image, ``(n,)``."""
        return rough_level(evidence) + self.level


def centre(maps: torch.Tensor, inside: torch.Tensor) -> torch.Tensor:
    """Maps ``(..., n, *cells)`` less their mean over the cells ``inside`` ``(n, *cells)`` of each image."""
    return maps - mean_inside(maps, inside).reshape(*maps.shape[: -inside.ndim + 1], *[1] * (inside.ndim - 1))


def mean_inside(maps: torch.Tensor, inside: torch.Tensor) -> torch.Tensor:
    """Mean of maps ``(..., n, *cells)`` over the cells inside, ``(..., n)``."""
    weight = inside.to(maps)
    cells = list(range(-inside.ndim + 1, 0))
    return (maps * weight).sum(cells) / weight.sum(cells).clamp(min=1)


def rough_level(evidence: Evidence) -> torch.Tensor:
    """The logarithm of the mean standard deviation of each image, ``(n,)``, but for one number for the model."""
    return mean_inside(evidence.two_terms, evidence.inside) / 2


@dataclasses.dataclass(frozen=True)
class Trend:
    """What a head learned of its model.

    Attributes:
        full: by all that a run shows.
        blind: without gamma², for runs in which that was not seen.
        way: ``(8,)``, at each of :data:`.evidence.LEVELS` the logarithm of how far members are from the run there, in
            units of the clean latent, over how far they end from it.
        level_spread: standard deviation of an image's log level around the trend.
        images: of how many own images it was learned.
    """

    full: Slopes
    blind: Slopes
    way: torch.Tensor
    level_spread: float
    images: int

    def slopes(self, evidence: Evidence) -> Slopes:
        """Those for a run: without gamma² where it was not seen, of another size where that of gamma² is wrong."""
        if evidence.variance is None:
            return self.blind
        return self.full if evidence.sized else dataclasses.replace(self.full, level=self.blind.level)

    def way_at(self, state: State) -> float:
        """How far members are from the run at a state, over how far they end from it."""
        # At the end of a run it is one.
        levels, maps = (*LEVELS, LEVELS[-1] / 100), [*self.way[:, None], torch.zeros(1)]
        return float(at_levels(levels, maps, [state.noise_over_signal]).exp())


def fit_trend(seen: Sequence[Seen]) -> Trend:
    """Learn the trend from some of the model's own images.

    Raises:
        ValueError: nothing moved, in any of them.
    """
    blind = [each._replace(evidence=dataclasses.replace(each.evidence, variance=None)) for each in seen]
    full = fit_slopes(seen if all(each.evidence.variance is not None for each in seen) else blind)
    rest = torch.cat([log_scores(each) - full.log_score(each.evidence) for each in seen])
    # A member's own chance is in it, and is not the trend's.
    spread = float(rest.std()) if len(rest) > 1 else LEVEL_SPREAD[1]
    levels, ways = zip(
        *[(level, torch.tensor([math.log(share)])) for each in seen for level, share in each.way.items()]
    )
    return Trend(
        full=full,
        blind=fit_slopes(blind),
        way=at_levels(levels, ways, LEVELS)[:, 0],
        level_spread=min(max(spread, LEVEL_SPREAD[0]), LEVEL_SPREAD[1]),
        images=sum(each.deviations.shape[1] for each in seen),
    )


def squares_of(seen: Seen) -> torch.Tensor:
    """Mean square deviation of each cell, ``(n, ...)``."""
    return seen.deviations.float().square().mean((0, 2))


def log_scores(seen: Seen) -> torch.Tensor:
    """Logarithm of the mean standard deviation of each image, ``(n,)``."""
    return mean_inside(squares_of(seen).sqrt(), seen.evidence.inside).clamp(min=1e-30).log()


def fit_slopes(seen: Sequence[Seen]) -> Slopes:
    """Ridge regression of the centred log squares on the centred evidence of all images, and one number for the size.

    The penalty is the noise of the log squares (Smyth 2004) over the variance that slopes have a priori,
    :data:`SLOPES` squared, for covariates of unit variance. All ``seen`` show gamma², or none does.
    """
    rows, targets = [], []
    for each in seen:
        inside = each.evidence.inside
        rows.append(centre(each.evidence.covariates, inside)[:, inside].T.double())
        targets.append(centre(log_of(squares_of(each)), inside)[inside].double())
    x, y = torch.cat(rows), torch.cat(targets)
    size = x.square().mean(0).sqrt().clamp(min=1e-6)
    x = x / size
    # A member of one channel tells far less of a cell than one of many.
    degrees = statistics.fmean(
        len(each.deviations) * effective_channels(each.deviations * each.evidence.inside[:, None]) for each in seen
    )
    penalty = log_noise(degrees) / SLOPES**2 * torch.eye(x.shape[1], dtype=x.dtype)
    where = (torch.linalg.solve(x.T @ x + penalty, x.T @ y) / size).float()
    rough = torch.cat([rough_level(each.evidence) for each in seen])
    scores = torch.cat([log_scores(each) for each in seen])
    # Right in the mean of the standard deviations, where the draws that lead far count as in an ensemble.
    return Slopes(where, float(scores.exp().mean().log() - rough.exp().mean().log()))

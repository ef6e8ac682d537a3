"""Moderated variances: what a few members say of each cell, strengthened by what the nominal run shows for nothing.

The mean square of K deviations of C channels is a variance with K·C degrees of freedom at most, far too few to tell
cells apart. But the nominal run itself tells much about *where*, for nothing, see :mod:`.evidence`. So the logarithm of
the variance gets a linear trend in what the run shows: the one that the head learned at its fit, and on top of it the
image's own, fitted to its members. Each cell is drawn towards the trend by as much as the members' noise deserves:
empirical Bayes for variances (Smyth 2004, *Linear models and empirical Bayes methods for assessing differential
expression*; with a trend, Sartor et al. 2006).

The trend is about cells within an image, and each image has its own, so its map does not depend on its batch. How
uncertain an image is as a whole the members tell, and the head's trend beside them, each by what it is worth.
"""

from __future__ import annotations

import dataclasses
import math

import torch

from .base import Shown
from .degrees import effective_channels, log_noise, mean_root
from .evidence import Evidence, log_of, mean_over_channels, read_evidence
from .past import left_of_past
from .trajectory import Unknown
from .trend import centre, mean_inside

# How many cells the belief that a covariate tells nothing is worth, where the head has learned no trend.
RIDGE = 50.0
# Standard deviation of how much an image's own slopes differ from those that the head learned, and that of a single
# member's log level around that of all. Measured on two models: see docs/mathematics.md.
OWN_SLOPES, MEMBER_LEVEL = 0.03, 0.3


@dataclasses.dataclass(frozen=True)
class Moderation:
    """What moderates the members of one run.

    Attributes:
        evidence: what the run shows.
        learned: ``(n, ...)``, logarithm of the variance of each cell by the head's trend; None where the head learned
            nothing.
        spread: of an image's log level around the head's trend.
        signal: scale of the clean latent at the end of the run.
    """

    evidence: Evidence
    learned: torch.Tensor | None
    spread: float
    signal: float

    @classmethod
    def of(cls, shown: Shown) -> Moderation | None:
        """None where the run shows nothing."""
        trajectory, trend = shown
        try:
            evidence = read_evidence(trajectory)
        except Unknown:
            return None
        signal = trajectory.end.signal
        if trend is None:
            return cls(evidence, None, 0.0, signal)
        learned = trend.slopes(evidence).log_variance(evidence)
        # What an earlier stage left is in the members too, if that had any.
        left = None if trajectory.came_in is None else left_of_past(trajectory)
        if left is not None:
            learned = torch.logaddexp(learned, log_of(mean_over_channels(left)))
        return cls(evidence, learned, trend.level_spread, signal)

    def shape(self, squares: torch.Tensor, deviations: torch.Tensor) -> torch.Tensor:
        """:func:`moderate` mean squares ``(n, c, ...)`` of members ``(k, n, c, ...)``.

        What a mask keeps of the image stays as the members have it.
        """
        learned = None if self.learned is None else centre(self.learned, self.evidence.inside)
        degrees = len(deviations) * effective_channels(deviations)
        kept = squares * (1 - self.evidence.inside[:, None].float())
        return moderate(squares - kept, degrees, self.evidence.covariates, learned) + kept

    def size(self, variance: torch.Tensor, members: int) -> torch.Tensor:
        """What to multiply a variance ``(n, c, ...)`` by, see :func:`level_factor`; broadcasts to it."""
        if self.learned is None:
            return torch.ones(())
        learned = mean_inside((self.learned / 2).exp(), self.evidence.inside).log() + math.log(self.signal)
        # The trend is of images that were denoised as a whole: of a soft mask the members know more.
        share = torch.ones(()) if self.evidence.share is None else self.evidence.share
        doubt = 2 * mean_inside(share.expand(self.evidence.inside.shape), self.evidence.inside).clamp(min=1e-6).log()
        spread = (self.spread**2 + doubt.square()).sqrt()
        factor = level_factor(variance, members, learned, spread, self.evidence.inside)
        return factor.square().reshape(-1, *[1] * (variance.ndim - 1))


def moderate(
    squares: torch.Tensor, degrees: float, trend_of: torch.Tensor, learned: torch.Tensor | None = None
) -> torch.Tensor:
    """Variances from the mean squares of few members and covariates of their logarithm.

    Cells are moderated in their mean over channels; how the channels share it is one ratio for the image.

    Args:
        squares: ``(n, c, ..., h, w)``, mean square deviation over the members. Cells of zero, which no member
            touched (outside a mask), stay zero.
        degrees: of freedom of the mean squares over channels: members times :func:`.degrees.effective_channels`.
        trend_of: ``(p, n, ..., h, w)``, covariates of the logarithm of the variance, see :class:`.evidence.Evidence`.
        learned: ``(n, ..., h, w)``, the head's trend of that logarithm within each image; None of a head without one.

    Returns:
        ``(n, c, ..., h, w)``, float32, with the mean standard deviation over channels of every image as the members
        have it, but for the shortfall that few degrees of freedom have.
    """
    if not len(trend_of):
        return squares.float()
    trends = [None] * len(squares) if learned is None else learned
    images = zip(squares, trend_of.transpose(0, 1), trends)
    return torch.stack([moderate_image(*image, degrees) for image in images])


def moderate_image(
    squares: torch.Tensor, trend_of: torch.Tensor, learned: torch.Tensor | None, degrees: float
) -> torch.Tensor:
    """:func:`moderate` of one image ``(c, ..., h, w)`` with covariates ``(p, ..., h, w)``."""
    cells = squares.double().mean(0)
    inside = cells > 0
    if not inside.any():
        return squares.float()
    logs = cells[inside].log()
    x = trend_of[:, inside].T.double()
    x = x - x.mean(0)
    x = x / x.square().mean(0).sqrt().clamp(min=1e-6)
    y = logs - logs.mean()
    noise = log_noise(degrees)
    trend, ridge = torch.zeros_like(y), RIDGE
    if learned is not None:
        trend = learned[inside].double()
        trend, ridge = trend - trend.mean(), noise / OWN_SLOPES**2
    own = torch.linalg.solve(x.T @ x + ridge * torch.eye(x.shape[1], dtype=x.dtype), x.T @ (y - trend))
    trend = trend + x @ own
    rest = y - trend
    # Variance of the true logarithm around the trend: what the noise of the members does not explain.
    spread = max(float(rest.square().mean()) - noise, 0.0)
    moderated = (trend + rest * spread / (spread + noise)).exp()
    scale = cells[inside].sqrt().sum() / moderated.sqrt().sum() / mean_root(degrees)
    found = torch.zeros_like(cells)
    found[inside] = moderated * scale.square()
    channels = squares.double().flatten(1).mean(1)
    share = (channels / channels.mean()).reshape(-1, *[1] * (squares.ndim - 1))
    return (found * share).float()


def level_factor(
    variance: torch.Tensor, members: int, learned: torch.Tensor, spread: torch.Tensor, inside: torch.Tensor
) -> torch.Tensor:
    """By how much to multiply the standard deviations of each image, ``(n,)``: between members and the head's trend.

    Args:
        variance: ``(n, c, ..., h, w)``, as the members have it.
        members: how many they are.
        learned: ``(n,)``, the logarithm of the mean standard deviation by the trend.
        spread: ``(n,)``, standard deviation of it around the truth.
        inside: ``(n, ..., h, w)`` of bool, what was denoised.
    """
    stds = variance.float().mean(1).clamp(min=0).sqrt()
    own = mean_inside(stds, inside).log()
    theirs = MEMBER_LEVEL**2 / members
    share = theirs / (theirs + spread**2)
    return torch.where(own.isfinite(), share * (learned - own), torch.zeros(())).exp()

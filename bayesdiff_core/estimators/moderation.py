"""Moderated variances: what a few members say of each cell, strengthened by what the nominal run shows for nothing.

The mean square of K deviations of C channels is a variance with K·C degrees of freedom at most, far too few to tell
cells apart. But the nominal run itself tells much about *where*: the posterior variance gamma² of ``denoised`` at its
own states, which is exact and takes no network call, and how far ``denoised`` still was from the image there. So the
logarithm of the variance gets a linear trend in the logarithms of these, fitted to the members, and each cell is drawn
towards its trend by as much as the members' noise deserves: empirical Bayes for variances (Smyth 2004, *Linear models
and empirical Bayes methods for assessing differential expression*; with a trend, Sartor et al. 2006).

The trend is about cells within an image, and each image has its own, so its map does not depend on its batch. How
uncertain an image is as a whole is left to the members alone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F

from .trajectory import State

# How many cells the belief that a covariate tells nothing is worth; keeps a fit to few cells sane.
RIDGE = 50.0


def blur_box(maps: torch.Tensor) -> torch.Tensor:
    """Mean over 3 by 3 cells of maps ``(..., h, w)``; edges repeat."""
    planes = maps.reshape(-1, 1, *maps.shape[-2:])
    return F.avg_pool2d(F.pad(planes, (1, 1, 1, 1), mode="replicate"), 3, stride=1).reshape(maps.shape)


def covariates(states: Sequence[State]) -> torch.Tensor:
    """What the nominal run tells about where the image is uncertain: logarithms of variances and squares.

    Of every state that has a variance: gamma² of ``denoised``, and the blurred square of what ``denoised`` was yet to
    change.

    Returns:
        ``(p, n, ..., h, w)``, means over channels; p is 0 where no state has a variance.
    """
    image = states[-1].denoised.float()
    tiny = torch.finfo(torch.float32).tiny
    found = []
    for state in states:
        if state.variance is not None:
            found.append(state.variance.mean(1))
            if state is not states[-1]:
                found.append(blur_box((state.denoised.float() - image).square().mean(1)))
    if not found:
        return torch.empty(0, *image.mean(1).shape)
    return torch.stack(found).clamp(min=tiny).log()


def effective_channels(deviations: torch.Tensor) -> float:
    """How many independent channels the deviations of members ``(k, n, c, ..., h, w)`` are worth, from 1 to c.

    Channels that move together (three of a grey image) count once: ``(tr R)² / tr R²`` of their correlation R.
    """
    finite = deviations.transpose(0, 1).flatten(1).isfinite().all(1)  # a broken image says nothing of the others
    channels = deviations[:, finite].double().movedim(2, 0).flatten(1)
    covariance = channels @ channels.T
    size = covariance.diagonal().clamp(min=1e-300).sqrt()
    correlation = covariance / size / size[:, None]
    return float(len(size) ** 2 / correlation.square().sum().clamp(min=len(size)))


def mean_root(degrees: float) -> float:
    """E sqrt(chi²/d) of d degrees of freedom: by how much a mean of standard deviations falls short."""
    return math.sqrt(2 / degrees) * math.exp(math.lgamma((degrees + 1) / 2) - math.lgamma(degrees / 2))


def moderate(squares: torch.Tensor, degrees: float, trend_of: torch.Tensor) -> torch.Tensor:
    """Variances from the mean squares of few members and covariates of their logarithm.

    Cells are moderated in their mean over channels; how the channels share it is one ratio for the image.

    Args:
        squares: ``(n, c, ..., h, w)``, mean square deviation over the members. Cells of zero, which no member
            touched (outside a mask), stay zero.
        degrees: of freedom of the mean squares over channels: members times :func:`effective_channels`.
        trend_of: ``(p, n, ..., h, w)``, covariates of the logarithm of the variance, see :func:`covariates`.

    Returns:
        ``(n, c, ..., h, w)``, float32, with the mean standard deviation over channels of every image as the members
        have it, but for the shortfall that few degrees of freedom have.
    """
    if not len(trend_of):
        return squares.float()
    return torch.stack([moderate_image(*image, degrees) for image in zip(squares, trend_of.transpose(0, 1))])


def moderate_image(squares: torch.Tensor, trend_of: torch.Tensor, degrees: float) -> torch.Tensor:
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
    trend = x @ torch.linalg.solve(x.T @ x + RIDGE * torch.eye(x.shape[1], dtype=x.dtype), x.T @ y)
    rest = y - trend
    noise = float(torch.polygamma(1, torch.tensor(degrees / 2)))
    # Variance of the true logarithm around the trend: what the noise of the members does not explain.
    spread = max(float(rest.square().mean()) - noise, 0.0)
    moderated = (trend + rest * spread / (spread + noise)).exp()
    scale = cells[inside].sqrt().sum() / moderated.sqrt().sum() / mean_root(degrees)
    found = torch.zeros_like(cells)
    found[inside] = moderated * scale.square()
    channels = squares.double().flatten(1).mean(1)
    share = (channels / channels.mean()).reshape(-1, *[1] * (squares.ndim - 1))
    return (found * share).float()

"""How little a few members tell: degrees of freedom of their mean squares, and what follows of them."""

from __future__ import annotations

import math

import torch


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


def log_noise(degrees: float) -> float:
    """Variance of the logarithm of chi²/d of d degrees of freedom (Smyth 2004)."""
    return float(torch.polygamma(1, torch.tensor(degrees / 2)))

"""Draws of the noisy latent at a point of the trajectory, to go on from: the paper's rectify and augment.

Kou et al. 2024, section 3.4: ``x_t ~ N(E_t, V_t)``, pixel by pixel, then the sampler finishes. A good image gets
variations, a bad one another chance.
"""

from __future__ import annotations

import torch

from .estimators.trajectory import nearest_sigma
from .reading.uncertainty import Moment, Uncertainty


def nearest_moment(uncertainty: Uncertainty, sigma: float) -> Moment:
    """The point of the trajectory nearest to a sigma, by its logarithm.

    Raises:
        ValueError: the uncertainty has no trajectory.
    """
    moments = [moment for moment in uncertainty.trajectory if moment.sigma > 0]
    if not moments:
        raise ValueError(
            f"Expected an uncertainty that keeps its trajectory, got one of '{uncertainty.estimator}' that has none; "
            "take it from a sampler (BayesDiff) with a Laplace head."
        )
    return moments[nearest_sigma([moment.sigma for moment in moments], sigma)]


def draw_latent(
    moment: Moment, strength: float, generator: torch.Generator, mask: torch.Tensor | None = None
) -> torch.Tensor:
    """One draw of the noisy latent, of the shape of ``moment.latent``.

    Args:
        strength: what the standard deviation is multiplied by; 1 is the paper's draw, 0 gives the run's own latent.
        mask: broadcasts to the latent; the standard deviation is multiplied by it.

    Raises:
        ValueError: NaN or infinity in the point.
    """
    if not (moment.latent.isfinite().all() and moment.variance.isfinite().all()):
        raise ValueError(
            f"Expected a finite trajectory to draw from, got NaN or infinity at sigma {moment.sigma:.4g}; see whether "
            "the images themselves are blank, and sample in a wider number format, for example --force-fp32."
        )
    std = strength * moment.variance.clamp(min=0).sqrt()
    if mask is not None:
        std = std * mask
    return moment.latent + std * torch.randn(std.shape, generator=generator)

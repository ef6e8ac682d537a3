"""Scales and slopes between three spaces: the sampler's x, the model's latent, and the latent that users see."""

from __future__ import annotations

import torch
from comfy.model_base import BaseModel

from ...bayesdiff_core.estimators.trajectory import Scales


def scales(sampling, sigma: float) -> Scales:
    """Scales of noise and signal in x at a sigma, read off the model's own way of noising."""
    one, zero, level = torch.ones(1), torch.zeros(1), torch.full((1,), sigma)
    noise, signal = (float(sampling.noise_scaling(level, *parts)) for parts in ((one, zero), (zero, one)))
    return Scales(noise, signal)


def output_slope(sampling, sigma: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """dD/dF, the slope of ``denoised`` in the network's output; it is affine in it for every prediction type."""
    zero = torch.zeros_like(like)
    return sampling.calculate_denoised(sigma, zero + 1, zero) - sampling.calculate_denoised(sigma, zero, zero)


def latent_slope(model: BaseModel, like: torch.Tensor) -> torch.Tensor:
    """Slope of the latent that users see in the model's own, element by element."""
    one, zero = (model.process_latent_out(torch.full_like(like, value)) for value in (1.0, 0.0))
    return one - zero


def x_slope(model: BaseModel, sigma: float, like: torch.Tensor) -> torch.Tensor:
    """Slope of the latent that users see in the sampler's x at a sigma, element by element, float32."""
    at, like = torch.full((1,), sigma), like.float()
    unscale = model.model_sampling.inverse_noise_scaling
    slope = unscale(at, torch.ones_like(like)) - unscale(at, torch.zeros_like(like))
    return slope * latent_slope(model, like)


def x_to_latent(model: BaseModel, sigma: float, x: torch.Tensor) -> torch.Tensor:
    """The noisy latent as a stock sampler that stops at this sigma would return it, from the sampler's x."""
    unscaled = model.model_sampling.inverse_noise_scaling(torch.full((1,), sigma), x)
    return model.process_latent_out(unscaled.float())


def sigma_at(sampling, noise_over_signal: float) -> float:
    """The sigma at which x has this much noise over signal, or the schedule's nearest."""
    low, high = float(sampling.sigma_min), float(sampling.sigma_max)
    for _ in range(60):  # halvings: the ratio grows with sigma, by a rule of the model's own
        middle = (low + high) / 2
        if scales(sampling, middle).noise_over_signal < noise_over_signal:
            low = middle
        else:
            high = middle
    return high

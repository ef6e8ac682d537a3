"""Noise finished latents again, and see how far the model's predictions of them disagree."""

from __future__ import annotations

import comfy.model_management
import comfy.utils
import torch
from comfy.model_patcher import ModelPatcher

from ..bayesdiff_core.renoising import disagreement, noise_levels
from ..bayesdiff_core.uncertainty import Uncertainty
from .last_layer import latent_downscale
from .state import latent_gain, visit_state


def renoise(
    model: ModelPatcher, latent: torch.Tensor, positive, negative, cfg: float, highest: float, lowest: float,
    levels: int, draws: int, seed: int,
) -> Uncertainty:  # fmt: skip
    """Uncertainty of finished latents, from ``levels * draws`` calls of the network and no Laplace head.

    Args:
        latent: ``(n, ...)``, as the user sees it.
        highest, lowest: share of the schedule's noise, 1 (all noise) to 0 (none).
        levels: how many levels between them.
        draws: of noise at each level, at least 2.
        seed: of the noise, which comes from a generator of its own.
    """
    generator = torch.Generator().manual_seed(seed)
    predictions, gain = [], torch.ones(())
    bar = comfy.utils.ProgressBar(levels * draws)

    def visit(denoise, x, sigma, x0):
        nonlocal gain
        sampling = model.get_model_object("model_sampling")
        for _ in range(draws):
            comfy.model_management.throw_exception_if_processing_interrupted()
            eps = torch.randn(latent.shape, generator=generator).to(x0)
            predictions.append(denoise(sampling.noise_scaling(sigma, eps, x0)).float().cpu())
            bar.update(1)
        gain = latent_gain(model.model, x0).float().cpu()

    for level in noise_levels(highest, lowest, levels):
        visit_state(model, latent, 1 - level, torch.zeros_like(latent), positive, negative, cfg, visit)
    deviations = disagreement(torch.stack(predictions).unflatten(0, (levels, draws))) * gain
    return Uncertainty(
        variance=deviations.square().mean(0),
        latent=latent,
        downscale=latent_downscale(model),
        estimator="re-noising",
        members=levels * draws,
        head={},
        cost=float(levels * draws),
        deviations=deviations,
    )

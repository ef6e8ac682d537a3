"""Noise finished latents again, and see how far the model's predictions of them disagree."""

from __future__ import annotations

import comfy.model_management
import comfy.utils
import torch
from comfy.model_patcher import ModelPatcher

from ...bayesdiff_core.estimators.parts import unpack
from ...bayesdiff_core.estimators.renoising import Renoising, disagreement
from ...bayesdiff_core.reading.uncertainty import Uncertainty
from ..latents import latent_grids
from ..nested import by_part, count_of, normal_noise, packed, parts_of, shapes_of
from ..run.space import latent_slope
from ..settings import Guidance
from ..states import NoisedState, visit_state


def renoise(
    model: ModelPatcher, samples: torch.Tensor, guidance: Guidance, renoising: Renoising, seed: int
) -> Uncertainty:
    """Uncertainty of finished latents, without a Laplace head.

    Args:
        samples: ``(n, ...)``, as the user sees them.
        seed: of the noise, which comes from a generator of its own.
    """
    generator = torch.Generator().manual_seed(seed)
    predictions, slope = [], torch.ones(())
    bar = comfy.utils.ProgressBar(renoising.calls)

    def visit(denoise, x, sigma, x0):
        nonlocal slope
        sampling = model.get_model_object("model_sampling")
        for _ in range(renoising.draws):
            comfy.model_management.throw_exception_if_processing_interrupted()
            eps = packed(normal_noise(samples, count_of(samples), generator)).to(x0)
            predictions.append(denoise(sampling.noise_scaling(sigma, eps, x0)).float().cpu())
            bar.update(1)
        slope = latent_slope(model.model, x0).float().cpu()

    for share in renoising.shares:
        visit_state(model, NoisedState(samples, share, by_part(torch.zeros_like, samples)), guidance, visit)
    shape, shapes = (renoising.levels, renoising.draws), shapes_of(samples)
    deviations = unpack(disagreement(torch.stack(predictions).unflatten(0, shape)) * slope, shapes)
    return Uncertainty.of_parts(
        Uncertainty(
            variance=moved.square().mean(0),
            latent=image,
            grid=grid,
            estimator="re-noising",
            members=renoising.calls,
            head={},
            cost=float(renoising.calls),
            deviations=moved,
        )
        for image, moved, grid in zip(parts_of(samples), deviations, latent_grids(model, shapes))
    )

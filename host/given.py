"""The uncertainty of pictures that are there already, however they were made."""

from __future__ import annotations

import comfy.sample
import comfy.samplers
import torch
from comfy.model_patcher import ModelPatcher

from ..bayesdiff_core.estimators import Estimator
from ..bayesdiff_core.estimators.deviations import choose_states
from ..bayesdiff_core.laplace_head import LaplaceHead
from ..bayesdiff_core.nominal import level
from ..bayesdiff_core.uncertainty import Uncertainty
from .beside import scales
from .last_layer import LastLayer
from .sampling import Wishes, sample_with_uncertainty

# Noise levels to choose from.
FINE = 200


class NoiseAgain(comfy.samplers.Sampler):
    """Takes a sampler's place in the host: shows the network the picture under one noise at every level.

    So the states of a run that leads straight to the picture, which an estimator can follow deviations along.
    """

    def sample(
        self, model_wrap, sigmas, extra_args, callback, noise, latent_image=None, denoise_mask=None, disable_pbar=False
    ):
        sampling = model_wrap.inner_model.model_sampling
        for step, sigma in enumerate(sigmas[:-1]):
            x = sampling.noise_scaling(sigma, noise, latent_image)
            denoised = model_wrap(x, sigma.expand(len(x)), **extra_args)
            if callback is not None:
                callback(step, denoised, x, len(sigmas) - 1)
        return latent_image


def uncertainty_of(
    model: ModelPatcher, layer: LastLayer, head: LaplaceHead, estimator: Estimator, latent: torch.Tensor, cfg: float,
    positive, negative, states: int, seed: int, levels: tuple[float, ...] = (), stage: tuple[int, int] = (0, 1),
) -> Uncertainty:  # fmt: skip
    """Uncertainty of finished latents, the same for all ways that they may have been made.

    Two pictures that are judged under one seed are judged under the same noise and the same draws of the last layer, so
    that their scores differ by what differs in the pictures.

    Args:
        latent: ``(n, ...)``, as the user sees it.
        states: at how many noise levels the network sees the picture: those at which deviations are best followed.
        seed: of the noise and of the draws; the noise comes from a generator of its own.
        levels: further sigmas, at which the trajectory is kept.
        stage: see :class:`~.sampling.Progress`.
    """
    noise = torch.randn(latent.shape, generator=torch.Generator().manual_seed(seed))
    sampling = model.get_model_object("model_sampling")
    dense = comfy.samplers.calculate_sigmas(sampling, "normal", FINE)[:-1].tolist()
    noise_over_signal = [level(*scales(sampling, sigma)) for sigma in dense]
    chosen = {dense[index] for index in choose_states(noise_over_signal, states)}
    sigmas = torch.tensor([*sorted({*chosen, *levels}, reverse=True), 0.0])

    def run(model):
        samples = comfy.sample.sample_custom(
            model, noise, cfg, NoiseAgain(), sigmas, positive, negative, latent, disable_pbar=True, seed=seed
        )
        return {"samples": samples}

    return sample_with_uncertainty(run, model, layer, head, estimator, seed, Wishes(levels), stage)[2]

"""The uncertainty of images that are there already, however they were made."""

from __future__ import annotations

import comfy.sample
import comfy.samplers
import torch

from ...bayesdiff_core.estimators.base import Estimator
from ...bayesdiff_core.estimators.deviations import choose_states
from ...bayesdiff_core.estimators.registry import JUDGED_STATES
from ...bayesdiff_core.estimators.trajectory import DEFAULT_POINTS, SaveAt
from ...bayesdiff_core.reading.uncertainty import Uncertainty
from ..nested import count_of, normal_noise
from ..posterior import NoPosterior, Posterior
from ..run.progress import Progress
from ..run.sample import sample_with_uncertainty
from ..run.space import scales
from ..settings import Guidance

# Sigmas to choose from.
FINE = 200


class NoiseAgain(comfy.samplers.Sampler):
    """Takes a sampler's place in the host: shows the network the image under one noise at every sigma.

    So the states of a run that leads straight to the image, which an estimator can follow deviations along.
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


def uncertainty_of_finished(
    samples: torch.Tensor,
    posterior: Posterior | NoPosterior,
    estimator: Estimator,
    guidance: Guidance,
    save_at: SaveAt = DEFAULT_POINTS,
    stage: tuple[int, int] = (0, 1),
) -> Uncertainty:
    """Uncertainty of finished latents, the same for all ways that they may have been made.

    Two images that are judged under one seed are judged under the same noise and the same draws of the last layer, so
    that their scores differ by what differs in the images. The network sees each at the sigmas at which deviations are
    best followed.

    Args:
        samples: ``(n, ...)``, as the user sees them.
        posterior: its seed is that of the draws, and of the noise, which comes from a generator of its own.
        save_at: further sigmas, at which the trajectory is kept.
        stage: see :class:`~..run.progress.Progress`.
    """
    model = posterior.model
    noise = normal_noise(samples, count_of(samples), torch.Generator().manual_seed(posterior.seed))
    sampling = model.get_model_object("model_sampling")
    dense = comfy.samplers.calculate_sigmas(sampling, "normal", FINE)[:-1].tolist()
    levels = [scales(sampling, sigma).noise_over_signal for sigma in dense]
    chosen = {dense[index] for index in choose_states(levels, JUDGED_STATES)}
    sigmas = torch.tensor([*sorted({*chosen, *save_at.sigmas}, reverse=True), 0.0])
    positive, negative, cfg = guidance

    def run(model, latent):
        start = latent["samples"]
        sampled = comfy.sample.sample_custom(
            model,
            noise,
            cfg,
            NoiseAgain(),
            sigmas,
            positive,
            negative,
            start,
            disable_pbar=True,
            seed=posterior.seed,
        )
        return {"samples": sampled}

    progress = Progress(model, stage=stage)
    latent = {"samples": samples}
    return sample_with_uncertainty(run, latent, posterior, estimator, save_at, progress).uncertainty

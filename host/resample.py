"""Go on sampling from a point of a trajectory that is over: for variations of a picture, or to mend a part of it."""

from __future__ import annotations

import dataclasses
import math

import comfy.sample
import comfy.samplers
import comfy.utils
import torch
from comfy.model_patcher import ModelPatcher
from comfy.sampler_helpers import prepare_mask

from ..bayesdiff_core.resample import draw_latent, nearest_moment
from ..bayesdiff_core.uncertainty import Moment, Uncertainty
from .beside import scales
from .sampling import Progress, run_within

# Mixed into the seed of the draws: with the bare seed they would repeat the numbers of the initial noise.
RESAMPLING = 0x2E5A3B1E7C94D600


@dataclasses.dataclass(frozen=True)
class Settings:
    """What the stock KSampler is told, but for latent and seed."""

    steps: int
    cfg: float
    sampler_name: str
    scheduler: str
    positive: list
    negative: list
    denoise: float = 1.0

    def sigmas(self, model: ModelPatcher) -> torch.Tensor:
        """Noise levels of the run, as the stock KSampler spaces them."""
        sampler = comfy.samplers.KSampler(
            model, self.steps, "cpu", self.sampler_name, self.scheduler, self.denoise, model.model_options
        )
        return sampler.sigmas

    def step_at(self, sigmas: torch.Tensor, share: float) -> int:
        """The step, from 0, that starts after ``share`` of the steps: at least one, and one is left."""
        return min(max(round(share * (len(sigmas) - 1)), 1), max(len(sigmas) - 2, 0))

    def sample(
        self, model: ModelPatcher, latent: torch.Tensor, noise: torch.Tensor, step: int, seed: int, mask=None
    ) -> torch.Tensor:
        """The stock sampler from ``step`` to the end, with noise of one's own."""
        return comfy.sample.sample(
            model, noise, self.steps, self.cfg, self.sampler_name, self.scheduler, self.positive, self.negative, latent,
            denoise=self.denoise, start_step=step, force_full_denoise=True, noise_mask=mask,
            disable_pbar=not comfy.utils.PROGRESS_BAR_ENABLED, seed=seed,
        )  # fmt: skip


def finish(
    model: ModelPatcher, settings: Settings, noisy: torch.Tensor, picture: torch.Tensor, sigma: float, step: int,
    seed: int, mask: torch.Tensor | None,
) -> torch.Tensor:  # fmt: skip
    """Finish from the noisy latent at ``step``, as KSampler Advanced does with add_noise disabled.

    A deterministic one-step sampler goes on as if it had never stopped. One that remembers earlier steps starts
    without that memory, and one that adds noise adds that of ``seed``.

    Args:
        noisy: ``(n, ...)``, as a stock sampler that stops there returns it.
        picture: of the same shape, what the run without a change ended in; it stays outside the mask.
        mask: a noise mask of the host's.
    """
    if mask is None:
        return settings.sample(model, noisy, torch.zeros(noisy.shape), step, seed)
    # Outside the mask the host shows the network the picture, noised anew at every step. So the noise is the one that
    # leads from the picture to the noisy latent: then what surrounds the mask is seen as the run itself saw it.
    noise, signal = scales(model.get_model_object("model_sampling"), sigma)
    change = model.model.process_latent_in(noisy) - model.model.process_latent_in(picture)
    return settings.sample(model, picture, change * (signal / noise), step, seed, mask)


def find_point(model: ModelPatcher, settings: Settings, uncertainty: Uncertainty, share: float) -> tuple[Moment, int]:
    """The kept point of the trajectory nearest to ``share`` of the steps, and the step that starts there.

    Raises:
        ValueError: nothing was kept, or these settings have no step at that noise level.
    """
    sigmas = settings.sigmas(model)
    if len(sigmas) < 3:
        raise ValueError(
            f"Expected at least 2 steps to go on from between, got {max(len(sigmas) - 1, 0)}; give the sampler more."
        )
    moment = nearest_moment(uncertainty, float(sigmas[settings.step_at(sigmas, share)]))
    step = min(range(len(sigmas) - 1), key=lambda j: abs(float(sigmas[j]) - moment.sigma))
    if not math.isclose(float(sigmas[step]), moment.sigma, rel_tol=1e-3):
        raise ValueError(
            f"Expected the settings that the picture was sampled with, got some that have no step at its sigma "
            f"{moment.sigma:.4g}; set steps, sampler_name, scheduler and denoise as they were."
        )
    return moment, step


def resample(
    model: ModelPatcher, settings: Settings, uncertainty: Uncertainty, share: float, variations: int, strength: float,
    seed: int, mask: torch.Tensor | None,
) -> list[torch.Tensor]:  # fmt: skip
    """Variations of pictures: each is drawn from the estimated distribution after ``share`` of the steps.

    Args:
        share: of the steps; the nearest point that the uncertainty keeps is taken.
        variations: how many of every picture; one run of the whole batch each.
        strength: see :func:`~..bayesdiff_core.resample.draw_latent`.
        mask: a noise mask of the host's. Outside it the pictures stay as they are.

    Returns:
        ``variations`` latents of the batch's shape.
    """
    moment, step = find_point(model, settings, uncertainty, share)
    latent_mask = None if mask is None else prepare_mask(mask, moment.latent.shape, "cpu")
    generator = torch.Generator().manual_seed(seed ^ RESAMPLING)
    progress, found = Progress(model, variations), []
    for number in range(variations):
        noisy = draw_latent(moment, strength, generator, latent_mask)

        def run(model, noisy=noisy, number=number):
            # A seed each: samplers that add noise shall not add the same to every variation.
            seed_of_run = (seed + number) % 2**64
            samples = finish(model, settings, noisy, uncertainty.latent, moment.sigma, step, seed_of_run, mask)
            return {"samples": samples}

        found.append(run_within(run, model, progress)[0]["samples"])
    return found

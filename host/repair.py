"""Mend the least certain part of pictures, and keep what the model is surer of."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable

import torch
from comfy.model_patcher import ModelPatcher
from comfy.sampler_helpers import prepare_mask
from nodes import common_ksampler  # pyright: ignore[reportAttributeAccessIssue], the host's, not ours

from ..bayesdiff_core import rank
from ..bayesdiff_core.estimators import Estimator
from ..bayesdiff_core.laplace_head import LaplaceHead
from ..bayesdiff_core.resample import draw_latent, nearest_moment
from ..bayesdiff_core.uncertainty import Uncertainty
from .given import uncertainty_of
from .last_layer import LastLayer
from .resample import RESAMPLING, Settings, finish
from .sampling import Progress, run_within


@dataclasses.dataclass(frozen=True)
class Attempt:
    """One round, of all pictures of the batch.

    Attributes:
        samples: ``(n, ...)``, the mended pictures.
        mask: ``(n, height, width)``, what was mended.
        before, after: scores ``(n,)`` of the best so far and of the mended.
    """

    samples: torch.Tensor
    mask: torch.Tensor
    before: torch.Tensor
    after: torch.Tensor

    @property
    def kept(self) -> torch.Tensor:
        """Which of the mended are better, ``(n,)`` of bool; a score that is no number never is."""
        return self.after < self.before


def repair(
    model: ModelPatcher, layer: LastLayer, head: LaplaceHead, estimator: Estimator, states: int, settings: Settings,
    latent: dict, seed: int, rounds: int, rectify: bool, mask_of: Callable[[Uncertainty], torch.Tensor],
    first: Uncertainty | None = None,
) -> tuple[Uncertainty, list[Attempt]]:  # fmt: skip
    """Mend, score again, keep the better of each picture, and so on.

    Scores must compare a picture with its mended self. The uncertainty that a sampler gives does not: it is that of a
    run, which for a mended picture began half-way and was blind outside the mask, and so is smaller whatever the
    result. So every picture is scored as a finished one, all of it, by :func:`~.given.uncertainty_of`, under the same
    noise and draws.

    Args:
        estimator, states: of that score.
        settings: of the mending; ``denoise`` is its strength.
        seed: of the scores; round r mends with ``seed + r``.
        rectify: draw what is masked from the estimated distribution at the step that ``denoise`` leads to, instead of
            stock inpainting.
        mask_of: what to mend, ``(n, height, width)``, by an uncertainty.
        first: what the first mask is made of; by default the uncertainty that scores the pictures.

    Returns:
        the uncertainty of the best, whose ``latent`` they are, and what was tried.
    """
    stages, step, sigma, levels = 1 + 2 * rounds, 0, 0.0, ()
    if rectify and rounds:
        settings, step, sigma = from_step(model, settings)
        levels = (sigma,)

    def judge(samples: torch.Tensor, stage: int) -> Uncertainty:
        return uncertainty_of(
            model, layer, head, estimator, samples, settings.cfg, settings.positive, settings.negative, states, seed,
            levels, (stage, stages),
        )  # fmt: skip

    def mend(model: ModelPatcher, best: Uncertainty, mask: torch.Tensor, seed: int) -> dict:
        if rectify:
            return {"samples": redraw(model, settings, best, step, sigma, seed, mask)}
        return inpaint(model, settings, latent | {"samples": best.latent, "noise_mask": mask}, seed)

    best, attempts = judge(latent["samples"], 0), []
    count = len(best.latent)
    for number in range(1, rounds + 1):
        mask = mask_of(first if number == 1 and first is not None else best)
        run = functools.partial(mend, best=best, mask=mask, seed=(seed + number) % 2**64)
        mended, _ = run_within(run, model, Progress(model, 1, stage=(2 * number - 1, stages)))
        again = judge(mended["samples"], 2 * number)
        attempt = Attempt(mended["samples"], mask, best.scores(), again.scores())
        attempts.append(attempt)
        best = rank.select(rank.join([best, again]), torch.arange(count) + count * attempt.kept)
    return best, attempts


def inpaint(model: ModelPatcher, settings: Settings, latent: dict, seed: int) -> dict:
    """The stock KSampler on a latent with a noise mask."""
    return common_ksampler(
        model, seed, settings.steps, settings.cfg, settings.sampler_name, settings.scheduler, settings.positive,
        settings.negative, latent, denoise=settings.denoise,
    )[0]  # fmt: skip


def from_step(model: ModelPatcher, settings: Settings) -> tuple[Settings, int, float]:
    """Settings of the whole schedule, the step that ``denoise`` leads to, and its noise level."""
    share, settings = 1 - settings.denoise, dataclasses.replace(settings, denoise=1.0)
    sigmas = settings.sigmas(model)
    step = settings.step_at(sigmas, share)
    return settings, step, float(sigmas[step])


def redraw(
    model: ModelPatcher, settings: Settings, best: Uncertainty, step: int, sigma: float, seed: int, mask: torch.Tensor
) -> torch.Tensor:
    """Draw what is masked from the estimated distribution at a step, and finish."""
    moment = nearest_moment(best, sigma)
    generator = torch.Generator().manual_seed(seed ^ RESAMPLING)
    noisy = draw_latent(moment, 1.0, generator, prepare_mask(mask, moment.latent.shape, "cpu"))
    return finish(model, settings, noisy, best.latent, moment.sigma, step, seed, mask)

"""Redraw the least certain part of images, and keep what the model is more certain of."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable

import torch
from comfy.model_patcher import ModelPatcher

from ...bayesdiff_core.estimators.base import Estimator
from ...bayesdiff_core.estimators.redrawing import Redrawing
from ...bayesdiff_core.estimators.trajectory import DEFAULT_POINTS, SaveAt
from ...bayesdiff_core.reading.uncertainty import Uncertainty
from ...bayesdiff_core.resampling import nearest_moment
from ..latents import host_mask
from ..nested import latent_of
from ..posterior import NoPosterior, Posterior
from ..run.progress import Progress
from ..run.stock import sample_stock
from ..said import once_each
from ..settings import RunSettings, step_after
from .finished import uncertainty_of_finished
from .redraw import redraw as draw_again
from .resample import RESAMPLING, Point, finish, redraw

# What to redraw, ``(n, height, width)`` or of clips a mask for each frame, clip after clip, by an uncertainty.
MaskOf = Callable[[Uncertainty], torch.Tensor]


@dataclasses.dataclass(frozen=True)
class Attempt:
    """One round, of all images of the batch.

    Attributes:
        samples: ``(n, ...)``, the repaired images.
        mask: ``(n, height, width)``, what was redrawn; of clips a mask for each frame, clip after clip.
        before, after: scores ``(n,)`` of the best so far and of the repaired.
    """

    samples: torch.Tensor
    mask: torch.Tensor
    before: torch.Tensor
    after: torch.Tensor

    @property
    def kept(self) -> torch.Tensor:
        """Which of the repaired are better, ``(n,)`` of bool; a score that is no number never is."""
        return self.after < self.before


@dataclasses.dataclass(frozen=True)
class RepairPlan:
    """How to repair.

    Attributes:
        judge: what scores the images.
        rounds: how often.
        rectify: draw what is masked from the estimated distribution at the step that ``denoise`` leads to, instead of
            stock inpainting.
    """

    judge: Estimator | Redrawing
    rounds: int
    rectify: bool = False


@once_each()
def repair(
    latent: dict,
    posterior: Posterior | NoPosterior,
    settings: RunSettings,
    plan: RepairPlan,
    mask_of: MaskOf,
    first: Uncertainty | None = None,
) -> tuple[Uncertainty, list[Attempt]]:
    """Redraw, score again, keep the better of each image, and so on.

    Scores must compare an image with its repaired self. The uncertainty that a sampler returns does not: it is that of
    a run, which for a repaired image began half-way and was blind outside the mask, and so is smaller for any
    result. So every image is scored as a finished one, all of it, by :func:`~.finished.uncertainty_of_finished` or
    :func:`~.redraw.redraw`, under the same noise and draws.

    Args:
        posterior: its seed is that of the scores; round r redraws with ``seed + r``.
        settings: of the repairs; ``denoise`` is their strength.
        first: what the first mask is made of; by default the uncertainty that scores the images.

    Returns:
        the uncertainty of the best, whose ``latent`` they are, and what was tried: nothing where the images could not
        be scored.
    """
    model, stages = posterior.model, 1 + 2 * plan.rounds
    redraws = Rectify.of(model, settings) if plan.rectify and plan.rounds else Inpaint(settings)

    def judge(samples: torch.Tensor, stage: int) -> Uncertainty:
        if isinstance(plan.judge, Redrawing):
            return draw_again(model, samples, settings.guidance, plan.judge, posterior.seed, (stage, stages))
        save_at = redraws.save_at
        return uncertainty_of_finished(samples, posterior, plan.judge, settings.guidance, save_at, (stage, stages))

    best, attempts = judge(latent["samples"], 0), []
    count = len(best)
    for number in range(1, plan.rounds + 1):
        if best.unknown:
            break
        mask = mask_of(first if number == 1 and first is not None and not first.unknown else best)
        seed = (posterior.seed + number) % 2**64

        progress = Progress(model, stage=(2 * number - 1, stages))
        run = functools.partial(redraws, best=best, mask=mask, seed=seed)
        repaired, _ = sample_stock(run, model, latent, progress)
        again = judge(repaired["samples"], 2 * number)
        attempt = Attempt(repaired["samples"], mask, best.scores(), again.scores())
        attempts.append(attempt)
        best = Uncertainty.join([best, again]).select(torch.arange(count) + count * attempt.kept)
    return best, attempts


@dataclasses.dataclass(frozen=True)
class Inpaint:
    """The stock KSampler on the masked part."""

    settings: RunSettings
    save_at = DEFAULT_POINTS

    def __call__(self, model: ModelPatcher, latent: dict, best: Uncertainty, mask: torch.Tensor, seed: int) -> dict:
        samples = latent_of(best)
        masked = {"samples": samples, "noise_mask": host_mask(mask, samples, best.grid)}
        return self.settings.sample(model, latent | masked, seed)


@dataclasses.dataclass(frozen=True)
class Rectify:
    """The paper's way: the masked part is drawn from the estimated distribution at a step, and finished.

    Attributes:
        settings: of the whole schedule.
        step, sigma: where ``denoise`` leads to.
    """

    settings: RunSettings
    step: int
    sigma: float

    @classmethod
    def of(cls, model: ModelPatcher, settings: RunSettings) -> Rectify:
        whole = dataclasses.replace(settings, denoise=1.0)
        sigmas = whole.sigmas(model)
        step = step_after(sigmas, 1 - settings.denoise)
        return cls(whole, step, float(sigmas[step]))

    @property
    def save_at(self) -> SaveAt:
        return SaveAt((self.sigma,))

    def __call__(self, model: ModelPatcher, latent: dict, best: Uncertainty, mask: torch.Tensor, seed: int) -> dict:
        point = Point([nearest_moment(part, self.sigma) for part in best.parts], self.step)
        samples = latent_of(best)
        mask = host_mask(mask, samples, best.grid)
        noisy = redraw(point, 1.0, torch.Generator().manual_seed(seed ^ RESAMPLING), mask)
        return {"samples": finish(model, self.settings, noisy, samples, seed, mask)}

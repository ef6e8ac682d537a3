"""Draw finished latents again from half-way, and see what changes."""

from __future__ import annotations

import comfy.sample
import comfy.samplers
import comfy.utils
import torch
from comfy.model_patcher import ModelPatcher

from ...bayesdiff_core.estimators.redrawing import Redrawing, redrawn_variance
from ...bayesdiff_core.reading.uncertainty import Uncertainty
from ..latents import latent_grids
from ..nested import count_of, normal_noise, parts_of, shapes_of
from ..run.progress import Progress
from ..run.space import sigma_at
from ..run.stock import sample_stock
from ..settings import Guidance


def redraw(
    model: ModelPatcher,
    samples: torch.Tensor,
    guidance: Guidance,
    redrawing: Redrawing,
    seed: int,
    stage: tuple[int, int] = (0, 1),
) -> Uncertainty:
    """Uncertainty of finished latents, without a Laplace head. Takes ``redrawing.steps`` network calls.

    Args:
        samples: ``(n, ...)``, as the user sees them.
        seed: of the noise, which comes from a generator of its own.
        stage: see :class:`~..run.progress.Progress`.
    """
    sampling = model.get_model_object("model_sampling")
    sigmas = torch.tensor([*(sigma_at(sampling, level) for level in redrawing.levels), 0.0])
    noise = normal_noise(samples, count_of(samples), torch.Generator().manual_seed(seed))
    positive, negative, cfg = guidance

    def run(model: ModelPatcher, latent: dict) -> dict:
        sampler = comfy.samplers.sampler_object("euler")
        start = latent["samples"]
        found = comfy.sample.sample_custom(
            model,
            noise,
            cfg,
            sampler,
            sigmas,
            positive,
            negative,
            start,
            disable_pbar=not comfy.utils.PROGRESS_BAR_ENABLED,
            seed=seed,
        )
        return {"samples": found}

    redrawn = sample_stock(run, model, {"samples": samples}, Progress(model, stage=stage))[0]["samples"]
    both = zip(parts_of(samples), parts_of(redrawn), latent_grids(model, shapes_of(samples)))
    return Uncertainty.of_parts(
        Uncertainty(
            variance=redrawn_variance(image, again),
            latent=image,
            grid=grid,
            estimator=redrawing.name,
            members=0,
            head={},
            cost=float(redrawing.steps),
            deviations=torch.empty(0, *image.shape),
            measures=redrawing.measures,
            score="root mean square",
        )
        for image, again, grid in both
    )

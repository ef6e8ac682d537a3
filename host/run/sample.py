"""The stock sampler, and the uncertainty of what it samples."""

from __future__ import annotations

from typing import NamedTuple

from ...bayesdiff_core.estimators.base import Estimator
from ...bayesdiff_core.estimators.ensemble import Ensemble
from ...bayesdiff_core.estimators.trajectory import DEFAULT_POINTS, SaveAt
from ...bayesdiff_core.reading.uncertainty import Uncertainty
from ..latents import latent_grid
from ..posterior import NoPosterior, Posterior
from .ensemble import sample_ensemble
from .observe import Found, Observer, nothing
from .progress import Progress
from .stock import Run, sample_stock


class Sampled(NamedTuple):
    """What a run returns.

    Attributes:
        latent: LATENT of the run, the stock sampler's bit for bit.
        denoised: LATENT of its last prediction of ``denoised``.
        uncertainty: of the former.
    """

    latent: dict
    denoised: dict
    uncertainty: Uncertainty


def sample_with_uncertainty(
    run: Run,
    latent: dict,
    posterior: Posterior | NoPosterior,
    estimator: Estimator | Ensemble,
    save_at: SaveAt = DEFAULT_POINTS,
    progress: Progress | None = None,
) -> Sampled:
    """Sample once with the model's own weights, then see what draws of its last layer change.

    Args:
        run: the sampling run, of the stock sampler's own function.
        latent: LATENT to start from.
        posterior: of the model to sample with, or none; its seed is that of the draws.
        save_at: where on the way to keep mean and variance of the noisy latent.
        progress: of the node; one of its own if not given.

    Raises:
        ValueError: the estimator needs a head and there is none.
    """
    model = posterior.model
    progress = progress or Progress(model)
    if estimator.needs_head and isinstance(posterior, NoPosterior):
        raise ValueError(
            f"Expected a Laplace head for the estimator '{estimator.name}', got none; connect Fit or Load Laplace "
            "Head, or leave the estimator to the quality."
        )
    if isinstance(estimator, Ensemble):
        assert isinstance(posterior, Posterior)
        sampled, found = sample_ensemble(run, latent, posterior, estimator, save_at, progress)
    else:
        sampled, found = sample_observed(run, latent, posterior, estimator, save_at, progress)
    denoised = sampled
    if progress.denoised is not None:
        denoised = sampled | {"samples": model.model.process_latent_out(progress.denoised.cpu())}
    uncertainty = Uncertainty(
        latent=sampled["samples"],
        grid=latent_grid(model),
        estimator=estimator.name,
        head=posterior.about,
        scale=posterior.calibration.scale if estimator.on_scale and posterior.calibration is not None else None,
        **found._asdict(),
    )
    return Sampled(sampled, denoised, uncertainty)


def sample_observed(
    run: Run,
    latent: dict,
    posterior: Posterior | NoPosterior,
    estimator: Estimator,
    save_at: SaveAt,
    progress: Progress,
) -> tuple[dict, Found]:
    """The latent of the stock run, and its uncertainty from an estimator that works once it is over."""
    observer = Observer(posterior, estimator, save_at, progress)
    sampled, _ = sample_stock(run, posterior.model, latent, progress, wrap=observer.add_to)
    # A run of no steps has no uncertainty.
    return sampled, observer.found or nothing(sampled["samples"])

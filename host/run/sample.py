"""The stock sampler, and the uncertainty of what it samples."""

from __future__ import annotations

import logging
from typing import NamedTuple

import torch

from ...bayesdiff_core.estimators.base import Estimator
from ...bayesdiff_core.estimators.ensemble import Ensemble
from ...bayesdiff_core.estimators.trajectory import DEFAULT_POINTS, SaveAt
from ...bayesdiff_core.reading.uncertainty import Uncertainty
from ..latents import latent_grid
from ..posterior import NoPosterior, Posterior
from .beside import Beside
from .ensemble import Origin, ensemble_around
from .observe import NEVER_ASKED, Found, Observer, nothing, unknown, whole_or_first
from .progress import Progress
from .stages import uncertainty_of_latent
from .stock import Run, sample_stock

NESTED = (
    "Expected one latent of images or video to read an uncertainty of, got a nested latent (video with sound), which "
    "cannot be read yet; the latent is sampled as by the stock sampler."
)
UNKNOWN_BEFORE = "The uncertainty of the latent that comes in is unknown: {}"

NOT_FINITE = (
    "Expected finite images and variances, got NaN or infinity in {bad} of {images} images, of which nothing can be "
    "told; check whether they are blank, and sample in a wider number format, for example with --force-fp32."
)


class Sampled(NamedTuple):
    """What a run returns.

    Attributes:
        latent: LATENT of the run, the stock sampler's bit for bit.
        uncertainty: of it.
    """

    latent: dict
    uncertainty: Uncertainty


def sample_with_uncertainty(
    run: Run,
    latent: dict,
    posterior: Posterior | NoPosterior,
    estimator: Estimator | Ensemble,
    save_at: SaveAt = DEFAULT_POINTS,
    progress: Progress | None = None,
    before: Uncertainty | None = None,
) -> Sampled:
    """Sample once with the model's own weights, then see what draws of its last layer change.

    What fails beside the sampling leaves an uncertainty that is unknown, and never costs the latent.

    Args:
        run: the sampling run, of the stock sampler's own function.
        latent: LATENT to start from.
        posterior: of the model to sample with, or none; its seed is that of the draws.
        save_at: where on the way to keep mean and variance of the noisy latent.
        progress: of the node; one of its own if not given.
        before: uncertainty of the latent to start from, if an earlier stage left one.

    Raises:
        ValueError: the estimator needs a head and there is none, or ``before`` is of another latent.
    """
    if estimator.needs_head and isinstance(posterior, NoPosterior):
        raise ValueError(
            f"Expected a Laplace head for the estimator '{estimator.name}', got none; connect Fit or Load Laplace "
            "Head, or leave the estimator to the quality."
        )
    model, beside, found = posterior.model, Beside(), None
    progress = progress or Progress(model)
    if before is not None:
        before = uncertainty_of_latent(before, latent, estimator.measures)
        if isinstance(estimator, Ensemble) and before.is_known and not len(before.deviations):
            raise ValueError(
                f"Expected an uncertainty with members for the quality 'ensemble' to go on with, got one by "
                f"'{before.estimator}', which has none; choose 'ensemble' in the stage before too, or 'instant' here."
            )
        if not before.is_known:  # then nothing is known of the result, and its own stage is not worth a call
            sampled, _ = sample_stock(run, model, latent, progress)
            found = unknown(sampled["samples"], UNKNOWN_BEFORE.format(before.unknown))
            return Sampled(sampled, uncertainty_of(sampled, found, posterior, estimator))
    if latent["samples"].is_nested:
        sampled, _ = sample_stock(run, model, latent, progress)
        beside.problem = NESTED
    elif isinstance(estimator, Ensemble):
        assert isinstance(posterior, Posterior)
        progress.runs = 1 + estimator.members
        sampled, passed = sample_stock(run, model, latent, progress, save_at=save_at)
        with beside.guarded("sampling the ensemble"):
            found = ensemble_around(
                sampled, passed, run, Origin(latent, before), posterior, estimator, save_at, progress
            )
    else:
        observer = Observer(posterior, estimator, save_at, progress, before)
        sampled, _ = sample_stock(run, model, latent, progress, wrap=observer.add_to)
        with beside.guarded("reading the run"):
            found = observer.found or not_seen(latent, sampled)
    with beside.guarded("keeping the uncertainty"):
        if found is not None:
            return Sampled(sampled, uncertainty_of(sampled, found, posterior, estimator))
    return Sampled(sampled, uncertainty_of(sampled, unknown(sampled["samples"], beside.problem), posterior, estimator))


def not_seen(latent: dict, sampled: dict) -> Found:
    """Of a run in which no sampler was seen: it took no step, or went past all that watches."""
    before, after = latent["samples"], sampled["samples"]
    if before.shape == after.shape and torch.equal(before.to(after), after):
        return nothing(after)
    return unknown(after, NEVER_ASKED)


def uncertainty_of(
    sampled: dict, found: Found, posterior: Posterior | NoPosterior, estimator: Estimator | Ensemble
) -> Uncertainty:
    bad = int((~found.variance.isfinite()).flatten(1).any(1).sum())
    if bad and not found.unknown:
        found = found._replace(unknown=NOT_FINITE.format(bad=bad, images=len(found.variance)))
        logging.warning(f"BayesDiff: {found.unknown}")
    return Uncertainty(
        latent=whole_or_first(sampled["samples"]),
        grid=latent_grid(posterior.model),
        estimator=estimator.name,
        head=posterior.about,
        scale=posterior.calibration.scale if estimator.on_scale and posterior.calibration is not None else None,
        **found._asdict(),
    )

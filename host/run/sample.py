"""The stock sampler, and the uncertainty of what it samples."""

from __future__ import annotations

from typing import NamedTuple

import torch

from ...bayesdiff_core.estimators.base import Estimator
from ...bayesdiff_core.estimators.ensemble import Ensemble
from ...bayesdiff_core.estimators.parts import unpack
from ...bayesdiff_core.estimators.past import Handover
from ...bayesdiff_core.estimators.trajectory import DEFAULT_POINTS, SaveAt
from ...bayesdiff_core.reading.grid import LatentGrid
from ...bayesdiff_core.reading.uncertainty import Uncertainty
from ..latents import latent_grids
from ..nested import packed, parts_of, shapes_of
from ..posterior import NoPosterior, Posterior
from ..said import say
from .beside import Beside
from .ensemble import Origin, ensemble_around
from .observe import NEVER_ASKED, Found, Observer, as_before, unknown, untold
from .progress import Progress
from .quirks import Generators
from .recorder import RESIZED
from .stages import uncertainty_of_latent
from .stock import Run, sample_stock, took_no_step

PART_UNKNOWN = (
    "Expected a Laplace head that was fitted with this part of the latent too, got one that knows nothing of it; fit "
    "the head again on this model, or choose a quality with members."
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
            found = unknown(packed(sampled["samples"]), UNKNOWN_BEFORE.format(before.unknown))
            return Sampled(sampled, uncertainty_of(sampled, found, posterior, estimator))
    if isinstance(estimator, Ensemble):
        assert isinstance(posterior, Posterior)
        start, progress.runs = Origin(latent, Generators.now(model.load_device), before), 1 + estimator.members
        sampled, passed = sample_stock(run, model, latent, progress, save_at=save_at)
        with beside.guarded("sampling the ensemble"):
            found = ensemble_around(sampled, passed, run, start, posterior, estimator, save_at, progress)
    else:
        observer = Observer(posterior, estimator, save_at, progress, before)
        sampled, _ = sample_stock(run, model, latent, progress, wrap=observer.add_to)
        with beside.guarded("reading the run"):
            found = observer.found or not_seen(latent, sampled, before)
    with beside.guarded("keeping the uncertainty"):
        if found is not None:
            return Sampled(sampled, uncertainty_of(sampled, found, posterior, estimator))
    found = unknown(packed(sampled["samples"]), beside.problem)
    return Sampled(sampled, uncertainty_of(sampled, found, posterior, estimator))


def not_seen(latent: dict, sampled: dict, before: Uncertainty | None) -> Found:
    """Of a run in which no sampler was seen: it took no step, or went past all that watches."""
    after = packed(sampled["samples"])
    if not took_no_step(latent, sampled):
        return unknown(after, NEVER_ASKED)
    return as_before(after, before, shapes_of(sampled["samples"]))


def uncertainty_of(
    sampled: dict, found: Found, posterior: Posterior | NoPosterior, estimator: Estimator | Ensemble
) -> Uncertainty:
    """What is known of a run, for the user; of a nested latent that of its first part, and with it the others."""
    shapes, whole = shapes_of(sampled["samples"]), packed(sampled["samples"])
    if found.variance.shape != whole.shape:  # the sampler's own shape is another
        found = untold(whole, found.unknown) if found.unknown else unknown(whole, RESIZED)._replace(cost=found.cost)
    # A sampler's last step may break what every prediction was sure of.
    found = found._replace(variance=found.variance.masked_fill(~whole.isfinite().cpu(), torch.nan))
    scales = [part.calibration and part.calibration.scale for part in posterior.parts if estimator.on_scale]
    moments = [moment.unpack(shapes) for moment in found.trajectory]

    def of_part(number: int, latent: torch.Tensor, grid: LatentGrid) -> Uncertainty:
        variance = unpack(found.variance, shapes)[number]
        part = found._replace(
            variance=variance,
            deviations=unpack(found.deviations, shapes)[number],
            trajectory=tuple(moment[number] for moment in moments),
            unknown=found.unknown or problem_of(variance, found.variance),
            handover=Handover() if number else found.handover,
        )
        return Uncertainty(
            latent=latent,
            grid=grid,
            estimator=estimator.name,
            head=posterior.about,
            scale=scales[number] if number < len(scales) else None,
            **part._asdict(),
        )

    both = zip(parts_of(sampled["samples"]), latent_grids(posterior.model, shapes))
    return Uncertainty.of_parts(of_part(number, latent, grid) for number, (latent, grid) in enumerate(both))


def problem_of(variance: torch.Tensor, whole: torch.Tensor) -> str:
    """Why nothing is known of some of the images, "" if all is known.

    Args:
        variance: ``(n, ...)``, of one part of a nested latent.
        whole: ``(n, ...)``, of all parts.
    """
    bad = int((~variance.isfinite()).flatten(1).any(1).sum())
    if not bad:
        return ""
    only_here = variance.isnan().all() and not whole.isnan().all()
    problem = PART_UNKNOWN if only_here else NOT_FINITE.format(bad=bad, images=len(variance))
    say(problem)
    return problem

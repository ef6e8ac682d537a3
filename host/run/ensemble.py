"""The posterior ensemble: every member is sampled anew, from start to end, under weights of its own."""

from __future__ import annotations

import functools

import torch

from ...bayesdiff_core.estimators.ensemble import Ensemble, EnsembleVariance
from ...bayesdiff_core.estimators.trajectory import SaveAt
from ...bayesdiff_core.reading.uncertainty import Moment
from ..posterior import Posterior
from .observe import KEPT_MEMBERS, Found
from .progress import Progress
from .quirks import kept_generators
from .stock import Passed, Run, sample_stock


def ensemble_around(
    sampled: dict,
    passed: list[Passed],
    run: Run,
    latent: dict,
    posterior: Posterior,
    ensemble: Ensemble,
    save_at: SaveAt,
    progress: Progress,
) -> Found:
    """The uncertainty of a run that is over, from ``ensemble.members`` further runs.

    Args:
        sampled, passed: what the run ended in, and what it kept of the way.
        run, latent: how it was made.
    """
    model, nominal = posterior.model, sampled["samples"]
    # A sampler may change the size of its latent on the way.
    kept = [place for place, point in enumerate(passed) if point.latent.shape == nominal.shape]
    end, points, deviations = EnsembleVariance(nominal), [EnsembleVariance(passed[i].latent) for i in kept], []
    # Every run reseeds the global generator; afterwards it stands where the stock sampler would have left it.
    with kept_generators(model.load_device):
        for number in range(ensemble.members):
            weights = functools.partial(posterior.perturbed, number)
            member, on_the_way = sample_stock(run, model, latent, progress, weights, save_at=save_at)
            end.add(member["samples"])
            for place, point in zip(kept, points):
                point.add(on_the_way[place].latent)
            if len(deviations) < KEPT_MEMBERS:
                deviations.append(member["samples"] - nominal)
            progress.show(end.mean_square())
    moments = tuple(Moment(*passed[place], point.variance()) for place, point in zip(kept, points))
    return Found(end.variance(), torch.stack(deviations), end.count, 1.0 + end.count, moments)

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
from .quirks import estimating, generator_devices
from .stock import Run, sample_stock


def sample_ensemble(
    run: Run, latent: dict, posterior: Posterior, ensemble: Ensemble, save_at: SaveAt, progress: Progress
) -> tuple[dict, Found]:
    """The latent of the stock run, and its uncertainty from ``ensemble.members`` further runs."""
    model = posterior.model
    progress.runs = 1 + ensemble.members
    sampled, passed = sample_stock(run, model, latent, progress, save_at=save_at)
    nominal = sampled["samples"]
    end, points, deviations = EnsembleVariance(nominal), [EnsembleVariance(point.latent) for point in passed], []
    # Every run reseeds the global generator; afterwards it stands where the stock sampler would have left it.
    with estimating(), torch.random.fork_rng(generator_devices(model.load_device)):
        for number in range(ensemble.members):
            weights = functools.partial(posterior.perturbed, number)
            member, on_the_way = sample_stock(run, model, latent, progress, weights, save_at=save_at)
            end.add(member["samples"])
            for point, (_, x) in zip(points, on_the_way):
                point.add(x)
            if len(deviations) < KEPT_MEMBERS:
                deviations.append(member["samples"] - nominal)
            progress.show(end.mean_square())
    moments = tuple(Moment(sigma, x, point.variance()) for (sigma, x), point in zip(passed, points))
    return sampled, Found(end.variance(), torch.stack(deviations), end.count, 1.0 + end.count, moments)

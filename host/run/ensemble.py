"""The posterior ensemble: every member is sampled anew, from start to end, under weights of its own."""

from __future__ import annotations

import functools
from typing import NamedTuple

import torch

from ...bayesdiff_core.estimators.ensemble import Ensemble, EnsembleVariance
from ...bayesdiff_core.estimators.past import Handover
from ...bayesdiff_core.estimators.trajectory import SaveAt
from ...bayesdiff_core.reading.uncertainty import Moment, Uncertainty
from ..nested import by_part, packed, whole
from ..posterior import Posterior
from .observe import KEPT_MEMBERS, Found
from .progress import Progress
from .quirks import kept_generators
from .stock import Passed, Run, sample_stock


class Origin(NamedTuple):
    """What members start from: a LATENT, and the uncertainty of it if an earlier stage left one."""

    latent: dict
    before: Uncertainty | None = None

    def of(self, member: int) -> dict:
        """The LATENT of a member."""
        if self.before is None or not len(self.before.deviations):
            return self.latent
        moved = whole([part.deviations[member] for part in self.before.parts])
        samples = by_part(lambda part, change: part + change.to(part), self.latent["samples"], moved)
        return self.latent | {"samples": samples}


def ensemble_around(
    sampled: dict,
    passed: list[Passed],
    run: Run,
    start: Origin,
    posterior: Posterior,
    ensemble: Ensemble,
    save_at: SaveAt,
    progress: Progress,
) -> Found:
    """The uncertainty of a run that is over, from ``ensemble.members`` further runs.

    Args:
        sampled, passed: what the run ended in, and what it kept of the way.
        run, start: how it was made. Members that an earlier stage followed go on from where they ended; there are no
            others then.
    """
    model, nominal = posterior.model, packed(sampled["samples"])
    # A sampler may change the size of its latent on the way.
    kept = [place for place, point in enumerate(passed) if point.latent.shape == nominal.shape]
    members = ensemble.members
    if start.before is not None and len(start.before.deviations):
        members = min(members, len(start.before.deviations))
    end, points, deviations = EnsembleVariance(nominal), [EnsembleVariance(passed[i].latent) for i in kept], []
    # Every run reseeds the global generator; afterwards it stands where the stock sampler would have left it.
    with kept_generators(model.load_device):
        for number in range(members):
            weights = functools.partial(posterior.perturbed, number)
            member, on_the_way = sample_stock(run, model, start.of(number), progress, weights, save_at=save_at)
            ended = packed(member["samples"])
            end.add(ended)
            for place, point in zip(kept, points):
                point.add(on_the_way[place].latent)
            if len(deviations) < KEPT_MEMBERS:
                deviations.append(ended - nominal)
            progress.show(end.mean_square())

    def spread(of: EnsembleVariance) -> torch.Tensor:
        return of.variance() if of.count > 1 else of.mean_square()

    moments = tuple(Moment(*passed[place], spread(point)) for place, point in zip(kept, points))
    handover = Handover(posterior.seed)
    return Found(spread(end), torch.stack(deviations), end.count, 1.0 + end.count, moments, handover=handover)

"""The posterior ensemble: every member is sampled anew, from start to end, under weights of its own."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch

from ...bayesdiff_core.estimators.ensemble import Ensemble, EnsembleVariance
from ...bayesdiff_core.estimators.past import Handover
from ...bayesdiff_core.estimators.trajectory import SaveAt, Unknown, root_mean_square
from ...bayesdiff_core.reading.uncertainty import Moment, Uncertainty
from ..nested import by_part, packed, whole
from ..posterior import NOT_CALLED, Posterior
from .observe import KEPT_MEMBERS, Found
from .progress import Progress
from .quirks import Generators, kept_generators, may_remember
from .replay import FORGETFUL
from .stock import Passed, Run, sample_stock, took_no_step

ANSWERS_OTHERWISE = (
    "Expected a run that ends in the same image when it is done again, got one that does not, because of a patch, "
    "guider, sampler or noise that remembers its calls; take it off, or choose the quality 'instant'."
)


class Origin(NamedTuple):
    """What members start from.

    Attributes:
        latent: LATENT.
        generators: where the global random generators stood: noise that is none does not seed them.
        before: uncertainty of the latent, if an earlier stage left one.
    """

    latent: dict
    generators: Generators
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

    Raises:
        Unknown: the runs do not call the last layer, or end elsewhere each time.
    """
    model, nominal = posterior.model, packed(sampled["samples"])
    # A sampler may change the size of its latent on the way.
    kept = [place for place, point in enumerate(passed) if point.latent.shape == nominal.shape]
    members = ensemble.members
    if start.before is not None and len(start.before.deviations):
        members = min(members, len(start.before.deviations))
    end, points, deviations = EnsembleVariance(nominal), [EnsembleVariance(passed[i].latent) for i in kept], []
    calls: list[torch.Size] = []
    checks = may_remember(model, getattr(run, "parts", ()))
    progress.runs += checks

    @contextmanager
    def weights(member: int) -> Iterator[None]:
        with posterior.perturbed(member), posterior.layer.watched(lambda features: calls.append(features.shape)):
            yield

    # Afterwards the global generators stand where the stock sampler would have left them.
    with kept_generators(model.load_device):
        for number in range(members):
            start.generators.restore(model.load_device)
            inside = functools.partial(weights, number)
            member, on_the_way = sample_stock(run, model, start.of(number), progress, inside, save_at=save_at)
            ended = packed(member["samples"])
            end.add(ended)
            for place, point in zip(kept, points):
                point.add(on_the_way[place].latent)
            if len(deviations) < KEPT_MEMBERS:
                deviations.append(ended - nominal)
            progress.show(end.mean_square())
        if checks:
            start.generators.restore(model.load_device)
            again = packed(sample_stock(run, model, start.latent, progress)[0]["samples"])
            if root_mean_square(again - nominal) > FORGETFUL * float(end.mean_square().mean().sqrt()):
                raise Unknown(ANSWERS_OTHERWISE)
    if not calls and not took_no_step(start.latent, sampled):
        raise Unknown(NOT_CALLED)

    def spread(of: EnsembleVariance) -> torch.Tensor:
        return of.variance() if of.count > 1 else of.mean_square()

    moments = tuple(Moment(*passed[place], spread(point)) for place, point in zip(kept, points))
    handover = Handover(posterior.seed)
    cost = 1.0 + end.count + checks
    return Found(spread(end), torch.stack(deviations), end.count, cost, moments, handover=handover)

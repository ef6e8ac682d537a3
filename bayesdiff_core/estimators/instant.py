"""Instant: the variance that a run shows for nothing, by what the head learned of its own model.

No member is followed. gamma² of ``denoised`` at the run's own states is exact, how much ``denoised`` was yet to change
is there to see, and the head's trend turns both into a variance, see :mod:`.trend`. A run of a single step ends in its
prediction, whose variance needs no trend.
"""

from __future__ import annotations

import dataclasses
import logging
from typing import ClassVar

import torch

from .base import Estimate, Estimator, NominalRun, Shown
from .change import spread_over_channels
from .evidence import is_needed, read_evidence
from .past import with_past
from .soft_mask import left_by_mask
from .trajectory import Trajectory

UNTAUGHT = (
    "BayesDiff: this Laplace head has learned nothing of its model's images (an older version fitted it, or with no "
    "own images), so 'instant' is a first look only, in no unit; fit the head again, or choose a quality with members."
)
NO_UNIT = "a first look, in no unit"


@dataclasses.dataclass(frozen=True)
class Instant(Estimator):
    """The variance by the head's trend, without a network call."""

    reads_evidence_alone: ClassVar[bool] = True
    on_scale: ClassVar[bool] = True
    name: ClassVar[str] = "instant"
    help: ClassVar[str] = "what the run itself shows, by what the head learned at its fit."

    def wants_variance(self, noise_over_signal: float, schedule: list[float]) -> bool:
        return is_needed(noise_over_signal, schedule)

    def calls(self, levels: list[float]) -> int:
        return 0

    def estimate(self, run: NominalRun, along: list[int]) -> Estimate:
        trajectory, untaught = run.trajectory, run.shown[0].trend is None
        if untaught:
            logging.warning(UNTAUGHT)
        variance = trajectory.pack([variance_of(shown, untaught) for shown in run.shown])
        nobody = torch.empty(0, *trajectory.shape)
        if untaught:
            return Estimate(variance, nobody, {}, NO_UNIT)
        run.show(variance)
        on_the_way = {}
        for index in along:
            parts = zip(trajectory.unpack(variance), run.shown)
            on_the_way[index] = trajectory.pack([part * way(shown, index) ** 2 for part, shown in parts])
        return Estimate(variance, nobody, on_the_way)


def variance_of(shown: Shown, untaught: bool) -> torch.Tensor:
    """Variance at the end of the run, ``(n, ...)``; NaN of a part of which the head has learned nothing.

    Args:
        untaught: the head has learned nothing of any part.
    """
    trajectory, trend = shown
    if (exact := variance_of_one_step(trajectory)) is not None:
        return exact
    if trend is None and not untaught:
        return torch.full(trajectory.shape, torch.nan)
    evidence = read_evidence(trajectory)
    # The trend is of the clean latent.
    cells = evidence.two_terms if trend is None else trend.slopes(evidence).log_variance(evidence)
    own = spread_over_channels(cells.exp(), trajectory, left_by_mask(trajectory))
    return with_past(own * trajectory.end.signal**2, trajectory)


def variance_of_one_step(trajectory: Trajectory) -> torch.Tensor | None:
    """The exact variance of an image that is the run's only prediction; None of any other run."""
    only, *more = trajectory.states
    if more or trajectory.past is not None or trajectory.end.noise > 0 or only.variance is None or not trajectory.sized:
        return None
    variance, share = only.variance * trajectory.end.signal**2, trajectory.share_denoised
    return variance if share is None else variance * share[:, None].square()


def way(shown: Shown, index: int) -> float:
    """How far x is apart at a state, over how far it is at the end of the run."""
    trajectory, trend = shown
    state = trajectory.states[index]
    # Where the run begins, every member is where it is, unless an earlier stage left them apart.
    if trend is None or (index == 0 and trajectory.past is None):
        return 0.0
    return trend.way_at(state) * state.signal / trajectory.end.signal

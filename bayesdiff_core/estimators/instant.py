"""Instant: the variance that a run shows for nothing, by what the head learned of its own model.

No member is followed. gamma² of ``denoised`` at the run's own states is exact, how much ``denoised`` was yet to change
is there to see, and the head's trend turns both into a variance, see :mod:`.trend`.
"""

from __future__ import annotations

import dataclasses
import logging
from typing import ClassVar

import torch

from .base import Estimate, Estimator, NominalRun
from .change import spread_over_channels
from .evidence import is_needed, read_evidence
from .past import with_past

UNTAUGHT = (
    "BayesDiff: this Laplace head has learned nothing of its model's images (an older version fitted it, or with no "
    "own images), so 'instant' is a first look only, in no unit; fit the head again, or choose a quality with members."
)
NO_UNIT = "a first look, in no unit"


@dataclasses.dataclass(frozen=True)
class Instant(Estimator):
    """The variance by the head's trend, without a network call."""

    on_scale: ClassVar[bool] = True
    name: ClassVar[str] = "instant"
    help: ClassVar[str] = "what the run itself shows, by what the head learned at its fit."

    def wants_variance(self, noise_over_signal: float, schedule: list[float]) -> bool:
        return is_needed(noise_over_signal, schedule)

    def calls(self, levels: list[float]) -> int:
        return 0

    def estimate(self, run: NominalRun, along: list[int]) -> Estimate:
        trajectory, trend = run.trajectory, run.trend
        evidence = read_evidence(trajectory)
        if trend is None:
            logging.warning(UNTAUGHT)
        # The trend is of the clean latent.
        cells = evidence.two_terms if trend is None else trend.slopes(evidence).log_variance(evidence)
        variance = with_past(spread_over_channels(cells.exp(), trajectory) * trajectory.end.signal**2, trajectory)
        nobody = torch.empty(0, *trajectory.shape)
        if trend is None:
            return Estimate(variance, nobody, {}, NO_UNIT)
        run.show(variance)
        on_the_way = {}
        for index in along:
            state = trajectory.states[index]
            # Where the run begins, every member is where it is, unless an earlier stage left them apart.
            apart = index > 0 or trajectory.past is not None
            moved = trend.way_at(state) * state.signal / trajectory.end.signal if apart else 0.0
            on_the_way[index] = variance * moved**2
        return Estimate(variance, nobody, on_the_way)

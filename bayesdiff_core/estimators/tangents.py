"""Tangents: directions that ride through the host's own sampler, in lockstep with the nominal run.

Sampler functions are affine in x, denoised and the noise that they inject. So a small change dW of the last layer moves
the run along a tangent that obeys the sampler's own steps, with no noise, and with the change of ``denoised`` in its
place: ``T' = step(T, J T + (dD/dF) phi^T dW)``. J T is a finite difference, one network call at every state of the
run; the sampler is the host's, so multistep, CFG++ and stochastic ones are right without a line about them.

They cost as much as the ensemble, and to first order find the same. Where a draw leads to quite another image the
tangents do not follow: theirs is the variance of the linearised run.
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import torch

from .base import Denoise, Estimate, Estimator, NominalRun, knob
from .ensemble import EnsembleVariance
from .past import with_past
from .trajectory import State

# Share of a draw for the finite difference: small enough to be linear, large enough for half precision.
SHARE = 0.25


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tangents(Estimator):
    """Tangents of posterior draws.

    Attributes:
        members: how many draws.
    """

    members: int = knob(4, 1, 256, "how many draws of the last layer.", default=4)
    name: ClassVar[str] = "tangents"
    help: ClassVar[str] = "linear, through the sampler's own steps; costs as much as an ensemble."

    def calls(self, levels: list[float]) -> int:
        return self.members * len(levels)

    def estimate(self, run: NominalRun, along: list[int]) -> Estimate:
        shape, came = run.trajectory.shape, run.trajectory.came_in
        end = EnsembleVariance(torch.zeros(shape))
        points = {index: EnsembleVariance(torch.zeros(shape)) for index in along}
        members = []
        for member in range(self.members if came is None else min(self.members, len(came))):

            def change(denoise: Denoise, state: State, deviation: torch.Tensor, member: int = member) -> torch.Tensor:
                return denoise(state, state.x + deviation, member, SHARE) - state.denoised

            deviation, passed = run.ride(change, None if came is None else SHARE * came[member])
            members.append(deviation / SHARE)
            end.add(members[-1])
            run.show(end.mean_square())
            for index, point in points.items():
                point.add(passed[index] / SHARE)
        found = {index: point.mean_square() for index, point in points.items()}
        variance = end.mean_square() if came is not None else with_past(end.mean_square(), run.trajectory)
        return Estimate(variance, torch.stack(members), found)

"""Tangents: directions that ride through the host's own sampler, in lockstep with the nominal run.

Sampler functions are affine in x, denoised and the noise that they inject. So a small change dW of the last layer moves
the run along a tangent that obeys the sampler's own steps, with no noise, and with the change of ``denoised`` in its
place: ``T' = step(T, J T + (dD/dF) phi^T dW)``. J T is a finite difference, one call of the network at every state of
the run; the sampler is the host's, so multistep, CFG++ and stochastic ones are right without a line about them.

As dear as the ensemble, and to first order the same. Where draws lead to another picture altogether the tangents do
not follow: theirs is the variance of the linearised run.
"""

from __future__ import annotations

import dataclasses

import torch

from ..nominal import NominalRun, State
from . import Estimate
from .ensemble import EnsembleVariance

# Share of a draw for the finite difference: small enough to be linear, large enough for half precision.
SHARE = 0.25


@dataclasses.dataclass(frozen=True)
class Tangents:
    """Tangents of posterior draws.

    Attributes:
        members: how many draws.
    """

    members: int
    name = "tangents"
    independent_guidance = False

    def looks(self, level: float, schedule: list[float]) -> bool:
        return False

    def calls(self, count: int) -> int:
        return self.members * count

    def estimate(self, run: NominalRun, along: list[int]) -> Estimate:
        end = EnsembleVariance(torch.zeros(run.states[0].x.shape))
        points = {index: EnsembleVariance(torch.zeros(run.states[0].x.shape)) for index in along}
        members = []
        for _ in range(self.members):
            delta_w = SHARE * run.draw()

            def change(state: State, deviation: torch.Tensor, delta_w: torch.Tensor = delta_w) -> torch.Tensor:
                return run.denoised(state, state.x + deviation, delta_w) - state.denoised

            deviation, passed = run.ride(change)
            members.append(deviation / SHARE)
            end.add(members[-1])
            run.show(end.mean_square())
            for index, point in points.items():
                point.add(passed[index] / SHARE)
        found = {index: point.mean_square() for index, point in points.items()}
        return Estimate(end.mean_square(), torch.stack(members), found)

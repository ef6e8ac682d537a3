"""The paper's recursion, corrected: mean and variance of x, step by step (Kou et al. 2024, section 3.3).

The published recursion without its three faults. Cov(x, D) is centred on the nominal run and found from antithetic
Rademacher pairs ``x ± sqrt(V) r``; the variance of D over x, which the paper drops, is put back, so that the update is
a square and cannot go negative,

    V' = E[(a sqrt(V) r + (alpha' - a alpha) Delta D)²] + (alpha' - a alpha)² gamma²,
    Delta D = (D(x + sqrt(V) r) - D(x - sqrt(V) r)) / 2;

and one W serves both halves of the guidance. No recursion of a variance per pixel can do more: it takes pixels as
independent and W as drawn anew at every step. What one W does to the whole run is lost, and the variance comes out far
too small.
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import torch

from .base import Estimate, Estimator, NominalRun, knob
from .past import variance_at_start


@dataclasses.dataclass(frozen=True, kw_only=True)
class Moments(Estimator):
    """The moment recursion on every k-th state.

    Attributes:
        every: k; between two of these states the run is one step.
        draws: antithetic pairs of probes at each.
    """

    every: int = knob(5, 1, 1000, "steps from one uncertain step to the next (Skip).", default=5)
    draws: int = knob(10, 1, 1000, "pairs of probes at an uncertain step; one or two are enough.", default=1)
    name: ClassVar[str] = "moments"
    help: ClassVar[str] = "the paper's recursion, corrected; for comparison."

    def wants_variance(self, noise_over_signal: float, schedule: list[float]) -> bool:
        return True

    def calls(self, levels: list[float]) -> int:
        return 2 * self.draws * len(range(self.every, len(levels), self.every))

    def estimate(self, run: NominalRun, along: list[int]) -> Estimate:
        trajectory = run.trajectory
        count, variance = len(trajectory.states), variance_at_start(trajectory)
        chosen = list(range(0, count, self.every))
        gamma_squared = trajectory.variances_at(chosen)
        found: dict[int, torch.Tensor] = {}
        for index, end in zip(chosen, [*chosen[1:], count]):
            found |= {wanted: variance for wanted in along if index <= wanted < end}
            state, left = trajectory.states[index], trajectory.contraction(index, end)
            factor = trajectory.scales_at(end).signal - left * state.signal
            fresh = factor**2 * gamma_squared[index]
            squares = torch.zeros_like(variance)
            if index > 0 or trajectory.past is not None:
                deviation = variance.sqrt()
                for _ in range(self.draws):
                    signs = torch.randint(0, 2, variance.shape, generator=run.generator) * 2 - 1
                    probe = deviation * signs
                    up, down = run.denoised(state, state.x + probe), run.denoised(state, state.x - probe)
                    squares += (left * probe + factor * (up - down) / 2).square()
            variance = squares / self.draws + fresh
        return Estimate(variance, torch.empty(0, *variance.shape), found)

"""The paper's iteration made right: mean and variance of x, step by step (Kou et al. 2024, section 3.3).

The published recursion with its three faults mended. Cov(x, D) is centred on the nominal run and found from antithetic
Rademacher pairs ``x ± sqrt(V) r``; the variance of D over x, which the paper drops, is put back, so that the update is
a square and cannot go negative,

    V' = E[(a sqrt(V) r + (alpha' - a alpha) Delta D)²] + (alpha' - a alpha)² gamma²,
    Delta D = (D(x + sqrt(V) r) - D(x - sqrt(V) r)) / 2;

and guidance is of one W. What no recursion of a variance per pixel can mend: it takes pixels as independent, and W as
drawn anew at every step, so what one W does to the whole run is lost and the variance comes out far too small.
"""

from __future__ import annotations

import dataclasses

import torch

from ..nominal import NominalRun, kept
from . import Estimate


@dataclasses.dataclass(frozen=True)
class Moments:
    """The moment recursion on every k-th state.

    Attributes:
        every: k; between two of these states the run is one step.
        pairs: antithetic pairs of probes at each.
    """

    every: int
    pairs: int
    name = "moments"
    independent_guidance = False

    def looks(self, level: float, schedule: list[float]) -> bool:
        return True

    def calls(self, count: int) -> int:
        return 2 * self.pairs * len(range(self.every, count, self.every))

    def estimate(self, run: NominalRun, along: list[int]) -> Estimate:
        states = run.states
        variance = torch.zeros(states[0].x.shape)
        chosen = list(range(0, len(states), self.every))
        found: dict[int, torch.Tensor] = {}
        for index, end in zip(chosen, [*chosen[1:], len(states)]):
            found |= {wanted: variance for wanted in along if index <= wanted < end}
            state = states[index]
            signal_next = states[end].signal if end < len(states) else run.signal_end
            left = kept(states, index, end)
            factor = signal_next - left * state.signal
            fresh = 0.0 if state.variance is None else factor**2 * state.variance
            squares = torch.zeros_like(variance)
            if index > 0:
                deviation = variance.sqrt()
                for _ in range(self.pairs):
                    signs = torch.randint(0, 2, variance.shape, generator=run.generator) * 2 - 1
                    probe = deviation * signs
                    up, down = run.denoised(state, state.x + probe), run.denoised(state, state.x - probe)
                    squares += (left * probe + factor * (up - down) / 2).square()
            variance = squares / self.pairs + fresh
        return Estimate(variance, torch.empty(0, *variance.shape), found)

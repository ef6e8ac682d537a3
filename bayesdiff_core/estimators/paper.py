"""The published recursion (Kou et al. 2024, section 3.3 and algorithm 1), to the letter, to compare with.

For a step ``x' = A x + B eps + beta z`` of DDIM, DDPM or DPM-Solver-2 the variance of x follows

    V' = A² V + 2 A B Cov(x, eps) + B² Var(eps) + beta²,

with Cov(x, eps) by Monte Carlo over S draws ``x_i ~ N(E, V)``, each through the network. At all but every k-th step
(Skip) eps counts as certain and V' = A² V + beta². DPM-Solver-2 uses the eps at its midpoint. Var(eps) is that of one
draw of W a step, its guidance taken as of two independent predictions.

Kept as published, so with what is wrong with it: the covariance is not centred and its noise swamps it, V may go
negative, and one W is drawn anew at every step. The image is not changed by it, which the published code does.
Other samplers are seen as DDIM or DDPM steps from one evaluation of the network to the next.
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar, NamedTuple

import torch

from .base import Estimate, Estimator, NominalRun, knob
from .past import variance_at_start
from .trajectory import State, Trajectory

# The share of the noise that is kept is read off the run, so it is as exact as float32.
ROUNDING = 1e-3


def noise_of(state: State, x: torch.Tensor, denoised: torch.Tensor) -> torch.Tensor:
    """eps, from x and denoised."""
    return (x - state.signal * denoised) / state.noise


def steps_of(trajectory: Trajectory) -> list[tuple[int, int]]:
    """The first state of each step, and the one whose eps it takes."""
    count = len(trajectory.states)
    if trajectory.sampler == "dpm_2":
        return [(index, min(index + 1, count - 1)) for index in range(0, count, 2)]
    return [(index, index) for index in range(count)]


class Gaussian(NamedTuple):
    """Mean and variance of x, pixel by pixel."""

    mean: torch.Tensor
    variance: torch.Tensor


@dataclasses.dataclass(frozen=True, kw_only=True)
class Paper(Estimator):
    """The published recursion.

    Attributes:
        every: k, steps from one uncertain step to the next.
        draws: S, draws of x at an uncertain step.
    """

    every: int = knob(5, 1, 1000, "steps from one uncertain step to the next (Skip).", default=5)
    draws: int = knob(10, 1, 1000, "draws at an uncertain step.", default=10)
    name: ClassVar[str] = "paper"
    help: ClassVar[str] = "the paper's recursion as published; for comparison."
    independent_guidance: ClassVar[bool] = True

    def wants_variance(self, noise_over_signal: float, schedule: list[float]) -> bool:
        return True

    def calls(self, levels: list[float]) -> int:
        """Right for DDIM and DDPM, one call a step; DPM-Solver-2 halves the steps and takes two calls per draw."""
        return self.draws * len(range(self.every, len(levels), self.every))

    def estimate(self, run: NominalRun, along: list[int]) -> Estimate:
        trajectory = run.trajectory
        states = trajectory.states
        mean, variance = states[0].x.float(), variance_at_start(trajectory)
        found: dict[int, torch.Tensor] = {}
        steps = steps_of(trajectory)
        gamma_squared = trajectory.variances_at([source for _, source in steps[:: self.every]])
        for number, (first, source) in enumerate(steps):
            found |= {index: variance for index in along if first <= index <= source}
            state, seen, end = states[first], states[source], trajectory.scales_at(source + 1)
            # DPM-Solver-2 is deterministic: a whole step keeps the ratio of the noise scales.
            left = state.contraction if source == first else end.noise / state.noise
            uncertain, exact = number % self.every == 0, state.signal == 0  # pure noise: nothing is scaled up yet
            scale = left if exact else end.signal / state.signal
            factor = state.noise * (left - scale)
            added = end.noise**2 - (left * state.noise) ** 2
            if added < ROUNDING * end.noise**2:  # DDIM adds none
                added = 0.0
            eps, covariance = noise_of(seen, seen.x.float(), seen.denoised.float()), 0.0
            if uncertain and (number > 0 or trajectory.past is not None):
                eps, covariance = self.sampled(run, state, seen, Gaussian(mean, variance))
            if exact:
                mean = left * mean + end.signal * state.denoised.float()
            else:
                mean = scale * mean + factor * eps
            variance = scale**2 * variance + 2 * scale * factor * covariance + added
            if uncertain:
                gain = end.signal if exact else factor * seen.signal / seen.noise
                variance = variance + gain**2 * gamma_squared[source]
        return Estimate(variance, torch.empty(0, *variance.shape), found)

    def sampled(self, run: NominalRun, state: State, seen: State, of: Gaussian):
        """Mean of eps, and its covariance with x, over the draws."""
        mean, deviation = of.mean, of.variance.clamp(min=0).sqrt()
        eps_sum, product_sum = torch.zeros_like(mean), torch.zeros_like(mean)
        for _ in range(self.draws):
            x = mean + deviation * torch.randn(mean.shape, generator=run.generator)
            denoised = run.denoised(state, x)
            eps = noise_of(state, x, denoised)
            if seen is not state:
                middle = seen.signal * denoised + seen.noise * eps
                eps = noise_of(seen, middle, run.denoised(seen, middle))
            eps_sum += eps
            product_sum += x * eps
        eps = eps_sum / self.draws
        return eps, product_sum / self.draws - mean * eps

"""The published recursion (Kou et al. 2024, section 3.3 and algorithm 1), to the letter, to compare with.

For a step ``x' = A x + B eps + beta z`` of DDIM, DDPM or DPM-Solver-2 the variance of x follows

    V' = A² V + 2 A B Cov(x, eps) + B² Var(eps) + beta²,

with Cov(x, eps) by Monte Carlo over S draws ``x_i ~ N(E, V)``, each through the network. At all but every k-th step
(Skip) eps counts as certain and V' = A² V + beta². DPM-Solver-2 uses the eps at its midpoint. Var(eps) is that of one
draw of W a step, its guidance taken as of two independent predictions.

Kept as published, so with what is wrong with it: the covariance is not centred and its noise swamps it, V may go
negative, and one W is drawn anew at every step. The picture is not changed by it, which the published code does.
Other samplers are seen as DDIM or DDPM steps from one evaluation of the network to the next.
"""

from __future__ import annotations

import dataclasses

import torch

from ..nominal import NominalRun, State, signal_after
from . import Estimate

# The share of the noise that is kept is read off the run, so it is as exact as float32.
ROUNDING = 1e-3


def noise_of(state: State, x: torch.Tensor, denoised: torch.Tensor) -> torch.Tensor:
    """eps, from x and denoised."""
    return (x - state.signal * denoised) / state.noise


@dataclasses.dataclass(frozen=True)
class Paper:
    """The published recursion.

    Attributes:
        every: k, steps from one uncertain step to the next.
        draws: S, draws of x at an uncertain step.
    """

    every: int
    draws: int
    name = "paper"
    independent_guidance = True

    def looks(self, level: float, schedule: list[float]) -> bool:
        return True

    def calls(self, count: int) -> int:
        """Right for DDIM and DDPM, one call a step; DPM-Solver-2 halves the steps and takes two calls a draw."""
        return self.draws * len(range(self.every, count, self.every))

    def estimate(self, run: NominalRun, along: list[int]) -> Estimate:
        states = run.states
        mean, variance = states[0].x.float(), torch.zeros(states[0].x.shape)
        found: dict[int, torch.Tensor] = {}
        # First state of each step, and the one whose eps it takes.
        steps = [(index, index) for index in range(len(states))]
        if run.sampler == "dpm_2":
            steps = [(index, min(index + 1, len(states) - 1)) for index in range(0, len(states), 2)]
        for number, (first, source) in enumerate(steps):
            found |= {index: variance for index in along if first <= index <= source}
            state, seen = states[first], states[source]
            signal_next = signal_after(run, source)
            left = state.contraction if source == first else self.of_both_halves(run, first, source)
            uncertain, exact = number % self.every == 0, state.signal == 0  # pure noise: nothing is scaled up yet
            scale = left if exact else signal_next / state.signal
            factor = state.noise * (left - scale)
            noise_next = states[source + 1].noise if source + 1 < len(states) else run.noise_end
            added = noise_next**2 - (left * state.noise) ** 2
            if added < ROUNDING * noise_next**2:  # DDIM adds none
                added = 0.0
            eps, covariance = noise_of(seen, seen.x.float(), seen.denoised.float()), 0.0
            if uncertain and number > 0:
                eps, covariance = self.sampled(run, state, seen, mean, variance)
            if exact:
                mean = left * mean + signal_next * state.denoised.float()
            else:
                mean = scale * mean + factor * eps
            variance = scale**2 * variance + 2 * scale * factor * covariance + added
            if uncertain and seen.variance is not None:
                gain = signal_next if exact else factor * seen.signal / seen.noise
                variance = variance + gain**2 * seen.variance
        return Estimate(variance, torch.empty(0, *variance.shape), found)

    @staticmethod
    def of_both_halves(run: NominalRun, first: int, source: int) -> float:
        """DPM-Solver-2 is deterministic: a whole step keeps the ratio of the noise levels."""
        end = run.states[source + 1].noise if source + 1 < len(run.states) else run.noise_end
        return end / run.states[first].noise

    def sampled(self, run: NominalRun, state: State, seen: State, mean: torch.Tensor, variance: torch.Tensor):
        """Mean of eps, and its covariance with x, over the draws."""
        deviation = variance.clamp(min=0).sqrt()
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

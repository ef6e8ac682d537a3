"""A model whose answer is known on paper: Gaussian data with an uncertain mean, sampled by any sampler function."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import in_process
import torch

in_process.import_core()

from bayesdiff_core.estimators.base import Shown  # noqa: E402
from bayesdiff_core.estimators.deviations import Deviations  # noqa: E402
from bayesdiff_core.estimators.ensemble import EnsembleVariance  # noqa: E402
from bayesdiff_core.estimators.tangents import Tangents  # noqa: E402
from bayesdiff_core.estimators.trajectory import Past, Scales, State, Step, Trajectory, contraction  # noqa: E402
from bayesdiff_core.posterior.features import LayerGeometry  # noqa: E402
from bayesdiff_core.posterior.laplace_head import DiagonalPrecision, LaplaceHead  # noqa: E402

SPREAD, TAU, SIGMA_MAX = 0.5, 0.2, 10.0
NOMINAL = torch.tensor([[1.0], [0.0]])
MEMBERS = 200  # relative error of a variance from so many draws: 10 %
# Estimators that hold one W for the whole run, and how far they may be from what is known on paper.
MEMBER_ESTIMATORS = [
    (Deviations(states=60, members=MEMBERS), 0.2),
    (Deviations(states=8, members=MEMBERS), 0.2),
    (Deviations(states=5, members=MEMBERS), 0.5),
    (Deviations(states=5, members=MEMBERS, moderated=False), 0.5),
    (Tangents(members=MEMBERS), 0.2),
]
# ``sampler(model, x, sigmas)`` in the manner of k-diffusion, with ``model(x, sigma)``.
Sampler = Callable[[Callable, torch.Tensor, torch.Tensor], torch.Tensor]


def gaussian_network(matrix: torch.Tensor):
    """The exact denoiser of data ~ N(μ, SPREAD²), as a linear last layer with weights ``(1, μ)``.

    eps = (x - D)/σ with D = (s²x + σ²μ)/(s² + σ²) gives eps = σ/(s² + σ²) · (x, -1) · (1, μ).
    """
    geometry = LayerGeometry("linear", 2, 1, bias=False)

    def denoised(x, sigma, **_):
        sigma = sigma.reshape(-1, *[1] * (x.ndim - 1))
        scale = (sigma / (SPREAD**2 + sigma**2))[..., None]
        features = torch.stack([x, -torch.ones_like(x)], dim=-1) * scale
        return x - sigma * geometry.apply(features, matrix)[..., 0]

    return denoised


def expected_variance(sigma: float = 0.0) -> float:
    """Variance of x at σ, on the way or at the end, with μ ~ N(0, τ²).

    Along the probability-flow ODE x - μ shrinks by r = √((s² + σ²)/(s² + σ_max²)), and what is gone of it is μ's:
    Var = τ²(1 - r)².
    """
    return TAU**2 * (1 - math.sqrt((SPREAD**2 + sigma**2) / (SPREAD**2 + SIGMA_MAX**2))) ** 2


def ensemble_of(sampler: Sampler, members: int = 300) -> EnsembleVariance:
    """An ensemble with an uncertain mean."""
    head, sigmas = uncertain_mean(), karras(60)
    noise = torch.randn(1, 32, generator=torch.Generator().manual_seed(0)) * SIGMA_MAX
    ensemble = EnsembleVariance(sampler(gaussian_network(NOMINAL), noise, sigmas))
    for number in range(members):
        ensemble.add(sampler(gaussian_network(NOMINAL + head.draw(1, number)), noise, sigmas))
    return ensemble


def karras(steps: int, low: float = 0.01, high: float = SIGMA_MAX, rho: float = 7.0) -> torch.Tensor:
    """Karras et al. 2022, equation 5, and a zero at the end."""
    ramp = torch.linspace(0, 1, steps)
    sigmas = (high ** (1 / rho) + ramp * (low ** (1 / rho) - high ** (1 / rho))) ** rho
    return torch.cat([sigmas, sigmas.new_zeros(1)])


def sample_euler(model, x: torch.Tensor, sigmas: torch.Tensor) -> torch.Tensor:
    """Euler's method on the probability-flow ODE (Karras et al. 2022, algorithm 2 without churn)."""
    for sigma, after in zip(sigmas, sigmas[1:]):
        x = x + (x - model(x, sigma.expand(len(x)))) / sigma * (after - sigma)
    return x


def sample_euler_ancestral(model, x: torch.Tensor, sigmas: torch.Tensor) -> torch.Tensor:
    """Euler steps down to less noise than wanted, and fresh noise up to it: DDPM for these sigmas."""
    for sigma, after in zip(sigmas, sigmas[1:]):
        fresh = (after**2 * (sigma**2 - after**2) / sigma**2).sqrt()
        down = (after**2 - fresh**2).sqrt()
        x = x + (x - model(x, sigma.expand(len(x)))) / sigma * (down - sigma) + fresh * torch.randn(x.shape)
    return x


def states_of(seen: list[tuple[float, torch.Tensor, torch.Tensor]], end: float) -> list[State]:
    """States of a run from sigma, x and denoised of every evaluation, and the last sigma."""
    ratios = [contraction(Step(x, 1.0, d, then[1], 1.0)) for (_, x, d), then in zip(seen, seen[1:])]
    return [State(s, Scales(s, 1.0), x, d, a) for (s, x, d), a in zip(seen, [*ratios, end / seen[-1][0]])]


def nominal_run(sampler: Sampler, denoised, noise: torch.Tensor, sigmas: torch.Tensor, name: str = "") -> Trajectory:
    """A run as a host records it."""
    seen: list[tuple[float, torch.Tensor, torch.Tensor]] = []

    def record(x, sigma, **_):
        seen.append((float(sigma[0]), x.clone(), denoised(x, sigma)))
        return seen[-1][2]

    torch.manual_seed(1)
    sampler(record, noise, sigmas)
    end = float(sigmas[-1])
    return Trajectory(tuple(states_of(seen, end)), Scales(end, 1.0), name)


def uncertain_mean() -> LaplaceHead:
    """Weight 1 for x for certain, weight μ with variance τ²."""
    precision = DiagonalPrecision(torch.tensor([1e12, 1 / TAU**2]))
    return LaplaceHead(LayerGeometry("linear", 2, 1, bias=False), precision, 1e-9, {})


class GaussianRun:
    """A nominal run of the Gaussian network, for an estimator to work on.

    Deviations ride through the same sampler; the noise of none of those used here is in their way.

    Args:
        start: x at the first sigma; noise alone if not given.
        past: what is known of it.

    Attributes:
        image: x at the last sigma.
    """

    def __init__(
        self,
        sampler: Sampler,
        sigmas: torch.Tensor,
        head: LaplaceHead,
        shape: tuple[int, ...] = (1, 4, 4, 2),
        name: str = "",
        start: torch.Tensor | None = None,
        past: Past | None = None,
    ):
        self.sampler, self.sigmas, self.head, self.shape, self.calls = sampler, sigmas, head, shape, 0
        self.generator, self.trend = torch.Generator().manual_seed(1), None
        noise = torch.randn(shape, generator=torch.Generator().manual_seed(0)) * SIGMA_MAX
        x = noise if start is None else start
        run = nominal_run(sampler, gaussian_network(NOMINAL), x, sigmas, name)
        self.image = sampler(gaussian_network(NOMINAL), x, sigmas)
        states = tuple(self.looked(state) for state in run.states)
        self.trajectory = dataclasses.replace(run, states=states, past=past)

    @property
    def shown(self) -> list[Shown]:
        return [Shown(part, self.trend) for part in self.trajectory.parts]

    def looked(self, state: State) -> State:
        scale = state.sigma / (SPREAD**2 + state.sigma**2)
        features = torch.stack([state.x, -torch.ones_like(state.x)], dim=-1) * scale
        return dataclasses.replace(state, variance=state.sigma**2 * self.head.variance(features))

    def denoised(self, state: State, x: torch.Tensor, member: int | None = None, scale: float = 1.0) -> torch.Tensor:
        self.calls += 1
        weights = NOMINAL if member is None else NOMINAL + scale * self.head.draw(1, member)
        return gaussian_network(weights)(x, torch.tensor([state.sigma]))

    def ride(self, change, start: torch.Tensor | None = None):
        passed = []

        def model(x, sigma, **_):
            passed.append(x.clone())
            return change(self.denoised, self.trajectory.states[len(passed) - 1], x)

        begin = torch.zeros(self.shape) if start is None else start
        return self.sampler(model, begin, self.sigmas), passed

    def show(self, variance: torch.Tensor) -> None:
        assert variance.shape == self.trajectory.shape

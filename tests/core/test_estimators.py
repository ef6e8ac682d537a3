"""Every estimator on a model whose answer is known on paper, with Euler's method alone; no host takes part."""

import math
from types import SimpleNamespace

import pytest
import torch
from gaussian import (
    MEMBER_ESTIMATORS,
    MEMBERS,
    NOMINAL,
    SIGMA_MAX,
    SPREAD,
    TAU,
    GaussianRun,
    ensemble_of,
    expected_variance,
    gaussian_network,
    karras,
    nominal_run,
    sample_euler,
    sample_euler_ancestral,
    uncertain_mean,
)

from bayesdiff_core.estimators.deviations import Deviations, choose_states, follow
from bayesdiff_core.estimators.ensemble import EnsembleVariance
from bayesdiff_core.estimators.evidence import levels_needed
from bayesdiff_core.estimators.instant import Instant
from bayesdiff_core.estimators.moments import Moments
from bayesdiff_core.estimators.paper import Paper
from bayesdiff_core.estimators.tangents import Tangents
from bayesdiff_core.estimators.trajectory import Scales, State, Step, Trajectory, contraction
from bayesdiff_core.posterior.features import LayerGeometry
from bayesdiff_core.posterior.laplace_head import DiagonalPrecision, LaplaceHead


def test_an_ensemble_finds_an_uncertain_mean():
    ensemble = ensemble_of(sample_euler)
    # Relative error of a variance from 300 draws is 8 %; it is shared by all 32 elements.
    for variance in (ensemble.variance(), ensemble.mean_square()):
        assert variance.mean() == pytest.approx(expected_variance(), rel=0.25)
        assert variance.std() < 0.01 * expected_variance()


def test_variance_is_exact_far_from_zero():
    """The sums run over deviations, so a spread of 1e-4 around 1000 survives float32 samples."""
    nominal = torch.full((3,), 1000.0, dtype=torch.float64)
    ensemble = EnsembleVariance(nominal)
    for offset in (1e-4, 2e-4, 6e-4):
        ensemble.add(nominal + offset)
    expected = torch.tensor([1e-4, 2e-4, 6e-4], dtype=torch.float64).var().float()
    assert torch.allclose(ensemble.variance(), expected.expand(3), rtol=1e-4)


def test_one_member_has_no_spread():
    ensemble = EnsembleVariance(torch.zeros(2))
    ensemble.add(torch.ones(2))
    with pytest.raises(ValueError, match="Expected at least 2 ensemble members, got 1"):
        ensemble.variance()


@pytest.mark.parametrize(("estimator", "tolerance"), MEMBER_ESTIMATORS, ids=str)
def test_members_of_gaussian_data_with_an_uncertain_mean(estimator, tolerance):
    """Estimators that hold one W for the whole run find the variance that is known on paper."""
    run = GaussianRun(sample_euler, karras(60), uncertain_mean())
    estimate = estimator.estimate(run, along=[len(run.trajectory.states) // 2])
    assert run.calls == len(estimate.deviations) * (run.calls // MEMBERS) and len(estimate.deviations) == MEMBERS
    assert estimate.variance.mean() == pytest.approx(expected_variance(), rel=tolerance)
    assert estimate.variance.std() < 0.05 * estimate.variance.mean(), "the mean is uncertain alike everywhere"
    middle = run.trajectory.states[len(run.trajectory.states) // 2]
    (half_way,) = estimate.along.values()
    assert half_way.mean() == pytest.approx(expected_variance(middle.sigma), rel=max(tolerance, 0.3))


def fresh_draws(sigmas: torch.Tensor, every: int = 1, skip: bool = False) -> float:
    """Variance of the Gaussian run by Euler steps where W is drawn anew at each, which no recursion can see past.

    Of ``x' = a x + (1 - a) D`` with D = J x + ..., J = s²/(s² + σ²) and Var(D) = σ⁴τ²/(s² + σ²)².

    Args:
        every: only every k-th state is used.
        skip: as in the paper: in between ε counts as certain, and V stays.
    """
    variance, levels = 0.0, sigmas.tolist()
    starts = range(len(levels) - 1) if skip else range(0, len(levels) - 1, every)
    for start in starts:
        if skip and start % every:
            continue
        end = start + 1 if skip else min(start + every, len(levels) - 1)
        sigma, left = levels[start], levels[end] / levels[start]
        gain = SPREAD**2 / (SPREAD**2 + sigma**2)
        fresh = sigma**4 * TAU**2 / (SPREAD**2 + sigma**2) ** 2
        variance = (left + (1 - left) * gain) ** 2 * variance + (1 - left) ** 2 * fresh
    return variance


@pytest.mark.parametrize("every", [1, 4])
def test_moments_of_gaussian_data(every):
    """Exact for what they compute: antithetic probes of a linear network have no noise."""
    run = GaussianRun(sample_euler, karras(40), uncertain_mean())
    estimator = Moments(every=every, draws=1)
    estimate = estimator.estimate(run, along=[])
    assert run.calls == estimator.calls(run.trajectory.levels)
    assert torch.allclose(estimate.variance, torch.full(run.shape, fresh_draws(run.sigmas, every)), rtol=0.02)
    if every == 1:
        assert estimate.variance.mean() < 0.2 * expected_variance(), "W drawn anew at every step averages out"


def test_the_published_recursion_of_gaussian_data():
    """While V is positive it is right on average for what it computes: DDIM, W anew at every uncertain step."""
    run = GaussianRun(sample_euler, karras(20), uncertain_mean(), shape=(1, 1, 50, 200))
    estimator = Paper(every=12, draws=10)
    variance = estimator.estimate(run, along=[]).variance
    assert run.calls == estimator.calls(run.trajectory.levels) == 10
    exact, standard_error = fresh_draws(run.sigmas, 12, skip=True), float(variance.std()) / 100
    assert abs(float(variance.mean()) - exact) < 4 * standard_error < 0.2 * exact


@pytest.mark.parametrize("every", [1, 5])
def test_the_published_recursion_is_swamped_by_its_noise(every):
    """At its own S = 10, as published: what it finds is noise many times the truth, and not clamped."""
    run = GaussianRun(sample_euler, karras(20), uncertain_mean(), shape=(1, 1, 50, 200))
    variance = Paper(every=every, draws=10).estimate(run, along=[]).variance
    assert variance.std() > 3 * fresh_draws(run.sigmas, every, skip=True) and variance.min() < 0


def test_the_published_recursion_counts_the_noise_of_ddpm():
    """Without uncertain weights DDPM's own noise is left: Var(x_0 | x_T) of the host's sampler, by β² alone."""
    certain = LaplaceHead(LayerGeometry("linear", 2, 1, bias=False), DiagonalPrecision(torch.full((2,), 1e12)), 1e9, {})
    run = GaussianRun(sample_euler_ancestral, torch.tensor([10.0, 4.0, 1.0, 0.3]), certain, shape=(1, 1, 20, 1000))
    estimate = Paper(every=100, draws=1).estimate(run, along=[1, 2])
    added = [4.0**2 - (4.0 * 4.0 / 10.0) ** 2, 1.0 - (1.0 / 4.0) ** 2]
    assert estimate.along[1].mean() == pytest.approx(added[0], rel=0.1)
    assert estimate.along[2].mean() == pytest.approx(added[0] + added[1], rel=0.1)


def test_the_published_recursion_from_pure_noise():
    """A rectified flow begins without any signal: what is uncertain of the first prediction is that of the image."""
    x, variance = torch.randn(1, 4, 3, 3), torch.rand(1, 4, 3, 3)
    states = (
        State(1.0, Scales(1.0, 0.0), x, 0.5 * x, contraction=0.4, variance=variance),
        State(0.4, Scales(0.4, 0.6), x, 0.5 * x, contraction=0.0),
    )
    run = SimpleNamespace(trajectory=Trajectory(states, Scales(0.0, 1.0), "euler"))
    estimate = Paper(every=100, draws=1).estimate(run, along=[1])
    assert torch.allclose(estimate.variance, variance) and torch.allclose(estimate.along[1], 0.36 * variance)


@pytest.mark.parametrize(
    "estimator",
    [
        Deviations(states=7),
        Deviations(states=5, share=0.25),
        Deviations(states=8, share=3.0),
        Tangents(members=2),
        Moments(every=3, draws=2),
        Paper(every=3, draws=4),
    ],
    ids=str,
)
@pytest.mark.parametrize("steps", [1, 2, 9, 20])
def test_as_many_calls_are_made_as_announced(estimator, steps):
    run = GaussianRun(sample_euler, karras(steps), uncertain_mean())
    estimator.estimate(run, along=[])
    assert run.calls == estimator.calls(run.trajectory.levels)
    share = getattr(estimator, "share", math.inf)
    assert run.calls <= max(share * steps, min(getattr(estimator, "states", 0), steps))


def test_where_an_estimator_looks():
    """What evidence is read from is looked at, by deviations only if they are moderated; the recursions everywhere."""
    schedule = [float(sigma) for sigma in karras(20)[:-1]]
    for estimator in (Deviations(states=5), Instant()):
        assert {level for level in schedule if estimator.wants_variance(level, schedule)} == levels_needed(schedule)
    assert 8 <= len(levels_needed(schedule)) < 16
    for level in schedule:
        assert not Deviations(states=5, moderated=False).wants_variance(level, schedule)
        assert not Tangents(members=1).wants_variance(level, schedule)
        assert Moments().wants_variance(level, schedule) and Paper().wants_variance(level, schedule)


@pytest.mark.parametrize(
    "estimator",
    [Deviations(states=5), Tangents(members=2), Moments(every=2, draws=1), Paper(every=3, draws=4)],
    ids=lambda estimator: estimator.name,
)
def test_no_uncertain_weights_no_variance(estimator):
    certain = LaplaceHead(LayerGeometry("linear", 2, 1, bias=False), DiagonalPrecision(torch.full((2,), 1e30)), 1.0, {})
    estimate = estimator.estimate(GaussianRun(sample_euler, karras(12), certain), along=[6])
    for variance in (estimate.variance, estimate.along[6]):
        assert torch.isfinite(variance).all() and variance.abs().max() < 1e-8


def test_a_step_that_renews_the_noise_forgets_more():
    """By projection: σ'/σ where the sampler keeps its noise, (σ'/σ)² where it renews it as ancestral ones do."""
    samplers = {"euler": sample_euler, "euler_ancestral": sample_euler_ancestral}
    denoised = gaussian_network(NOMINAL)
    noise = torch.randn(1, 20_000, generator=torch.Generator().manual_seed(0)) * SIGMA_MAX
    sigmas = torch.tensor([10.0, 6.0, 3.0, 1.0, 0.0])
    for name, power in (("euler", 1), ("euler_ancestral", 2)):
        found = [state.contraction for state in nominal_run(samplers[name], denoised, noise, sigmas).states]
        expected = [float(low / high) ** power for high, low in zip(sigmas, sigmas[1:])]
        assert found == pytest.approx(expected, abs=0.05), name


def state(noise: float, signal: float = 1.0, left: float = 0.0) -> State:
    return State(noise, Scales(noise, signal), torch.ones(1, 4), torch.zeros(1, 4), left)


def test_the_mask_says_where_to_look():
    x_next, mask = torch.tensor([[0.5, 0.5, 9.0, 9.0]]), torch.tensor([[1.0, 1.0, 0.0, 0.0]])

    def found(x_next: torch.Tensor, mask: torch.Tensor | None = None, x: float = 1.0) -> float:
        return contraction(Step(torch.full((1, 4), x), 1.0, torch.zeros(1, 4), x_next, 1.0), mask)

    assert found(x_next, mask) == 0.5
    assert found(x_next) == 4.75, "a run that adds noise back amplifies"
    assert found(-x_next) == 0.0
    assert found(x_next, x=0.0) == 1.0


@pytest.mark.parametrize("renewed", [0.0, 0.7])
def test_a_step_of_a_rectified_flow(renewed):
    """x' = a x + (α' - a α) D + noise with α = 1 - σ: the coefficient is found, and δ takes the same step."""
    generator = torch.Generator().manual_seed(0)
    denoised, noise, fresh = (torch.randn(1, 50_000, generator=generator) for _ in range(3))
    high, low = 0.8, 0.5
    kept = low * (1 - renewed**2) ** 0.5
    x = high * noise + (1 - high) * denoised
    x_next = kept * noise + low * renewed * fresh + (1 - low) * denoised
    left = contraction(Step(x, 1 - high, denoised, x_next, 1 - low))
    first = State(high, Scales(high, 1 - high), x, denoised, left)
    assert left == pytest.approx(kept / high, abs=0.01)
    change = torch.full((1, 50_000), 0.1)
    # An error of D that stays: after the last step, to σ = 0, it is the error of the image.
    second = State(low, Scales(low, 1 - low), x_next, denoised, 0.0)
    run = Trajectory((first, second), Scales(0.0, 1.0))
    delta, passed = follow(run, [0, 1], lambda state, delta: change, along=[0, 1])
    assert torch.allclose(delta, change) and not passed[0].any()
    stopped = Trajectory((first,), Scales(low, 1 - low))
    delta, _ = follow(stopped, [0], lambda state, delta: change)
    assert torch.allclose(delta, change * (1 - low - left * (1 - high)))
    assert torch.allclose(passed[1], delta), "on the way it is where a run that stops there would end"


def test_states_are_spread_over_the_levels_that_matter():
    def choose(levels: list[float], count: int = 5) -> list[int]:
        return choose_states(levels, count)

    levels = [float(level) for level in torch.linspace(80, 0.01, 200)]
    chosen = choose(levels)
    assert len(chosen) == 5 and chosen == sorted(chosen)
    assert levels[chosen[0]] == pytest.approx(15, rel=0.05) and levels[chosen[-1]] < 0.5
    assert choose([7.0]) == [0] and choose([0.0]) == [0]
    assert choose([0.05, 0.02]) == [0]
    # A rectified flow starts at pure noise, which has no signal at all; of equal levels the last is taken.
    flow = [state(noise, 1 - noise) for noise in (1.0, 1.0, 0.75, 0.5, 0.25)]
    assert choose_states([state.noise_over_signal for state in flow], 5) == [1, 2, 3, 4]


def test_a_run_that_goes_up_in_noise_amplifies():
    """From an image to its noise, as unsampling does: contractions above one multiply."""
    run = Trajectory(tuple(state(level, left=2.0) for level in (1.0, 2.0, 4.0)), Scales(8.0, 1.0))
    change = torch.full((1, 4), 0.1)
    assert torch.allclose(follow(run, [0, 1, 2], lambda state, delta: change)[0], (1 - 8) * change)


def test_no_deviation_stays_none():
    run = nominal_run(sample_euler, gaussian_network(NOMINAL), torch.ones(1, 4), torch.tensor([5.0, 2.0, 0.0]))
    assert not follow(run, [0, 1], lambda state, delta: torch.zeros(1, 4))[0].any()

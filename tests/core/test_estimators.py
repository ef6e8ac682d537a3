"""Every estimator against a model whose answer is known on paper, through the host's own samplers."""

import dataclasses
import math
from types import SimpleNamespace

import pytest
import torch
from bayesdiff.bayesdiff_core.estimators.deviations import Deviations, choose_states, follow
from bayesdiff.bayesdiff_core.estimators.ensemble import EnsembleVariance
from bayesdiff.bayesdiff_core.estimators.moments import Moments
from bayesdiff.bayesdiff_core.estimators.paper import Paper
from bayesdiff.bayesdiff_core.estimators.tangents import Tangents
from bayesdiff.bayesdiff_core.features import LayerGeometry
from bayesdiff.bayesdiff_core.laplace_head import DiagonalPrecision, LaplaceHead
from bayesdiff.bayesdiff_core.nominal import State, contraction
from comfy.k_diffusion import sampling
from comfy.model_sampling import EPS

SPREAD, TAU, SIGMA_MAX = 0.5, 0.2, 10.0


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


NOMINAL = torch.tensor([[1.0], [0.0]])


def expected_variance() -> float:
    """With μ ~ N(0, τ²), the probability-flow ODE ends at μ + s/√(s² + σ²)(x_T - μ): Var = τ²(1 - s/√(s² + σ²))²."""
    return TAU**2 * (1 - SPREAD / math.sqrt(SPREAD**2 + SIGMA_MAX**2)) ** 2


# ---------------------------------------------------------------- the ensemble


@pytest.mark.parametrize("name", ["euler", "heun", "lms", "dpmpp_2m"])
def test_ensemble_of_gaussian_data_with_an_uncertain_mean(name):
    certain, uncertain = 1e12, 1 / TAU**2
    head = LaplaceHead(
        LayerGeometry("linear", 2, 1, bias=False), DiagonalPrecision(torch.tensor([certain, uncertain])), 1e-9, {}
    )
    sigmas = sampling.get_sigmas_karras(60, 0.01, SIGMA_MAX)
    noise = torch.randn(1, 32, generator=torch.Generator().manual_seed(0)) * SIGMA_MAX

    def sample(matrix):
        return getattr(sampling, f"sample_{name}")(gaussian_network(matrix), noise, sigmas, extra_args={}, disable=True)

    ensemble = EnsembleVariance(sample(NOMINAL))
    generator = torch.Generator().manual_seed(1)
    for _ in range(300):
        ensemble.add(sample(NOMINAL + head.draw(generator)))
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


# ---------------------------------------------------------------- deviations


def nominal_run(name: str, denoised, noise: torch.Tensor, sigmas: torch.Tensor) -> list[State]:
    """The states of one of the host's own samplers, recorded as the host's seam does it."""
    states: list[State] = []

    def record(x, sigma, **options):
        if states:
            states[-1].contraction = contraction(states[-1], x, 1.0)
        states.append(State(float(sigma[0]), float(sigma[0]), 1.0, x.clone(), denoised(x, sigma)))
        return states[-1].denoised

    # Where the samplers that inject noise look for the kind of model.
    record.inner_model = SimpleNamespace(inner_model=SimpleNamespace(model_sampling=EPS()))
    torch.manual_seed(1)
    getattr(sampling, f"sample_{name}")(record, noise, sigmas, extra_args={}, disable=True)
    states[-1].contraction = float(sigmas[-1]) / states[-1].sigma
    return states


@dataclasses.dataclass
class GaussianRun:
    """A nominal run of the Gaussian network by one of the host's own samplers, for an estimator to work beside.

    Deviations ride through the same sampler; the noise of none of those used here is in their way.
    """

    name: str
    sigmas: torch.Tensor
    head: LaplaceHead
    generator: torch.Generator = dataclasses.field(default_factory=lambda: torch.Generator().manual_seed(1))
    shape: tuple[int, ...] = (1, 4, 4, 2)

    def __post_init__(self):
        self.sampler, self.signal_end, self.noise_end, self.calls = self.name, 1.0, float(self.sigmas[-1]), 0
        noise = torch.randn(self.shape, generator=torch.Generator().manual_seed(0)) * SIGMA_MAX
        self.states = nominal_run(self.name, gaussian_network(NOMINAL), noise, self.sigmas)
        for state in self.states:
            scale = state.sigma / (SPREAD**2 + state.sigma**2)
            features = torch.stack([state.x, -torch.ones_like(state.x)], dim=-1) * scale
            state.variance = state.sigma**2 * self.head.variance(features)

    def draw(self) -> torch.Tensor:
        return self.head.draw(self.generator)

    def denoised(self, state: State, x: torch.Tensor, delta_w: torch.Tensor | None = None) -> torch.Tensor:
        self.calls += 1
        weights = NOMINAL if delta_w is None else NOMINAL + delta_w
        return gaussian_network(weights)(x, torch.tensor([state.sigma]))

    def ride(self, change):
        passed = []

        def model(x, sigma, **options):
            passed.append(x.clone())
            return change(self.states[len(passed) - 1], x)

        model.inner_model = SimpleNamespace(inner_model=SimpleNamespace(model_sampling=EPS()))
        start = torch.zeros(self.shape)
        end = getattr(sampling, f"sample_{self.name}")(model, start, self.sigmas, extra_args={}, disable=True)
        return end, passed

    def expect(self, calls: int) -> None:
        assert self.calls == 0 and calls > 0

    def show(self, variance: torch.Tensor) -> None:
        assert variance.shape == self.states[0].x.shape


def uncertain_mean() -> LaplaceHead:
    """Weight 1 for x for certain, weight μ with variance τ²."""
    precision = DiagonalPrecision(torch.tensor([1e12, 1 / TAU**2]))
    return LaplaceHead(LayerGeometry("linear", 2, 1, bias=False), precision, 1e-9, {})


def karras(steps: int) -> torch.Tensor:
    return sampling.get_sigmas_karras(steps, 0.01, SIGMA_MAX)


MEMBERS = 200  # relative error of a variance from so many draws: 10 %


@pytest.mark.parametrize(
    ("estimator", "tolerance"),
    [
        (Deviations(60, fixed_members=MEMBERS), 0.2),
        (Deviations(8, fixed_members=MEMBERS), 0.2),
        (Deviations(5, fixed_members=MEMBERS), 0.5),
        (Deviations(5, fixed_members=MEMBERS, moderated=False), 0.5),
        (Tangents(MEMBERS), 0.2),
    ],
    ids=str,
)
@pytest.mark.parametrize("name", ["euler", "heun", "dpmpp_2m"])
def test_members_of_gaussian_data_with_an_uncertain_mean(name, estimator, tolerance):
    """Estimators that hold one W for the whole run find the variance that is known on paper."""
    run = GaussianRun(name, karras(60), uncertain_mean())
    estimate = estimator.estimate(run, along=[len(run.states) // 2])
    assert run.calls == len(estimate.deviations) * (run.calls // MEMBERS) and len(estimate.deviations) == MEMBERS
    assert estimate.variance.mean() == pytest.approx(expected_variance(), rel=tolerance)
    assert estimate.variance.std() < 0.05 * estimate.variance.mean(), "the mean is uncertain alike everywhere"
    # On the way, at σ: x - μ shrinks by √((s² + σ²)/(s² + σ_max²)), and what is gone of it is μ's.
    sigma = run.states[len(run.states) // 2].sigma
    left = math.sqrt((SPREAD**2 + sigma**2) / (SPREAD**2 + SIGMA_MAX**2))
    (half_way,) = estimate.along.values()
    assert half_way.mean() == pytest.approx(TAU**2 * (1 - left) ** 2, rel=max(tolerance, 0.3))


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
    run = GaussianRun("euler", karras(40), uncertain_mean())
    estimator = Moments(every, pairs=1)
    estimate = estimator.estimate(run, along=[])
    assert run.calls == estimator.calls(40)
    assert torch.allclose(estimate.variance, torch.full(run.shape, fresh_draws(run.sigmas, every)), rtol=0.02)
    if every == 1:
        assert estimate.variance.mean() < 0.2 * expected_variance(), "W drawn anew at every step averages out"


def test_the_published_recursion_of_gaussian_data():
    """While V is positive it is right on average for what it computes: DDIM, W anew at every uncertain step."""
    run = GaussianRun("euler", karras(20), uncertain_mean(), shape=(1, 1, 50, 200))
    estimator = Paper(every=12, draws=10)
    variance = estimator.estimate(run, along=[]).variance
    assert run.calls == estimator.calls(20) == 10
    exact, standard_error = fresh_draws(run.sigmas, 12, skip=True), float(variance.std()) / 100
    assert abs(float(variance.mean()) - exact) < 4 * standard_error < 0.2 * exact


@pytest.mark.parametrize("every", [1, 5])
def test_the_published_recursion_is_swamped_by_its_noise(every):
    """At its own S = 10, as published: what it finds is noise many times the truth, and not clamped."""
    run = GaussianRun("euler", karras(20), uncertain_mean(), shape=(1, 1, 50, 200))
    variance = Paper(every, draws=10).estimate(run, along=[]).variance
    assert variance.std() > 3 * fresh_draws(run.sigmas, every, skip=True) and variance.min() < 0


def test_the_published_recursion_counts_the_noise_of_ddpm():
    """Without uncertain weights DDPM's own noise is left: Var(x_0 | x_T) of the host's sampler, by β² alone."""
    certain = LaplaceHead(LayerGeometry("linear", 2, 1, bias=False), DiagonalPrecision(torch.full((2,), 1e12)), 1e9, {})
    run = GaussianRun("euler_ancestral", torch.tensor([10.0, 4.0, 1.0, 0.3]), certain, shape=(1, 1, 20, 1000))
    estimate = Paper(every=100, draws=1).estimate(run, along=[1, 2])
    added = [4.0**2 - (4.0 * 4.0 / 10.0) ** 2, 1.0 - (1.0 / 4.0) ** 2]
    assert estimate.along[1].mean() == pytest.approx(added[0], rel=0.1)
    assert estimate.along[2].mean() == pytest.approx(added[0] + added[1], rel=0.1)


def test_the_published_recursion_takes_the_midpoint_of_dpm_solver_2():
    """Of one uncertain step: the whole step along eps at its midpoint, and there alone the weights are uncertain."""
    run = GaussianRun("dpm_2", torch.tensor([10.0, 4.0, 1.0, 0.3]), uncertain_mean())
    estimate = Paper(every=100, draws=1).estimate(run, along=[0, 2])
    middle = run.states[1]
    expected = ((4.0 - 10.0) / middle.sigma) ** 2 * middle.variance
    assert 4.0 < middle.sigma < 10.0 and run.calls == 0
    assert torch.allclose(estimate.variance, expected, rtol=1e-3) and torch.allclose(
        estimate.along[2], expected, rtol=1e-3
    )
    assert not estimate.along[0].any()
    Paper(every=2, draws=3).estimate(run, along=[])
    assert run.calls == 2 * 3, "an uncertain step after the first takes two calls a draw"


def test_the_published_recursion_from_pure_noise():
    """A rectified flow begins without any signal: what is uncertain of the first prediction is that of the picture."""
    x, variance = torch.randn(1, 4, 3, 3), torch.rand(1, 4, 3, 3)
    states = [
        State(1.0, 1.0, 0.0, x, 0.5 * x, contraction=0.4, variance=variance),
        State(0.4, 0.4, 0.6, x, 0.5 * x, contraction=0.0),
    ]
    run = SimpleNamespace(states=states, signal_end=1.0, noise_end=0.0, sampler="euler")
    estimate = Paper(every=100, draws=1).estimate(run, along=[1])
    assert torch.allclose(estimate.variance, variance) and torch.allclose(estimate.along[1], 0.36 * variance)


@pytest.mark.parametrize(
    "estimator",
    [Deviations(7), Deviations(5, 0.25), Deviations(8, 3.0), Tangents(2), Moments(3, 2), Paper(3, 4)],
    ids=str,
)
@pytest.mark.parametrize("steps", [1, 2, 9, 20])
def test_no_more_calls_are_made_than_announced(estimator, steps):
    run = GaussianRun("euler", karras(steps), uncertain_mean())
    estimator.estimate(run, along=[])
    # Two of the levels that deviations look for may lie nearest to one state of a short run.
    assert run.calls <= estimator.calls(steps)
    assert run.calls == estimator.calls(steps) or estimator.name == "deviations" and steps < 20
    share = getattr(estimator, "share", math.inf)
    assert run.calls <= max(share * steps, min(getattr(estimator, "states", 0), steps))


def test_where_an_estimator_looks():
    """Deviations at the states that it will follow, and only if they are moderated; the recursions everywhere."""
    schedule = [float(sigma) for sigma in karras(20)[:-1]]
    chosen = choose_states(schedule, 5)
    looked = [index for index, level in enumerate(schedule) if Deviations(5).looks(level, schedule)]
    assert looked == sorted(chosen) and len(looked) == 5
    for level in schedule:
        assert not Deviations(5, moderated=False).looks(level, schedule) and not Tangents(1).looks(level, schedule)
        assert Moments(1, 1).looks(level, schedule) and Paper(1, 1).looks(level, schedule)


@pytest.mark.parametrize(
    "estimator", [Deviations(5), Tangents(2), Moments(2, 1), Paper(3, 4)], ids=lambda estimator: estimator.name
)
def test_no_uncertain_weights_no_variance(estimator):
    certain = LaplaceHead(LayerGeometry("linear", 2, 1, bias=False), DiagonalPrecision(torch.full((2,), 1e30)), 1.0, {})
    estimate = estimator.estimate(GaussianRun("euler", karras(12), certain), along=[6])
    for variance in (estimate.variance, estimate.along[6]):
        assert torch.isfinite(variance).all() and variance.abs().max() < 1e-8


def test_a_step_that_renews_the_noise_forgets_more():
    """By projection: σ'/σ where the sampler keeps its noise, (σ'/σ)² where it renews it as ancestral ones do."""
    denoised = gaussian_network(NOMINAL)
    noise = torch.randn(1, 20_000, generator=torch.Generator().manual_seed(0)) * SIGMA_MAX
    sigmas = torch.tensor([10.0, 6.0, 3.0, 1.0, 0.0])
    for name, power in (("euler", 1), ("euler_ancestral", 2)):
        found = [state.contraction for state in nominal_run(name, denoised, noise, sigmas)]
        expected = [float(low / high) ** power for high, low in zip(sigmas, sigmas[1:])]
        assert found == pytest.approx(expected, abs=0.05), name


def state(noise: float, signal: float = 1.0, x: torch.Tensor | None = None) -> State:
    x = torch.ones(1, 4) if x is None else x
    return State(noise, noise, signal, x, torch.zeros(1, 4))


def test_the_mask_says_where_to_look():
    x_next, mask = torch.tensor([[0.5, 0.5, 9.0, 9.0]]), torch.tensor([[1.0, 1.0, 0.0, 0.0]])
    assert contraction(state(2.0), x_next, 1.0, mask) == 0.5
    assert contraction(state(2.0), x_next, 1.0) == 4.75, "a run that adds noise back amplifies"
    assert contraction(state(2.0), -x_next, 1.0) == 0.0
    assert contraction(state(2.0, x=torch.zeros(1, 4)), x_next, 1.0) == 1.0


@pytest.mark.parametrize("renewed", [0.0, 0.7])
def test_a_step_of_a_rectified_flow(renewed):
    """x' = a x + (α' - a α) D + noise with α = 1 - σ: the coefficient is found, and δ takes the same step."""
    generator = torch.Generator().manual_seed(0)
    denoised, noise, fresh = (torch.randn(1, 50_000, generator=generator) for _ in range(3))
    high, low = 0.8, 0.5
    kept = low * (1 - renewed**2) ** 0.5
    x = high * noise + (1 - high) * denoised
    x_next = kept * noise + low * renewed * fresh + (1 - low) * denoised
    first = State(high, high, 1 - high, x, denoised)
    first.contraction = contraction(first, x_next, 1 - low)
    assert first.contraction == pytest.approx(kept / high, abs=0.01)
    change = torch.full((1, 50_000), 0.1)
    # An error of D that stays: after the last step, to σ = 0, it is the error of the picture.
    second = State(low, low, 1 - low, x_next, denoised)
    delta, passed = follow([first, second], [0, 1], 1.0, lambda state, delta: change, along=[0, 1])
    assert torch.allclose(delta, change) and not passed[0].any()
    delta, _ = follow([first], [0], 1 - low, lambda state, delta: change)
    assert torch.allclose(delta, change * (1 - low - first.contraction * (1 - high)))
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
    assert choose_states([state.level for state in flow], 5) == [1, 2, 3, 4]


def test_a_run_that_goes_up_in_noise_amplifies():
    """From a picture to its noise, as unsampling does: contractions above one multiply."""
    states = [state(level) for level in (1.0, 2.0, 4.0)]
    for step, amplified in zip(states, (2.0, 2.0, 2.0)):
        step.contraction = amplified
    change = torch.full((1, 4), 0.1)
    assert torch.allclose(follow(states, [0, 1, 2], 1.0, lambda state, delta: change)[0], (1 - 8) * change)


def test_no_deviation_stays_none():
    states = nominal_run("euler", gaussian_network(NOMINAL), torch.ones(1, 4), torch.tensor([5.0, 2.0, 0.0]))
    assert not follow(states, [0, 1], 1.0, lambda state, delta: torch.zeros(1, 4))[0].any()

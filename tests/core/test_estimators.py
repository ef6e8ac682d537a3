"""Every estimator against a model whose answer is known on paper, through the host's own samplers."""

import math
from types import SimpleNamespace

import pytest
import torch
from bayesdiff.bayesdiff_core.deviations import State, choose_states, contraction, follow
from bayesdiff.bayesdiff_core.ensemble import EnsembleVariance
from bayesdiff.bayesdiff_core.features import LayerGeometry
from bayesdiff.bayesdiff_core.laplace_head import DiagonalPrecision, LaplaceHead
from comfy.k_diffusion import sampling
from comfy.model_sampling import EPS

SPREAD, TAU, SIGMA_MAX = 0.5, 0.2, 10.0


def gaussian_network(matrix: torch.Tensor):
    """The exact denoiser of data ~ N(μ, SPREAD²), as a linear last layer with weights ``(1, μ)``.

    eps = (x - D)/σ with D = (s²x + σ²μ)/(s² + σ²) gives eps = σ/(s² + σ²) · (x, -1) · (1, μ).
    """
    geometry = LayerGeometry("linear", 2, 1, bias=False)

    def denoised(x, sigma, **_):
        scale = (sigma / (SPREAD**2 + sigma**2))[:, None]
        features = torch.stack([x, -torch.ones_like(x)], dim=-1) * scale[..., None]
        return x - sigma[:, None] * geometry.apply(features, matrix)[..., 0]

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


@pytest.mark.parametrize("count", [5, 8, 60])
@pytest.mark.parametrize("name", ["euler", "heun", "dpmpp_2m"])
def test_deviations_of_gaussian_data_with_an_uncertain_mean(name, count):
    """The deviation of a draw is linear in it, so one unit draw shows the whole standard deviation."""
    noise = torch.randn(1, 32, generator=torch.Generator().manual_seed(0)) * SIGMA_MAX
    states = nominal_run(name, gaussian_network(NOMINAL), noise, sampling.get_sigmas_karras(60, 0.01, SIGMA_MAX))
    perturbed, calls = gaussian_network(torch.tensor([[1.0], [TAU]])), []

    def deviate(state, delta):
        calls.append(state.sigma)
        x = state.x if delta is None else state.x + delta
        return perturbed(x, torch.tensor([state.sigma])) - state.denoised

    chosen = choose_states(states, count)
    variance = follow(states, chosen, 1.0, deviate).square()
    assert len(calls) == len(chosen) <= count and calls == sorted(calls, reverse=True)
    assert variance.mean() == pytest.approx(expected_variance(), rel=0.5 if count == 5 else 0.2)
    assert variance.std() < 0.05 * variance.mean(), "the mean is uncertain alike everywhere"


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
    delta = follow([first, second], [0, 1], 1.0, lambda state, delta: change)
    assert torch.allclose(delta, change)
    delta = follow([first], [0], 1 - low, lambda state, delta: change)
    assert torch.allclose(delta, change * (1 - low - first.contraction * (1 - high)))


def test_states_are_spread_over_the_levels_that_matter():
    def choose(levels: list[float], count: int = 5) -> list[int]:
        return choose_states([state(level) for level in levels], count)

    levels = [float(level) for level in torch.linspace(80, 0.01, 200)]
    chosen = choose(levels)
    assert len(chosen) == 5 and chosen == sorted(chosen)
    assert levels[chosen[0]] == pytest.approx(15, rel=0.05) and levels[chosen[-1]] < 0.5
    assert choose([7.0]) == [0] and choose([0.0]) == [0]
    assert choose([0.05, 0.02]) == [0]
    # A rectified flow starts at pure noise, which has no signal at all; of equal levels the last is taken.
    flow = [state(noise, 1 - noise) for noise in (1.0, 1.0, 0.75, 0.5, 0.25)]
    assert choose_states(flow, 5) == [1, 2, 3, 4]


def test_a_run_that_goes_up_in_noise_amplifies():
    """From a picture to its noise, as unsampling does: contractions above one multiply."""
    states = [state(level) for level in (1.0, 2.0, 4.0)]
    for step, amplified in zip(states, (2.0, 2.0, 2.0)):
        step.contraction = amplified
    change = torch.full((1, 4), 0.1)
    assert torch.allclose(follow(states, [0, 1, 2], 1.0, lambda state, delta: change), (1 - 8) * change)


def test_no_deviation_stays_none():
    states = nominal_run("euler", gaussian_network(NOMINAL), torch.ones(1, 4), torch.tensor([5.0, 2.0, 0.0]))
    assert not follow(states, [0, 1], 1.0, lambda state, delta: torch.zeros(1, 4)).any()

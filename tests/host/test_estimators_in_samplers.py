"""Estimators on a model whose answer is known on paper, through the host's own samplers."""

from types import SimpleNamespace

import pytest
import torch
from comfy.k_diffusion import sampling
from comfy.model_sampling import EPS
from gaussian import (
    MEMBER_ESTIMATORS,
    MEMBERS,
    NOMINAL,
    SIGMA_MAX,
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

from bayesdiff_core.estimators.paper import Paper


def of_the_host(name: str):
    """A sampler function of the host's, as the core's helper calls it."""

    def sample(model, x, sigmas):
        def wrapped(x, sigma, **_):
            return model(x, sigma)

        # Where the samplers that inject noise look for the kind of model.
        wrapped.inner_model = SimpleNamespace(inner_model=SimpleNamespace(model_sampling=EPS()))
        return getattr(sampling, f"sample_{name}")(wrapped, x, sigmas, extra_args={}, disable=True)

    return sample


SAMPLERS = {name: of_the_host(name) for name in ("euler", "euler_ancestral", "heun", "lms", "dpmpp_2m", "dpm_2")}


def test_the_samplers_that_the_core_is_tested_with_are_the_hosts():
    noise, denoised = torch.randn(1, 32) * SIGMA_MAX, gaussian_network(NOMINAL)
    assert torch.allclose(karras(20), sampling.get_sigmas_karras(20, 0.01, SIGMA_MAX))
    for name, ours in (("euler", sample_euler), ("euler_ancestral", sample_euler_ancestral)):
        found = []
        for sampler in (SAMPLERS[name], ours):
            torch.manual_seed(1)
            found.append(sampler(denoised, noise, karras(20)[:-1]))
        assert torch.allclose(*found, atol=1e-4), name


@pytest.mark.parametrize("name", ["euler", "heun", "lms", "dpmpp_2m"])
def test_ensemble_of_gaussian_data_with_an_uncertain_mean(name):
    ensemble = ensemble_of(SAMPLERS[name])
    # Relative error of a variance from 300 draws is 8 %; it is shared by all 32 elements.
    for variance in (ensemble.variance(), ensemble.mean_square()):
        assert variance.mean() == pytest.approx(expected_variance(), rel=0.25)
        assert variance.std() < 0.01 * expected_variance()


@pytest.mark.parametrize(("estimator", "tolerance"), MEMBER_ESTIMATORS, ids=str)
@pytest.mark.parametrize("name", ["euler", "heun", "dpmpp_2m"])
def test_members_of_gaussian_data_with_an_uncertain_mean(name, estimator, tolerance):
    """Estimators that hold one W for the whole run find the variance that is known on paper."""
    run = GaussianRun(SAMPLERS[name], karras(60), uncertain_mean())
    estimate = estimator.estimate(run, along=[len(run.trajectory.states) // 2])
    assert run.calls == len(estimate.deviations) * (run.calls // MEMBERS) and len(estimate.deviations) == MEMBERS
    assert estimate.variance.mean() == pytest.approx(expected_variance(), rel=tolerance)
    assert estimate.variance.std() < 0.05 * estimate.variance.mean(), "the mean is uncertain alike everywhere"
    middle = run.trajectory.states[len(run.trajectory.states) // 2]
    (half_way,) = estimate.along.values()
    assert half_way.mean() == pytest.approx(expected_variance(middle.sigma), rel=max(tolerance, 0.3))


def test_the_published_recursion_takes_the_midpoint_of_dpm_solver_2():
    """Of one uncertain step: the whole step along eps at its midpoint, and there alone the weights are uncertain."""
    run = GaussianRun(SAMPLERS["dpm_2"], torch.tensor([10.0, 4.0, 1.0, 0.3]), uncertain_mean(), name="dpm_2")
    estimate = Paper(every=100, draws=1).estimate(run, along=[0, 2])
    middle = run.trajectory.states[1]
    expected = ((4.0 - 10.0) / middle.sigma) ** 2 * middle.variance
    assert 4.0 < middle.sigma < 10.0 and run.calls == 0
    assert torch.allclose(estimate.variance, expected, rtol=1e-3) and torch.allclose(
        estimate.along[2], expected, rtol=1e-3
    )
    assert not estimate.along[0].any()
    Paper(every=2, draws=3).estimate(run, along=[])
    assert run.calls == 2 * 3, "an uncertain step after the first takes two calls a draw"


def test_a_step_that_renews_the_noise_forgets_more():
    """By projection: σ'/σ where the sampler keeps its noise, (σ'/σ)² where it renews it as ancestral ones do."""
    samplers, denoised = SAMPLERS, gaussian_network(NOMINAL)
    noise = torch.randn(1, 20_000, generator=torch.Generator().manual_seed(0)) * SIGMA_MAX
    sigmas = torch.tensor([10.0, 6.0, 3.0, 1.0, 0.0])
    for name, power in (("euler", 1), ("euler_ancestral", 2)):
        found = [state.contraction for state in nominal_run(samplers[name], denoised, noise, sigmas).states]
        expected = [float(low / high) ** power for high, low in zip(sigmas, sigmas[1:])]
        assert found == pytest.approx(expected, abs=0.05), name

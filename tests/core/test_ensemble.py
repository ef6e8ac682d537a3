"""The ensemble against a model whose answer is known on paper, through the host's own samplers."""

import math

import pytest
import torch
from bayesdiff.bayesdiff_core.ensemble import EnsembleVariance
from bayesdiff.bayesdiff_core.features import LayerGeometry
from bayesdiff.bayesdiff_core.laplace_head import DiagonalPrecision, LaplaceHead
from comfy.k_diffusion import sampling

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


@pytest.mark.parametrize("name", ["euler", "heun", "lms", "dpmpp_2m"])
def test_uncertain_mean_of_gaussian_data(name):
    """With μ ~ N(0, τ²), the probability-flow ODE ends at μ + s/√(s² + σ²)(x_T - μ): Var = τ²(1 - s/√(s² + σ²))²."""
    certain, uncertain = 1e12, 1 / TAU**2
    head = LaplaceHead(
        LayerGeometry("linear", 2, 1, bias=False), DiagonalPrecision(torch.tensor([certain, uncertain])), 1e-9, {}
    )
    sigmas = sampling.get_sigmas_karras(60, 0.01, SIGMA_MAX)
    noise = torch.randn(1, 32, generator=torch.Generator().manual_seed(0)) * SIGMA_MAX
    weights = torch.tensor([[1.0], [0.0]])

    def sample(matrix):
        return getattr(sampling, f"sample_{name}")(gaussian_network(matrix), noise, sigmas, extra_args={}, disable=True)

    ensemble = EnsembleVariance(sample(weights))
    generator = torch.Generator().manual_seed(1)
    for _ in range(300):
        ensemble.add(sample(weights + head.draw(generator)))
    expected = TAU**2 * (1 - SPREAD / math.sqrt(SPREAD**2 + SIGMA_MAX**2)) ** 2
    # Relative error of a variance from 300 draws is 8 %; it is shared by all 32 elements.
    assert ensemble.variance().mean() == pytest.approx(expected, rel=0.25)
    assert ensemble.variance().std() < 0.01 * expected


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

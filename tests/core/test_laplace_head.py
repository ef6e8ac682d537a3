"""The posterior against laplace-torch and against brute force."""

import math

import pytest
import torch
import torch.nn.functional as F
from bayesdiff.bayesdiff_core.features import LayerGeometry
from bayesdiff.bayesdiff_core.fit import FeatureRows, ResidualNoise, fit_laplace_head
from bayesdiff.bayesdiff_core.laplace_head import LaplaceHead

LAYERS = {
    "conv": (torch.nn.Conv2d(3, 2, 3, padding=1), (5, 3, 6, 7)),
    "strided conv": (torch.nn.Conv2d(3, 4, (3, 1), stride=2, padding=(1, 0)), (5, 3, 6, 7)),
    "linear": (torch.nn.Linear(6, 4), (5, 8, 6)),
    "linear without bias": (torch.nn.Linear(6, 4, bias=False), (5, 8, 6)),
}


@pytest.fixture(params=LAYERS)
def layer_and_features(request):
    layer, shape = LAYERS[request.param]
    return layer, torch.randn(shape, generator=torch.Generator().manual_seed(1))


def test_rows_and_apply_are_the_layer_itself(layer_and_features):
    layer, features = layer_and_features
    geometry = LayerGeometry.of(layer)
    matrix = geometry.matrix(layer)
    expected = layer(features)
    assert torch.allclose(geometry.apply(features, matrix), expected, atol=1e-5)
    channels_last = expected.movedim(1, -1) if geometry.kind == "conv2d" else expected
    assert torch.allclose(geometry.rows(features) @ matrix, channels_last.reshape(-1, geometry.out_features), atol=1e-5)
    assert LayerGeometry.from_json(geometry.to_json()) == geometry


def test_other_layers_are_refused():
    with pytest.raises(ValueError, match="Expected a plain convolution"):
        LayerGeometry.of(torch.nn.Conv2d(4, 4, 3, groups=2))
    with pytest.raises(ValueError, match="Expected a Conv2d or Linear last layer, got ReLU"):
        LayerGeometry.of(torch.nn.ReLU())


def fitted(layer, features, noise_std=None):
    geometry = LayerGeometry.of(layer)
    rows = geometry.rows(features)
    noise_std = torch.ones(len(rows)) if noise_std is None else noise_std
    return rows, fit_laplace_head(geometry, geometry.matrix(layer), rows, noise_std, len(rows), {"made": "here"})


def test_variance_equals_laplace_torch_full(layer_and_features):
    """γ² of every position equals FullLLLaplace's functional variance at the same λ, weight-bias block included."""
    from laplace import FullLLLaplace

    layer, features = layer_and_features
    rows, head = fitted(layer, features)
    geometry = head.geometry
    inputs = rows[:, :-1] if geometry.bias else rows
    linear = torch.nn.Linear(inputs.shape[1], geometry.out_features, bias=geometry.bias)
    full = FullLLLaplace(
        torch.nn.Sequential(torch.nn.Identity(), linear), "regression", last_layer_name="1",
        prior_precision=head.prior_precision,
    )  # fmt: skip
    targets = torch.zeros(len(rows), geometry.out_features)
    full.fit(torch.utils.data.DataLoader(torch.utils.data.TensorDataset(inputs, targets), batch_size=64))
    _, covariance = full(inputs)
    ours = head.variance(features, chunk=5).reshape(-1)
    for channel in range(geometry.out_features):
        reference = covariance[:, channel, channel]
        assert torch.allclose(ours, reference, rtol=1e-5, atol=1e-5 * float(reference.max())), channel


def test_draws_have_the_posterior_covariance(layer_and_features):
    layer, features = layer_and_features
    _, head = fitted(layer, features)
    generator = torch.Generator().manual_seed(0)
    draws = torch.stack([head.geometry.apply(features[:1], head.draw(generator)) for _ in range(4000)])
    sampled = draws.var(0)
    channels_first = sampled if head.geometry.kind == "conv2d" else sampled.movedim(-1, 1)
    expected = head.variance(features[:1])
    for channel in range(head.geometry.out_features):
        # Relative error of a variance from 4,000 draws is 2.2 %.
        assert torch.allclose(channels_first[:, channel], expected, rtol=0.12), channel


def test_more_data_means_more_certainty_and_noise_means_less():
    layer, features = torch.nn.Linear(4, 2), torch.randn(64, 4)
    geometry = LayerGeometry.of(layer)
    rows = geometry.rows(features)

    def variance(noise: float, data_rows: int) -> float:
        head = fit_laplace_head(geometry, geometry.matrix(layer), rows, torch.full((len(rows),), noise), data_rows, {})
        return float(head.variance(features).mean())

    assert variance(1.0, 640) < 0.5 * variance(1.0, 64)
    assert variance(0.1, 64) < 0.1 * variance(1.0, 64)


def test_noise_is_kept_by_sigma_bin():
    noise = ResidualNoise(sigma_min=0.01, sigma_max=10.0, bins=3)
    noise.add(torch.full((100,), 2.0), sigma=0.02)
    noise.add(torch.full((100,), 0.5), sigma=9.0)
    overall = math.sqrt((4 + 0.25) / 2)
    assert torch.allclose(noise.of(torch.tensor([0.005, 0.02, 0.3, 9.0, 50.0])),
                          torch.tensor([2.0, 2.0, overall, 0.5, 0.5]))  # fmt: skip


def test_rows_are_a_bounded_sample_of_what_came():
    geometry = LayerGeometry.of(torch.nn.Conv2d(2, 1, 1))
    rows = FeatureRows(geometry, per_call=10, generator=torch.Generator().manual_seed(0))
    features = torch.arange(2 * 2 * 4 * 4.0).reshape(2, 2, 4, 4)
    rows.add(features, sigma=1.0)
    rows.add(features[:1, :, :2, :2], sigma=2.0)
    assert rows.seen == 32 + 4
    assert [len(r) for r in rows.rows] == [10, 4]
    everything = {tuple(row) for row in geometry.rows(features).tolist()}
    kept = [tuple(row) for row in rows.rows[0].tolist()]
    assert set(kept) <= everything and len(set(kept)) == 10
    assert torch.cat(rows.sigmas).tolist() == [1.0] * 10 + [2.0] * 4


def test_features_that_are_not_finite_are_refused():
    layer, features = torch.nn.Linear(4, 2), torch.randn(8, 4)
    features[3, 2] = float("nan")
    with pytest.raises(ValueError, match="Expected finite features at the last layer, got NaN"):
        fitted(layer, features)


def test_conv_variance_matches_brute_force_unfolding():
    generator = torch.Generator().manual_seed(3)
    geometry = LayerGeometry.of(torch.nn.Conv2d(4, 2, 3, padding=1))
    vectors = torch.linalg.qr(torch.randn(geometry.width, geometry.width, generator=generator))[0]
    head = LaplaceHead(geometry, torch.rand(geometry.width, generator=generator), vectors, 0.3, {})
    features = torch.randn(2, 4, 5, 6, generator=generator)
    rows = torch.cat([F.unfold(features, 3, padding=1).transpose(1, 2), torch.ones(2, 30, 1)], dim=2)
    precision = vectors @ torch.diag(head.eigenvalues + 0.3) @ vectors.T
    expected = torch.einsum("npi,ij,npj->np", rows, torch.linalg.inv(precision), rows).reshape(2, 5, 6)
    assert torch.allclose(head.variance(features), expected, rtol=1e-4)

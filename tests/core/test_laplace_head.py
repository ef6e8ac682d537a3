"""The posterior against laplace-torch and against brute force."""

import dataclasses

import pytest
import torch
import torch.nn.functional as F

from bayesdiff_core.posterior import fit
from bayesdiff_core.posterior.features import LayerGeometry, guided_features
from bayesdiff_core.posterior.fit import GaussNewton, fit_laplace_head, leading_rank, leading_spectrum
from bayesdiff_core.posterior.laplace_head import STRUCTURES, LaplaceHead, SpectralPrecision

LAYERS = {
    "conv": (torch.nn.Conv2d(3, 2, 3, padding=1), (5, 3, 6, 7)),
    "tall conv": (torch.nn.Conv2d(3, 4, (3, 1), padding=(1, 0)), (5, 3, 6, 7)),
    "conv without padding": (torch.nn.Conv2d(3, 4, 1), (5, 3, 6, 7)),
    "linear": (torch.nn.Linear(6, 4), (5, 8, 6)),
    "linear without bias": (torch.nn.Linear(6, 4, bias=False), (5, 8, 6)),
}


@pytest.fixture(params=LAYERS)
def layer_and_features(request):
    layer, shape = LAYERS[request.param]
    return layer.requires_grad_(False), torch.randn(shape, generator=torch.Generator().manual_seed(1))


# ---------------------------------------------------------------- the layer as a linear map


def test_rows_and_apply_are_the_layer_itself(layer_and_features):
    layer, features = layer_and_features
    geometry = LayerGeometry.of(layer)
    matrix = geometry.weights_of(layer, features)
    expected = layer(features)
    assert torch.allclose(geometry.apply(features, matrix), expected, atol=1e-5)
    channels_last = expected.movedim(geometry.channel_dim, -1)
    assert torch.allclose(geometry.rows(features) @ matrix, channels_last.reshape(-1, geometry.out_features), atol=1e-5)
    norm = geometry.rows(features).square().sum(1).reshape(channels_last.shape[:-1])
    assert torch.allclose(geometry.square_norm(features), norm, rtol=1e-5)
    assert LayerGeometry.from_json(geometry.to_json()) == geometry


def test_a_choice_of_rows_is_some_of_all_rows(layer_and_features):
    layer, features = layer_and_features
    geometry = LayerGeometry.of(layer)
    everything = geometry.rows(features).reshape(len(features), -1, geometry.width)
    chosen = geometry.rows(features, 5, torch.Generator().manual_seed(0)).reshape(len(features), 5, geometry.width)
    for some, all_of_item in zip(chosen, everything):
        matches = (some[:, None] == all_of_item[None]).all(2)
        assert (matches.sum(1) == 1).all() and (matches.sum(0) <= 1).all()


def test_other_layers_are_refused():
    for layer in (torch.nn.Conv2d(4, 4, 3, groups=2), torch.nn.Conv2d(4, 4, 3, stride=2)):
        with pytest.raises(ValueError, match="Expected a plain convolution"):
            LayerGeometry.of(layer)
    with pytest.raises(ValueError, match="Expected a Conv2d or Linear last layer, got ReLU"):
        LayerGeometry.of(torch.nn.ReLU())


def test_guidance_mixes_features():
    cond, uncond = torch.randn(2, 4, 3), torch.randn(2, 4, 3)
    assert torch.allclose(guided_features(cond, uncond, 1.0), cond, atol=1e-6)
    layer = torch.nn.Linear(3, 2)
    mixed = layer(uncond) + 7.5 * (layer(cond) - layer(uncond))
    assert torch.allclose(layer(guided_features(cond, uncond, 7.5)), mixed, atol=1e-5), "the bias counts once"
    _, head = fitted(layer, cond)
    alike = [head.variance(guided_features(cond, cond, cfg)) for cfg in (1.0, 7.5)]
    assert torch.allclose(*alike), "where both halves agree, guidance changes nothing"
    assert head.variance(guided_features(cond, uncond, 7.5)).mean() > 5 * alike[0].mean()


# ---------------------------------------------------------------- the fit


def statistics(layer, features) -> GaussNewton:
    hessian = GaussNewton(LayerGeometry.of(layer), torch.Generator().manual_seed(0))
    hessian.add_features(features)
    hessian.add_residual(torch.ones(3))
    hessian.end_level()
    return hessian


def fitted(layer, features, structure="full", explained_variance=0.99):
    geometry = LayerGeometry.of(layer)
    matrix = statistics(layer, features).matrix(len(features))
    weights = geometry.weights_of(layer, features)
    return geometry.rows(features), fit_laplace_head(geometry, weights, matrix, structure, explained_variance, {})


def laplace_on_rows(kind, rows, layer_weights, noise, **options):
    """laplace-torch on the plain data set: every row, every output column, bias as a column of ones."""
    linear = torch.nn.Linear(*layer_weights.shape, bias=False)
    linear.weight.data.copy_(layer_weights.T)
    laplace = kind(
        torch.nn.Sequential(torch.nn.Identity(), linear), "regression", last_layer_name="1", **options
    )  # fmt: skip
    scaled = rows / noise
    data = torch.utils.data.TensorDataset(scaled, scaled @ layer_weights)
    laplace.fit(torch.utils.data.DataLoader(data, batch_size=64))
    return laplace


def test_streamed_statistics_and_prior_are_those_of_laplace_torch(layer_and_features):
    """The streamed H is its Kronecker factor, and λ the optimum of its marginal likelihood over all the data."""
    from laplace import KronLLLaplace
    from laplace.curvature import CurvlinopsGGN

    layer, features = layer_and_features
    geometry = LayerGeometry.of(layer)
    hessian = GaussNewton(geometry, torch.Generator())
    for chunk, residual in ((features, 0.5), (2 * features, 2.0)):
        for part in chunk.split(2):
            hessian.add_features(part)
            hessian.add_residual(torch.full((4,), residual))
        hessian.end_level()
    assert hessian.noise_std == pytest.approx([0.5, 2.0])
    matrix = hessian.matrix(len(features))

    # Each of the two levels shows every image, which counts once: half a time at each level.
    rows = torch.cat([geometry.rows(features), geometry.rows(2 * features)]) / 2**0.5
    noise = torch.tensor([0.5, 2.0]).repeat_interleave(len(rows) // 2)[:, None]
    weights = geometry.weights_of(layer, features)
    laplace = laplace_on_rows(KronLLLaplace, rows, weights, noise, backend=CurvlinopsGGN)
    outer, inner = laplace.H_facs.kfacs[0]
    reference = inner.double() * outer.diagonal().mean().double()
    assert (matrix - reference).norm() < 1e-5 * reference.norm()

    laplace.optimize_prior_precision(method="marglik", n_steps=2000, lr=0.05)
    for structure in ("full", "low-rank"):
        head = fit_laplace_head(geometry, weights, matrix, structure, 0.9, {})
        assert head.prior_precision == pytest.approx(float(laplace.prior_precision), rel=1e-3)


@pytest.mark.parametrize("structure", STRUCTURES)
def test_prior_precision_is_the_evidence_maximum(layer_and_features, structure):
    """MacKay's identity holds at the optimum: the effective number of weights is λ‖W*‖²."""
    layer, features = layer_and_features
    _, head = fitted(layer, features, structure)
    hessian = statistics(layer, features).matrix(len(features))
    spectrum = hessian.diagonal() if structure == "diag" else torch.linalg.eigvalsh(hessian)
    weights = head.geometry.weights_of(layer, features)
    effective = head.geometry.out_features * (spectrum / (spectrum + head.prior_precision)).sum()
    assert float(effective) == pytest.approx(head.prior_precision * float(weights.square().sum()), rel=1e-3)


def test_full_equals_laplace_torch(layer_and_features):
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


def test_diag_equals_laplace_torch(layer_and_features):
    from laplace import DiagLLLaplace
    from laplace.curvature import CurvlinopsGGN

    layer, features = layer_and_features
    rows, head = fitted(layer, features, "diag")
    weights = head.geometry.weights_of(layer, features)
    options = dict(backend=CurvlinopsGGN, prior_precision=head.prior_precision)
    reference = laplace_on_rows(DiagLLLaplace, rows, weights, 1.0, **options)
    _, covariance = reference(rows)
    assert torch.allclose(head.variance(features).reshape(-1), covariance[:, 0, 0], rtol=1e-5)


def test_low_rank_at_full_rank_is_full_and_nears_it_with_rank():
    """Beyond the leading spectrum one precision stands for all; it keeps the mean and loses little of the map."""
    generator = torch.Generator().manual_seed(0)
    layer = torch.nn.Conv2d(8, 2, 3, padding=1).requires_grad_(False)
    scales = torch.logspace(0.5, -1.5, 8)[:, None, None]
    features = F.avg_pool2d(torch.randn(16, 8, 16, 16, generator=generator), 3, 1, 1) * scales
    _, full = fitted(layer, features)
    exact = full.variance(features)
    spectrum = full.precision.values.double() - full.prior_precision
    errors = []
    for rank in (10, 30, full.geometry.width):
        precision = leading_spectrum(spectrum, full.precision.basis.double(), full.prior_precision, rank)
        assert precision.structure == ("full" if rank == full.geometry.width else "low-rank")
        variance = dataclasses.replace(full, precision=precision).variance(features)
        assert float(variance.mean() / exact.mean()) == pytest.approx(1, abs=0.05)
        errors.append(float((variance / exact - 1).abs().mean()))
    assert errors[0] > errors[1] > errors[2] and errors[2] < 1e-5


def test_rank_follows_the_explained_variance():
    spectrum = torch.tensor([1.0, 90.0, 0.0, 9.0])
    assert [leading_rank(spectrum, share) for share in (0.5, 0.9, 0.95, 0.999, 1.0)] == [1, 1, 2, 3, 3]


def test_fitting_an_unknown_structure_is_refused():
    with pytest.raises(ValueError, match="Expected one of low-rank, full, diag .* got kron"):
        fitted(torch.nn.Linear(4, 2), torch.randn(3, 5, 4), "kron")


# ---------------------------------------------------------------- the posterior


@pytest.mark.parametrize("structure", STRUCTURES)
def test_draws_have_the_posterior_covariance(layer_and_features, structure):
    layer, features = layer_and_features
    _, head = fitted(layer, features, structure, explained_variance=0.5)
    assert head.precision.structure == structure
    draws = torch.stack([head.geometry.apply(features[:1], head.draw(0, number)) for number in range(4000)])
    sampled = draws.var(0).movedim(head.geometry.channel_dim, 1)
    expected = head.variance(features[:1])
    for channel in range(head.geometry.out_features):
        # Relative error of a variance from 4,000 draws is 2.2 %.
        assert torch.allclose(sampled[:, channel], expected, rtol=0.12), channel


def test_more_data_means_more_certainty_and_noise_means_less():
    layer, features = torch.nn.Linear(4, 2).requires_grad_(False), torch.randn(16, 4, 4)
    geometry = LayerGeometry.of(layer)

    def variance(noise: float, images: int) -> float:
        hessian = GaussNewton(geometry, torch.Generator())
        hessian.add_features(features)
        hessian.add_residual(torch.full((3,), noise))
        hessian.end_level()
        weights = geometry.weights_of(layer, features)
        head = fit_laplace_head(geometry, weights, hessian.matrix(images), "full", 1.0, {})
        return float(head.variance(features).mean())

    assert variance(1.0, 160) < 0.5 * variance(1.0, 16)
    assert variance(0.1, 16) < 0.1 * variance(1.0, 16)


def test_an_image_counts_once_however_often_it_is_seen(monkeypatch):
    """Prompts of several parts call the network more often, and positions beyond a limit are a random choice."""
    features = torch.randn(6, 4, 40, 40, generator=torch.Generator().manual_seed(0)) + 0.5
    layer = torch.nn.Conv2d(4, 2, 3, padding=1)

    def trace(parts, features=features):
        hessian = GaussNewton(LayerGeometry.of(layer), torch.Generator().manual_seed(0))
        for _ in range(parts):
            hessian.add_features(features)
        hessian.add_residual(torch.ones(3))
        hessian.end_level()
        return float(hessian.matrix(6).trace())

    rows = LayerGeometry.of(layer).rows(features)
    assert trace(1) == pytest.approx(float(rows.square().sum()), rel=0.02), "1,024 of 1,600 positions are kept"
    monkeypatch.setattr(fit, "POSITIONS", 1600)
    assert trace(1) == pytest.approx(float(rows.square().sum()), rel=1e-5)
    assert trace(2) == pytest.approx(trace(1), rel=1e-5)


def test_features_that_are_not_finite_are_refused():
    features = torch.randn(2, 8, 4)
    features[1, 3, 2] = float("nan")
    with pytest.raises(ValueError, match="Expected finite features at the last layer, got NaN"):
        statistics(torch.nn.Linear(4, 2), features)


def test_conv_variance_matches_brute_force_unfolding():
    generator = torch.Generator().manual_seed(3)
    geometry = LayerGeometry.of(torch.nn.Conv2d(4, 2, 3, padding=1))
    basis = torch.linalg.qr(torch.randn(geometry.width, geometry.width, generator=generator))[0]
    values = 0.3 + torch.rand(geometry.width, generator=generator)
    features = torch.randn(2, 4, 5, 6, generator=generator)
    rows = torch.cat([F.unfold(features, 3, padding=1).transpose(1, 2), torch.ones(2, 30, 1)], dim=2)
    for rank in (geometry.width, 12):
        head = LaplaceHead(geometry, SpectralPrecision(basis[:, :rank], values[:rank], 0.7), 0.3, {})
        precision = basis @ torch.diag(torch.cat([values[:rank], torch.full((geometry.width - rank,), 0.7)])) @ basis.T
        expected = torch.einsum("npi,ij,npj->np", rows, torch.linalg.inv(precision), rows).reshape(2, 5, 6)
        assert torch.allclose(head.variance(features), expected, rtol=1e-4)

"""The ensemble on every family that the host can build small: right layer, exact perturbation, untouched latent."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

import nodes
import pytest
import torch
from bayesdiff.bayesdiff_core.estimators.deviations import Deviations
from bayesdiff.bayesdiff_core.features import guided_features
from bayesdiff.bayesdiff_core.fit import fit_laplace_head
from bayesdiff.host.beside import Beside
from bayesdiff.host.denoised import denoised_variance
from bayesdiff.host.fitting import as_examples, fit_head, own_samples
from bayesdiff.host.last_layer import find_last_layer
from bayesdiff.host.sampling import Progress, run_within
from bayesdiff.host.state import output_gain, visit_state
from bayesdiff.host.tail import discover_last_layer, read_tail
from bayesdiff.nodes.mask import UncertaintyToMask
from bayesdiff.nodes.sampler import KSamplerBayesDiff

sys.path.append(str(Path(__file__).parent))

from families import FAMILIES  # noqa: E402

STEPS, CFG = 3, 3.0


@dataclasses.dataclass
class Setup:
    model: object
    positive: list
    negative: list
    latent: dict
    path: str
    downscale: int
    cfg: float = CFG

    def settings(self, model=None) -> tuple:
        """Arguments of a sampling run, as the stock sampler takes them."""
        return model or self.model, 5, STEPS, self.cfg, "euler", "normal", self.positive, self.negative, self.latent

    def stock(self, model=None) -> torch.Tensor:
        return nodes.common_ksampler(*self.settings(model))[0]["samples"]


@pytest.fixture(scope="module", params=FAMILIES)
def setup(request):
    family = FAMILIES[request.param]
    with torch.inference_mode():
        yield Setup(
            family.build(), family.conditioning(1), family.conditioning(2), {"samples": torch.zeros(family.latent)},
            family.path, family.downscale,
        )  # fmt: skip


def test_last_layer_is_found_and_called_once_a_network_call(setup):
    layer = find_last_layer(setup.model)
    assert layer.path == setup.path
    rows, calls = [], []
    handle = setup.model.model.diffusion_model.register_forward_pre_hook(lambda *_: calls.append(1))
    with layer.watched(lambda features: rows.append(len(layer.geometry.rows(features)))):
        setup.stock()
    handle.remove()
    assert len(rows) == len(calls) > 0
    assert len(set(rows)) == 1


def test_perturbing_is_changing_the_weights(setup):
    """Where a deviation lands in the latent, the model's own tail decides, as it does for the weights themselves."""
    layer = find_last_layer(setup.model)
    plain = setup.stock()
    shape = layer.geometry.width, layer.geometry.out_features
    delta = 0.02 * torch.randn(shape, generator=torch.Generator().manual_seed(0))
    progress = Progress(setup.model, 1)
    hooked = run_within(lambda model: {"samples": setup.stock(model)}, setup.model, progress,
                        lambda: layer.perturbed(delta))[0]["samples"]  # fmt: skip
    module = layer.module
    kept = {name: tensor.clone() for name, tensor in module.named_parameters()}
    with torch.no_grad():
        module.weight.add_((delta[:-1] if layer.geometry.bias else delta).T.reshape(module.weight.shape))
        if layer.geometry.bias:
            module.bias.add_(delta[-1])
    changed = setup.stock()
    with torch.no_grad():
        for name, tensor in module.named_parameters():
            tensor.copy_(kept[name])
    effect = (changed - plain).abs().max()
    assert effect > 1e-3 * plain.std()
    assert (hooked - changed).abs().max() < 2e-2 * effect
    assert torch.equal(setup.stock(), plain)


def test_a_head_is_fitted_and_the_latent_stays_the_stock_samplers(setup):
    data = own_samples(setup.model, setup.positive, setup.negative, setup.latent, 3, 2, CFG, seed=0)
    head = fit_head(setup.model, as_examples(data, setup.positive), setup.negative, CFG, 2, 0)
    expected = setup.stock()
    for quality in ("balanced", "ensemble"):
        latent, uncertainty, scores = KSamplerBayesDiff.execute(*setup.settings(), 1.0, head, quality, 3).args
        assert torch.equal(latent["samples"], expected)
        assert uncertainty.variance.shape == expected.shape and torch.isfinite(uncertainty.variance).all()
        assert (uncertainty.variance.flatten(1).mean(1) > 0).all() and len(scores) == len(expected)
        if expected.ndim == 4 or expected.shape[2] == 1:
            mask = UncertaintyToMask.execute(uncertainty, 0.2, 0, 0.0)[0]
            side = setup.downscale * expected.shape[-1]
            assert mask.shape == (len(expected), side, side) and 0.15 < mask.mean() < 0.25


def test_a_fit_counts_the_positions_of_the_picture_alone(setup):
    """Text tokens that go through the last layer and are sliced off afterwards are no data about the picture."""
    latent = setup.latent["samples"][:1]
    layer = find_last_layer(setup.model)
    head = fit_head(setup.model, as_examples(torch.ones_like(latent), setup.positive), setup.negative, CFG, 1, 0)
    tail, seen = read_tail(setup.model, layer, setup.positive, latent), []
    with layer.watched(lambda features: seen.append(layer.geometry.positions(features))):
        setup.stock()
    expected = len(tail.positions(seen[0]).unique())
    assert head.about["positions"] == str(expected)
    assert expected == seen[0] or setup.path == "final_layer.linear" and type(setup.model.model).__name__ == "Lumina2"


def test_last_layer_is_discovered_without_the_table(setup):
    latent = setup.latent["samples"][:1]
    assert discover_last_layer(setup.model, setup.positive, latent).path == setup.path


def random_head(layer):
    """A head with a dense covariance of random features."""
    width, generator = layer.geometry.width, torch.Generator().manual_seed(1)
    root = torch.randn(width, 2 * width, generator=generator)
    weights = torch.randn(width, layer.geometry.out_features, generator=generator)
    return fit_laplace_head(layer.geometry, weights, root @ root.T, "full", 1.0, {})


@pytest.mark.parametrize("cfg", [1.0, 3.0])
def test_a_run_shows_the_variance_of_its_own_predictions(setup, cfg):
    """What is read while the run goes on is γ² of its own features, at the place where each output lands."""
    layer, head = find_last_layer(setup.model), random_head(find_last_layer(setup.model))
    sampled = Setup(**vars(setup) | {"cfg": cfg})
    estimator = Deviations(STEPS, fixed_members=1)
    beside = Beside(layer, head, estimator, lambda sigmas: (), torch.Generator(), lambda *_: None, lambda *_: None)
    progress = Progress(setup.model, 1)
    latent, _ = run_within(lambda model: {"samples": sampled.stock(model)}, setup.model, progress, beside=beside)
    assert torch.equal(latent["samples"], sampled.stock())
    features: list[torch.Tensor] = []
    with layer.watched(features.append):
        sampled.stock()
    tail = read_tail(setup.model, layer, setup.positive, setup.latent["samples"][:1])
    sampling, calls = setup.model.get_model_object("model_sampling"), len(features) // len(beside.states)
    looked = [number for number, state in enumerate(beside.states) if state.variance is not None]
    assert len(looked) >= 2
    for number in looked:
        state = beside.states[number]
        parts = torch.cat(features[number * calls : (number + 1) * calls]).float()
        if cfg != 1:
            uncond, cond = parts.chunk(2)
            parts = guided_features(cond, uncond, cfg)
        gain = output_gain(sampling, torch.full((1,), state.sigma), state.x[:1])
        expected = tail.variance_to_latent(head.variance(parts)) * gain.square()
        assert torch.allclose(state.variance, expected, rtol=1e-3)
    assert beside.calls == len(looked), "one call of the network at each of these states"


@pytest.mark.parametrize("cfg", [1.0, 3.0])
def test_variance_in_the_latents_layout_is_brute_force(setup, cfg):
    """Each eigenvector of the posterior, added to every output column, moves a latent element by what it adds."""
    layer, head = find_last_layer(setup.model), random_head(find_last_layer(setup.model))
    latent = setup.latent["samples"][:1]
    eps = torch.randn(latent.shape, generator=torch.Generator().manual_seed(2))
    conditions = setup.positive, setup.negative, cfg
    tail = read_tail(setup.model, layer, setup.positive, latent)
    variance = denoised_variance(setup.model, layer, tail, head, latent, 0.6, eps, *conditions)

    brute_force = []

    def visit(denoise, x, sigma, x0):
        plain, total = denoise(x).double(), 0.0
        # Large enough to stand above float32 rounding; the output is linear in it.
        size = 30.0
        for vector, value in zip(head.precision.basis.T, head.precision.values):
            with layer.perturbed(size * vector[:, None].expand(-1, layer.geometry.out_features)):
                total = total + ((denoise(x).double() - plain) / size).square() / value
        brute_force.append(total)

    visit_state(setup.model, latent, 0.6, eps, *conditions, visit)
    scale = setup.model.model.latent_format.process_out(torch.ones_like(latent)) - (
        setup.model.model.latent_format.process_out(torch.zeros_like(latent))
    )
    expected = (brute_force[0] * scale.double().square()).float()
    assert variance.shape == latent.shape
    assert torch.allclose(variance, expected, rtol=1e-3, atol=1e-4 * float(expected.mean()))

"""Features on their way from the host to a head."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from bayesdiff.host.fitting import fit_head, output_gain, own_samples
from bayesdiff.host.last_layer import find_last_layer
from bayesdiff.nodes.head import GIVEN_LATENTS, OWN_SAMPLES, FitLaplaceHead


@pytest.fixture(autouse=True)
def inference_mode():
    with torch.inference_mode():
        yield


@pytest.fixture(scope="module")
def data(demo):
    model, positive, negative, _ = demo
    with torch.inference_mode():
        return own_samples(model, positive, negative, {"samples": torch.zeros(1, 4, 16, 16)}, 5, 4, 3.0, seed=1)


def test_own_samples_are_reproducible_and_differ(demo, data):
    model, positive, negative, _ = demo
    again = own_samples(model, positive, negative, {"samples": torch.zeros(1, 4, 16, 16)}, 5, 4, 3.0, seed=1)
    assert data.shape == (5, 4, 16, 16) and torch.equal(data, again)
    assert (data[0] - data[1]).abs().mean() > 0.1 * data.std()


def test_head_is_reproducible_and_says_where_it_comes_from(demo, data):
    model, positive, negative, _ = demo
    first, again = (fit_head(model, positive, negative, data, 2, 2048, 0, "test") for _ in range(2))
    assert torch.equal(first.eigenvalues, again.eigenvalues) and first.prior_precision == again.prior_precision
    assert first.about["network"] == "UNetModel" and first.about["layer"] == "out.2"
    assert first.about["prediction"] == "EPS" and first.about["latent_format"] == "SD15"
    assert first.about["images"] == "5" and first.geometry.width == 64 * 9 + 1
    noise = [float(value) for value in first.about["noise_std_by_sigma_bin"].split()]
    assert len(noise) == 10 and all(0 < value < 3 for value in noise)


def test_precision_counts_each_position_of_the_data_once(demo, data):
    """Noise levels and kept rows are a sample; the size of the posterior follows the data alone."""
    model, positive, negative, _ = demo

    def trace(data, levels, max_rows):
        head = fit_head(model, positive, negative, data, levels, max_rows, 0, "test")
        return float(head.eigenvalues.sum())

    base = trace(data, 8, 8192)
    assert trace(data, 16, 8192) == pytest.approx(base, rel=0.35)
    assert trace(data, 8, 2048) == pytest.approx(base, rel=0.35)
    assert trace(data.repeat(4, 1, 1, 1), 8, 8192) == pytest.approx(4 * base, rel=0.35)


def test_fitting_leaves_nothing_behind(demo, data):
    model, positive, negative, _ = demo
    layer = find_last_layer(model)
    fit_head(model, positive, negative, data, 1, 1024, 0, "test")
    assert not layer.module._forward_hooks and not layer.module._forward_pre_hooks and not model.wrappers
    weights = layer.module.weight.clone()

    def interrupt(module, args):
        raise KeyboardInterrupt

    handle = layer.module.register_forward_pre_hook(interrupt)
    with pytest.raises(KeyboardInterrupt):
        fit_head(model, positive, negative, data, 1, 1024, 0, "test")
    handle.remove()
    assert not layer.module._forward_hooks and not layer.module._forward_pre_hooks
    assert torch.equal(layer.module.weight, weights)


def test_output_gain_is_minus_sigma_for_an_eps_model(demo):
    sampling = demo[0].get_model_object("model_sampling")
    sigma = torch.tensor([0.5, 3.0])
    assert torch.allclose(output_gain(sampling, sigma, torch.zeros(2, 4, 3, 3))[:, 0, 0, 0], -sigma)


def fit_node(demo, fit_on):
    model, positive, negative, _ = demo
    empty = {"samples": torch.zeros(1, 4, 16, 16)}
    return FitLaplaceHead.execute(model, positive, negative, empty, fit_on, 4, 4, 3.0, 1, 1024, 0)


def test_an_empty_latent_is_no_data(demo):
    with pytest.raises(ValueError, match="Expected a latent of encoded pictures to fit on, got an empty latent"):
        fit_node(demo, GIVEN_LATENTS)


def test_without_laplace_torch_one_sentence_says_how_to_get_it_before_any_work(demo, monkeypatch):
    monkeypatch.setitem(sys.modules, "laplace", None)
    calls = []
    with (
        find_last_layer(demo[0]).watched(calls.append),
        pytest.raises(ModuleNotFoundError, match="python -m pip install laplace-torch"),
    ):
        fit_node(demo, OWN_SAMPLES)
    assert not calls


def test_the_packs_import_does_not_import_laplace_torch():
    code = (
        "import sys, in_process; in_process.import_host_and_pack()\n"
        "print([name for name in ('laplace', 'curvlinops', 'backpack', 'matplotlib') if name in sys.modules])"
    )
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert output.stdout.splitlines()[-1] == "[]"

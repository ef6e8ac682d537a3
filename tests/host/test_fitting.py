"""Features on their way from the host to a head."""

from __future__ import annotations

import pytest
import torch
from bayesdiff.host.fit import FitSettings, as_examples, fit_head, own_samples
from bayesdiff.host.identity import describe_model
from bayesdiff.host.last_layer import find_last_layer
from bayesdiff.host.posterior import Posterior
from bayesdiff.host.run.space import output_slope
from bayesdiff.host.settings import Guidance
from families import EVERY, set_up

pytestmark = pytest.mark.usefixtures("inference_mode")


@pytest.fixture(scope="module")
def data(demo):
    with torch.inference_mode():
        return five_samples(demo)


def five_samples(demo) -> torch.Tensor:
    model, positive, negative, _ = demo
    return own_samples(model, Guidance(positive, negative, 3.0), {"samples": torch.zeros(1, 4, 16, 16)}, 5, 4, seed=1)


def test_own_samples_are_reproducible_and_differ(demo, data):
    again = five_samples(demo)
    assert data.shape == (5, 4, 16, 16) and torch.equal(data, again)
    assert (data[0] - data[1]).abs().mean() > 0.1 * data.std()


def fit(demo, data, levels=2, cfg=3.0, **options):
    model, positive, negative, _ = demo
    return fit_head(model, as_examples(data, positive), negative, FitSettings(cfg, levels, **options))


def trace(head) -> float:
    """Size of H, from a head of full structure."""
    return float(head.precision.values.double().sum()) - head.geometry.width * head.prior_precision


def test_head_is_reproducible_and_says_where_it_comes_from(demo, data):
    first, again = (fit(demo, data, source="test") for _ in range(2))
    assert torch.equal(first.precision.values, again.precision.values)
    assert first.prior_precision == again.prior_precision
    about = first.about
    assert about["family"] == "SD15" and about["network"] == "UNetModel" and about["layer"] == "out.2"
    assert about["prediction"] == "EPS" and about["latent_format"] == "SD15" and about["lora"] == "none"
    assert about["images"] == "5" and about["data"] == "test" and about["structure"] == "low-rank"
    assert first.geometry.width == 64 * 9 + 1
    noise = [float(value) for value in about["noise_std"].split()]
    assert len(noise) == 2 and noise == sorted(noise), "eps is harder to tell where there is less of it"


def test_precision_counts_each_position_of_the_data_once(demo, data):
    """Sigmas and prompts of several parts are ways to look; the size of the posterior follows the data alone."""
    model, positive, negative, vae = demo
    base = trace(fit(demo, data, 8, structure="full"))
    assert trace(fit(demo, data, 16, structure="full")) == pytest.approx(base, rel=0.35)
    assert trace(fit(demo, data.repeat(4, 1, 1, 1), 8, structure="full")) == pytest.approx(4 * base, rel=0.35)
    combined = trace(fit((model, positive * 2, negative * 2, vae), data, 8, structure="full"))
    assert combined == pytest.approx(base, rel=1e-3)


def test_at_cfg_1_the_negative_prompt_does_not_count(demo, data):
    model, positive, negative, vae = demo
    other = (model, positive, positive, vae)
    assert torch.equal(fit(demo, data, cfg=1.0).precision.values, fit(other, data, cfg=1.0).precision.values)
    assert not torch.allclose(trace_of(demo, data), trace_of(other, data), rtol=1e-4)


def trace_of(demo, data):
    return torch.tensor(trace(fit(demo, data, structure="full")))


def layer_of(name: str, negative: dict, **more) -> str:
    """Where the layer is that a small model is fitted at, under prompts with more in them."""
    setup = set_up(name)
    prompt, other = ([[text, options | new] for text, options in setup.positive] for new in (more, negative))
    data = as_examples(torch.randn(setup.latent["samples"].shape, generator=torch.manual_seed(0)), prompt)
    return fit_head(setup.model, data, other, FitSettings(3.0, 2, own_images=0)).about["layer"]


@pytest.mark.skipif("OmniGen 2" not in EVERY, reason="this host lacks the family")
def test_a_prompt_with_references_runs_more_blocks_than_one_without():
    """No cache answers then: only prompts of one kind are alike."""
    assert layer_of("OmniGen 2", {}, reference_latents=[torch.ones(1, 16, 8, 8)]) == EVERY["OmniGen 2"].path


@pytest.mark.skipif("Wan dancer" not in EVERY, reason="this host lacks the family")
@pytest.mark.parametrize("fps, layer", [(30, "head.head"), (15, "head_global.head")])
def test_the_layer_that_runs_under_the_prompt_is_fitted(fps, layer):
    """Of two ends of the network the frame rate chooses one."""
    assert layer_of("Wan dancer", {"fps": fps}, fps=fps) == layer


def test_fitting_leaves_nothing_behind(demo, data):
    model, *_ = demo
    layer = find_last_layer(model)
    fit(demo, data, 1)
    assert not layer.module._forward_hooks and not layer.module._forward_pre_hooks and not model.wrappers
    weights = layer.module.weight.clone()

    def interrupt(module, args):
        raise KeyboardInterrupt

    handle = layer.module.register_forward_pre_hook(interrupt)
    with pytest.raises(KeyboardInterrupt):
        fit(demo, data, 1)
    handle.remove()
    assert not layer.module._forward_hooks and not layer.module._forward_pre_hooks
    assert torch.equal(layer.module.weight, weights)


# ---------------------------------------------------------------- patched, split and quantised models


def patched(model, strength: float):
    """The model with a LoRA-like patch on its last layer and on one in its body."""
    clone = model.clone()
    state = model.model.state_dict()
    keys = ["diffusion_model.out.2.weight", "diffusion_model.input_blocks.1.0.in_layers.2.weight"]
    assert len(clone.add_patches({k: ("diff", (torch.full_like(state[k], 0.01),)) for k in keys}, strength)) == 2
    return clone


def test_a_lora_is_part_of_what_is_fitted_and_a_change_of_it_is_a_warning(demo, data, caplog):
    model, positive, negative, vae = demo
    plain, lora = fit(demo, data), patched(model, 1.0)
    with_lora = fit((lora, positive, negative, vae), data)
    assert with_lora.prior_precision != plain.prior_precision
    assert with_lora.about["weights"] == plain.about["weights"], "the checkpoint below is the same"
    assert with_lora.about["lora"].startswith("2 patched weights")
    assert with_lora.about == with_lora.about | describe_model(patched(model, 1.0), find_last_layer(model))
    Posterior.bind(with_lora, lora)
    assert not caplog.text
    Posterior.bind(with_lora, patched(model, 0.5))
    assert "fitted on another merge or LoRA than this model's: 2 patched weights" in caplog.text
    caplog.clear()
    Posterior.bind(plain, lora)
    assert "another merge or LoRA than this model's: none against 2 patched weights" in caplog.text


def test_prompts_evaluated_apart_give_the_same_head(demo, data, monkeypatch):
    """Where memory is short the host calls the network for each prompt alone."""
    together = fit(demo, data, 2, structure="full")
    calls = []
    monkeypatch.setattr(demo[0].model, "memory_usage_factor", 1e12)
    with find_last_layer(demo[0]).watched(lambda features: calls.append(len(features))):
        apart = fit(demo, data, 2, structure="full")
    assert set(calls) == {4, 1}
    assert trace(apart) == pytest.approx(trace(together), rel=1e-4)


def test_a_model_in_fp8_is_fitted(demo, data):
    """Weights in float8, computing in float32: what the stock loader does for weight_dtype fp8_e4m3fn."""
    import comfy.supported_models
    from comfy.model_patcher import ModelPatcher

    model, positive, negative, vae = demo
    config = comfy.supported_models.SD15(dict(model.model.model_config.unet_config))
    config.unet_config = dict(model.model.model_config.unet_config)
    config.set_inference_dtype(torch.float8_e4m3fn, torch.float32)
    small = config.get_model({}, "", device=torch.device("cpu"))
    small.load_model_weights(model.model.state_dict(), "diffusion_model.")
    fp8 = ModelPatcher(small, model.load_device, model.offload_device)
    assert find_last_layer(fp8).module.weight.dtype == torch.float8_e4m3fn
    head = fit((fp8, positive, negative, vae), data)
    assert head.prior_precision == pytest.approx(fit(demo, data).prior_precision, rel=0.1)


def test_output_slope_is_minus_sigma_for_an_eps_model(demo):
    sampling = demo[0].get_model_object("model_sampling")
    sigma = torch.tensor([0.5, 3.0])
    assert torch.allclose(output_slope(sampling, sigma, torch.zeros(2, 4, 3, 3))[:, 0, 0, 0], -sigma)

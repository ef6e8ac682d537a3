"""Features on their way from the host to a head."""

from __future__ import annotations

import subprocess
import sys

import folder_paths
import pytest
import torch
from bayesdiff.host.fitting import as_examples, fit_head, own_samples
from bayesdiff.host.last_layer import check_head, describe_model, find_last_layer
from bayesdiff.host.state import output_gain
from bayesdiff.nodes.head import FOLDER, IMAGES, LATENTS, OWN_SAMPLES, FitLaplaceHead
from PIL import Image


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


def fit(demo, data, levels=2, cfg=3.0, **options):
    model, positive, negative, _ = demo
    return fit_head(model, as_examples(data, positive), negative, cfg, levels, 0, **options)


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
    assert about["pictures"] == "5" and about["data"] == "test" and about["structure"] == "low-rank"
    assert first.geometry.width == 64 * 9 + 1
    noise = [float(value) for value in about["noise_std"].split()]
    assert len(noise) == 2 and noise == sorted(noise), "eps is harder to tell where there is less of it"


def test_precision_counts_each_position_of_the_data_once(demo, data):
    """Noise levels and prompts of several parts are ways to look; the size of the posterior follows the data alone."""
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
    check_head(with_lora, lora)
    assert not caplog.text
    check_head(with_lora, patched(model, 0.5))
    assert "fitted on other LoRAs or patches (the head's lora: 2 patched weights" in caplog.text
    caplog.clear()
    check_head(plain, lora)
    assert "(the head's lora: none, this model's: 2 patched weights" in caplog.text


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


def test_output_gain_is_minus_sigma_for_an_eps_model(demo):
    sampling = demo[0].get_model_object("model_sampling")
    sigma = torch.tensor([0.5, 3.0])
    assert torch.allclose(output_gain(sampling, sigma, torch.zeros(2, 4, 3, 3))[:, 0, 0, 0], -sigma)


# ---------------------------------------------------------------- the node and its sources


def fit_node(demo, fit_on, latent=None, folder="input", **optional):
    model, positive, negative, _ = demo
    latent = latent or {"samples": torch.zeros(1, 4, 16, 16)}
    return FitLaplaceHead.execute(
        model, positive, negative, latent, fit_on, 4, 4, 3.0, 1, "low-rank", 0.9, 0, folder, **optional
    ).args[0]


@pytest.fixture
def folder(demo, data, tmp_path, monkeypatch):
    """A folder of pictures of two sizes in the input folder, one with a caption."""
    monkeypatch.setattr(folder_paths, "input_directory", str(tmp_path))
    path = tmp_path / "owls"
    path.mkdir()
    for number, picture in enumerate(demo[3].decode(data)):
        image = Image.fromarray((picture.clamp(0, 1) * 255).byte().numpy())
        image.resize((128, 128) if number else (200, 150)).save(path / f"{number}.png")
    (path / "2.txt").write_text("a snowy owl")
    (path / "notes.doc").write_text("not a picture")
    return path


def small_clip():
    """The host's own SD1 text encoder, small and with random weights, as wide as the demo model's prompts."""
    import comfy.sd
    import comfy.sd1_clip
    import comfy.supported_models_base

    config = dict(
        architectures=["CLIPTextModel"], hidden_act="quick_gelu", hidden_size=96, intermediate_size=192,
        max_position_embeddings=77, num_attention_heads=4, num_hidden_layers=2, projection_dim=96, vocab_size=49408,
        eos_token_id=49407, layer_norm_eps=1e-5, pad_token_id=1, model_type="clip_text_model", torch_dtype="float32",
    )  # fmt: skip

    class Encoder(comfy.sd1_clip.SDClipModel):
        def __init__(self, **options):
            super().__init__(layer="last", textmodel_json_config=config, **options)

    class Model(comfy.sd1_clip.SD1ClipModel):
        def __init__(self, **options):
            super().__init__(clip_model=Encoder, **options)

    target = comfy.supported_models_base.ClipTarget(comfy.sd1_clip.SD1Tokenizer, Model)
    clip = comfy.sd.CLIP(target)
    generator = torch.Generator().manual_seed(0)
    for parameter in clip.cond_stage_model.parameters():
        parameter.data.copy_(0.2 * torch.randn(parameter.shape, generator=generator))
    return clip


def test_images_are_encoded_and_scaled_to_the_latents_size(demo, data):
    vae = demo[3]
    images = (vae.decode(data).clamp(0, 1) * 255).round() / 255  # as in a file
    from_images = fit_node(demo, IMAGES, image=images, vae=vae)
    assert from_images.about["pictures"] == "5" and from_images.about["data"] == "images"
    from_latents = fit_node(demo, LATENTS, {"samples": torch.cat([vae.encode(image[None]) for image in images])})
    assert from_latents.prior_precision == pytest.approx(from_images.prior_precision, rel=1e-3)
    small = torch.nn.functional.interpolate(images.movedim(-1, 1), size=(96, 112)).movedim(1, -1)
    assert fit_node(demo, IMAGES, image=small, vae=vae).about["pictures"] == "5"


def test_a_folder_and_its_captions(demo, folder):
    vae = demo[3]
    plain = fit_node(demo, FOLDER, folder="input/owls", vae=vae)
    assert plain.about["pictures"] == "5" and plain.about["data"] == "input/owls, 0 of 5 with captions"
    captioned = fit_node(demo, FOLDER, folder="input/owls", vae=vae, clip=small_clip())
    assert captioned.about["data"] == "input/owls, 1 of 5 with captions"
    assert captioned.prior_precision != plain.prior_precision


def test_a_folder_is_read_again_when_it_changes(folder):
    def state():
        return FitLaplaceHead.fingerprint_inputs(fit_on=FOLDER, folder="input/owls", steps=4)

    before = state()
    assert before == state()
    (folder / "0.png").unlink()
    assert state() != before
    assert FitLaplaceHead.fingerprint_inputs(fit_on=LATENTS, folder="input/owls") is None


def test_a_source_without_data_is_one_sentence(demo, data, folder):
    vae, images = demo[3], demo[3].decode(data)
    with pytest.raises(ValueError, match="Expected a latent of encoded pictures to fit on, got an empty latent"):
        fit_node(demo, LATENTS)
    with pytest.raises(ValueError, match="Expected the input vae and the input image to fit on 'images', got nothing"):
        fit_node(demo, IMAGES)
    with pytest.raises(ValueError, match="Expected the input image to fit on 'images'"):
        fit_node(demo, IMAGES, vae=vae)
    with pytest.raises(ValueError, match="Expected the input vae to fit on 'folder'"):
        fit_node(demo, FOLDER, image=images)
    with pytest.raises(ValueError, match="Expected pictures in the folder input, got none"):
        fit_node(demo, FOLDER, vae=vae)


def test_broken_files_in_a_folder_are_one_sentence(demo, folder):
    vae = demo[3]
    (folder / "4.txt").write_bytes("Möwe".encode("latin-1"))
    with pytest.raises(ValueError, match="Expected a caption in UTF-8, but 4.txt"):
        fit_node(demo, FOLDER, folder="input/owls", vae=vae, clip=small_clip())
    (folder / "3.png").write_bytes((folder / "3.png").read_bytes()[:200])
    with pytest.raises(ValueError, match="Expected a picture such as PNG, JPEG or WebP, but 3.png cannot be read"):
        fit_node(demo, FOLDER, folder="input/owls", vae=vae)


def test_without_laplace_torch_one_sentence_says_how_to_get_it_before_any_work(demo, monkeypatch):
    monkeypatch.setitem(sys.modules, "laplace", None)
    calls = []
    with (
        find_last_layer(demo[0]).watched(calls.append),
        pytest.raises(ModuleNotFoundError, match="-m pip install laplace-torch"),
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

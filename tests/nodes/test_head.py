"""Fit Laplace Head and its sources of data."""

from __future__ import annotations

import subprocess
import sys

import folder_paths
import node_helpers
import pytest
import torch
from bayesdiff.host.last_layer import find_last_layer
from bayesdiff.nodes.head import FOLDER, IMAGES, LATENTS, OWN_SAMPLES, FitLaplaceHead
from PIL import Image
from running import stock

pytestmark = pytest.mark.usefixtures("inference_mode")


@pytest.fixture(scope="module")
def data(demo):
    """Five latents of images."""
    with torch.inference_mode():
        return stock(demo, {"samples": torch.zeros(5, 4, 16, 16)})["samples"]


def fit_node(demo, fit_on, latent=None, folder="input", **optional):
    model, positive, negative, _ = demo
    settings = dict(samples=4, steps=4, cfg=3.0, noise_levels=1, structure="low-rank", explained_variance=0.9, seed=0)
    return FitLaplaceHead.execute(
        model=model,
        positive=positive,
        negative=negative,
        latent=latent or {"samples": torch.zeros(1, 4, 16, 16)},
        fit_on=fit_on,
        folder=folder,
        **settings,
        **optional,
    ).args[0]


@pytest.fixture
def folder(demo, data, tmp_path, monkeypatch):
    """A folder of images of two sizes in the input folder, one with a caption."""
    monkeypatch.setattr(folder_paths, "input_directory", str(tmp_path))
    path = tmp_path / "owls"
    path.mkdir()
    for number, pixels in enumerate(demo[3].decode(data)):
        image = Image.fromarray((pixels.clamp(0, 1) * 255).byte().numpy())
        image.resize((128, 128) if number else (200, 150)).save(path / f"{number}.png")
    (path / "2.txt").write_text("a snowy owl")
    (path / "notes.doc").write_text("not an image")
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
    assert from_images.about["images"] == "5" and from_images.about["data"] == "images"
    from_latents = fit_node(demo, LATENTS, {"samples": torch.cat([vae.encode(image[None]) for image in images])})
    assert from_latents.prior_precision == pytest.approx(from_images.prior_precision, rel=1e-3)
    small = torch.nn.functional.interpolate(images.movedim(-1, 1), size=(96, 112)).movedim(1, -1)
    assert fit_node(demo, IMAGES, image=small, vae=vae).about["images"] == "5"


def test_a_folder_and_its_captions(demo, folder):
    vae = demo[3]
    plain = fit_node(demo, FOLDER, folder="input/owls", vae=vae)
    assert plain.about["images"] == "5" and plain.about["data"] == "input/owls, 0 of 5 with captions"
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
    with pytest.raises(ValueError, match="Expected a latent of encoded images to fit on, got an empty latent"):
        fit_node(demo, LATENTS)
    with pytest.raises(ValueError, match="Expected the input vae and the input image to fit on 'images', got nothing"):
        fit_node(demo, IMAGES)
    with pytest.raises(ValueError, match="Expected the input image to fit on 'images'"):
        fit_node(demo, IMAGES, vae=vae)
    with pytest.raises(ValueError, match="Expected the input vae to fit on 'folder'"):
        fit_node(demo, FOLDER, image=images)
    with pytest.raises(ValueError, match="Expected images in the folder input, got none"):
        fit_node(demo, FOLDER, vae=vae)


def test_broken_files_in_a_folder_are_one_sentence(demo, folder):
    vae = demo[3]
    (folder / "4.txt").write_bytes("Möwe".encode("latin-1"))
    with pytest.raises(ValueError, match="Expected a caption in UTF-8, but 4.txt"):
        fit_node(demo, FOLDER, folder="input/owls", vae=vae, clip=small_clip())
    (folder / "3.png").write_bytes((folder / "3.png").read_bytes()[:200])
    with pytest.raises(ValueError, match="Expected an image such as PNG, JPEG or WebP, but 3.png cannot be read"):
        fit_node(demo, FOLDER, folder="input/owls", vae=vae)


def test_prompts_with_guides_are_one_sentence(demo):
    """As LTXVAddGuide leaves them: they belong to one latent and its mask."""
    guided = node_helpers.conditioning_set_values(demo[1], {"keyframe_idxs": torch.zeros(1, 3, 4)})
    with pytest.raises(ValueError, match=r"Expected prompts without guide frames to fit a head under"):
        fit_node((demo[0], guided, *demo[2:]), OWN_SAMPLES)


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

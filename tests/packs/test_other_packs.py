"""Other people's packs beside this one, in one graph on a real server: ``python dev.py test --packs FOLDER``.

FOLDER holds checkouts of ComfyUI-GGUF, ComfyUI-Inpaint-CropAndStitch, ComfyUI-KJNodes and ComfyUI-Impact-Pack, or of
some of them, under these names; what they need is installed for the Python that runs the tests.
"""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import comfy.ops
import comfy_server
import folder_paths
import nodes
import numpy
import pytest
import safetensors.torch
import torch
from bayesdiff.host.settings import Guidance
from bayesdiff.nodes.sampler import KSamplerBayesDiff
from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel
from factory import fit_own_head, sampler_inputs
from PIL import Image

# A node of each pack, which shows that it loaded.
PACKS = {
    "ComfyUI-GGUF": "UnetLoaderGGUF",
    "ComfyUI-Inpaint-CropAndStitch": "InpaintCropImproved",
    "ComfyUI-KJNodes": "GrowMaskWithBlur",
    "ComfyUI-Impact-Pack": "MaskToSEGS",
}


def pack_folder(name: str) -> Path:
    folder = Path(os.environ.get("BAYESDIFF_PACKS", "")) / name
    if "BAYESDIFF_PACKS" not in os.environ or not folder.is_dir():
        pytest.fail(
            f"Expected a checkout of {name} in the folder of --packs, got none; put it there and run: "
            "python dev.py test --packs FOLDER",
            pytrace=False,
        )
    return folder


@pytest.fixture(scope="module")
def server_of_packs(tmp_path_factory):
    """A server with this pack and all of the others that the folder holds."""
    folders = [Path(os.environ.get("BAYESDIFF_PACKS", "")) / name for name in PACKS]
    packs = tuple(folder for folder in folders if folder.is_dir())
    with comfy_server.ComfyServer(tmp_path_factory.mktemp("packs"), packs=packs) as running:
        yield running


@pytest.fixture
def together(server_of_packs, request):
    """That server, for a test of the pack that its ``needs`` names."""
    name = request.node.get_closest_marker("needs").args[0]
    pack_folder(name)
    log = server_of_packs.log()
    assert PACKS[name] in server_of_packs.object_info(), f"{name} did not load, see the log:\n{log[-4000:]}"
    return server_of_packs


def node(class_type: str, **inputs) -> dict:
    return {"class_type": class_type, "inputs": inputs}


PROMPTS = dict(positive=["demo", 1], negative=["demo", 2])
SETTINGS = PROMPTS | dict(seed=31, steps=6, cfg=3.0, sampler_name="dpmpp_2m", scheduler="karras", denoise=1.0)
UNCERTAIN = dict(head=["fit", 0], quality="balanced", members=8)


def base_graph() -> dict:
    """An image of the demo model, and a hard mask of its least certain fifth."""
    return {
        "demo": node("BayesDiffDemoModel", prompt="owl"),
        "empty": node("EmptyLatentImage", width=128, height=128, batch_size=1),
        "fit": node(
            "BayesDiffFitLaplaceHead", model=["demo", 0], latent=["empty", 0], fit_on="own samples", samples=8,
            steps=6, cfg=3.0, noise_levels=2, structure="low-rank", explained_variance=0.99, seed=0, folder="input",
            **PROMPTS,
        ),
        "first": node("BayesDiffKSampler", model=["demo", 0], latent_image=["empty", 0], **SETTINGS, **UNCERTAIN),
        "image": node("VAEDecode", samples=["first", 0], vae=["demo", 3]),
        "mask": node("BayesDiffUncertaintyToMask", uncertainty=["first", 1], area=0.2, grow=0, blur=0.0),
        "show_mask": node("MaskPreview", mask=["mask", 0]),
    }  # fmt: skip


def twins(graph: dict, model: list, latent: list, **changes) -> dict:
    """The stock sampler and ours on the same model and latent, their latents saved, and ours as a mask."""
    inputs = SETTINGS | changes | dict(model=model, latent_image=latent)
    return graph | {
        "stock": node("KSampler", **inputs),
        "ours": node("BayesDiffKSampler", **inputs, **UNCERTAIN),
        "save_stock": node("SaveLatent", samples=["stock", 0], filename_prefix="stock"),
        "save_ours": node("SaveLatent", samples=["ours", 0], filename_prefix="ours"),
        "our_mask": node("BayesDiffUncertaintyToMask", uncertainty=["ours", 1], area=0.2, grow=0, blur=0.0),
        "show_our_mask": node("MaskPreview", mask=["our_mask", 0]),
    }


def latents(server, entry) -> tuple[torch.Tensor, torch.Tensor]:
    files = server.files(entry, "latents")
    stock, ours = (safetensors.torch.load_file(files[name][0])["latent_tensor"] for name in ("save_stock", "save_ours"))
    return stock, ours


def pixels(server, entry, name: str) -> numpy.ndarray:
    return numpy.asarray(Image.open(server.files(entry)[name][0]).convert("RGB"), dtype=numpy.int16)


@pytest.mark.needs("ComfyUI-Impact-Pack")
def test_impacts_segs_of_our_mask_have_its_box(together):
    graph = base_graph() | {
        "segs": node(
            "MaskToSEGS", mask=["mask", 0], combined=True, crop_factor=1.0, bbox_fill=False, drop_size=1,
            contour_fill=False,
        ),
        "parts": node("ImpactDecomposeSEGS", segs=["segs", 0]),
        "part": node("ImpactFrom_SEG_ELT", seg_elt=["parts", 1]),
        "box": node("ImpactFrom_SEG_ELT_bbox", bbox=["part", 4]),
        "back": node("SegsToCombinedMask", segs=["segs", 0]),
        "show_back": node("MaskPreview", mask=["back", 0]),
    }  # fmt: skip
    sides = ("left", "top", "right", "bottom")
    graph |= {side: node("PreviewAny", source=["box", at]) for at, side in enumerate(sides)}
    entry = together.run(graph)
    mask = pixels(together, entry, "show_mask")[..., 0] > 127
    assert 0.1 < mask.mean() < 0.3
    rows, columns = numpy.flatnonzero(mask.any(1)), numpy.flatnonzero(mask.any(0))
    box = [int(entry["outputs"][side]["text"][0]) for side in sides]
    assert box == [columns[0], rows[0], columns[-1], rows[-1]]
    back = pixels(together, entry, "show_back")[..., 0] > 127
    # Its crop leaves out the last row and column of the box.
    inside = (slice(rows[0], rows[-1]), slice(columns[0], columns[-1]))
    assert numpy.array_equal(back[inside], mask[inside]) and back.sum() == back[inside].sum()


@pytest.mark.needs("ComfyUI-Inpaint-CropAndStitch")
def test_a_crop_around_our_mask_is_sampled_and_stitched(together):
    graph = base_graph() | {
        "crop": node(
            "InpaintCropImproved", image=["image", 0], mask=["mask", 0], downscale_algorithm="bilinear",
            upscale_algorithm="bicubic", preresize=False, preresize_mode="ensure minimum resolution",
            preresize_min_width=128, preresize_min_height=128, preresize_max_width=1024, preresize_max_height=1024,
            mask_fill_holes=False, mask_expand_pixels=0, mask_invert=False, mask_blend_pixels=0,
            mask_hipass_filter=0.1, extend_for_outpainting=False, extend_up_factor=1.0, extend_down_factor=1.0,
            extend_left_factor=1.0, extend_right_factor=1.0, context_from_mask_extend_factor=1.2,
            output_resize_to_target_size=True, output_target_width=128, output_target_height=128, output_padding="8",
            device_mode="cpu (compatible)",
        ),
        "encoded": node("VAEEncode", pixels=["crop", 1], vae=["demo", 3]),
        "masked": node("SetLatentNoiseMask", samples=["encoded", 0], mask=["crop", 2]),
        "repaired": node("VAEDecode", samples=["ours", 0], vae=["demo", 3]),
        "stitched": node("InpaintStitchImproved", stitcher=["crop", 0], inpainted_image=["repaired", 0]),
        "before": node("PreviewImage", images=["image", 0]),
        "after": node("PreviewImage", images=["stitched", 0]),
    }  # fmt: skip
    entry = together.run(twins(graph, ["demo", 0], ["masked", 0], seed=32))
    stock, ours = latents(together, entry)
    assert torch.equal(ours, stock)
    before, after = (pixels(together, entry, name) for name in ("before", "after"))
    mask = pixels(together, entry, "show_mask")[..., 0] > 127
    changed = abs(after - before).max(axis=2)
    assert changed[mask].mean() > 5
    far = ~numpy.asarray(torch.nn.functional.max_pool2d(torch.tensor(mask)[None].float(), 9, 1, 4)[0].bool())
    assert far.any() and not changed[far].any()


@pytest.mark.needs("ComfyUI-KJNodes")
def test_kjnodes_patches_and_masks_before_our_sampler(together):
    graph = base_graph() | {
        "settings": node("ModelPatchTorchSettings", model=["demo", 0], enable_fp16_accumulation=False),
        "zero_star": node("CFGZeroStarAndInit", model=["settings", 0], use_zero_init=True, zero_init_steps=0),
        "grown": node(
            "GrowMaskWithBlur", mask=["mask", 0], expand=6, incremental_expandrate=0.0, tapered_corners=True,
            flip_input=False, blur_radius=4.0, lerp_alpha=1.0, decay_factor=1.0,
        ),
        "small": node(
            "ResizeMask", mask=["grown", 0], width=64, height=64, keep_proportions=False, upscale_method="bilinear",
            crop="disabled",
        ),
        "differential": node(
            "DifferentialDiffusionAdvanced", model=["zero_star", 0], samples=["first", 0], mask=["small", 0],
            multiplier=1.0,
        ),
        "plain": node("KSampler", model=["demo", 0], latent_image=["differential", 1], **(SETTINGS | {"seed": 33})),
        "save_plain": node("SaveLatent", samples=["plain", 0], filename_prefix="plain"),
    }  # fmt: skip
    entry = together.run(twins(graph, ["differential", 0], ["differential", 1], seed=33))
    stock, ours = latents(together, entry)
    assert torch.equal(ours, stock)
    plain = safetensors.torch.load_file(together.files(entry, "latents")["save_plain"][0])["latent_tensor"]
    assert not torch.allclose(plain, stock, atol=0.1), "the patches did nothing"
    found, grown = pixels(together, entry, "show_our_mask")[..., 0] > 127, pixels(together, entry, "show_mask")[..., 0]
    assert 0.05 < found.mean() < 0.4 and grown.mean() > 0


@pytest.mark.needs("ComfyUI-KJNodes")
def test_a_guider_of_kjnodes_with_our_custom_sampler(together):
    shared = dict(noise=["noise", 0], guider=["guider", 0], sampler=["sampler", 0], sigmas=["sigmas", 0])
    graph = base_graph() | {
        "noise": node("RandomNoise", noise_seed=34),
        "guider": node(
            "ScheduledCFGGuidance", model=["demo", 0], cfg=4.0, start_percent=0.0, end_percent=0.5, **PROMPTS
        ),
        "sampler": node("KSamplerSelect", sampler_name="euler_ancestral"),
        "sigmas": node("BasicScheduler", model=["demo", 0], scheduler="normal", steps=6, denoise=1.0),
        "stock": node("SamplerCustomAdvanced", latent_image=["empty", 0], **shared),
        "ours": node("BayesDiffSamplerCustomAdvanced", latent_image=["empty", 0], **shared, **UNCERTAIN),
        "save_stock": node("SaveLatent", samples=["stock", 0], filename_prefix="stock"),
        "save_ours": node("SaveLatent", samples=["ours", 0], filename_prefix="ours"),
        "scores": node("PreviewAny", source=["ours", 3]),
    }
    entry = together.run(graph)
    stock, ours = latents(together, entry)
    assert torch.equal(ours, stock) and float(entry["outputs"]["scores"]["text"][0]) > 0


# ---------------------------------------------------------------- a quantised model

# SD 1.5's blocks at two of its four resolutions, once each: what the host still takes for an SD 1.5.
SMALL = dict(
    image_size=32, in_channels=4, out_channels=4, model_channels=320, channel_mult=[1, 2], num_res_blocks=[1, 1],
    transformer_depth=[1, 1], transformer_depth_output=[1, 1, 1, 1], transformer_depth_middle=1, context_dim=768,
    num_heads=8, num_head_channels=-1, use_spatial_transformer=True, use_linear_in_transformer=False, legacy=False,
)  # fmt: skip


def write_gguf(path: Path) -> int:
    """Such a UNet with random weights, its linear layers in 8 bits; the number of these."""
    import gguf

    generator, quantised = torch.Generator().manual_seed(0), 0
    with torch.device("meta"):
        unet = UNetModel(**SMALL, operations=comfy.ops.disable_weight_init)
    writer = gguf.GGUFWriter(path, "sd1")
    for key, parameter in unet.state_dict().items():
        noise = torch.randn(parameter.shape, generator=generator)
        if parameter.ndim == 1:
            noise = 0.1 * noise + (0 if key.endswith("bias") else 1)
        else:
            noise *= parameter[0].numel() ** -0.5
        kind = gguf.GGMLQuantizationType.F32
        if parameter.ndim == 2:
            kind, quantised = gguf.GGMLQuantizationType.Q8_0, quantised + 1
        writer.add_tensor(key, gguf.quants.quantize(noise.numpy(), kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return quantised


def test_a_quantised_unet_is_fitted_and_sampled(tmp_path):
    """The loader of ComfyUI-GGUF, a head of what it loads, and a run: the stock latent, and nothing dequantised."""
    assert asyncio.run(nodes.load_custom_node(str(pack_folder("ComfyUI-GGUF")))), "ComfyUI-GGUF did not load"
    quantised = write_gguf(tmp_path / "small.gguf")
    folder_paths.add_model_folder_path("diffusion_models", str(tmp_path))
    with torch.inference_mode():
        model = nodes.NODE_CLASS_MAPPINGS["UnetLoaderGGUF"]().load_unet("small.gguf")[0]

        def kept() -> int:
            parameters = model.model.diffusion_model.parameters()
            return sum(getattr(p, "tensor_type", None) is not None and p.tensor_type.name == "Q8_0" for p in parameters)

        assert kept() == quantised > 20
        generator = torch.Generator().manual_seed(1)
        positive, negative = ([[torch.randn(1, 77, 768, generator=generator), {}]] for _ in range(2))
        latent = {"samples": torch.zeros(1, 4, 16, 16)}
        head = fit_own_head(model, Guidance(positive, negative, 3.0), (4, 16, 16), 4, 4, 2)
        inputs = sampler_inputs((model, positive, negative), seed=5) | {"latent_image": latent}
        before = nodes.KSampler().sample(**inputs)[0]["samples"]
        ours, uncertainty, *_ = KSamplerBayesDiff.execute(**inputs, head=head, quality="balanced", members=8).result
        after = nodes.KSampler().sample(**inputs)[0]["samples"]
    assert torch.equal(ours["samples"], before) and torch.equal(after, before)
    assert torch.isfinite(uncertainty.variance).all() and uncertainty.variance.mean() > 0
    assert kept() == quantised

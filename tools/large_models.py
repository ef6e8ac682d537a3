"""Networks of real sizes with random weights, for benchmarks.

UNets in the shape of SD 1.5 and SDXL, as files that the stock loader reads, and a Flux and a Wan of full width with few
blocks.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import comfy.ops
import folder_paths
import nodes
import safetensors.torch
import torch
from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel
from comfy.model_patcher import ModelPatcher
from families import FAMILIES
from family import Family

COMMON = dict(
    image_size=32,
    in_channels=4,
    out_channels=4,
    model_channels=320,
    num_head_channels=-1,
    use_spatial_transformer=True,
    legacy=False,
)
CONFIGS = {
    "SD 1.5": dict(
        COMMON,
        num_res_blocks=[2, 2, 2, 2],
        channel_mult=[1, 2, 4, 4],
        transformer_depth=[1, 1, 1, 1, 1, 1, 0, 0],
        transformer_depth_output=[1] * 9 + [0] * 3,
        transformer_depth_middle=1,
        context_dim=768,
        num_heads=8,
        use_linear_in_transformer=False,
    ),
    "SDXL": dict(
        COMMON,
        num_res_blocks=[2, 2, 2],
        channel_mult=[1, 2, 4],
        transformer_depth=[0, 0, 2, 2, 10, 10],
        transformer_depth_output=[0, 0, 0, 2, 2, 2, 10, 10, 10],
        transformer_depth_middle=10,
        context_dim=2048,
        num_head_channels=64,
        use_linear_in_transformer=True,
        num_classes="sequential",
        adm_in_channels=2816,
    ),
}
# As wide as Flux at its end, and short: what is measured beside it weighs more than beside 57 blocks.
WIDE_FLUX: Family = dataclasses.replace(
    FAMILIES["Flux"],
    options=FAMILIES["Flux"].options
    | dict(hidden_size=3072, num_heads=24, mlp_ratio=1.0, depth=0, depth_single_blocks=1, axes_dim=[16, 56, 56]),
    latent=(1, 16, 128, 128),
)
# As wide as Wan 2.1's 1.3B, with three of its thirty blocks, and a clip of 33 frames at 480p.
WIDE_WAN: Family = dataclasses.replace(
    FAMILIES["Wan"],
    options=FAMILIES["Wan"].options | dict(dim=1536, ffn_dim=8960, num_heads=12, num_layers=3, freq_dim=256),
    latent=(1, 16, 9, 60, 104),
)
EXTRAS = {"SD 1.5": {}, "SDXL": {"pooled_output": torch.full((1, 1280), 0.3)}}


def write_unet(name: str, path: Path) -> None:
    """A float16 UNet file with random weights of a size that keeps activations in range."""
    with torch.device("meta"):
        unet = UNetModel(**CONFIGS[name], dtype=torch.float16, operations=comfy.ops.disable_weight_init)
    generator, tensors = torch.Generator().manual_seed(0), {}
    for key, parameter in unet.state_dict().items():
        fan_in = max(parameter[0].numel(), 1)
        noise = torch.randn(parameter.shape, generator=generator)
        noise = 1 + 0.1 * noise if parameter.ndim == 1 and key.endswith("weight") else noise * fan_in**-0.5
        tensors[f"model.diffusion_model.{key}"] = (0.1 * noise if key.endswith("bias") else noise).half()
    safetensors.torch.save_file(tensors, path)


def load_unet(name: str, folder: Path) -> ModelPatcher:
    """Such a UNet through the stock loader node."""
    path = folder / f"{name}.safetensors"
    if not path.exists():
        write_unet(name, path)
    folder_paths.add_model_folder_path("diffusion_models", str(folder))
    return nodes.UNETLoader().load_unet(path.name, "default")[0]


def conditioning(name: str, seed: int) -> list:
    """A random prompt of 77 tokens."""
    generator = torch.Generator().manual_seed(seed)
    return [[torch.randn(1, 77, CONFIGS[name]["context_dim"], generator=generator), dict(EXTRAS[name])]]

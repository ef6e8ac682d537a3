"""The demo model: the host's own classes around the small weights in ``demo_model/``."""

from __future__ import annotations

import json
from pathlib import Path

import comfy.model_management
import comfy.sd
import comfy.supported_models
import comfy.utils
import safetensors
import torch
from comfy.model_patcher import ModelPatcher

FOLDER = Path(__file__).resolve().parent.parent / "demo_model"
UNET, VAE = FOLDER / "emoji_unet.safetensors", FOLDER / "emoji_vae.safetensors"


def read_metadata() -> dict[str, str]:
    with safetensors.safe_open(UNET, framework="pt") as file:
        return file.metadata()


def prompt_names() -> list[str]:
    """Every prompt: the emoji that training ended on, by name, and each of their kinds as "any ..."."""
    return list(json.loads(read_metadata()["prompts"]))


def load_demo_model(prompt: str) -> tuple[ModelPatcher, list, list, comfy.sd.VAE]:
    """Model, positive and negative conditioning, and VAE.

    The conditioning is a sequence of learned tokens: category, subcategory and the words of the name; the negative
    one is the empty prompt that training saw in place of dropped ones.
    """
    metadata = read_metadata()
    weights = comfy.utils.load_torch_file(str(UNET))
    embedding = weights.pop("conditioning.embedding").float()
    ids = torch.tensor([json.loads(metadata["prompts"])[prompt]])
    positive, negative = [[embedding[ids], {}]], [[embedding[torch.zeros_like(ids)], {}]]
    vae = comfy.sd.VAE(sd=comfy.utils.load_torch_file(str(VAE)))
    return build_unet(json.loads(metadata["unet_config"]), weights), positive, negative, vae


def build_unet(unet_config: dict, weights: dict[str, torch.Tensor]) -> ModelPatcher:
    """An SD1-type model (eps prediction, SD1's schedule and latent scale) of another size."""
    config = comfy.supported_models.SD15(unet_config)
    config.unet_config = unet_config  # SD15 would fix the number of attention heads
    load_device = comfy.model_management.get_torch_device()
    offload_device = comfy.model_management.unet_offload_device()
    parameters = sum(tensor.numel() for tensor in weights.values())
    dtype = comfy.model_management.unet_dtype(
        model_params=parameters, supported_dtypes=config.supported_inference_dtypes
    )
    manual_cast_dtype = comfy.model_management.unet_manual_cast(dtype, load_device, config.supported_inference_dtypes)
    config.set_inference_dtype(dtype, manual_cast_dtype)
    model = config.get_model(weights, "", device=offload_device)
    model.load_model_weights(weights, "diffusion_model.")
    return ModelPatcher(model, load_device=load_device, offload_device=offload_device)

"""The benchmarks' second model: a rectified flow of garments, on pixels; ``demo_model/train_fashion.py`` made it."""

from __future__ import annotations

import json
from pathlib import Path

import comfy.latent_formats
import comfy.model_management
import comfy.sd
import comfy.supported_models
import comfy.utils
import safetensors
import torch
from comfy.model_patcher import ModelPatcher

WEIGHTS = Path(__file__).resolve().parent.parent / "demo_model" / "fashion_flow.safetensors"


def read_metadata() -> dict[str, str]:
    with safetensors.safe_open(WEIGHTS, framework="pt") as file:
        return file.metadata()


def kinds() -> list[str]:
    """The ten kinds of garment, each a prompt, in the order of the data set's labels."""
    return list(json.loads(read_metadata()["prompts"]))


def load_fashion_model(kind: str) -> tuple[ModelPatcher, list, list, comfy.sd.VAE]:
    """Model, positive and negative conditioning, and VAE (the host's pixel space), as ``load_demo_model`` gives them.

    A latent is ``(n, 3, 32, 32)``, the image's colours from -1 to 1, all three alike.
    """
    metadata = read_metadata()
    weights = comfy.utils.load_torch_file(str(WEIGHTS))
    embedding = weights.pop("conditioning.embedding").float()
    tokens = [json.loads(metadata["prompts"])[kind], [0]]
    positive, negative = ([[embedding[torch.tensor([ids])], {}]] for ids in tokens)
    options = json.loads(metadata["config"])
    config = comfy.supported_models.AuraFlow(options)
    config.unet_config, config.latent_format = options, comfy.latent_formats.ChromaRadiance()
    config.set_inference_dtype(torch.float32, None)
    model = config.get_model(weights, "", device=torch.device("cpu"))
    model.load_model_weights(weights, "diffusion_model.")
    device = comfy.model_management.get_torch_device()
    patcher = ModelPatcher(model, load_device=device, offload_device=torch.device("cpu"))
    return patcher, positive, negative, comfy.sd.VAE(sd={"pixel_space_vae": torch.tensor(1.0)})

"""The benchmarks' third model: handwritten digits, v-prediction on pixels; ``demo_model/train_digits.py`` made it."""

from __future__ import annotations

import json
from pathlib import Path

import comfy.latent_formats
import comfy.model_base
import comfy.model_management
import comfy.sd
import comfy.supported_models_base
import comfy.utils
import safetensors
import torch
from comfy.model_patcher import ModelPatcher

WEIGHTS = Path(__file__).resolve().parent.parent / "demo_model" / "digits_unet.safetensors"


class GreyPixels(comfy.latent_formats.LatentFormat):
    """The image itself, in one channel from -1 to 1."""

    latent_channels = 1
    spacial_downscale_ratio = 1
    latent_rgb_factors = [[1.0, 1.0, 1.0]]


class Digits(comfy.supported_models_base.BASE):
    """A UNet with v-prediction and SD1's noise schedule."""

    unet_extra_config = {}
    latent_format = GreyPixels

    def model_type(self, state_dict, prefix=""):
        return comfy.model_base.ModelType.V_PREDICTION


def read_metadata() -> dict[str, str]:
    with safetensors.safe_open(WEIGHTS, framework="pt") as file:
        return file.metadata()


def digits() -> list[str]:
    """The ten digits, each a prompt, in the order of the data set's labels."""
    return list(json.loads(read_metadata()["prompts"]))


def grey_vae() -> comfy.sd.VAE:
    """The host's pixel space, whose one channel becomes three alike, and comes from their mean."""
    vae = comfy.sd.VAE(sd={"pixel_space_vae": torch.tensor(1.0)})
    to_latent, to_image = vae.process_input, vae.process_output
    vae.latent_channels = 1
    vae.process_input = lambda image: to_latent(image.mean(1, keepdim=True))
    # Of several channels, which tiled decoding makes, all are alike.
    vae.process_output = lambda latent: to_image(latent[:, :1]).expand(-1, 3, -1, -1)
    return vae


def load_digits_model(name: str) -> tuple[ModelPatcher, list, list, comfy.sd.VAE]:
    """Model, positive and negative conditioning, and VAE (the host's pixel space), as ``load_demo_model`` gives them.

    A latent is ``(n, 1, 16, 16)``, the paper at -1 and the ink at 1.
    """
    metadata = read_metadata()
    weights = comfy.utils.load_torch_file(str(WEIGHTS))
    embedding = weights.pop("conditioning.embedding").float()
    tokens = [json.loads(metadata["prompts"])[name], [0]]
    positive, negative = ([[embedding[torch.tensor([ids])], {}]] for ids in tokens)
    config = Digits(json.loads(metadata["config"]))
    config.set_inference_dtype(torch.float32, None)
    model = config.get_model(weights, "", device=torch.device("cpu"))
    model.load_model_weights(weights, "diffusion_model.")
    device = comfy.model_management.get_torch_device()
    patcher = ModelPatcher(model, load_device=device, offload_device=torch.device("cpu"))
    return patcher, positive, negative, grey_vae()

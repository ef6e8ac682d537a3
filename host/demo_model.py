"""The demo models, of images and of clips: the host's own classes around the small weights in ``demo_model/``."""

from __future__ import annotations

import json
from pathlib import Path

import comfy.model_management
import comfy.sd
import comfy.supported_models
import comfy.supported_models_base
import comfy.utils
import safetensors
import torch
from comfy.model_patcher import ModelPatcher

FOLDER = Path(__file__).resolve().parent.parent / "demo_model"
UNET, VAE = FOLDER / "emoji_unet.safetensors", FOLDER / "emoji_vae.safetensors"
VIDEO, VIDEO_VAE = FOLDER / "video_flow.safetensors", FOLDER / "video_vae.safetensors"
ANY_EMOJI, ANY_MOTION, BEHIND = "any emoji", "any motion", "passes behind"


def read_metadata(path: Path = UNET) -> dict[str, str]:
    with safetensors.safe_open(path, framework="pt") as file:
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
    unet_config = json.loads(metadata["unet_config"])
    # An SD1-type model (eps prediction, SD1's schedule and latent scale) of another size.
    config = comfy.supported_models.SD15(unet_config)
    config.unet_config = unet_config  # SD15 would fix the number of attention heads
    return build(config, weights), positive, negative, load_vae(VAE)


def emoji_names() -> list[str]:
    """The emoji that clips show, by name."""
    return json.loads(read_metadata(VIDEO)["emoji"])


def motion_names() -> list[str]:
    """The motions of clips, by name; ``BEHIND`` is the one of two emoji."""
    return json.loads(read_metadata(VIDEO)["motions"])


def load_video_model(emoji: str, motion: str, front: str) -> tuple[ModelPatcher, list, list, comfy.sd.VAE]:
    """Model, positive and negative conditioning, and VAE, of clips of 13 frames of 80 by 80 pixels.

    The conditioning is three learned tokens: the emoji that moves, its motion, and the emoji that it passes behind. The
    empty token stands for any of them, and for the third where the motion is of one emoji.
    """
    metadata = read_metadata(VIDEO)
    weights = comfy.utils.load_torch_file(str(VIDEO))
    embedding = weights.pop("conditioning.embedding").float()
    # The tokens in the order of the table: none, emoji that move, motions, emoji in front.
    names, motions = emoji_names(), motion_names()
    ids = [
        0 if emoji == ANY_EMOJI else 1 + names.index(emoji),
        0 if motion == ANY_MOTION else 1 + len(names) + motions.index(motion),
        0 if motion != BEHIND or front == ANY_EMOJI else 1 + len(names) + len(motions) + names.index(front),
    ]
    positive, negative = ([[embedding[torch.tensor([tokens])], {}]] for tokens in (ids, [0, 0, 0]))
    options = json.loads(metadata["config"])
    # A Wan 2.1 model of another size, whose latents need less of a shift.
    config = comfy.supported_models.WAN21_T2V(options)
    config.unet_config, config.sampling_settings = options, {"shift": json.loads(metadata["shift"])}
    return build(config, weights), positive, negative, load_vae(VIDEO_VAE)


def load_vae(path: Path) -> comfy.sd.VAE:
    return comfy.sd.VAE(sd=comfy.utils.load_torch_file(str(path)))


def build(config: comfy.supported_models_base.BASE, weights: dict[str, torch.Tensor]) -> ModelPatcher:
    """The model that the host makes of a configuration, with these weights."""
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

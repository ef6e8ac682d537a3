"""What ties a Laplace head to a model: its family, its last layer, its weights, and what patches them."""

from __future__ import annotations

import hashlib

import torch
from comfy.model_patcher import ModelPatcher

from .last_layer import LastLayer


def prediction_type(model: ModelPatcher) -> str:
    """The host's name of how the network's output becomes ``denoised``: EPS, V_PREDICTION, CONST, ..."""
    sampling = model.get_model_object("model_sampling")
    return next(c.__name__ for c in type(sampling).__mro__ if "calculate_denoised" in vars(c))


def fingerprint(model: ModelPatcher, layer: LastLayer) -> str:
    """Hash of the last layer's weights as they were loaded, before any patch."""
    digest = hashlib.sha256()
    for _, patches in sorted(model.get_key_patches(f"diffusion_model.{layer.path}.").items()):
        weight = patches[0][0].detach().cpu().contiguous()
        digest.update(weight.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def describe_patches(model: ModelPatcher) -> str:
    """What LoRAs and the like do to the model's weights: how many they patch, and a hash of it."""
    digest = hashlib.sha256()
    for key in sorted(model.patches, key=str):
        for strength, value, strength_model, *_ in model.patches[key]:
            digest.update(repr((key, strength, strength_model)).encode())
            parts = getattr(value, "weights", value)
            for part in parts if isinstance(parts, (tuple, list)) else [parts]:
                if isinstance(part, torch.Tensor):
                    digest.update(f"{float(part.float().sum()):.5g}".encode())
    return f"{len(model.patches)} patched weights ({digest.hexdigest()[:8]})" if model.patches else "none"


def describe_model(model: ModelPatcher, layer: LastLayer) -> dict[str, str]:
    """What ties a head to a model, as text. All of it must match, except what WARN_ONLY names."""
    return {
        "family": type(model.model.model_config).__name__,
        "network": type(model.model.diffusion_model).__name__,
        "layer": layer.path,
        "prediction": prediction_type(model),
        "latent_format": type(model.model.latent_format).__name__,
        "weights": fingerprint(model, layer),
        "lora": describe_patches(model),
    }


WARN_ONLY = {"weights": "another checkpoint of the same family", "lora": "other LoRAs or patches"}

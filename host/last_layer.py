"""A model's last layer: where it is, its features, a draw of its weights, and which heads fit it."""

from __future__ import annotations

import dataclasses
import hashlib
import logging
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from comfy.model_patcher import ModelPatcher

from ..bayesdiff_core.features import LayerGeometry
from ..bayesdiff_core.laplace_head import LaplaceHead

# Under `diffusion_model`, the first that a model has. Each path ends in the layer whose output is only reordered
# afterwards, so that a posterior over its weights is a posterior over the network's output.
PATHS = (
    "out.2",  # SD1, SD2, SDXL
    "final_layer.linear",  # SD3, Flux, Chroma, Lumina 2, PixArt, Hunyuan-DiT, Hunyuan-Video, Cosmos, HiDream, Mochi
    "final_linear",  # AuraFlow
    "head.head",  # Wan
    "norm_out.linear_2",  # OmniGen2
    "proj_out",  # Qwen-Image, LTXV
    "clf.1",  # Stable Cascade
)


def eager() -> AbstractContextManager:
    """Run compiled modules as they were written: once compiled, a module no longer sees hooks that come later."""
    set_stance = getattr(torch.compiler, "set_stance", None)  # since torch 2.6
    return set_stance("force_eager") if set_stance else nullcontext()


@dataclasses.dataclass(frozen=True)
class LastLayer:
    """The last layer of one model.

    Attributes:
        path: where the layer is, under ``diffusion_model``.
        module: the live layer. Hooks on it are always taken off again by the context managers below.
        geometry: its shape.
    """

    path: str
    module: torch.nn.Module
    geometry: LayerGeometry

    @contextmanager
    def watched(self, see: Callable[[torch.Tensor], None]) -> Iterator[None]:
        """Call ``see`` with the layer's input at every call of the network."""
        handle = self.module.register_forward_pre_hook(lambda module, args: see(args[0]))
        try:
            with eager():
                yield
        finally:
            handle.remove()

    @contextmanager
    def perturbed(self, delta: torch.Tensor) -> Iterator[None]:
        """Add ``phi^T dW`` to the layer's output, as if its weights were ``W* + dW``.

        The weights themselves stay untouched: they may be quantised, offloaded or patched by a LoRA.

        Args:
            delta: ``(width, out_features)``.
        """

        def add_deviation(module, args, output):
            # In float32: in half precision a small deviation would be rounded away.
            return output.float() + self.geometry.apply(args[0], delta)

        handle = self.module.register_forward_hook(add_deviation)
        try:
            with eager():
                yield
        finally:
            handle.remove()


def find_last_layer(model: ModelPatcher, path: str | None = None) -> LastLayer:
    """The last layer of ``model``, by the table, or the one at ``path``.

    Raises:
        ValueError: the model's family is not known, or it has no such layer.
    """
    network = model.model.diffusion_model
    for candidate in PATHS if path is None else [path]:
        module = network
        for name in candidate.split("."):
            module = getattr(module, name, None)
        if module is not None:
            return LastLayer(candidate, module, LayerGeometry.of(module))
    raise ValueError(
        f"Expected a model whose last layer is {' or '.join(PATHS if path is None else [path])}, got "
        f"{type(network).__name__}, which has none; connect Fit Laplace Head, which finds it."
    )


def prediction_type(model: ModelPatcher) -> str:
    """The host's name of how the network's output becomes ``denoised``: EPS, V_PREDICTION, CONST, ..."""
    sampling = model.get_model_object("model_sampling")
    return next(c.__name__ for c in type(sampling).__mro__ if "calculate_denoised" in vars(c))


def fingerprint(model: ModelPatcher, layer: LastLayer) -> str:
    """Hash of the last layer's weights as they were loaded, whatever patches them now."""
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
    """What ties a head to a model, as text: all but what WARN_ONLY names must match for a head to be usable."""
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


def check_head(head: LaplaceHead, model: ModelPatcher) -> LastLayer:
    """The last layer of ``model``, after making sure that ``head`` belongs to it.

    Raises:
        ValueError: the head was fitted on a model of another kind.
    """
    try:
        layer = find_last_layer(model, head.about.get("layer"))
    except ValueError:
        layer = find_last_layer(model)
    for key, got in describe_model(model, layer).items():
        wanted = head.about.get(key)
        if wanted == got:
            continue
        wanted = str(wanted)[:200]  # a file may say anything
        if key in WARN_ONLY:
            logging.warning(
                f"BayesDiff: this Laplace head was fitted on {WARN_ONLY[key]} (the head's {key}: {wanted}, this "
                f"model's: {got}); fit a head on this model for exact figures."
            )
        else:
            raise ValueError(
                f"Expected a Laplace head fitted on this model ({key}: {got}), got one fitted on another "
                f"({key}: {wanted}); load the head of this model or connect Fit Laplace Head."
            )
    if head.geometry != layer.geometry:
        raise ValueError(
            f"Expected a Laplace head for a last layer of {layer.geometry.in_features} to "
            f"{layer.geometry.out_features} channels, got one for {head.geometry.in_features} to "
            f"{head.geometry.out_features}; load the head of this model or connect Fit Laplace Head."
        )
    return layer


def check_latent(model: ModelPatcher, latent: dict) -> None:
    """Make sure that ``latent`` is one that ``model`` can sample from.

    Raises:
        ValueError: nested, or a wrong number of channels. The host widens an empty latent by itself, so that passes.
    """
    samples, latent_format = latent["samples"], model.model.latent_format
    if samples.is_nested:
        raise ValueError(
            "Expected one latent of pictures or video, got a nested latent (video with sound); sample it with the "
            "stock KSampler."
        )
    if samples.shape[1] != latent_format.latent_channels and torch.count_nonzero(samples) > 0:
        raise ValueError(
            f"Expected a latent of {latent_format.latent_channels} channels for this model "
            f"({type(latent_format).__name__}), got {samples.shape[1]}; encode the picture with this model's own VAE "
            "or connect an empty latent."
        )


# Latent formats whose cells are not 8 pixels wide; newer hosts tell by themselves.
DOWNSCALE = {
    "ChromaRadiance": 1,
    "Flux2": 16,
    "HunyuanImage21": 32,
    "HunyuanVideo15": 16,
    "LTXV": 32,
    "SC_B": 4,
    "SC_Prior": 42,
    "Wan22": 16,
}


def latent_downscale(model: ModelPatcher) -> int:
    """Pixels of the decoded image per latent cell, along one side."""
    latent_format = model.model.latent_format
    known = DOWNSCALE.get(type(latent_format).__name__, 8)
    return getattr(latent_format, "spacial_downscale_ratio", known)

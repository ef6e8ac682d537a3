"""A model's last layer: where it is, its features, and a change of its weights."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress

import torch
from comfy.model_patcher import ModelPatcher

from ..bayesdiff_core.posterior.features import LayerGeometry

# Under `diffusion_model`, the first that a model has. Each path ends in the layer whose output is only reordered
# afterwards, so that a posterior over its weights is a posterior over the network's output.
PATHS = (
    "out.2",  # SD1, SD2, SDXL
    "final_layer.video_out",  # MiniMax H3
    "final_layer.linear",  # SD3, Flux, Chroma, Lumina 2, PixArt, Hunyuan-DiT, Hunyuan-Video, Cosmos, HiDream, Mochi
    "final_linear",  # AuraFlow, ERNIE-Image
    "head.head",  # Wan
    "norm_out.linear_2",  # OmniGen2, Boogu
    "proj_out",  # Qwen-Image, LTXV, CogVideoX, JoyImage, Lens, Mage-Flow
    "clf.1",  # Stable Cascade
    "last.linear",  # Krea 2
    "out_layer.out_layer",  # Kandinsky 5
    "nerf_final_layer_conv.conv",  # Chroma Radiance
    "vid_out.proj",  # SeedVR 2
)
# Of networks that sample a nested latent: the last layers of its other parts (sound), by that of its first (picture).
OTHER_PATHS = {
    "proj_out": ("audio_proj_out",),  # LTX-2 and later
    "final_layer.video_out": ("final_layer.audio_out",),  # MiniMax H3
}


def eager() -> AbstractContextManager:
    """Run compiled modules as they were written: once compiled, a module no longer sees hooks that come later."""
    set_stance = getattr(torch.compiler, "set_stance", None)  # since torch 2.6
    return set_stance("force_eager") if set_stance else nullcontext()


@dataclasses.dataclass(frozen=True)
class LastLayer:
    """The last layer of one model.

    Attributes:
        path: where the layer is, under ``diffusion_model``.
        part: which part of a nested latent it makes, from 0.
        module: the live layer. Hooks on it are always taken off again by the context managers below.
        geometry: its shape.
    """

    path: str
    module: torch.nn.Module
    geometry: LayerGeometry
    part: int = 0

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
            # In float32: in half precision a small deviation would be rounded away. A copy, as a sampler may take
            # gradients, which torch refuses of tensors that were made in inference mode.
            return output.float() + self.geometry.apply(args[0], delta.clone())

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
        module = None
        with suppress(AttributeError):
            # Asked of the model, since a clone may have put another layer in this place.
            module = model.get_model_object(f"diffusion_model.{candidate}")
        if module is not None:
            return LastLayer(candidate, module, LayerGeometry.of(module))
    raise ValueError(
        f"Expected a model whose last layer is {' or '.join(PATHS if path is None else [path])}, got "
        f"{type(network).__name__}, which has none; connect Fit Laplace Head, which finds it."
    )


def other_last_layers(model: ModelPatcher, first: LastLayer) -> list[LastLayer]:
    """The last layers that make the other parts of a nested latent, by the table; none of most models."""
    network, found = model.model.diffusion_model, []
    with suppress(AttributeError):
        for part, path in enumerate(OTHER_PATHS.get(first.path, ()), 1):
            module = network.get_submodule(path)
            found.append(LastLayer(path, module, LayerGeometry.of(module), part))
    return found

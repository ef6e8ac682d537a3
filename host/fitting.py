"""Features for fitting a Laplace head, from a model's own samples, from latents or from pictures."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import comfy.sample
import comfy.utils
import torch
from comfy.model_patcher import ModelPatcher

from ..bayesdiff_core.fit import GaussNewton, fit_laplace_head
from ..bayesdiff_core.laplace_head import LaplaceHead
from .files import read_caption, read_picture
from .last_layer import LastLayer, describe_model, find_last_layer, latent_downscale
from .state import output_gain, visit_state
from .tail import discover_last_layer, tail_at

# Latent cells and pictures in one call of the network: few, so that a model that just fits its card can be fitted.
CALL_CELLS, CALL_PICTURES = 64 * 64, 4


@dataclasses.dataclass(frozen=True)
class Example:
    """Latents ``(n, ...)`` as the user sees them, and the conditioning that describes them all."""

    latents: torch.Tensor
    positive: list


def call_batch(latents: torch.Tensor) -> int:
    """How many of the latents ``(n, ...)`` to give to one call of the network."""
    return max(1, min(CALL_PICTURES, CALL_CELLS // latents[0, 0].numel()))


def as_examples(latents: torch.Tensor, positive: list) -> list[Example]:
    """Latents under one conditioning, in batches that the network is called with."""
    return [Example(batch, positive) for batch in latents.split(call_batch(latents))]


def own_samples(model: ModelPatcher, positive, negative, latent: dict, count: int, steps: int, cfg: float, seed: int):
    """``count`` samples ``(count, ...)`` of the model's own, of the size of ``latent``."""
    empty = comfy.sample.fix_empty_latent_channels(model, torch.zeros_like(latent["samples"][:1]))
    shape, generator = (count, *empty.shape[1:]), torch.Generator().manual_seed(seed)
    noises = torch.randn(shape, generator=generator).split(call_batch(empty))
    bar = comfy.utils.ProgressBar(len(noises) * steps)
    return torch.cat(
        [
            comfy.sample.sample(
                model, noise, steps, cfg, "euler", "simple", positive, negative, torch.zeros_like(noise), seed=seed,
                callback=lambda *_: bar.update(1), disable_pbar=True,
            )
            for noise in noises
        ]
    )  # fmt: skip


def encode_picture(vae, picture: torch.Tensor, latent: dict, downscale: int) -> torch.Tensor:
    """A picture ``(1, h, w, 3)`` cropped and scaled to the size of ``latent``, encoded: ``(1, ...)``."""
    height, width = (side * downscale for side in latent["samples"].shape[-2:])
    scaled = comfy.utils.common_upscale(picture.movedim(-1, 1), width, height, "lanczos", "center").movedim(1, -1)
    return vae.encode(scaled)


def examples_from_images(model: ModelPatcher, vae, images: torch.Tensor, positive, latent: dict) -> list[Example]:
    """Pictures ``(n, h, w, c)`` as a data set under one conditioning."""
    bar, downscale = comfy.utils.ProgressBar(len(images)), latent_downscale(model)
    encoded = []
    for image in images:
        encoded.append(encode_picture(vae, image[None, ..., :3], latent, downscale))
        bar.update(1)
    return as_examples(torch.cat(encoded), positive)


def examples_from_folder(
    model: ModelPatcher, vae, paths: list[Path], clip, positive, latent: dict
) -> tuple[list[Example], int]:
    """Picture files as a data set, each under its own caption where ``clip`` is given and a caption is there.

    Returns:
        the data set and how many captions were found.
    """
    bar, downscale, captions = comfy.utils.ProgressBar(len(paths)), latent_downscale(model), 0
    plain, data = [], []
    for path in paths:
        encoded = encode_picture(vae, read_picture(path), latent, downscale)
        caption = read_caption(path) if clip is not None else None
        if clip is None or caption is None:
            plain.append(encoded)
        else:
            captions += 1
            data.append(Example(encoded, clip.encode_from_tokens_scheduled(clip.tokenize(caption))))
        bar.update(1)
    if plain:
        data += as_examples(torch.cat(plain), positive)
    return data, captions


def last_layer_for_fit(model: ModelPatcher, example: Example) -> LastLayer:
    """The last layer by the table, or where that is silent by a look at a few calls of the network."""
    try:
        return find_last_layer(model)
    except ValueError:
        return discover_last_layer(model, example.positive, example.latents[:1])


def positions_of_picture(
    model: ModelPatcher, layer: LastLayer, count: int, denoise, x: torch.Tensor
) -> torch.Tensor | None:
    """Which of a linear layer's ``count`` tokens become part of the picture; None where they all do.

    Some families send text or reference tokens through the last layer too and slice them off afterwards.
    """
    if layer.geometry.kind != "linear":
        return None
    try:
        return tail_at(model, layer, denoise, x).positions(count).unique()
    except ValueError:  # prompts for areas, each seen alone: the network never returns a whole latent
        return None


def fit_head(
    model: ModelPatcher, data: list[Example], negative, cfg: float, levels: int, seed: int, structure: str = "low-rank",
    explained_variance: float = 0.99, source: str = "",
) -> LaplaceHead:  # fmt: skip
    """Fit a Laplace head of ``model``.

    A call of the network at a latent x0, a noise level sigma and noise eps shows the features that training saw, and
    its residual, known because x0 is, is the noise of the likelihood.

    Args:
        data: the data set.
        cfg: guidance that the head is for. Guidance reads conditional and unconditional features, so both count
            alike, but for a cfg of 1, which never looks at the negative prompt.
        levels: noise levels at which each latent is seen under each conditioning, stratified over the schedule.
        structure, explained_variance: see :func:`~..bayesdiff_core.fit.fit_laplace_head`.
        source: where ``data`` came from, for the head's metadata.
    """
    layer = last_layer_for_fit(model, data[0])
    generator = torch.Generator().manual_seed(seed)
    hessian = GaussNewton(layer.geometry, generator)
    weights: torch.Tensor | None = None
    prompts = 1 if cfg == 1 else 2
    progress = comfy.utils.ProgressBar(levels * prompts * len(data))
    picture_positions: dict[int, torch.Tensor | None] = {}

    def visit(denoise, x, sigma, x0):
        seen: list[torch.Tensor] = []

        def see(features):
            nonlocal weights
            if weights is None:
                weights = layer.geometry.weights_of(layer.module.forward, features)
            seen.append(features)

        with layer.watched(see):
            denoised = denoise(x)
        for features in seen:
            count = layer.geometry.positions(features)
            if count not in picture_positions:
                picture_positions[count] = positions_of_picture(model, layer, count, denoise, x)
            hessian.add_features(features, picture_positions[count])
        sampling = model.get_model_object("model_sampling")
        hessian.add_residual((denoised - x0) / output_gain(sampling, sigma, x0))
        progress.update(1)

    for level in range(levels):
        for example in data:
            for conditioning in (example.positive, negative)[:prompts]:
                share = (level + float(torch.rand((), generator=generator))) / levels
                eps = torch.randn(example.latents.shape, generator=generator)
                visit_state(model, example.latents, share, eps, conditioning, conditioning, 1.0, visit)
        hessian.end_level()
    assert weights is not None, "a data set is not empty"
    pictures = sum(len(example.latents) for example in data)
    about = describe_model(model, layer) | {
        "data": source,
        "pictures": str(pictures),
        "cfg": f"{cfg:g}",
        "seed": str(seed),
        "noise_levels": str(levels),
        "positions": str(hessian.positions),
        "noise_std": " ".join(f"{value:.4g}" for value in hessian.noise_std),
    }
    return fit_laplace_head(layer.geometry, weights, hessian.matrix(pictures), structure, explained_variance, about)

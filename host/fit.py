"""Features for fitting a Laplace head, from a model's own samples, from latents or from images."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path

import comfy.model_management
import comfy.sample
import comfy.utils
import torch
from comfy.model_patcher import ModelPatcher

from ..bayesdiff_core.estimators.parts import unpack
from ..bayesdiff_core.posterior.fit import GaussNewton, fit_laplace_head
from ..bayesdiff_core.posterior.laplace_head import LaplaceHead
from .blocks import Blocks
from .calibrate import OwnRun, calibrate
from .files import read_caption, read_image
from .identity import describe_model
from .last_layer import LastLayer, find_last_layer, other_last_layers
from .latents import empty_latent, latent_grid
from .layout import by_image, discover_last_layer, layout_at, visit_once
from .nested import batches_of, by_part, count_of, joined, normal_noise, parts_of, shapes_of
from .run.space import output_slope
from .settings import WHOLE, Guidance, Part, RunSettings, Stretch
from .states import NoisedState, visit_state

# Latent cells and images in one call of the network: few, so that a model that just fits its card can be fitted.
CALL_CELLS, CALL_IMAGES = 64 * 64, 4
ANSWERED_BY_A_CACHE = (
    "Expected a network that answers every call of the fit, got a cache on the model that answers some for it; connect "
    "the model as it is before the cache."
)


@dataclasses.dataclass(frozen=True)
class Example:
    """Latents ``(n, ...)`` as the user sees them, nested or not, and the conditioning that describes them all."""

    latents: torch.Tensor
    positive: list


def call_batch(latents: torch.Tensor) -> int:
    """How many of the latents ``(n, ...)`` to give to one call of the network."""
    return max(1, min(CALL_IMAGES, CALL_CELLS // parts_of(latents)[0][0, 0].numel()))


def as_examples(latents: torch.Tensor, positive: list) -> list[Example]:
    """Latents under one conditioning, in batches that the network is called with."""
    return [Example(batch, positive) for batch in batches_of(latents, call_batch(latents))]


def require_no_guides(*conditionings: list) -> None:
    """Refuse prompts with guide frames, which belong to one latent and its mask, and to no other.

    Raises:
        ValueError: LTXV's guides are in one of the prompts.
    """
    if any(options.get("keyframe_idxs") is not None for conditioning in conditionings for _, options in conditioning):
        raise ValueError(
            "Expected prompts without guide frames to fit a head under, got some with guides (LTXVAddGuide); connect "
            "prompts and latent as they are before the guides are added. The head serves both."
        )


def own_samples(
    model: ModelPatcher,
    guidance: Guidance,
    latent: dict,
    count: int,
    steps: int,
    seed: int,
    part: Part = WHOLE,
):
    """``count`` samples ``(count, ...)`` of the model's own, of the size of ``latent``.

    Args:
        part: of the schedule, from pure noise on; what is left of it is one step.
    """
    positive, negative, cfg = guidance
    empty = empty_latent(model, latent)
    noises = batches_of(normal_noise(empty, count, torch.Generator().manual_seed(seed)), call_batch(empty))
    settings = RunSettings(steps, cfg, "euler", "simple", positive, negative)
    stretch = Stretch.of(part, settings.sigmas(model), model.get_model_object("model_sampling"))
    bar = comfy.utils.ProgressBar(len(noises) * stretch.last)

    def sample(noise: torch.Tensor) -> torch.Tensor:
        return comfy.sample.sample(
            model,
            noise,
            steps,
            cfg,
            "euler",
            "simple",
            positive,
            negative,
            by_part(torch.zeros_like, noise),
            last_step=stretch.last,
            force_full_denoise=True,
            seed=seed,
            callback=lambda *_: bar.update(1),
            disable_pbar=True,
        )

    return joined([sampled for noise in noises for sampled in or_one_by_one(sample, noise)])


def or_one_by_one(work: Callable, *batches: torch.Tensor) -> list:
    """What ``work`` returns of the batches, or of each image alone where the network takes one image a call."""
    try:
        return [work(*batches)]
    except comfy.model_management.InterruptProcessingException:
        raise
    except Exception:
        if count_of(batches[0]) == 1:
            raise
        return [work(*alone) for alone in zip(*(batches_of(batch, 1) for batch in batches))]


def encode_image(vae, image: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """An image ``(1, h, w, 3)`` cropped and scaled to a size (height, width) in pixels, encoded: ``(1, ...)``."""
    height, width = size
    scaled = comfy.utils.common_upscale(image.movedim(-1, 1), width, height, "lanczos", "center").movedim(1, -1)
    return vae.encode(scaled)


def image_size(model: ModelPatcher, latent: dict) -> tuple[int, int]:
    """Height and width in pixels of what the host would sample of this LATENT."""
    grid, (height, width) = latent_grid(model), empty_latent(model, latent).shape[-2:]
    return grid.pixels_of(height), grid.pixels_of(width)


def examples_from_images(model: ModelPatcher, vae, images: torch.Tensor, positive, latent: dict) -> list[Example]:
    """Images ``(n, h, w, c)`` as a data set under one conditioning."""
    bar, size = comfy.utils.ProgressBar(len(images)), image_size(model, latent)
    encoded = []
    for image in images:
        encoded.append(encode_image(vae, image[None, ..., :3], size))
        bar.update(1)
    return as_examples(torch.cat(encoded), positive)


def examples_from_folder(
    model: ModelPatcher, vae, paths: list[Path], clip, positive, latent: dict
) -> tuple[list[Example], int]:
    """Image files as a data set, each under its own caption where ``clip`` is given and a caption is there.

    Returns:
        the data set and how many captions were found.
    """
    bar, size, captions = comfy.utils.ProgressBar(len(paths)), image_size(model, latent), 0
    plain, data = [], []
    for path in paths:
        encoded = encode_image(vae, read_image(path), size)
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


def is_called(model: ModelPatcher, layer: LastLayer, positive, latent: torch.Tensor) -> bool:
    """Whether the network calls the layer under this prompt: Wan Dancer has two, and the frame rate chooses."""
    seen: list[torch.Tensor] = []
    with layer.watched(seen.append):
        visit_once(model, positive, latent, lambda denoise, x, sigma, x0: denoise(x))
    return bool(seen)


def last_layers_for_fit(model: ModelPatcher, example: Example) -> list[LastLayer]:
    """The last layer by the table, or where that is silent by a look at a few calls of the network.

    Of nested latents those of the other parts too, up to the first that has none: a head's place says what it is of.
    """
    latent = by_part(lambda part: part[:1], example.latents)
    first = None
    with suppress(ValueError):
        first = find_last_layer(model)
    if first is None or not is_called(model, first, example.positive, latent):
        first = discover_last_layer(model, example.positive, latent)
    layers = [first, *other_last_layers(model, first)]
    with suppress(ValueError):
        for part in range(len(layers), len(parts_of(latent))):
            layers.append(discover_last_layer(model, example.positive, latent, part))
    return layers[: len(parts_of(latent))]


def positions_of_image(
    model: ModelPatcher, layer: LastLayer, count: int, denoise: Callable[[], object], latent: torch.Size
) -> torch.Tensor | None:
    """Which of a linear layer's ``count`` tokens become part of the image; None where they all do.

    Some families send text or reference tokens through the last layer too and slice them off afterwards.

    Args:
        denoise, latent: see :func:`~.layout.layout_at`.
    """
    if layer.geometry.kind != "linear":
        return None
    try:
        return layout_at(model, layer, denoise, latent).positions(count).unique()
    except ValueError:  # prompts for areas, each seen alone: the network never returns a whole latent
        return None


@dataclasses.dataclass(frozen=True)
class FitSettings:
    """How a head is fitted.

    Attributes:
        cfg: guidance that the head is for. Guidance reads conditional and unconditional features, so both count
            alike. At a cfg of 1 the negative prompt is never looked at.
        levels: sigmas at which each latent is seen under each conditioning, spread evenly over the schedule.
        seed: of noise, sigmas, and the choice of positions.
        structure, explained_variance: see :func:`~..bayesdiff_core.posterior.fit.fit_laplace_head`.
        source: where the data came from, for the head's metadata.
        part: of the schedule that the head is for, in shares from 0 (pure noise) to 1 (the image).
        own_images, steps: from how many of the model's own images, of so many steps, the head learns how the variance
            follows what a run shows; see :mod:`.calibrate`.
    """

    cfg: float
    levels: int = 8
    seed: int = 0
    structure: str = "low-rank"
    explained_variance: float = 0.99
    source: str = ""
    part: Part = WHOLE
    own_images: int = 6
    steps: int = 12


class LayerFit:
    """What a fit gathers of one last layer.

    Args:
        settings: of the fit.
        generator: source of the choice of positions.
    """

    def __init__(self, layer: LastLayer, settings: FitSettings, generator: torch.Generator):
        self.layer, self.settings = layer, settings
        self.hessian = GaussNewton(layer.geometry, generator)
        self.weights: torch.Tensor | None = None
        self.seen: list[torch.Tensor] = []
        self.image_positions: dict[int, torch.Tensor | None] = {}

    def see(self, features: torch.Tensor) -> None:
        """The layer's input in a call of the network."""
        if self.weights is None:
            self.weights = self.layer.geometry.weights_of(self.layer.module.forward, features)
        self.seen.append(features)

    def count(
        self, model: ModelPatcher, denoise: Callable[[], object], latent: torch.Size, residual: torch.Tensor
    ) -> None:
        """Count what was seen of a state, whose prediction was off by ``residual`` in units of the output.

        Args:
            denoise, latent: see :func:`~.layout.layout_at`.
        """
        seen, self.seen = self.seen, []
        for features in seen:
            features = by_image(features, latent[0])
            count = self.layer.geometry.positions(features)
            if count not in self.image_positions:
                self.image_positions[count] = positions_of_image(model, self.layer, count, denoise, latent)
            self.hessian.add_features(features, self.image_positions[count])
        self.hessian.add_residual(residual)

    def head(self, images: int, about: dict[str, str]) -> LaplaceHead:
        """The head of the layer, from a data set of so many images."""
        assert self.weights is not None, "a data set is not empty"
        about |= {
            "positions": str(self.hessian.positions),
            "noise_std": " ".join(f"{value:.4g}" for value in self.hessian.noise_std),
        }
        matrix, settings = self.hessian.matrix(images), self.settings
        return fit_laplace_head(
            self.layer.geometry, self.weights, matrix, settings.structure, settings.explained_variance, about
        )


def fit_head(model: ModelPatcher, data: list[Example], negative, settings: FitSettings) -> LaplaceHead:
    """Fit a Laplace head of ``model``, of nested latents with a head for each part that has a last layer.

    A call of the network at a latent x0, a sigma and noise eps shows the features that training saw. Its residual,
    known because x0 is, is the noise of the likelihood.

    Raises:
        ValueError: a cache on the model answered for the network, or the model's own latent has another shape than the
            one that users see.
    """
    latents = data[0].latents
    if not latents.is_nested and model.model.process_latent_in(latents[:1]).shape != latents[:1].shape:
        raise ValueError(
            f"Expected a model that samples the latent which it returns, got {type(model.model).__name__}, which "
            "shapes it anew; fit a head on the model of the stage before it."
        )
    generator = torch.Generator().manual_seed(settings.seed)
    fits = [LayerFit(layer, settings, generator) for layer in last_layers_for_fit(model, data[0])]
    prompts = 1 if settings.cfg == 1 else 2
    progress = comfy.utils.ProgressBar(settings.levels * prompts * len(data))
    blocks, most = Blocks(model.model.diffusion_model), {}

    def visit(denoise, x, sigma, x0, shapes, kind):
        with ExitStack() as stack:
            for fit in fits:
                stack.enter_context(fit.layer.watched(fit.see))
            stack.enter_context(blocks.counting())
            denoised = denoise(x)
        if blocks.most != most.setdefault(kind, blocks.most):
            raise ValueError(ANSWERED_BY_A_CACHE)
        residual = (denoised - x0) / output_slope(model.get_model_object("model_sampling"), sigma, x0)
        parts = unpack(residual, shapes)
        for fit in fits:
            part = parts[fit.layer.part]
            fit.count(model, lambda: denoise(x), part.shape, part)
        progress.update(1)

    for level in range(settings.levels):
        for example in data:
            for conditioning in (example.positive, negative)[:prompts]:
                share = settings.part.at((level + float(torch.rand((), generator=generator))) / settings.levels)
                eps = normal_noise(example.latents, count_of(example.latents), generator)
                alone = Guidance(conditioning, conditioning, 1.0)
                # References in a prompt run blocks of their own.
                kind = frozenset(name for _, options in conditioning for name in options)

                def at_state(latents, eps, share=share, alone=alone, kind=kind):
                    seen = functools.partial(visit, shapes=shapes_of(latents), kind=kind)
                    visit_state(model, NoisedState(latents, share, eps), alone, seen)

                or_one_by_one(at_state, example.latents, eps)
        for fit in fits:
            fit.hessian.end_level()
    images = sum(count_of(example.latents) for example in data)
    said = {
        "data": settings.source,
        "images": str(images),
        "cfg": f"{settings.cfg:g}",
        "seed": str(settings.seed),
        "noise_levels": str(settings.levels),
        "part": settings.part.words,
    }
    first, *others = (fit.head(images, describe_model(model, fit.layer) | said) for fit in fits)
    head = dataclasses.replace(first, others=tuple(others))
    if settings.own_images == 0:
        return head
    prompts = [data[number * len(data) // settings.own_images].positive for number in range(settings.own_images)]
    runs = [RunSettings(settings.steps, settings.cfg, "euler", "simple", prompt, negative) for prompt in prompts]
    latents = [latent for example in data for latent in batches_of(example.latents, 1)]
    starts = [latents[number % len(latents)] for number in range(settings.own_images)]
    return calibrate(head, model, [OwnRun(*run, settings.part) for run in zip(runs, starts)], settings.seed)

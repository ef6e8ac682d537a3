"""The stock sampler, run once on a clone of the model, with progress and wrappers around it."""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import latent_preview
import torch
from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import WrappersMP
from comfy_extras import nodes_custom_sampler

from ...bayesdiff_core.estimators.trajectory import SaveAt
from ..nested import packed
from .beside import Beside
from .progress import Progress
from .space import x_to_latent

WRAPPER_KEY = "bayesdiff"
# A run samples a LATENT with a model, always from the same noise, and returns the LATENT.
Run = Callable[[ModelPatcher, dict], dict]


class Passed(NamedTuple):
    """A noisy latent on the way, as a stock sampler that stops at this sigma would return it."""

    sigma: float
    latent: torch.Tensor


class OuterInputs(NamedTuple):
    """What the host gives OUTER_SAMPLE, in its order."""

    noise: torch.Tensor
    latent_image: torch.Tensor
    sampler: Any
    sigmas: torch.Tensor
    denoise_mask: torch.Tensor | None = None
    callback: Any = None
    disable_pbar: bool = False
    seed: int | None = None


def sample_stock(
    run: Run,
    model: ModelPatcher,
    latent: dict,
    progress: Progress,
    inside: Callable[[], AbstractContextManager] = nullcontext,
    wrap: Callable[[ModelPatcher], None] = lambda clone: None,
    save_at: SaveAt | None = None,
) -> tuple[dict, list[Passed]]:
    """Do one sampling run.

    Args:
        inside: made for the run, and held while the host samples.
        wrap: adds wrappers to the clone that is sampled.
        save_at: which latents of the way to return.

    Returns:
        what the run returns, and the latents of the way; of the last run if a guider samples twice.
    """
    passed: list[Passed] = []
    beside = Beside()

    def outer_sample(executor, *inputs, **options):
        count = len(OuterInputs._fields)
        # Wrappers and guiders of other packs may name some of them.
        named = {name: options.pop(name) for name in OuterInputs._fields if name in options}
        given, more = OuterInputs(*inputs[:count], **named), inputs[count:]
        sigmas = given.sigmas.tolist()
        wanted: list[int] = []
        with beside.guarded("choosing what to keep of the way"):
            wanted += [] if save_at is None else save_at.steps(given.sigmas)
        callback = given.callback or latent_preview.prepare_callback(model, len(sigmas) - 1)
        passed.clear()  # a guider that samples twice: the last run counts

        def step(number, denoised, x, total_steps):
            with beside.guarded("keeping a latent of the way"):
                for _ in range(wanted.count(number)):
                    on_the_way = x_to_latent(model.model, sigmas[number], x.detach().float().cpu())
                    passed.append(Passed(sigmas[number], on_the_way))
            progress.step(number, denoised, x, total_steps, callback)

        with inside():
            return executor(*given._replace(callback=step), *more, **options)

    clone = model.clone()
    clone.add_wrapper_with_key(WrappersMP.OUTER_SAMPLE, WRAPPER_KEY, outer_sample)
    with beside.guarded("watching the run"):
        wrap(clone)
    with progress.scaling():
        sampled = run(clone, latent)
    progress.finished += 1
    return sampled, passed


def took_no_step(latent: dict, sampled: dict) -> bool:
    """Whether a run left its LATENT as it was: its schedule has no steps, or they lie behind it."""
    before, after = packed(latent["samples"]), packed(sampled["samples"])
    if before.shape != after.shape:  # the host widens an empty latent
        return not (before.any() or after.any())
    return torch.allclose(before.to(after), after, rtol=1e-4, atol=1e-4, equal_nan=True)


class CustomRun:
    """The stock SamplerCustomAdvanced as a run.

    Attributes:
        denoised: LATENT of the stock node's second output, of the first run; None before.
    """

    def __init__(self, noise, guider, sampler, sigmas: torch.Tensor):
        self.noise, self.guider, self.sampler, self.sigmas = noise, guider, sampler, sigmas
        self.denoised: dict | None = None

    @property
    def parts(self) -> tuple:
        """What it is made of, apart from model and latent."""
        return self.noise, self.guider, self.sampler, getattr(self.sampler, "sampler_function", self.sampler)

    def __call__(self, model: ModelPatcher, latent: dict) -> dict:
        guiding = copy.copy(self.guider)
        # Its options stay its own; the host adds the model's wrappers to them.
        guiding.model_patcher = model
        node = nodes_custom_sampler.SamplerCustomAdvanced
        sampled, denoised, *_ = node.execute(self.noise, guiding, self.sampler, self.sigmas, latent).args
        self.denoised = self.denoised or denoised
        return sampled

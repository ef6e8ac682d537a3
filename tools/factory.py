"""What tests and benchmarks need again and again: a head of a model, and the inputs of a sampler."""

from __future__ import annotations

import torch
from bayesdiff.host.fit import FitSettings, as_examples, fit_head, own_samples
from bayesdiff.host.settings import Guidance
from comfy.model_patcher import ModelPatcher


def fit_own_head(
    model: ModelPatcher,
    guidance: Guidance,
    shape: tuple[int, ...],
    count: int = 32,
    steps: int = 12,
    levels: int = 8,
    source: str = "",
):
    """A head fitted on samples of the model's own, as Fit Laplace Head does.

    Args:
        shape: of one latent, ``(c, ..., h, w)``.
        count, steps: how many samples, and of how many steps each.
        levels: at how many sigmas each is seen.
    """
    latent = {"samples": torch.zeros(1, *shape)}
    data = as_examples(own_samples(model, guidance, latent, count, steps, seed=0), guidance.positive)
    return fit_head(model, data, guidance.negative, FitSettings(guidance.cfg, levels, source=source))


def sampler_inputs(demo: tuple, **changes) -> dict:
    """Inputs of the stock KSampler and of ours, but for the latent, by their names.

    Args:
        demo: model, positive, negative and whatever follows.
        changes: to the defaults below.
    """
    model, positive, negative, *_ = demo
    defaults = dict(seed=3, steps=4, cfg=3.0, sampler_name="euler", scheduler="normal", denoise=1.0)
    return dict(model=model, positive=positive, negative=negative, **defaults) | changes

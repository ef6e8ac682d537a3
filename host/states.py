"""One noised state of a model, visited through the host's own sampling path."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import comfy.sample
import comfy.samplers
import torch
from comfy.model_patcher import ModelPatcher

from .nested import by_part, packed
from .settings import Guidance

# What is done at a state: called with ``denoise`` (a function of x that calls the network as a sampler would), the
# noised latent x, its sigma ``(n,)``, and the clean latent x0; all but sigma in model space.
Visit = Callable[[Callable[[torch.Tensor], torch.Tensor], torch.Tensor, torch.Tensor, torch.Tensor], object]


class VisitState(comfy.samplers.Sampler):
    """Takes a sampler's place in the host: noises the latent once and visits it instead of denoising it."""

    def __init__(self, visit: Visit, share: float, eps: torch.Tensor):
        self.visit, self.share, self.eps = visit, share, eps

    def sample(
        self, model_wrap, sigmas, extra_args, callback, noise, latent_image=None, denoise_mask=None, disable_pbar=False
    ):
        assert latent_image is not None, "a state is that of a latent"
        sampling = model_wrap.inner_model.model_sampling
        sigma = torch.full((len(latent_image),), float(sampling.percent_to_sigma(self.share)), device=noise.device)
        x = sampling.noise_scaling(sigma, packed(self.eps).to(latent_image), latent_image)
        self.visit(lambda x: model_wrap(x, sigma, **extra_args), x, sigma, latent_image)
        return latent_image


class NoisedState(NamedTuple):
    """A latent ``(n, ...)`` as the user sees it, where on the schedule to noise it, and unit noise of its shape.

    The share of the schedule runs from 0 (all noise) to 1 (none).
    """

    latent: torch.Tensor
    share: float
    eps: torch.Tensor


def visit_state(model: ModelPatcher, state: NoisedState, guidance: Guidance, visit: Visit) -> None:
    """Visit one noised state of ``model``, with everything loaded, patched and hooked as it is while sampling.

    Args:
        guidance: of ``denoise``; at cfg 1 the host skips the negative prompt.
    """
    sampler = VisitState(visit, min(max(state.share, 1e-3), 1 - 1e-3), state.eps)
    positive, negative, cfg = guidance
    start, sigmas = by_part(torch.zeros_like, state.latent), torch.ones(2)
    # Some families want a seed, for the noise that they add to the pictures of a prompt.
    comfy.sample.sample_custom(
        model, start, cfg, sampler, sigmas, positive, negative, state.latent, disable_pbar=True, seed=0
    )

"""One noised state of a model, visited through the host's own sampling path."""

from __future__ import annotations

from collections.abc import Callable

import comfy.sample
import comfy.samplers
import torch
from comfy.model_base import BaseModel
from comfy.model_patcher import ModelPatcher

# What is done at a state: called with ``denoise`` (a function of x that calls the network as a sampler would), the
# noised latent x, its noise level sigma ``(n,)``, and the clean latent x0; all but sigma in model space.
Visit = Callable[[Callable[[torch.Tensor], torch.Tensor], torch.Tensor, torch.Tensor, torch.Tensor], object]


class VisitState(comfy.samplers.Sampler):
    """Takes a sampler's place in the host: noises the latent once and visits it, in place of denoising it."""

    def __init__(self, visit: Visit, share: float, eps: torch.Tensor):
        self.visit, self.share, self.eps = visit, share, eps

    def sample(
        self, model_wrap, sigmas, extra_args, callback, noise, latent_image=None, denoise_mask=None, disable_pbar=False
    ):
        assert latent_image is not None, "a state is that of a latent"
        sampling = model_wrap.inner_model.model_sampling
        sigma = torch.full((len(latent_image),), float(sampling.percent_to_sigma(self.share)), device=noise.device)
        x = sampling.noise_scaling(sigma, self.eps.to(latent_image), latent_image)
        self.visit(lambda x: model_wrap(x, sigma, **extra_args), x, sigma, latent_image)
        return latent_image


def visit_state(
    model: ModelPatcher, latent: torch.Tensor, share: float, eps: torch.Tensor, positive, negative, cfg: float,
    visit: Visit,
) -> None:  # fmt: skip
    """Visit one noised state of ``model``, with everything loaded, patched and hooked as it is while sampling.

    Args:
        latent: ``(n, ...)``, as the user sees it.
        share: where on the schedule, 0 (all noise) to 1 (none).
        eps: unit noise of the latent's shape.
        cfg: guidance of ``denoise``; at 1 the host skips the negative prompt.
    """
    sampler = VisitState(visit, min(max(share, 1e-3), 1 - 1e-3), eps)
    comfy.sample.sample_custom(
        model, torch.zeros_like(latent), cfg, sampler, torch.ones(2), positive, negative, latent, disable_pbar=True
    )


def output_gain(sampling, sigma: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """dD/dF, the slope of ``denoised`` in the network's output; it is affine in it for every prediction type."""
    zero = torch.zeros_like(like)
    return sampling.calculate_denoised(sigma, zero + 1, zero) - sampling.calculate_denoised(sigma, zero, zero)


def latent_gain(model: BaseModel, like: torch.Tensor) -> torch.Tensor:
    """Slope of the latent that the user sees in that of the model's own space, element by element."""
    one, zero = (model.process_latent_out(torch.full_like(like, value)) for value in (1.0, 0.0))
    return one - zero

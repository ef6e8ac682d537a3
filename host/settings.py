"""What the stock KSampler is told, apart from latent and seed."""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import comfy.sample
import comfy.samplers
import comfy.utils
import nodes  # the host's, not ours
import torch
from comfy.model_patcher import ModelPatcher

SAMPLERS, SCHEDULERS = comfy.samplers.KSampler.SAMPLERS, comfy.samplers.KSampler.SCHEDULERS


class Guidance(NamedTuple):
    """Prompts and how they are mixed."""

    positive: list
    negative: list
    cfg: float


@dataclasses.dataclass(frozen=True)
class RunSettings:
    """Settings of one run of the stock KSampler."""

    steps: int
    cfg: float
    sampler_name: str
    scheduler: str
    positive: list
    negative: list
    denoise: float = 1.0

    @property
    def guidance(self) -> Guidance:
        return Guidance(self.positive, self.negative, self.cfg)

    def sigmas(self, model: ModelPatcher) -> torch.Tensor:
        """Sigmas of the run, as the stock KSampler spaces them."""
        return comfy.samplers.KSampler(
            model, self.steps, "cpu", self.sampler_name, self.scheduler, self.denoise, model.model_options
        ).sigmas

    def sample(self, model: ModelPatcher, latent: dict, seed: int, **stage) -> dict:
        """The stock KSampler on a LATENT.

        Args:
            stage: what else the host's ``common_ksampler`` takes: start_step, last_step and so on.
        """
        # Looked up at each call: other packs replace it.
        sample = nodes.common_ksampler  # pyright: ignore[reportAttributeAccessIssue], the host's module, not ours
        return sample(
            model,
            seed,
            self.steps,
            self.cfg,
            self.sampler_name,
            self.scheduler,
            self.positive,
            self.negative,
            latent,
            denoise=self.denoise,
            **stage,
        )[0]

    def sample_from(self, model: ModelPatcher, start: Start, seed: int, mask: torch.Tensor | None) -> torch.Tensor:
        """The stock sampler from a step to the end, with the noise that is given."""
        return comfy.sample.sample(
            model,
            start.noise,
            self.steps,
            self.cfg,
            self.sampler_name,
            self.scheduler,
            self.positive,
            self.negative,
            start.latent,
            denoise=self.denoise,
            start_step=start.step,
            force_full_denoise=True,
            noise_mask=mask,
            disable_pbar=not comfy.utils.PROGRESS_BAR_ENABLED,
            seed=seed,
        )


class Start(NamedTuple):
    """Where a run starts: the latent ``(n, ...)``, the noise that is added to it, and the step, from 0."""

    latent: torch.Tensor
    noise: torch.Tensor
    step: int


def step_after(sigmas: torch.Tensor, share: float) -> int:
    """The step, from 0, that starts after ``share`` of the steps: at least one, and one is left."""
    return min(max(round(share * (len(sigmas) - 1)), 1), max(len(sigmas) - 2, 0))

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


def samplers() -> list[str]:
    """Names of the sampling algorithms; looked up at each call, since other packs add theirs."""
    return comfy.samplers.KSampler.SAMPLERS


def schedulers() -> list[str]:
    """Names of the ways to space sigmas, as :func:`samplers`."""
    return comfy.samplers.KSampler.SCHEDULERS


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

    def sample_from(
        self, model: ModelPatcher, start: Start, seed: int, mask: torch.Tensor | None, last_step: int | None = None
    ) -> torch.Tensor:
        """The stock sampler from a step to the end, with the noise that is given.

        Args:
            last_step: the step before which to go to the end at once; None to take all.
        """
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
            last_step=last_step,
            force_full_denoise=True,
            noise_mask=mask,
            disable_pbar=not comfy.utils.PROGRESS_BAR_ENABLED,
            seed=seed,
        )


class Part(NamedTuple):
    """A part of the schedule, in shares from 0 (pure noise) to 1 (the image)."""

    first: float = 0.0
    last: float = 1.0

    def at(self, share: float) -> float:
        """The share of the schedule at a share of the part."""
        return self.first + share * (self.last - self.first)

    @property
    def words(self) -> str:
        """As a head's file has it."""
        return f"{self.first:g} to {self.last:g}"

    @classmethod
    def read(cls, words: str) -> Part:
        """The inverse of :attr:`words`; the whole schedule where they say something else."""
        try:
            first, last = map(float, words.split(" to "))
        except ValueError:
            return WHOLE
        return cls(first, last) if 0 <= first < last <= 1 else WHOLE

    def sigmas(self, sampling) -> tuple[float, float]:
        """The sigmas that it begins and ends at."""
        return float(sampling.percent_to_sigma(self.first)), float(sampling.percent_to_sigma(self.last))


WHOLE = Part()


class Stretch(NamedTuple):
    """The steps of a run, from 0, that lie in a part of the schedule: from ``first``, up to before ``last``."""

    first: int
    last: int

    @classmethod
    def of(cls, part: Part, sigmas: torch.Tensor, sampling) -> Stretch:
        high, low = part.sigmas(sampling)
        steps = len(sigmas) - 1
        inside = [step for step, sigma in enumerate(sigmas[:-1].tolist()) if low < sigma <= high]
        if not inside:
            raise ValueError(
                f"Expected at least one step in the part {part.words} of the schedule, got none of {steps} steps; give "
                "more steps, or a wider part."
            )
        return cls(inside[0], steps if part.last == 1 else inside[-1] + 1)


class Start(NamedTuple):
    """Where a run starts: the latent ``(n, ...)``, the noise that is added to it, and the step, from 0."""

    latent: torch.Tensor
    noise: torch.Tensor
    step: int


def step_after(sigmas: torch.Tensor, share: float) -> int:
    """The step, from 0, that starts after ``share`` of the steps: at least one, and one is left."""
    return min(max(round(share * (len(sigmas) - 1)), 1), max(len(sigmas) - 2, 0))

"""What one sampling run of the host is: made once when its sampler starts, and never changed."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, NamedTuple

import comfy.samplers
import torch
from comfy.model_patcher import ModelPatcher

from ...bayesdiff_core.estimators.parts import Shapes
from ...bayesdiff_core.estimators.trajectory import Scales, State
from .space import scales, x_slope, x_to_latent

# Functions that a sampler adds to the model's options to see the prediction for the negative prompt.
POST_CFG = "sampler_post_cfg_function"
# Share of the model's largest sigma from which a run counts as one from pure noise.
FULL_NOISE = 0.7
# Below this share of a soft mask, rounding is all that could be read of the sampler's own x.
LEAST_MASK = 1e-3


class SamplerInputs(NamedTuple):
    """What the host gives a sampler after guider, sigmas and options, in its order."""

    callback: Any
    noise: torch.Tensor
    latent_image: torch.Tensor | None = None
    denoise_mask: torch.Tensor | None = None
    disable_pbar: bool = False


class Unmixed(NamedTuple):
    """A state as the sampler has it: see :meth:`RunContext.unmixed`.

    Attributes:
        mask: where the image is denoised at this state; broadcasts to ``(n, ...)``.
    """

    x: torch.Tensor
    denoised: torch.Tensor
    mask: torch.Tensor


@dataclasses.dataclass(frozen=True)
class RunContext:
    """One sampling run of the host.

    Attributes:
        model: whose network is sampled.
        executor: the host's own sampler, to be called as the host calls it.
        guider: what the sampler asks for predictions.
        sigmas: of the run, a copy: uni_pc writes to its own.
        options: of the sampler, a copy: samplers write their own arguments into these.
        mask: where the image is denoised, None for everywhere.
        device, dtype: of the sampler's x.
        generator_state: of the global generator as the run begins.
        given: what the sampler begins with.
        shapes: of the parts of a nested latent, which the sampler has in one row; none of any other.
    """

    model: ModelPatcher
    executor: Any
    guider: Any
    sigmas: torch.Tensor
    options: dict
    mask: torch.Tensor | None
    device: torch.device
    dtype: torch.dtype
    generator_state: torch.Tensor
    given: SamplerInputs
    shapes: Shapes = ()

    @classmethod
    def of(
        cls, model: ModelPatcher, executor, guider, sigmas: torch.Tensor, options: dict, inputs: SamplerInputs
    ) -> RunContext:
        return cls(
            model=model,
            executor=executor,
            guider=guider,
            sigmas=sigmas.clone(),
            options=dict(options),
            mask=inputs.denoise_mask,
            device=inputs.noise.device,
            dtype=inputs.noise.dtype,
            generator_state=torch.get_rng_state(),
            given=inputs,
        )

    @property
    def sampling(self):
        """The model's own way of noising."""
        return self.guider.inner_model.model_sampling

    @property
    def sampler(self) -> str:
        """Name of the sampling algorithm, "" where it has none."""
        function = getattr(self.executor.class_obj, "sampler_function", None)
        return getattr(function, "__name__", "").removeprefix("sample_")

    @property
    def cfg(self) -> float | None:
        """The guidance; None of a guider that mixes predictions in a way of its own."""
        stock = getattr(type(self.guider), "predict_noise", None) is comfy.samplers.CFGGuider.predict_noise
        return self.guider.cfg if stock else None

    @property
    def has_other_network(self) -> bool:
        """Whether the guider asks a second network too, whose last layer has no posterior here."""
        parts = vars(self.guider).values() if hasattr(self.guider, "__dict__") else ()
        return any(isinstance(part, ModelPatcher) and part.model is not self.model.model for part in parts)

    def scales(self, sigma: float) -> Scales:
        return scales(self.sampling, sigma)

    @property
    def end(self) -> Scales:
        """Scales at the end of the run."""
        return self.scales(float(self.sigmas[-1]))

    @property
    def schedule(self) -> list[float]:
        """Noise over signal at the start of every step."""
        return [self.scales(float(sigma)).noise_over_signal for sigma in self.sigmas[:-1]]

    @property
    def is_a_later_stage(self) -> bool:
        """Whether the run begins below the model's full noise, so that its latent was not made here alone."""
        return len(self.sigmas) > 1 and float(self.sigmas[0]) < FULL_NOISE * float(self.sampling.sigma_max)

    def prompts_at(self, sigma: float) -> frozenset[tuple[str, int]]:
        """Which prompts count at a sigma: some count in a part of the schedule alone."""
        return frozenset(
            (kind, number)
            for kind, conds in self.guider.conds.items()
            for number, cond in enumerate(conds or [])
            if cond.get("timestep_start", math.inf) >= sigma >= cond.get("timestep_end", -math.inf)
        )

    def mask_at(self, sigma: torch.Tensor) -> torch.Tensor | None:
        """Where the host denoises at this sigma, as its own inpainting does it; None for everywhere."""
        function = self.options["model_options"].get("denoise_mask_function")
        if self.mask is None or function is None:
            return self.mask
        return function(sigma, self.mask, extra_options={"model": self.guider, "sigmas": self.sigmas})

    def unmixed(self, sigma: float, x: torch.Tensor, denoised: torch.Tensor) -> Unmixed:
        """A state as the sampler has it, from what the network is shown and answers.

        The host shows the network ``m x + (1 - m) kept``, and returns ``m denoised + (1 - m) image``.

        Args:
            x, denoised: ``(n, ...)``, on the CPU.
        """
        at = torch.full((len(x),), sigma, device=self.device)
        mask, image = self.mask_at(at), self.given.latent_image
        if mask is None or image is None:
            return Unmixed(x, denoised, torch.ones(()))
        model = self.guider.inner_model
        kept = model.scale_latent_inpaint(x=x.to(self.device), sigma=at, noise=self.given.noise, latent_image=image)
        mask, kept, image = (values.float().cpu() for values in (mask, kept, image))
        own = torch.where(mask > 0, kept + (x - kept) / mask.clamp(min=LEAST_MASK), x)
        return Unmixed(own, image + (denoised - image) * mask, mask)

    def slope_at(self, sigma: float, like: torch.Tensor) -> torch.Tensor:
        """Slope of the latent that users see in the sampler's x."""
        return x_slope(self.guider.inner_model, sigma, like)

    def to_latent(self, state: State) -> torch.Tensor:
        """The noisy latent of a state, as a stock sampler that stops there would return it."""
        return x_to_latent(self.guider.inner_model, state.sigma, state.x)

"""Sees a sampling run go by: every prediction, and what the last layer's features tell about its variance."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import comfy.samplers
import torch

from ...bayesdiff_core.estimators.base import Estimator
from ...bayesdiff_core.estimators.trajectory import Scales, State, Step, Trajectory, contraction
from ..layout import match_positions, read_positions
from .context import POST_CFG, RunContext
from .look import Look
from .quirks import restart_hooks, step_cache
from .space import output_slope


class Recording(NamedTuple):
    """A run that is over.

    Attributes:
        trajectory: its states.
        uncond: of each state the prediction for the negative prompt, where the sampler looks at it; None elsewhere.
    """

    trajectory: Trajectory
    uncond: list[torch.Tensor | None]


@dataclasses.dataclass(frozen=True)
class Prediction:
    """One evaluation of the network as it was seen; tensors are on the CPU.

    Attributes:
        gamma_squared: at every output position of the last layer, see :meth:`.look.Look.gamma_squared`.
    """

    sigma: float
    scales: Scales
    x: torch.Tensor
    denoised: torch.Tensor
    gamma_squared: torch.Tensor | None
    uncond: torch.Tensor | None


class Recorder:
    """Keeps the predictions of one sampling run; the run itself is not touched.

    Args:
        context: the run.
        look: reads gamma² where the estimator wants it; None without a head.
    """

    def __init__(self, context: RunContext, look: Look | None, estimator: Estimator):
        self.context, self.look, self.estimator = context, look, estimator
        self.schedule = context.schedule
        self.seen: list[Prediction] = []

    def predict_noise(self, executor, x, timestep, model_options: dict, seed):
        """See a prediction, guidance and all, and let it pass."""
        sigma = float(timestep.flatten()[0])
        scales = self.context.scales(sigma)
        # Copies: the sampler may go on in place. In memory of the CPU, where there is more.
        x_seen, gamma_squared = x.to("cpu", copy=True), None
        uncond: list[torch.Tensor] = []
        if len(model_options.get(POST_CFG, [])) > len(self.context.options["model_options"].get(POST_CFG, [])):
            # A CFG++ sampler: its steps go along the prediction for the negative prompt.
            model_options = model_options | {POST_CFG: [*model_options[POST_CFG], see_uncond(uncond)]}
        cache = step_cache(model_options)
        skipped = cache.total_steps_skipped if cache is not None else 0
        if self.look is not None and self.estimator.wants_variance(scales.noise_over_signal, self.schedule):
            with self.look.once():
                denoised = executor(x, timestep, model_options, seed)
            gamma_squared = self.look.gamma_squared(getattr(self.context.guider, "cfg", None))
        else:
            denoised = executor(x, timestep, model_options, seed)
        if cache is not None and cache.total_steps_skipped > skipped:
            return denoised  # not the network's word: to a member, which asks the network, it would look like a change
        denoised_seen = denoised.to("cpu", copy=True)
        self.seen.append(Prediction(sigma, scales, x_seen, denoised_seen, gamma_squared, uncond[0] if uncond else None))
        return denoised

    def recording(self) -> Recording:
        """The run, now that it is over."""
        end = self.context.end
        states = [
            State(now.sigma, now.scales, now.x, now.denoised, share_kept, variance)
            for now, share_kept, variance in zip(self.seen, self.contractions(end), self.variances())
        ]
        trajectory = Trajectory(tuple(states), end, self.context.sampler, self.share_denoised())
        return Recording(trajectory, [now.uncond for now in self.seen])

    def share_denoised(self) -> torch.Tensor | None:
        """How much of each cell the mask lets the run denoise, ``(n, ...)``; None without a mask."""
        if self.context.mask is None:
            return None
        shape, share = self.seen[0].x.shape, torch.zeros(())
        for sigma in {seen.sigma for seen in self.seen}:
            mask = self.context.mask_at(torch.full((shape[0],), sigma, device=self.context.device))
            share = torch.maximum(share, torch.ones(()) if mask is None else mask.float().cpu())
        return share.expand(shape).amax(1)

    def contractions(self, end: Scales) -> list[float]:
        """The coefficient a of the step that follows each state."""
        mask = None if self.context.mask is None else self.context.mask.cpu()
        found = [
            contraction(Step(now.x, now.scales.signal, now.denoised, then.x, then.scales.signal), mask)
            for now, then in zip(self.seen, self.seen[1:])
        ]
        last = self.seen[-1].scales.noise
        return [*found, end.noise / last if last > 0 else 1.0]

    def variances(self) -> list[torch.Tensor | None]:
        """gamma² of every state, brought from output positions to latent elements and to units of ``denoised``."""
        looked = [seen for seen in self.seen if seen.gamma_squared is not None]
        if self.look is None or not looked:
            return [None] * len(self.seen)
        shape = looked[0].gamma_squared.shape  # pyright: ignore[reportOptionalMemberAccess], looked at
        positions = self.positions(self.look, looked[0], shape)

        def placed(seen: Prediction) -> torch.Tensor | None:
            # Another shape: prompts for areas, at some sigmas only.
            if seen.gamma_squared is None or positions is None or seen.gamma_squared.shape != shape:
                return None
            slope = output_slope(self.context.sampling, torch.full((1,), seen.sigma), seen.x[:1])
            return seen.gamma_squared.flatten(1)[:, positions] * slope.square()

        return [placed(seen) for seen in self.seen]

    def positions(self, look: Look, first: Prediction, shape: torch.Size) -> torch.Tensor | None:
        """The output position that each latent element comes from; None where that cannot be read.

        The run itself shows it as a rule. Where it does not, an estimator that calls the network anyway calls it once
        more for this.
        """
        layer = look.layer
        x, geometry, count = first.x, layer.geometry, shape[1:].numel()
        is_last = geometry.kind == "conv2d" and geometry.out_features >= x.shape[1]
        if is_last and shape[1:] == x.shape[2:]:
            return torch.arange(count).reshape(1, *x.shape[2:]).expand(x.shape[1:])
        found = match_positions(geometry, look.arrivals)
        if found is not None and found.shape == x.shape[1:]:
            return found
        if not self.estimator.calls([seen.scales.noise_over_signal for seen in self.seen]):
            return None
        guider, model_options = self.context.guider, self.context.options["model_options"]
        prompt = next(conds for conds in guider.conds.values() if conds)

        def denoise(x: torch.Tensor) -> torch.Tensor:
            restart_hooks(guider)
            at = torch.full((len(x),), first.sigma, device=x.device)
            return comfy.samplers.calc_cond_batch(guider.inner_model, [prompt], x, at, model_options)[0]

        start = x[:1].to(self.context.device, self.context.dtype)
        return read_positions(self.context.model, layer, denoise, start, count)


def see_uncond(found: list[torch.Tensor]) -> Callable[[dict], torch.Tensor]:
    """A post-CFG function that only looks."""

    def see(args: dict) -> torch.Tensor:
        found.append(args["uncond_denoised"].to("cpu", copy=True))
        return args["denoised"]

    return see

"""Answers an estimator once a run is over: what the network predicts at a state of the run, with other weights."""

from __future__ import annotations

import math

import torch

from ...bayesdiff_core.estimators.base import Change, NominalRun
from ...bayesdiff_core.estimators.trajectory import State
from ..posterior import NoPosterior, Posterior
from .context import RunContext
from .progress import Progress
from .quirks import restart_hooks, without_cache
from .recorder import Recording
from .ride import ride

# Mixed into the seed of an estimator's own random numbers: with the bare seed they would repeat the initial noise.
PROBES = 0x5EEDB4A7E5D1FF00


class Replay(NominalRun):
    """A :class:`~...bayesdiff_core.estimators.base.NominalRun` of the host's.

    It works inside the sampling context of the run, so prompts, controls, masks and patches are those of the run.

    Attributes:
        calls: network calls so far.
    """

    def __init__(
        self, context: RunContext, recording: Recording, posterior: Posterior | NoPosterior, progress: Progress
    ):
        self.context, self.recording, self.posterior, self.progress = context, recording, posterior, progress
        self.trajectory = recording.trajectory
        calibration = posterior.calibration
        self.trend = None if calibration is None else calibration.trend
        self.generator = torch.Generator().manual_seed(posterior.seed ^ PROBES)
        self.options = without_cache(context.options)
        self.calls = 0
        self.last_sigma = -math.inf
        self.last_draw: tuple[int, torch.Tensor] | None = None

    @property
    def fitted(self) -> Posterior:
        """The posterior, for an estimator that needs one."""
        assert isinstance(self.posterior, Posterior), "an estimator without a head has no members"
        return self.posterior

    def draw(self, member: int) -> torch.Tensor:
        """A posterior draw; the last one is kept, since members are asked at one state after another."""
        if self.last_draw is None or self.last_draw[0] != member:
            self.last_draw = member, self.fitted.draw(member)
        return self.last_draw[1]

    def denoised(
        self,
        state: State,
        x: torch.Tensor,
        member: int | None = None,
        scale: float = 1.0,
        options: dict | None = None,
    ) -> torch.Tensor:
        """See :meth:`NominalRun.denoised <...bayesdiff_core.estimators.base.NominalRun.denoised>`.

        Args:
            options: of the sampler, if not those of the run.
        """
        context, options = self.context, self.options if options is None else options
        if state.sigma > self.last_sigma:
            restart_hooks(context.guider)
        self.last_sigma = state.sigma
        sigma = torch.full((len(state.x),), state.sigma, device=context.device)
        mask = context.mask_at(sigma)
        nominal = state.x.to(context.device, context.dtype)
        change = x.to(context.device, context.dtype) - nominal
        at = nominal + (change if mask is None else change * mask)
        if member is None:
            denoised = context.guider(at, sigma, **options)
        else:
            with self.fitted.layer.perturbed(scale * self.draw(member)):
                denoised = context.guider(at, sigma, **options)
        self.calls += 1
        self.progress.call(self.calls, len(self.trajectory.states))
        if mask is not None:
            kept = state.denoised.to(denoised)
            denoised = kept + (denoised - kept) * mask
        return denoised.float().cpu()

    def ride(self, change: Change) -> tuple[torch.Tensor, list[torch.Tensor]]:
        return ride(self.context, self.recording, self.options, change, self.denoised)

    def show(self, variance: torch.Tensor) -> None:
        self.progress.show(variance)

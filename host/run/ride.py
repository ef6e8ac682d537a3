"""Sends a deviation through the host's own sampler function, in the guider's place, without noise."""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch

from ...bayesdiff_core.estimators.base import Change, Denoise
from ...bayesdiff_core.estimators.trajectory import Unknown
from .context import POST_CFG, RunContext
from .recorder import Recording


def ride(
    context: RunContext,
    recording: Recording,
    options: dict,
    change: Change,
    denoise: Denoise,
    start: torch.Tensor | None = None,
) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """The deviation at the end of the run, in the sampler's space, and those at every state.

    Args:
        options: of the sampler, for every call of the network.
        change: the deviation of ``denoised`` at a state.
        denoise: asks the network; takes ``options`` too.
        start: the deviation of the clean latent that the run begins with; None for zero.
    """
    # What the noise alone does. x and denoised enter a sampler's steps linearly, so it can be taken off again.
    noise_alone = Rider(context, recording, options)
    end_of_noise = noise_alone.run()
    rider = Changing(context, recording, options, change, denoise, noise_alone.passed)
    return rider.run(start) - end_of_noise, rider.passed


class Rider:
    """Takes the guider's place under a sampler. By itself it predicts nothing, so that only noise passes.

    Attributes:
        passed: x at every state.
    """

    def __init__(self, context: RunContext, recording: Recording, options: dict):
        self.context, self.recording, self.options = context, recording, options
        self.trajectory = recording.trajectory
        self.passed: list[torch.Tensor] = []

    def __getattr__(self, name: str):
        return getattr(self.context.guider, name)

    def run(self, start: torch.Tensor | None = None) -> torch.Tensor:
        """What is left at the end, in the sampler's space.

        Args:
            start: the clean latent that it begins with; None for zero.
        """
        context = self.context
        nothing = torch.zeros(self.trajectory.shape, device=context.device, dtype=context.dtype)
        begin = nothing if start is None else start.to(nothing)
        torch.set_rng_state(context.generator_state)
        end = context.executor(
            self, context.sigmas.clone(), dict(self.options), None, nothing, begin, context.mask, True
        )
        if len(self.passed) != len(self.trajectory.states):
            raise Unknown(self.problem())
        return end.cpu() * self.trajectory.end.signal

    def problem(self) -> str:
        return (
            f"Expected a sampler that takes the same steps for every latent, and a model that skips none, got "
            f"'{self.trajectory.sampler}', which does not, or a cache of steps on the model; choose the estimator "
            "'deviations' or the quality 'ensemble'."
        )

    def __call__(self, x: torch.Tensor, timestep: torch.Tensor, model_options: dict, seed=None) -> torch.Tensor:
        index = len(self.passed)
        if index >= len(self.trajectory.states):
            raise Unknown(self.problem())
        self.passed.append(self.deviation(index, x.cpu().float()))
        base = self.options["model_options"].get(POST_CFG, [])
        return self.answer(index, x, model_options, model_options.get(POST_CFG, [])[len(base) :])

    def deviation(self, index: int, x: torch.Tensor) -> torch.Tensor:
        return x

    def answer(self, index: int, x: torch.Tensor, model_options: dict, added: list[Callable]) -> torch.Tensor:
        """What stands for ``denoised``.

        Args:
            added: the sampler's own post-CFG functions.
        """
        nothing = torch.zeros_like(x)
        for function in added:
            function({"denoised": nothing, "uncond_denoised": nothing})
        return nothing


class Changing(Rider):
    """A rider that carries a deviation, and asks the network how it changes ``denoised``.

    Args:
        noise: what the noise that the sampler injects does to x, at every state.
    """

    def __init__(
        self,
        context: RunContext,
        recording: Recording,
        options: dict,
        change: Change,
        denoise: Denoise,
        noise: list[torch.Tensor],
    ):
        super().__init__(context, recording, options)
        self.change, self.denoise, self.noise = change, denoise, noise

    def deviation(self, index: int, x: torch.Tensor) -> torch.Tensor:
        return x - self.noise[index]

    def answer(self, index: int, x: torch.Tensor, model_options: dict, added: list[Callable]) -> torch.Tensor:
        options = self.options
        if added:
            uncond = self.recording.uncond[index]
            assert uncond is not None, "the nominal run had the same hooks"
            base = options["model_options"].get(POST_CFG, [])
            functions = [*base, *(shifted(function, uncond) for function in added)]
            options = options | {"model_options": model_options | {POST_CFG: functions}}
        denoise = functools.partial(self.denoise, options=options)
        return self.change(denoise, self.trajectory.states[index], self.passed[index]).to(x)


def shifted(function: Callable[[dict], torch.Tensor], nominal: torch.Tensor) -> Callable[[dict], torch.Tensor]:
    """A sampler's own look at the prediction for the negative prompt, as a deviation from the nominal one."""

    def see(args: dict) -> torch.Tensor:
        uncond = args["uncond_denoised"]
        function(args | {"uncond_denoised": uncond - nominal.to(uncond)})
        return args["denoised"]

    return see

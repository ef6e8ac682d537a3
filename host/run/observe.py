"""Watches one sampling run, and lets an estimator work once it is over."""

from __future__ import annotations

import dataclasses
import logging
from typing import NamedTuple

import torch
from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import WrappersMP

from ...bayesdiff_core.estimators.base import STANDARD_DEVIATION, Estimator
from ...bayesdiff_core.estimators.parts import Shapes, pack
from ...bayesdiff_core.estimators.past import Handover
from ...bayesdiff_core.estimators.trajectory import SaveAt, places_of
from ...bayesdiff_core.reading.uncertainty import Moment, Uncertainty
from ..posterior import NoPosterior, Posterior
from ..said import say
from .beside import Beside
from .context import RunContext, SamplerInputs
from .look import Look
from .progress import Progress
from .quirks import kept_generators
from .recorder import Recorder
from .replay import Replay
from .stages import past_of
from .stock import WRAPPER_KEY

# One of its own: the host calls the wrappers of a key in the order in which they came.
SHAPES_KEY = "bayesdiff_shapes"

NEVER_ASKED = (
    "Expected a sampler and a guider that ask the model for predictions where they can be seen, got some that go past "
    "it; choose the quality 'ensemble' for them, which needs a Laplace head."
)
OTHER_NETWORK = (
    "this guider asks a second network too. The head is of the first, so the uncertainty counts the first "
    "network's last layer alone."
)
LATER_STAGE = (
    "this run begins below full noise, and measures what it decides itself. Connect the uncertainty of the "
    "latent that comes in to measure the whole."
)
OF_THE_FIRST = " by the first of two networks"
# Members whose deviations are kept, to decode or to compare; more would only take memory.
KEPT_MEMBERS = 16


class Found(NamedTuple):
    """What is known of a run's uncertainty, in units of the latent that users see; of a nested one in one row.

    Attributes:
        variance: ``(n, ...)``.
        deviations: ``(k, n, ...)`` of at most ``KEPT_MEMBERS`` members.
        members: how many there were.
        cost: network calls of the whole, relative to those of the run.
        trajectory: mean and variance on the way.
        measures: what the root of the variance is.
        unknown: why nothing is known, "" if something is.
        handover: what a later stage takes from the run.
    """

    variance: torch.Tensor
    deviations: torch.Tensor
    members: int
    cost: float
    trajectory: tuple[Moment, ...] = ()
    measures: str = STANDARD_DEVIATION
    unknown: str = ""
    handover: Handover = Handover()


def nothing(latent: torch.Tensor) -> Found:
    """No uncertainty, of a run that took no step."""
    return Found(torch.zeros(latent.shape), torch.empty(0, *latent.shape), 0, 1.0)


def as_before(latent: torch.Tensor, before: Uncertainty | None, shapes: Shapes) -> Found:
    """What is known of a run that took no step: what came in with its latent, or no uncertainty.

    Args:
        shapes: of the parts of a nested latent.
    """
    if before is None:
        return nothing(latent)
    parts, members = before.parts, min(len(part.deviations) for part in before.parts)
    return Found(
        variance=pack([part.variance for part in parts], shapes),
        deviations=pack([part.deviations[:members] for part in parts], shapes),
        members=before.members,
        cost=1.0,
        measures=before.measures,
        unknown=before.unknown,
        handover=before.handover,
    )


def unknown(latent: torch.Tensor, why: str) -> Found:
    """What cannot be told of a run, and why; the log says so."""
    say(f"the uncertainty of this run is unknown. {why}")
    return untold(latent, why)


def untold(latent: torch.Tensor, why: str) -> Found:
    """:func:`unknown`, without a word."""
    return nothing(latent)._replace(variance=torch.full(latent.shape, torch.nan), unknown=why)


class Observer:
    """Wrappers for a clone of a model that see one sampling run and let an estimator work once it is over.

    The nominal run goes first and undisturbed. What comes after it happens inside the same sampling context, so that
    prompts, controls, masks and patches are those of the run.

    Args:
        before: what is known of the latent that it goes on from; None for nothing.

    Attributes:
        found: what the estimator found, of the last run if a guider samples twice; None before.
    """

    def __init__(
        self,
        posterior: Posterior | NoPosterior,
        estimator: Estimator,
        save_at: SaveAt,
        progress: Progress,
        before: Uncertainty | None = None,
    ):
        self.posterior, self.estimator, self.save_at, self.progress = posterior, estimator, save_at, progress
        self.before = before
        parts = posterior.parts if isinstance(posterior, Posterior) else ()
        self.looks = [Look(part, estimator.independent_guidance) for part in parts]
        self.shapes: Shapes = ()
        self.recorder: Recorder | None = None
        self.found: Found | None = None

    def add_to(self, model: ModelPatcher) -> None:
        """Add the wrappers to a clone, and keep no hold of it.

        In a circle of clone and wrapper, clones of clones would die at once, and the host could not pass its entry of
        the loaded model on from one to the next.
        """
        model.add_wrapper_with_key(WrappersMP.OUTER_SAMPLE, SHAPES_KEY, self.outer_sample)
        model.add_wrapper_with_key(WrappersMP.PREDICT_NOISE, WRAPPER_KEY, self.predict_noise)
        model.add_wrapper_with_key(WrappersMP.SAMPLER_SAMPLE, WRAPPER_KEY, self.sampler_sample)
        for look in self.looks:
            look.add_to(model)

    def outer_sample(self, executor, *inputs, **named):
        """OUTER_SAMPLE wrapper: here the host says what it has packed into one row."""
        shapes = named.get("latent_shapes") or ()
        self.shapes = tuple(torch.Size(shape[1:]) for shape in shapes) if len(shapes) > 1 else ()
        return executor(*inputs, **named)

    def predict_noise(self, executor, x, timestep, model_options=None, seed=None):
        """PREDICT_NOISE wrapper."""
        if self.recorder is None:
            return executor(x, timestep, model_options, seed)
        return self.recorder.predict_noise(executor, x, timestep, model_options or {}, seed)

    def sampler_sample(self, executor, guider, sigmas, extra_args, *inputs, **named):
        """SAMPLER_SAMPLE wrapper: run the sampler, then let the estimator work."""
        beside, context, recorder = Beside(), None, None
        with beside.guarded("reading what will be sampled"):
            given = SamplerInputs(*inputs, **named)
            context = RunContext.of(self.posterior.model, executor, guider, sigmas, extra_args, given)
            context = dataclasses.replace(context, shapes=self.shapes)
            self.progress.extra = self.estimator.calls(context.schedule) if context.schedule else 0
            looks = self.looks
            if looks and context.has_other_network:
                say(OTHER_NETWORK)
                looks = []  # what one network shows is not gamma² of what both predict
            for look in looks:
                look.begin(beside)
            if isinstance(self.posterior, Posterior):
                self.posterior.warn_of_other_part(context.sampling, context.sigmas)
            recorder = Recorder(context, looks, self.estimator, beside, self.save_at)
        self.recorder = recorder
        try:
            samples = executor(guider, sigmas, extra_args, *inputs, **named)
        finally:
            self.recorder = None
        self.found = None
        # The global generators stay where the stock sampler leaves them.
        if context is not None and recorder is not None and not beside.problem:
            with beside.guarded("estimating the uncertainty"), kept_generators(samples.device):
                if recorder.seen:
                    self.found = self.estimate(context, recorder, samples.shape)
                elif len(sigmas) > 1:
                    self.found = unknown(samples, NEVER_ASKED)
                else:
                    self.found = as_before(samples, self.before, self.shapes)
        if self.found is None:
            cost = 1.0 if recorder is None else recorder.cost
            self.found = unknown(samples, beside.problem)._replace(cost=cost)
        return samples

    def estimate(self, context: RunContext, recorder: Recorder, shape: torch.Size) -> Found:
        recording = recorder.recording(shape)
        if self.before is not None:
            recording = recording.going_on_from(past_of(self.before, context, recording.trajectory.states[0]))
        elif context.is_a_later_stage:
            say(LATER_STAGE, logging.INFO)
        states = recording.trajectory.states
        self.progress.extra = self.estimator.calls(recording.trajectory.levels)
        replay = Replay(context, recording, self.posterior, self.progress)
        kept = [index for index, state in enumerate(states) if len(state.x)]
        wanted = self.save_at.of(context.sigmas)
        along = [kept[place] for place in places_of(wanted, [states[index] for index in kept])]
        try:
            found = self.estimator.estimate(replay, along)
            replay.check_end()
        finally:
            recorder.calls += replay.calls
        slope = context.slope_at(float(context.sigmas[-1]), found.variance)
        moments = [
            Moment(
                states[index].sigma,
                context.to_latent(states[index]),
                found.along[index] * context.slope_at(states[index].sigma, states[index].x).square(),
            )
            for index in along
            if index in found.along
        ]
        return Found(
            variance=found.variance * slope.square(),
            deviations=found.deviations[:KEPT_MEMBERS] * slope,
            members=len(found.deviations),
            cost=recorder.cost,
            unknown=found.problem or ("" if self.before is None else self.before.unknown),
            handover=Handover.of(recording.trajectory, self.posterior.seed),
            trajectory=tuple(moments),
            measures=(found.measures or self.estimator.measures)
            + (OF_THE_FIRST if self.looks and context.has_other_network else ""),
        )

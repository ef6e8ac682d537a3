"""Sees a sampling run go by: every prediction, and what the last layer's features tell about its variance."""

from __future__ import annotations

import dataclasses
import logging
import math
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from itertools import zip_longest
from typing import NamedTuple

import comfy.samplers
import torch
from torch.utils.hooks import RemovableHandle

from ...bayesdiff_core.estimators.base import Estimator
from ...bayesdiff_core.estimators.evidence import still_needed
from ...bayesdiff_core.estimators.parts import pack, unpack
from ...bayesdiff_core.estimators.trajectory import (
    Past,
    SaveAt,
    Scales,
    State,
    Step,
    Trajectory,
    Unknown,
    contraction,
    places_of,
)
from ..blocks import Blocks
from ..layout import match_positions, read_positions
from ..said import say
from .beside import Beside
from .context import POST_CFG, RunContext
from .look import Look
from .quirks import Generators, is_compiled, restart, step_cache
from .space import latent_slope, output_slope

CACHED = (
    "a cache on the model answered {cached} of {steps} steps. The more it answers, the further off the size of the "
    "uncertainty may be."
)
# In `bench frontier` on a rectified flow sizes above it were too small, and those below right within a factor of two.
MOST_NOISE = 2.0
NOISY = (
    "the sampler came to its last step with {left:.1f} times the noise that this step takes away, so the size of the "
    "uncertainty may be too small by as much, and its map wrong; take more steps, another sampler, or the quality "
    "'ensemble', which needs a Laplace head."
)
RESIZED = (
    "Expected a sampler whose last step predicts the latent that it returns, got one that resizes it afterwards or "
    "samples it in parts; resize with a node of its own, sample images one by one, or choose the quality 'ensemble', "
    "which needs a Laplace head."
)


class Recording(NamedTuple):
    """A run that is over.

    Attributes:
        trajectory: its states.
        uncond: of each state the prediction for the negative prompt, where the sampler looks at it; None elsewhere.
        answers: of the last layer at each state, to know them again; None where it was not seen.
        generators: where the global random generators stood before each prediction.
        blocks: count those of the network.
        ran: how many of them ran at each state; 0 where that cannot be seen.
    """

    trajectory: Trajectory
    uncond: list[torch.Tensor | None]
    answers: list[torch.Tensor | None]
    generators: list[Generators]
    blocks: Blocks
    ran: list[int]

    def going_on_from(self, past: Past) -> Recording:
        """The same run, with what is known of the latent that it began with.

        Raises:
            Unknown: the run ended in a latent of another size.
        """
        if past.variance.shape != self.trajectory.shape:
            raise Unknown(
                "Expected a sampler that keeps the size of the latent that comes in with an uncertainty, got one that "
                "changes it; disconnect the input uncertainty."
            )
        return self._replace(trajectory=dataclasses.replace(self.trajectory, past=past))


class Before(NamedTuple):
    """What is seen of a prediction before it is made: see :class:`Prediction`.

    Attributes:
        uncond: gets the prediction for the negative prompt, where the sampler looks at it.
        model_options: to make the prediction with.
        looks: that look at it; none where nothing of it is needed.
        looking: to be held meanwhile.
        skipped: how many steps a cache had skipped.
        counting: hooks that count the blocks that run, to be removed afterwards.
    """

    sigma: float
    scales: Scales
    x: torch.Tensor
    uncond: list[torch.Tensor]
    model_options: dict
    looks: list[Look]
    looking: list[AbstractContextManager]
    skipped: int
    generators: Generators
    counting: list[RemovableHandle]


@dataclasses.dataclass(frozen=True)
class Prediction:
    """One evaluation of the network as it was seen; tensors are on the CPU.

    Attributes:
        shape: of x and of denoised.
        x, denoised: empty where they were not kept, see :meth:`Recorder.forget`.
        gamma_squared: at every output position of the last layer, see :meth:`.look.Look.gamma_squared`; of a nested
            latent, of each part's.
        sized: whether its size is right.
        answers: of the last layer, to know them again; None where it was not seen.
        generators: where the global random generators stood before.
        blocks: how many blocks of the network ran.
    """

    sigma: float
    scales: Scales
    shape: torch.Size
    x: torch.Tensor
    denoised: torch.Tensor
    gamma_squared: list[torch.Tensor | None]
    uncond: torch.Tensor | None
    sized: bool
    answers: torch.Tensor | None
    generators: Generators
    blocks: int


class Recorder:
    """Keeps the predictions of one sampling run; the run itself is not touched.

    Args:
        context: the run.
        looks: read gamma² where the estimator wants it, of each part of a nested latent; none without a head.
        beside: guards what is done beside the run.
        save_at: where on the way x will be asked for.

    Attributes:
        seen: what the network predicted.
        calls: of the network, made once the run was over.
    """

    def __init__(self, context: RunContext, looks: list[Look], estimator: Estimator, beside: Beside, save_at: SaveAt):
        self.context, self.estimator, self.beside = context, estimator, beside
        self.save_at = save_at.of(context.sigmas)
        self.looks = looks[: len(context.shapes) or 1]
        self.schedule = context.schedule
        self.asks = self.estimator.calls(self.schedule) > 0 if self.schedule else False
        self.blocks = Blocks(context.model.model.diffusion_model, beside.guarded)
        self.counts = not is_compiled(context.guider, context.options["model_options"])
        self.seen: list[Prediction] = []
        self.calls = 0

    @property
    def cost(self) -> float:
        """Network calls of the whole, relative to those of the run."""
        return 1.0 + self.calls / max(len(self.seen), 1)

    def predict_noise(self, executor, x, timestep, model_options: dict, seed):
        """See a prediction, guidance and all, and let it pass."""
        before = None
        if not self.beside.problem:
            with self.beside.guarded("reading a step"):
                before = self.before(x, timestep, model_options)
        if before is None:
            return executor(x, timestep, model_options, seed)
        try:
            with ExitStack() as stack:
                for looking in before.looking:
                    stack.enter_context(looking)
                denoised = executor(x, timestep, before.model_options, seed)
        finally:
            for handle in before.counting:
                handle.remove()
        with self.beside.guarded("reading a step"):
            self.after(before, denoised)
        return denoised

    def before(self, x: torch.Tensor, timestep: torch.Tensor, model_options: dict) -> Before:
        """What is seen of a prediction before it is made."""
        sigma = float(timestep.flatten()[0])
        if not (timestep == sigma).all():
            raise Unknown(
                "Expected a sampler that takes all images through the same sigmas, got one that does not; sample "
                "images one by one, or choose the quality 'ensemble', which needs a Laplace head."
            )
        scales = self.context.scales(sigma)
        uncond: list[torch.Tensor] = []
        base = self.context.options["model_options"].get(POST_CFG, [])
        if self.asks and len(model_options.get(POST_CFG, [])) > len(base):
            # A CFG++ sampler: its steps go along the prediction for the negative prompt.
            model_options = model_options | {POST_CFG: [*model_options[POST_CFG], see_uncond(uncond)]}
        cache = step_cache(model_options)
        reads = self.estimator.wants_variance(scales.noise_over_signal, self.schedule)
        # What the last layer answers is kept for an estimator that will ask again.
        looks = self.looks if reads or self.asks else []
        return Before(
            sigma=sigma,
            scales=scales,
            # A copy: the sampler may go on in place. In memory of the CPU, where there is more.
            x=x.detach().to("cpu", copy=True),
            uncond=uncond,
            model_options=model_options,
            looks=looks,
            looking=[look.at(reads) for look in looks],
            skipped=cache.total_steps_skipped if cache is not None else 0,
            generators=Generators.now(self.context.device),
            # The last, so that nothing can go wrong between this and its end.
            counting=self.blocks.watch() if self.counts else [],
        )

    def after(self, before: Before, denoised: torch.Tensor) -> None:
        """Keep what was predicted."""
        cache = step_cache(before.model_options)
        if cache is not None and cache.total_steps_skipped > before.skipped:
            return
        read = [look.gamma_squared(self.context.cfg, len(before.x)) for look in before.looks]
        self.seen.append(
            Prediction(
                sigma=before.sigma,
                scales=before.scales,
                shape=before.x.shape,
                x=before.x,
                denoised=denoised.detach().to("cpu", copy=True),
                gamma_squared=[gamma_squared for gamma_squared, _ in read],
                uncond=before.uncond[0] if before.uncond else None,
                sized=all(sized for gamma_squared, sized in read if gamma_squared is not None),
                answers=before.looks[0].answers.whole if before.looks else None,
                generators=before.generators,
                blocks=self.blocks.most,
            )
        )
        if self.estimator.reads_evidence_alone:
            self.forget()

    def forget(self) -> None:
        """Let go of what the evidence will not be read from, so that what is kept does not grow with the steps."""
        same = [place for place, now in enumerate(self.seen) if now.shape == self.seen[-1].shape]
        # gamma² may not have been read at all of them.
        with_variance = [place for place in same if any(read is not None for read in self.seen[place].gamma_squared)]
        read = {
            places[kept]
            for places in (same, with_variance)
            for kept in still_needed([self.seen[place].scales.noise_over_signal for place in places])
        }
        saved = {same[place] for place in places_of(self.save_at, [self.seen[place] for place in same])} | {same[0]}
        nothing = torch.empty(0)
        for place, now in enumerate(self.seen[:-1]):
            if place not in saved:
                now = dataclasses.replace(now, x=nothing)
            if place not in read | saved:
                now = dataclasses.replace(now, denoised=nothing, gamma_squared=[])
            self.seen[place] = now

    def without_cached(self) -> list[Prediction]:
        """Predictions in which as many blocks of the network ran as in any of the same prompts.

        The others are not the network's word: to a member, which asks the network, they would look like a change.
        """
        prompts, most = [self.context.prompts_at(now.sigma) for now in self.seen], {}
        for kind, now in zip(prompts, self.seen):
            most[kind] = max(most.get(kind, 0), now.blocks)
        own = [now for kind, now in zip(prompts, self.seen) if now.blocks == most[kind]]
        cache = step_cache(self.context.options["model_options"])
        cached = len(self.seen) - len(own) + (0 if cache is None else cache.total_steps_skipped)
        if cached:
            say(CACHED.format(cached=cached, steps=cached + len(own)))
        return own if self.asks else self.seen

    def recording(self, shape: torch.Size) -> Recording:
        """The run, now that it is over.

        Args:
            shape: of what it ended in.

        Raises:
            Unknown: no latent of this shape was seen, the model adds no noise, or users see it in another shape.
        """
        self.seen = self.without_cached()
        # Of a sampler that enlarges its latent on the way, only what came after has the cells of the image.
        if not self.seen or self.seen[-1].shape != shape:
            raise Unknown(RESIZED)
        if self.seen[0].scales.noise == 0:  # then no step would change a deviation
            raise Unknown(
                "Expected a model that samples from noise, got one that adds none and turns a picture into another; "
                "choose the quality 'ensemble' for it, which needs a Laplace head."
            )
        if self.context.end.noise_over_signal > self.seen[0].scales.noise_over_signal:
            raise Unknown(
                "Expected a run that takes noise away, got one that adds it, with sigmas that rise; choose the quality "
                "'ensemble' for it, which needs a Laplace head."
            )
        if latent_slope(self.context.guider.inner_model, self.seen[-1].denoised).shape != shape:
            raise Unknown(
                "Expected a model that samples the latent which it returns, got one that shapes it anew afterwards; "
                "sample with it as before, and measure the stage before it."
            )
        self.seen, seen = [now for now in self.seen if now.shape == shape], len(self.seen)
        if len(self.seen) < seen:
            say("the sampler changed the size of its latent; only the steps after it are measured.", logging.INFO)
        self.seen = [now for now in self.seen if len(now.denoised)]
        end = self.context.end
        states = [
            State(now.sigma, now.scales, now.x, now.denoised, share_kept, variance)
            for now, share_kept, variance in zip(self.seen, self.contractions(end), self.variances())
        ]
        trajectory = Trajectory(
            tuple(states),
            end,
            self.context.sampler,
            self.share_denoised(),
            sized=all(now.sized for now in self.seen),
            shapes=self.context.shapes,
            schedule=tuple(self.schedule),
        )
        left = float(trajectory.noise_left.max())
        if left > MOST_NOISE:
            say(NOISY.format(left=left))
        return Recording(
            trajectory,
            [now.uncond for now in self.seen],
            [now.answers for now in self.seen],
            [now.generators for now in self.seen],
            self.blocks,
            [now.blocks for now in self.seen],
        )

    def share_denoised(self) -> torch.Tensor | None:
        """How much of each cell the mask lets the run denoise, ``(n, ...)``; None without a mask."""
        if self.context.mask is None:
            return None
        shape, share = self.seen[0].shape, torch.zeros(())
        for sigma in {seen.sigma for seen in self.seen}:
            mask = self.context.mask_at(torch.full((shape[0],), sigma, device=self.context.device))
            share = torch.maximum(share, torch.ones(()) if mask is None else mask.float().cpu())
        return share.expand(shape).amax(1)

    def contractions(self, end: Scales) -> list[float]:
        """The coefficient a of the step that follows each state; NaN where not all of the run was kept."""
        if self.estimator.reads_evidence_alone:
            return [math.nan] * len(self.seen)
        own = [self.context.unmixed(now.sigma, now.x, now.denoised) for now in self.seen]
        found = [
            contraction(
                Step(first.x, now.scales.signal, first.denoised, second.x, then.scales.signal),
                None if self.context.mask is None else (first.mask > 0) & (second.mask > 0),
            )
            for now, first, then, second in zip(self.seen, own, self.seen[1:], own[1:])
        ]
        last = self.seen[-1].scales.noise
        return [*found, end.noise / last if last > 0 else 1.0]

    def variances(self) -> list[torch.Tensor | None]:
        """gamma² of every state, brought from output positions to latent elements and to units of ``denoised``."""
        shapes = self.context.shapes
        parts = [self.variances_of(number, look) for number, look in enumerate(self.looks)]

        def joined(state: Prediction, found: tuple[torch.Tensor | None, ...]) -> torch.Tensor | None:
            if all(part is None for part in found):
                return None
            both = zip_longest(found, unpack(state.denoised, shapes))
            whole = pack([torch.full_like(of, torch.nan) if part is None else part for part, of in both], shapes)
            slope = output_slope(self.context.sampling, torch.full((1,), state.sigma), state.denoised[:1])
            return whole * slope.square()

        return [joined(*both) for both in zip(self.seen, zip(*parts))] if parts else [None] * len(self.seen)

    def variances_of(self, part: int, look: Look) -> list[torch.Tensor | None]:
        """gamma² of the network's output at every state, of one part of a nested latent, ``(n, *shape)``."""
        read = [seen.gamma_squared[part] if seen.gamma_squared else None for seen in self.seen]
        first = next((place for place, found in enumerate(read) if found is not None), None)
        if first is None:
            return read
        shape = read[first].shape  # pyright: ignore[reportOptionalMemberAccess], just looked at
        positions = self.positions(look, self.seen[first], shape)

        def placed(found: torch.Tensor | None) -> torch.Tensor | None:
            # Another shape: prompts for areas, at some sigmas only.
            if found is None or positions is None or found.shape != shape:
                return None
            return found.flatten(1)[:, positions]

        return [placed(found) for found in read]

    def positions(self, look: Look, first: Prediction, shape: torch.Size) -> torch.Tensor | None:
        """The output position that each latent element comes from; None where that cannot be read.

        The run itself shows it as a rule. Where it does not, an estimator that calls the network anyway calls it a few
        times more for this.
        """
        layer = look.layer
        latent = unpack(first.denoised, self.context.shapes)[layer.part].shape[1:]
        geometry, count = layer.geometry, shape[1:].numel()
        is_last = geometry.kind == "conv2d" and geometry.out_features >= latent[0]
        if is_last and shape[1:] == latent[1:]:
            return torch.arange(count).reshape(1, *latent[1:]).expand(latent)
        found = match_positions(geometry, look.arrivals)
        if found is not None and found.shape == latent:
            return found
        if not self.estimator.calls([seen.scales.noise_over_signal for seen in self.seen]):
            return None
        guider, model_options = self.context.guider, self.context.options["model_options"]
        prompt = next(conds for conds in guider.conds.values() if conds)

        def denoise(x: torch.Tensor) -> torch.Tensor:
            restart(guider)
            self.calls += 1
            at = torch.full((len(x),), first.sigma, device=x.device)
            return comfy.samplers.calc_cond_batch(guider.inner_model, [prompt], x, at, model_options)[0]

        start = first.x.to(self.context.device, self.context.dtype)
        return read_positions(self.context.model, layer, lambda: denoise(start), latent, count)


def see_uncond(found: list[torch.Tensor]) -> Callable[[dict], torch.Tensor]:
    """A post-CFG function that only looks."""

    def see(args: dict) -> torch.Tensor:
        found.append(args["uncond_denoised"].detach().to("cpu", copy=True))
        return args["denoised"]

    return see

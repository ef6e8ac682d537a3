"""Answers an estimator once a run is over: what the network predicts at a state of the run, with other weights."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress

import torch

from ...bayesdiff_core.estimators.base import Change, NominalRun, Shown
from ...bayesdiff_core.estimators.trajectory import Scales, State, Unknown, root_mean_square
from ..posterior import NOT_CALLED, NoPosterior, Posterior
from .context import RunContext
from .look import Answers
from .progress import Progress
from .quirks import has_company, restart, without_cache
from .recorder import Recording
from .ride import ride

# Mixed into the seed of an estimator's own random numbers: with the bare seed they would repeat the initial noise.
PROBES = 0x5EEDB4A7E5D1FF00
# How much of what a draw changes may be the network's own change of mind: a hundredth of the variance. And how much of
# the prediction, where no draw is there to compare with: rounding in half precision is less.
FORGETFUL, SAME = 0.1, 3e-3
ANSWERS_OTHERWISE = (
    "Expected a network that answers the same when it is asked again, got one that does not, because of a patch, cache "
    "or control on the model that remembers its calls; take it off, or choose the quality 'ensemble' or 'instant'."
)

ANSWERED_BY_A_CACHE = (
    "Expected a network that answers every call, got a cache on the model that answers some for it; take it off, or "
    "choose the quality 'ensemble' or 'instant'."
)


class Answered(Unknown):
    """A cache answered in the place of the network."""


@contextmanager
def seeing(module: torch.nn.Module, answers: Answers) -> Iterator[None]:
    """Inside, the answers of a module are seen."""
    handle = module.register_forward_hook(answers.see)
    try:
        yield
    finally:
        handle.remove()


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
        trends = [*posterior.trends, *[None] * len(self.trajectory.parts)]
        self.shown = [Shown(part, trend) for part, trend in zip(self.trajectory.parts, trends)]
        self.generator = torch.Generator().manual_seed(posterior.seed ^ PROBES)
        self.options = without_cache(context.options)
        self.calls = 0
        self.known = False
        # The state that was asked about last: what walks begins anew where the next is of a higher sigma.
        self.last = State(-math.inf, Scales(0.0, 1.0), torch.empty(0), torch.empty(0), 1.0)
        self.asked: set[int] = set()
        self.last_draws: tuple[int, list[torch.Tensor]] | None = None

    @property
    def fitted(self) -> Posterior:
        """The posterior, for an estimator that needs one."""
        assert isinstance(self.posterior, Posterior), "an estimator without a head has no members"
        return self.posterior

    def draws(self, member: int) -> list[torch.Tensor]:
        """A posterior draw of each layer; the last is kept, since members are asked at one state after another."""
        if self.last_draws is None or self.last_draws[0] != member:
            self.last_draws = member, self.fitted.draws(member)
        return self.last_draws[1]

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
        if not self.known:
            self.known = True
            return self.first(state, x, member, scale, options)
        return self.ask(state, x, member, scale, options)

    def first(
        self, state: State, x: torch.Tensor, member: int | None, scale: float, options: dict | None
    ) -> torch.Tensor:
        """The first prediction, which also tells whether the network still answers as it did.

        Raises:
            Unknown: it does not, or does not call the last layer.
        """
        recorded = self.recording.answers[self.index_of(state)]
        if member is None or recorded is None or not len(recorded) or not torch.equal(x, state.x):
            recorded = None
            # A member that an earlier stage followed is not where the run is. To ask again for it costs a call.
            if self.trajectory.past is None or has_company(self.context.guider, self.options["model_options"]):
                self.ask_again(state)
        if member is None:
            return self.ask(state, x, member, scale, options)
        # A draw changes what comes after the features alone: before it is added, the answer must be the run's.
        own, perturbed = Answers(), Answers()
        module = self.fitted.layer.module
        with seeing(module, own):
            handles = []
            try:
                denoised = self.ask(
                    state,
                    x,
                    member,
                    scale,
                    options,
                    then=lambda: handles.append(module.register_forward_hook(perturbed.see)),
                )
            finally:
                for handle in handles:
                    handle.remove()
        if not own.outlines:
            raise Unknown(NOT_CALLED)
        if recorded is None:
            return denoised
        if own.whole.shape == recorded.shape:
            most = FORGETFUL * root_mean_square(perturbed.whole - own.whole)
            if root_mean_square(own.whole - recorded) > most:
                # A later call of the prediction may see what the draw did to an earlier one (SAG): ask without it.
                own = Answers()
                with seeing(module, own):
                    self.ask(state, x, None, options=options)
                if root_mean_square(own.whole - recorded) > most:
                    raise Unknown(ANSWERS_OTHERWISE)
        else:  # a sampler that asks for more than its steps need, as CFG++ does
            self.ask_again(state)
        return denoised

    def ask_again(self, state: State) -> None:
        """Ask what the run asked at a state.

        Raises:
            Unknown: the network answers something else.
        """
        again = self.ask(state, state.x, None)
        if root_mean_square(again - state.denoised.float()) > SAME * root_mean_square(state.denoised.float()):
            raise Unknown(ANSWERS_OTHERWISE)

    def check_end(self) -> None:
        """Ask again in the middle of the states and at the last, where something is on the model that may remember.

        Raises:
            Unknown: the network answers otherwise by now.
        """
        if self.asked and has_company(self.context.guider, self.context.options["model_options"]):
            asked, last = sorted(self.asked), self.index_of(self.last)
            with suppress(Answered):  # the members' calls are over
                for index in sorted({asked[len(asked) // 2], last}):
                    self.ask_again(self.trajectory.states[index])

    def ask(
        self,
        state: State,
        x: torch.Tensor,
        member: int | None,
        scale: float = 1.0,
        options: dict | None = None,
        then: Callable[[], object] = lambda: None,
    ) -> torch.Tensor:
        """:meth:`denoised`, without a check.

        Args:
            then: called when the weights are changed, before the network is asked.

        Raises:
            Answered: a cache answered for the network.
        """
        context, options = self.context, self.options if options is None else options
        if state.sigma > self.last.sigma:
            restart(context.guider)
        self.last, place = state, self.index_of(state)
        self.asked.add(place)
        # A patch that draws random numbers at every call draws those of the run.
        self.recording.generators[place].restore(context.device)
        sigma = torch.full((len(state.x),), state.sigma, device=context.device)
        mask = context.mask_at(sigma)
        nominal = state.x.to(context.device, context.dtype)
        change = x.to(context.device, context.dtype) - nominal
        at = nominal + (change if mask is None else change * mask)
        came: torch.Tensor | float = 0.0
        if mask is not None:  # what the mask keeps of a member is its own
            came = self.came_in(member)
            at = at + state.signal * came * (1 - mask)
        weights = nullcontext() if member is None else self.fitted.moved(self.draws(member), scale)
        with weights, self.recording.blocks.counting():
            then()
            denoised = context.guider(at, sigma, **options)
        self.calls += 1
        if self.recording.blocks.most < self.recording.ran[place]:
            raise Answered(ANSWERED_BY_A_CACHE)
        self.progress.call(self.calls, len(self.trajectory.states))
        if mask is not None:
            kept = state.denoised.to(denoised) + came
            denoised = kept + (denoised - kept) * mask
        return denoised.float().cpu()

    def came_in(self, member: int | None) -> torch.Tensor | float:
        """How far a member is from the clean latent that the run began with; 0 where nothing is known of it."""
        came = self.trajectory.came_in
        if came is None or member is None or member >= len(came):
            return 0.0
        return came[member].to(self.context.device, self.context.dtype)

    def index_of(self, state: State) -> int:
        return next(index for index, known in enumerate(self.trajectory.states) if known is state)

    def ride(self, change: Change, start: torch.Tensor | None = None) -> tuple[torch.Tensor, list[torch.Tensor]]:
        return ride(self.context, self.recording, self.options, change, self.denoised, start)

    def show(self, variance: torch.Tensor) -> None:
        self.progress.show(self.trajectory.unpack(variance)[0])

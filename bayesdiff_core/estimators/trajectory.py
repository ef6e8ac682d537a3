"""The nominal run, as it went: every evaluation of the network, and how the sampler stepped from one to the next.

With alpha the scale of the signal in x (1, or ``1 - sigma`` for a rectified flow) and D the network's prediction of the
clean latent (``denoised``), a sampler's step from one state to the next is ``x' = a x + (alpha' - a alpha) D + noise``.
The coefficient a tells samplers apart. It is read off the run itself, so no sampler is written anew here.

Three quantities tell how noisy a state is, and each has one name: *sigma* is the sampler's own number, *noise over
signal* is the ratio of the two scales, which means the same for every model, and *share of the schedule* is where on
the model's schedule a sigma lies, from 0 (all noise) to 1 (none).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

import torch

from .parts import Shapes, pack, unpack

LEAST_SIGNAL, LEAST_SIGMA = 1e-6, 1e-9


class Unknown(Exception):
    """What was asked cannot be told of this run; the message says why, and what to do, in a sentence for the user."""


class Scales(NamedTuple):
    """Scales of noise and signal in x: ``x = noise * eps + signal * clean``."""

    noise: float
    signal: float

    @property
    def noise_over_signal(self) -> float:
        """The ratio; a million where there is no signal at all."""
        return self.noise / max(self.signal, LEAST_SIGNAL)


@dataclasses.dataclass(frozen=True)
class State:
    """One evaluation of the network in the nominal run, in the sampler's space.

    Attributes:
        sigma: as the sampler names it.
        scales: of noise and signal in x at this sigma.
        x: what the network saw, ``(n, ...)``; empty where nobody will ask for it.
        denoised: what it predicted, guidance included, ``(n, ...)``.
        contraction: the coefficient a of the step to the next state, or from the last state to the end; NaN where
            nobody will ask for it.
        variance: of ``denoised`` under the posterior of the last layer, ``(n, ...)``, if x were certain; None where
            the estimator did not want it, see :meth:`Estimator.wants_variance <.base.Estimator.wants_variance>`. Of a
            nested latent it is NaN in parts whose last layer is not known.
    """

    sigma: float
    scales: Scales
    x: torch.Tensor
    denoised: torch.Tensor
    contraction: float
    variance: torch.Tensor | None = None

    def part(self, of: Callable[[torch.Tensor], torch.Tensor]) -> State:
        """The state of one part of a nested latent, which ``of`` takes out of the whole."""
        variance = None if self.variance is None else of(self.variance)
        return dataclasses.replace(
            self,
            x=of(self.x) if len(self.x) else self.x,
            denoised=of(self.denoised),
            variance=None if variance is None or variance.isnan().all() else variance,
        )

    @property
    def noise(self) -> float:
        """Scale of the noise in x."""
        return self.scales.noise

    @property
    def signal(self) -> float:
        """Scale alpha of the clean latent in x."""
        return self.scales.signal

    @property
    def noise_over_signal(self) -> float:
        """The ratio of the two, see :attr:`Scales.noise_over_signal`."""
        return self.scales.noise_over_signal


@dataclasses.dataclass(frozen=True)
class Past:
    """What is known of the latent that a run goes on from, in units of the clean latent; see :mod:`.past`.

    Attributes:
        variance: ``(n, ...)``.
        deviations: ``(k, n, ...)`` of the members 0 to k - 1; k is 0 where it has none.
        states: of the stages before, where the run was only cut; none where something happened in between.
        sized: whether the variances of these have their right size, and not their shape alone.
    """

    variance: torch.Tensor
    deviations: torch.Tensor
    states: tuple[State, ...] = ()
    sized: bool = True


@dataclasses.dataclass(frozen=True)
class Trajectory:
    """A sampling run that is over.

    Attributes:
        states: every evaluation of the network, in order; at least one. Where an estimator reads the
            evidence alone, those that this is read from.
        end: scales at the end of the run.
        sampler: name of the sampling algorithm, "" where it has none.
        share_denoised: ``(n, ...)`` without channels, how much of each cell a mask let the run denoise, at the state
            where it let most of it; None for all.
        sized: whether the variances of ``denoised`` have their right size, and not their shape alone.
        past: what is known of the latent that it began with; None where that was certain, or nothing is known.
        shapes: of the parts of a nested latent, each without its batch, see :mod:`.parts`; none of any other latent.
        schedule: noise over signal at the start of every step; none where each state is a step's.
    """

    states: tuple[State, ...]
    end: Scales
    sampler: str = ""
    share_denoised: torch.Tensor | None = None
    sized: bool = True
    past: Past | None = None
    shapes: Shapes = ()
    schedule: tuple[float, ...] = ()

    @property
    def shape(self) -> torch.Size:
        """Of the latent."""
        return self.states[0].denoised.shape

    @property
    def levels(self) -> list[float]:
        """Noise over signal of every state."""
        return [state.noise_over_signal for state in self.states]

    @property
    def is_mixed(self) -> bool:
        """Whether a soft mask mixes what is denoised with what is kept, in some cell at every state."""
        share = self.share_denoised
        return share is not None and bool(((share > 0) & (share < 1)).any())

    @property
    def came_in(self) -> torch.Tensor | None:
        """Deviations of members from the clean latent that the run began with, ``(k, n, ...)``; None of no members."""
        return None if self.past is None or not len(self.past.deviations) else self.past.deviations

    @property
    def states_of_all_stages(self) -> tuple[State, ...]:
        """Those of the stages before too, where the run was only cut."""
        return self.states if self.past is None else self.past.states + self.states

    @property
    def steps_of_all_stages(self) -> list[float]:
        """Noise over signal at the start of every step, with what is known of those of the stages before."""
        before = self.states_of_all_stages[: -len(self.states)]
        return [*(state.noise_over_signal for state in before), *(self.schedule or self.levels)]

    @property
    def all_sized(self) -> bool:
        """:attr:`sized`, of all stages."""
        return self.sized and (self.past is None or self.past.sized)

    def pack(self, parts: Sequence[torch.Tensor]) -> torch.Tensor:
        """See :func:`.parts.pack`."""
        return pack(parts, self.shapes)

    def unpack(self, packed: torch.Tensor) -> list[torch.Tensor]:
        """See :func:`.parts.unpack`."""
        return unpack(packed, self.shapes)

    @property
    def parts(self) -> list[Trajectory]:
        """The same run of each part of a nested latent, in its own shape; of any other latent the run itself."""
        return [self.part(number) for number in range(len(self.shapes))] or [self]

    def part(self, number: int) -> Trajectory:
        """One of :attr:`parts`."""

        def of(packed: torch.Tensor) -> torch.Tensor:
            return self.unpack(packed)[number]

        def of_states(states: Sequence[State]) -> tuple[State, ...]:
            return tuple(state.part(of) for state in states)

        share, past = self.share_denoised, self.past
        return dataclasses.replace(
            self,
            states=of_states(self.states),
            share_denoised=None if share is None else of(share[:, None]).amax(1),
            past=past and Past(of(past.variance), of(past.deviations), of_states(past.states), past.sized),
            shapes=(),
        )

    def scales_at(self, index: int) -> Scales:
        """Scales of a state, or of the end for the index after the last."""
        return self.states[index].scales if index < len(self.states) else self.end

    @property
    def noise_left(self) -> torch.Tensor:
        """Noise in the last state's x by its own prediction, over what its sigma stands for, ``(n,)``.

        About 1 where a sampler keeps to its schedule. More where it went too far on the way: the network then sees an x
        unlike any that it learned from, and what it cannot take away of that stays in the image.
        """
        last = self.states[-1]
        noise = last.x.float() - last.signal * last.denoised.float()
        return noise.flatten(1).square().mean(1).sqrt() / last.noise if last.noise else torch.ones(len(noise))

    def variances_at(self, indices: Sequence[int]) -> dict[int, torch.Tensor]:
        """The variance of ``denoised`` at these states, by their index.

        Raises:
            Unknown: it was not seen at one of them, or in its shape alone.
        """
        found = {index: self.states[index].variance for index in indices}
        seen = {index: variance for index, variance in found.items() if variance is not None}
        if len(seen) < len(found) or not self.sized:
            raise Unknown(
                "Expected a run whose last layer tells how uncertain every prediction is, got one in which it cannot "
                "be seen or several prompts share an image; choose the estimator 'deviations' or another quality."
            )
        return seen

    def contraction(self, first: int, last: int) -> float:
        """The coefficient a of all steps from state ``first`` up to ``last``."""
        return math.prod(state.contraction for state in self.states[first:last])


def root_mean_square(values: torch.Tensor) -> float:
    """Of what is finite; 0 where nothing is."""
    finite = values[values.isfinite()].float()
    return float(finite.square().mean().sqrt()) if len(finite) else 0.0


def nearest_sigma(sigmas: Sequence[float], wanted: float) -> int:
    """The place of the sigma nearest to ``wanted``, by its logarithm.

    Of several equal ones the last: where a sampler of higher order corrects itself, that is what it keeps.
    """

    def log(sigma: float) -> float:
        return math.log(min(max(sigma, LEAST_SIGMA), 1 / LEAST_SIGMA))

    return min(range(len(sigmas)), key=lambda i: (abs(log(sigmas[i]) - log(wanted)), -i))


class Noisy(Protocol):
    """Something seen at a sigma: a :class:`State`, or what a host keeps of one."""

    @property
    def sigma(self) -> float: ...

    @property
    def scales(self) -> Scales: ...


def places_of(wanted: Sequence[float], seen: Sequence[Noisy]) -> list[int]:
    """The places of those nearest to the wanted sigmas, among those with a signal in x; none where none has any."""
    usable = [place for place, now in enumerate(seen) if now.scales.signal > 0]
    sigmas = [seen[place].sigma for place in usable]
    return [usable[nearest_sigma(sigmas, sigma)] for sigma in wanted] if usable else []


class Step(NamedTuple):
    """Two latents that a sampler's step leads between, and the prediction that it follows; see :func:`contraction`."""

    x: torch.Tensor
    signal: float
    denoised: torch.Tensor
    x_next: torch.Tensor
    signal_next: float


def contraction(step: Step, mask: torch.Tensor | None = None) -> float:
    """The coefficient a of a step, by projection on ``x - alpha D``, which noise is independent of.

    For a deterministic sampler it is the ratio of the noise scales, for one that renews its noise it is less.

    Args:
        mask: broadcasts to ``(n, ...)``, where to look.
    """
    denoised = step.denoised.float()
    old, new = step.x.float() - step.signal * denoised, step.x_next.float() - step.signal_next * denoised
    if mask is not None:
        old = old * mask
    finite = (old * new).flatten(1).isfinite().all(1)  # a broken image says nothing of the others
    old, new = old[finite], new[finite]
    square = float(old.square().sum())
    return max(float((old * new).sum()) / square, 0.0) if square > 0 else 1.0


# Shares of the steps after which the trajectory is kept, unless other points of it are asked for.
KEPT_SHARES = (0.2, 0.4, 0.6, 0.8)


@dataclasses.dataclass(frozen=True)
class SaveAt:
    """Where on the way to keep the mean and the variance of the noisy latent. It takes no network call.

    Attributes:
        sigmas: each is kept at the nearest sigma of the run. Without any, the run is kept after some shares of its
            steps: then every image can be resampled.
    """

    sigmas: tuple[float, ...] = ()

    def of(self, schedule: torch.Tensor) -> list[float]:
        """The sigmas to keep of a run with these, highest first."""
        last = len(schedule) - 1
        steps = sorted({round(share * last) for share in KEPT_SHARES} - {0, last})
        return sorted(self.sigmas or [float(schedule[step]) for step in steps], reverse=True)

    def steps(self, schedule: torch.Tensor) -> list[int]:
        """The steps, from 0, that start nearest to those sigmas."""
        starts = schedule[:-1].tolist()
        return [nearest_sigma(starts, sigma) for sigma in self.of(schedule)] if starts else []


DEFAULT_POINTS = SaveAt()

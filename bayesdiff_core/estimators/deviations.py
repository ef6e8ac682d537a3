"""Deviations on a thinned trajectory: a member of the ensemble as a small departure from the nominal run.

A posterior draw dW moves ``denoised`` a little, and with it the trajectory: to ``x + delta`` where the nominal run is
at x. Only delta is followed, at a few of the nominal run's own states: one call of the perturbed network at ``x_i +
delta`` gives ``dD = D_W(x_i + delta) - D_W*(x_i)``, and between states delta takes an affine step like the sampler's,
with dD extrapolated as in DPM-Solver++ (2M) (Lu et al. 2022). Noise that the sampler injects is the same for both and
cancels; how strongly it made the run forget is read off the nominal run, so no sampler is re-implemented.

Few members make a noisy map, so what they say of each cell is moderated by what the nominal run shows for nothing, see
:mod:`.moderation`.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import ClassVar, NamedTuple

import torch

from .base import Estimate, Estimator, NominalRun, knob
from .ensemble import EnsembleVariance
from .evidence import is_needed
from .moderation import Moderation
from .past import FINISHED, with_past
from .trajectory import Scales, State, Trajectory

# Noise over signal of the first and the last state that are worth a call. Above, a deviation is forgotten again; below,
# it only passes through. Chosen with the ensemble as the truth, see docs/sampling.md.
HIGH, LOW = 15.0, 0.2
RHO = 7.0  # of the spacing


def share_of_walk(first: float, last: float) -> float:
    """How much of the walk from HIGH to LOW a part of it takes, from 0 to 1.

    Args:
        first, last: noise over signal where the part begins and ends.
    """
    high, low, first, last = (min(max(level, LOW), HIGH) ** (1 / RHO) for level in (HIGH, LOW, first, last))
    return max(first - last, 0.0) / (high - low)


def choose_states(levels: list[float], count: int) -> list[int]:
    """Indices of at most ``count`` states, those nearest to a Karras spacing (Karras et al. 2022, equation 5).

    Args:
        levels: noise over signal of all states.
    """
    levels = [min(max(level, LOW / 10), HIGH) for level in levels]
    high = max(levels)
    low = min(max(min(levels), LOW), high)
    chosen: set[int] = set()
    for i in range(count):
        share = i / max(count - 1, 1)
        wanted = (high ** (1 / RHO) + share * (low ** (1 / RHO) - high ** (1 / RHO))) ** RHO
        # Of several at one level, or above HIGH, the last: samplers of higher order keep that.
        chosen.add(min(range(len(levels)), key=lambda j: (abs(math.log(levels[j] / wanted)), -j)))
    return sorted(chosen)


# Below this share of a deviation that is left after a step, nothing is gained by extrapolating, and much may be lost.
LEAST_LEFT = 0.05
# A sampler that keeps less than this of its noise renews it, and forgets with it: there extrapolating is unstable.
LEAST_KEPT = 0.9

# How many times the image's own spread a member may end from it: beyond, the walk has left the linear range.
FARTHEST = 2.0
RAN_AWAY = (
    "Expected members that stay near the image, got some that ran away from it, so a size cannot be told; choose the "
    "quality 'instant' or 'ensemble', or a lower cfg."
)

# ``dD`` at a state, for a deviation delta of x (None for no deviation): one perturbed network call.
Deviate = Callable[[State, torch.Tensor | None], torch.Tensor]


class Stride(NamedTuple):
    """The affine step of a deviation from one chosen state: ``a delta + (alpha' - a alpha) slope``."""

    signal: float
    delta: torch.Tensor
    slope: torch.Tensor

    def to(self, signal: float, contraction: float) -> torch.Tensor:
        """The deviation where the signal has the scale alpha' and a of the state's own is left."""
        return contraction * self.delta + (signal - contraction * self.signal) * self.slope


def log_snr_step(state: State, end: Scales, left: float, is_last: bool) -> float | None:
    """The length of a step in log-SNR, in which the multistep solver extrapolates linearly; None where it must not."""
    renewed = not is_last and left * state.noise < LEAST_KEPT * end.noise
    if left <= LEAST_LEFT or renewed or state.signal <= 0 or end.signal <= 0:
        return None
    return math.log(end.signal / state.signal) - math.log(left)


def follow(
    trajectory: Trajectory,
    chosen: list[int],
    deviate: Deviate,
    along: Sequence[int] = (),
    start: torch.Tensor | None = None,
) -> tuple[torch.Tensor, dict[int, torch.Tensor]]:
    """The deviation of one member at the end of the run, in the sampler's space, and on the way.

    Args:
        chosen: indices of the states at which the network is called.
        along: indices of states at which the deviation is asked for too.
        start: the deviation of x at the first state, of the clean latent that an earlier stage left; None for zero.
            Before the first chosen state it only fades.
    """
    found: dict[int, torch.Tensor] = {}
    delta: torch.Tensor | None = None
    if start is not None:
        delta = trajectory.contraction(0, chosen[0]) * start
        found = {j: trajectory.contraction(0, j) * start for j in along if j < chosen[0]}
    previous: tuple[torch.Tensor, float] | None = None
    for index, end in zip(chosen, [*chosen[1:], len(trajectory.states)]):
        state, end_scales = trajectory.states[index], trajectory.scales_at(end)
        change = deviate(state, delta)
        left = trajectory.contraction(index, end)
        step = log_snr_step(state, end_scales, left, is_last=end == len(trajectory.states))
        slope = change
        if step is not None and previous is not None and step * previous[1] > 0:
            slope = change + (change - previous[0]) * (0.5 * step / previous[1])
        stride = Stride(state.signal, torch.zeros_like(change) if delta is None else delta, slope)
        found |= {
            j: stride.to(trajectory.states[j].signal, trajectory.contraction(index, j))
            for j in along
            if index <= j < end
        }
        delta = stride.to(end_scales.signal, left)
        if step:
            previous = change, step
    assert delta is not None, "a member is followed at one state at least"
    return delta, {j: found.get(j, torch.zeros_like(delta)) for j in along}


def ran_away(deviations: torch.Tensor, trajectory: Trajectory) -> torch.Tensor:
    """Whether one of the members ``(k, n, ...)`` ended further from an image than it varies itself, ``(n,)``."""
    image = trajectory.states[-1].denoised.float() * trajectory.end.signal
    # With the noise that a stage leaves.
    own = (image.flatten(1).var(1, correction=0) + trajectory.end.noise**2).sqrt()
    farthest = deviations.flatten(2).square().mean(2).sqrt().amax(0)
    return farthest > FARTHEST * own


@dataclasses.dataclass(frozen=True, kw_only=True)
class Deviations(Estimator):
    """Members followed as deviations from the run.

    Attributes:
        states: at about how many states of the run each member is followed.
        share: network calls to spend on members, at most, as a share of those of the run; one member is the least.
        members: how many members; None for as many as the share allows.
        moderated: whether the variance is moderated; otherwise it is the members' bare mean square.
    """

    members: int | None = knob(4, 1, 256, "how many draws of the last layer.", default=None)
    states: int = knob(5, 1, 1000, "at how many states of the run each draw is followed.", default=5)
    share: float = 1.0
    moderated: bool = True
    on_scale: ClassVar[bool] = True
    name: ClassVar[str] = "deviations"
    help: ClassVar[str] = "what draft, balanced and precise use."

    def wants_variance(self, noise_over_signal: float, schedule: list[float]) -> bool:
        return self.moderated and is_needed(noise_over_signal, schedule)

    def members_within(self, calls: int, states: int) -> int:
        """How many members to follow at so many states after a run of so many calls."""
        return self.members or max(1, math.floor(self.share * calls / states + 1e-6))

    def calls(self, levels: list[float]) -> int:
        states = len(choose_states(levels, self.states))
        return self.members_within(len(levels), states) * states

    def plan(self, trajectory: Trajectory) -> tuple[list[int], int]:
        """At which states to follow how many members.

        A stage of a longer run follows its members at its part of the states, so that it can pay for as many as the
        whole run would have.
        """
        came, count = trajectory.came_in, self.states
        if trajectory.end.noise_over_signal > FINISHED or trajectory.past is not None:
            whole = share_of_walk(trajectory.levels[0], trajectory.end.noise_over_signal)
            count = max(1, int(self.states * whole))
        chosen = choose_states(trajectory.levels, count)
        members = self.members_within(len(trajectory.states), len(chosen))
        if came is not None and len(came) < members:
            # Those that have a past can be followed more closely.
            calls, members = members * len(chosen), len(came)
            chosen = choose_states(trajectory.levels, min(self.states, calls // members))
        if trajectory.is_mixed:  # the mask goes on pulling a deviation back to the end
            chosen = sorted({*chosen, len(trajectory.states) - 1})
        return chosen, members

    def estimate(self, run: NominalRun, along: list[int]) -> Estimate:
        trajectory, came = run.trajectory, run.trajectory.came_in
        chosen, members = self.plan(trajectory)
        end = EnsembleVariance(torch.zeros(trajectory.shape))
        points = {index: EnsembleVariance(torch.zeros(trajectory.shape)) for index in along}
        moderations = [Moderation.of(shown) if self.moderated else None for shown in run.shown]
        deviations: list[torch.Tensor] = []

        def variance(found: EnsembleVariance) -> torch.Tensor:
            parts = zip(moderations, trajectory.unpack(found.mean_square()), trajectory.unpack(torch.stack(deviations)))
            return trajectory.pack([part if by is None else by.shape(part, moved) for by, part, moved in parts])

        def size(moderation: Moderation | None, part: torch.Tensor) -> torch.Tensor:
            return torch.ones_like(part) if moderation is None else moderation.size(part, end.count).expand_as(part)

        for member in range(members):

            def deviate(state: State, delta: torch.Tensor | None, member: int = member) -> torch.Tensor:
                x = state.x if delta is None else state.x + delta
                return run.denoised(state, x, member) - state.denoised

            start = None if came is None else came[member] * trajectory.states[0].signal
            delta, passed = follow(trajectory, chosen, deviate, along, start)
            deviations.append(delta)
            end.add(delta)
            run.show(variance(end))
            for index, point in points.items():
                point.add(passed[index])
        found, along_variance = variance(end), {index: variance(point) for index, point in points.items()}
        factor = trajectory.pack([size(*both) for both in zip(moderations, trajectory.unpack(found))])
        found, along_variance = found * factor, {index: of * factor for index, of in along_variance.items()}
        if came is None:
            found = with_past(found, trajectory)
        walks = zip(trajectory.unpack(torch.stack(deviations)), trajectory.parts)
        away = torch.stack([ran_away(walk, part) for walk, part in walks]).any(0)
        found[away] = torch.nan
        return Estimate(found, torch.stack(deviations), along_variance, problem=RAN_AWAY if away.any() else "")

"""Deviations on a thinned trajectory: a member of the ensemble as a small departure from the nominal run.

A posterior draw dW moves ``denoised`` a little, and with it the trajectory: to ``x + delta`` where the nominal run is
at x. Only delta is followed, at a few of the nominal run's own states: one call of the perturbed network at ``x_i +
delta`` gives ``dD = D_W(x_i + delta) - D_W*(x_i)``, and between states delta takes an affine step like the sampler's,
with dD extrapolated as in DPM-Solver++ (2M) (Lu et al. 2022). Noise that the sampler injects is the same for both and
cancels; how strongly it made the run forget is read off the nominal run, so no sampler is re-implemented.

Few members make a noisy map, so what they say of each cell is moderated by what the nominal run shows for nothing, see
:mod:`~..moderation`.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence

import torch

from ..moderation import covariates, effective_channels, moderate
from ..nominal import NominalRun, State, kept
from . import Estimate
from .ensemble import EnsembleVariance

# Noise over signal of the first and the last state that are worth a call. Above, a deviation is forgotten again; below,
# it only passes through. Chosen with the ensemble as the truth, see docs/sampling.md.
HIGH, LOW = 15.0, 0.2


def choose_states(levels: list[float], count: int) -> list[int]:
    """Indices of at most ``count`` states, those nearest to a Karras spacing of noise over signal.

    Karras et al. 2022, equation 5.
    """
    levels = [min(max(level, LOW / 10), HIGH) for level in levels]
    high = max(levels)
    low, rho = min(max(min(levels), LOW), high), 7.0
    chosen: set[int] = set()
    for i in range(count):
        share = i / max(count - 1, 1)
        wanted = (high ** (1 / rho) + share * (low ** (1 / rho) - high ** (1 / rho))) ** rho
        # Of several at one level, or above HIGH, the last: samplers of higher order keep that.
        chosen.add(min(range(len(levels)), key=lambda j: (abs(math.log(levels[j] / wanted)), -j)))
    return sorted(chosen)


# Below this share of a deviation that is left after a step, nothing is gained by extrapolating, and much may be lost.
LEAST_LEFT = 0.05
# A sampler that keeps less than this of its noise renews it, and forgets with it: there extrapolating is unstable.
LEAST_KEPT = 0.9


def follow(
    states: list[State],
    chosen: list[int],
    signal_end: float,
    deviate: Callable[[State, torch.Tensor | None], torch.Tensor],
    along: Sequence[int] = (),
) -> tuple[torch.Tensor, dict[int, torch.Tensor]]:
    """The deviation of one member at the end of the run, in the sampler's space, and on the way.

    Args:
        states: the nominal run.
        chosen: indices of the states at which the network is called.
        signal_end: scale of the signal in x at the end of the run.
        deviate: ``dD`` at a state, for a deviation delta of x (None for no deviation): one perturbed network call.
        along: indices of states at which the deviation is asked for too; before the first chosen one it is zero.
    """
    delta: torch.Tensor | None = None
    previous: torch.Tensor | None = None
    previous_step = 0.0
    found: dict[int, torch.Tensor] = {}
    for position, index in enumerate(chosen):
        state = states[index]
        change = deviate(state, delta)
        is_last = position + 1 == len(chosen)
        end = len(states) if is_last else chosen[position + 1]
        signal_next = signal_end if is_last else states[end].signal
        left = kept(states, index, end)
        renewed = not is_last and left * state.noise < LEAST_KEPT * states[end].noise
        slope, step = change, None
        if left > LEAST_LEFT and not renewed and state.signal > 0 and signal_next > 0:
            # The step in log-SNR, in which the multistep solver extrapolates linearly.
            step = math.log(signal_next / state.signal) - math.log(left)
            if previous is not None and step * previous_step > 0:
                slope = change + (change - previous) * (0.5 * step / previous_step)
        before = torch.zeros_like(change) if delta is None else delta

        def at(
            signal: float, left: float, state: State = state, before: torch.Tensor = before, slope: torch.Tensor = slope
        ) -> torch.Tensor:
            return left * before + (signal - left * state.signal) * slope

        found |= {j: at(states[j].signal, kept(states, index, j)) for j in along if index <= j < end}
        delta = at(signal_next, left)
        if step:
            previous, previous_step = change, step
    assert delta is not None, "a member is followed at one state at least"
    return delta, {j: found.get(j, torch.zeros_like(delta)) for j in along}


@dataclasses.dataclass(frozen=True)
class Deviations:
    """Members followed as deviations from the run.

    Attributes:
        states: at about how many states of the run each member is followed.
        share: calls of the network to spend on members, at most, as a share of those of the run; one member is the
            least there is.
        fixed_members: how many members, whatever the share.
        moderated: whether the variance is moderated; otherwise it is the members' bare mean square.
    """

    states: int
    share: float = 1.0
    fixed_members: int | None = None
    moderated: bool = True
    name = "deviations"
    independent_guidance = False

    def looks(self, level: float, schedule: list[float]) -> bool:
        return self.moderated and any(
            math.isclose(level, schedule[index], rel_tol=1e-3) for index in choose_states(schedule, self.states)
        )

    def members(self, count: int, states: int) -> int:
        return self.fixed_members or max(1, math.floor(self.share * count / states + 1e-6))

    def calls(self, count: int) -> int:
        states = min(self.states, count)
        return self.members(count, states) * states

    def estimate(self, run: NominalRun, along: list[int]) -> Estimate:
        states = run.states
        chosen = choose_states([state.level for state in states], self.states)
        members = self.members(len(states), len(chosen))
        run.expect(members * len(chosen))
        end = EnsembleVariance(torch.zeros(states[0].x.shape))
        points = {index: EnsembleVariance(torch.zeros(states[0].x.shape)) for index in along}
        trend_of, deviations = covariates(states), []

        def variance(found: EnsembleVariance) -> torch.Tensor:
            squares = found.mean_square()
            if not self.moderated:
                return squares
            return moderate(squares, found.count * effective_channels(torch.stack(deviations)), trend_of)

        for _ in range(members):
            delta_w = run.draw()

            def deviate(state: State, delta: torch.Tensor | None, delta_w: torch.Tensor = delta_w) -> torch.Tensor:
                x = state.x if delta is None else state.x + delta
                return run.denoised(state, x, delta_w) - state.denoised

            delta, passed = follow(states, chosen, run.signal_end, deviate, along)
            deviations.append(delta)
            end.add(delta)
            run.show(variance(end))
            for index, point in points.items():
                point.add(passed[index])
        along_variance = {index: variance(point) for index, point in points.items()}
        return Estimate(variance(end), torch.stack(deviations), along_variance)

"""Deviations on a thinned trajectory: a member of the ensemble as a small departure from the nominal run.

A posterior draw δW moves ``denoised`` a little, and with it the trajectory: to ``x + δ`` where the nominal run is at
x. Only δ is followed, at a few of the nominal run's own states: one call of the perturbed network at ``x_i + δ`` gives
``δD = D_W(x_i + δ) - D_W*(x_i)``, and between states δ takes an affine step like the sampler's, with δD extrapolated as
in DPM-Solver++ (2M) (Lu et al. 2022). Noise that the sampler injects is the same for both and cancels; how strongly it
made the run forget is read off the nominal run, so no sampler is re-implemented.

With α the scale of the signal in x (1, or ``1 - σ`` for a rectified flow), a step from one state to the next is
``x' = a x + (α' - a α) D + noise``.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import torch


@dataclasses.dataclass
class State:
    """One evaluation of the network in the nominal run, in the sampler's space.

    Attributes:
        sigma: noise level, as the sampler names it.
        noise, signal: scales of the noise and of the signal in x at this level.
        x: what the network saw, ``(n, ...)``.
        denoised: what it predicted, guidance included, ``(n, ...)``.
        contraction: the coefficient a of the step to the next state, or of the last state to the end.
    """

    sigma: float
    noise: float
    signal: float
    x: torch.Tensor
    denoised: torch.Tensor
    contraction: float = 0.0


def contraction(state: State, x_next: torch.Tensor, signal_next: float, mask: torch.Tensor | None = None) -> float:
    """The coefficient a of a step to ``x_next``, by projection on ``x - αD``, which noise is independent of.

    For a deterministic sampler it is the ratio of the noise levels, for one that renews its noise it is less.

    Args:
        mask: broadcasts to ``(n, ...)``, 1 where the picture is denoised.
    """
    denoised = state.denoised.float()
    old, new = state.x.float() - state.signal * denoised, x_next.float() - signal_next * denoised
    if mask is not None:
        old = old * mask
    square = float(old.square().sum())
    return max(float((old * new).sum()) / square, 0.0) if square > 0 else 1.0


# Noise over signal of the first and the last state that are worth a call. Above, a deviation is forgotten again; below,
# it only passes through. Chosen with the ensemble as the truth, see docs/sampling.md.
HIGH, LOW = 15.0, 0.2


def choose_states(states: list[State], count: int) -> list[int]:
    """Indices of at most ``count`` states, those nearest to a Karras spacing of noise over signal.

    Karras et al. 2022, equation 5.
    """
    levels = [min(max(state.noise / max(state.signal, 1e-6), LOW / 10), HIGH) for state in states]
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


def follow(
    states: list[State],
    chosen: list[int],
    signal_end: float,
    deviate: Callable[[State, torch.Tensor | None], torch.Tensor],
) -> torch.Tensor:
    """The deviation of one member at the end of the run, in the sampler's space.

    Args:
        states: the nominal run.
        chosen: indices of the states at which the network is called.
        signal_end: scale of the signal in x at the end of the run.
        deviate: ``δD`` at a state, for a deviation δ of x (None for no deviation): one perturbed network call.
    """
    delta = previous = previous_step = None
    for position, index in enumerate(chosen):
        state = states[index]
        change = deviate(state, delta)
        is_last = position + 1 == len(chosen)
        end = len(states) if is_last else chosen[position + 1]
        signal_next = signal_end if is_last else states[end].signal
        left = math.prod(state.contraction for state in states[index:end])
        slope, step = change, None
        if left > LEAST_LEFT and state.signal > 0 and signal_next > 0:
            # The step in log-SNR, in which the multistep solver extrapolates linearly.
            step = math.log(signal_next / state.signal) - math.log(left)
            if previous is not None and step * previous_step > 0:
                slope = change + (change - previous) * (0.5 * step / previous_step)
        moved = (signal_next - left * state.signal) * slope
        delta = moved if delta is None else left * delta + moved
        if step:
            previous, previous_step = change, step
    return delta

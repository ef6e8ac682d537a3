"""Deviations on a thinned trajectory: a member of the ensemble as a small departure from the nominal run.

A posterior draw δW moves ``denoised`` a little, and with it the trajectory: to ``x + δ`` where the nominal run is at
x. Only δ is followed, at a few of the nominal run's own states: one call of the perturbed network at ``x_i + δ`` gives
``δD = D_W(x_i + δ) - D_W*(x_i)``, and between states δ takes the affine step that the sampler itself took, with δD
extrapolated as in DPM-Solver++ (2M) (Lu et al. 2022). Noise that the sampler injects is the same for both and cancels;
how strongly it made the run forget is read off the nominal run, so no sampler is re-implemented.
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
        sigma: noise level.
        x: what the network saw, ``(n, ...)``.
        denoised: what it predicted, guidance included, ``(n, ...)``.
        contraction: share of ``x - denoised`` that is left in the next state (or, of the last one, at the end).
    """

    sigma: float
    x: torch.Tensor
    denoised: torch.Tensor
    contraction: float = 0.0


def contraction(state: State, x_next: torch.Tensor, mask: torch.Tensor | None = None) -> float:
    """The coefficient a of a sampler's step ``x' = a x + (1 - a) D + noise``, by projection on ``x - D``.

    For a deterministic sampler it is σ'/σ, for one that renews its noise as ancestral ones do (σ'/σ)².

    Args:
        mask: ``(n, ...)`` or broadcast to it, 1 where the picture is denoised.
    """
    old, new = state.x.float() - state.denoised.float(), x_next.float() - state.denoised.float()
    if mask is not None:
        old = old * mask
    square = float(old.square().sum())
    return min(max(float((old * new).sum()) / square, 0.0), 1.0) if square > 0 else 1.0


# Noise over signal of the first and the last state that are worth a call. Above, a deviation is forgotten again; below,
# it only passes through. Measured with the ensemble as the truth, see the frontier in docs/.
HIGH, LOW = 15.0, 0.2


def choose_states(levels: list[float], count: int) -> list[int]:
    """Indices of about ``count`` states, those nearest to a Karras spacing (Karras et al. 2022, eq. 5).

    Args:
        levels: noise over signal at the states of a run, in its order; they fall, and may repeat.
    """
    rho = 7.0
    high = min(max(levels), HIGH)
    low = min(max(min(levels), LOW), high)
    chosen: set[int] = set()
    for i in range(count):
        share = i / max(count - 1, 1)
        wanted = (high ** (1 / rho) + share * (low ** (1 / rho) - high ** (1 / rho))) ** rho
        distances = [abs(math.log(min(max(level, LOW / 10), HIGH) / wanted)) for level in levels]
        # Of several at one level, or above HIGH, the last: samplers of higher order keep that.
        chosen.add(min(range(len(levels)), key=lambda j: (distances[j], -j)))
    return sorted(chosen)


def follow(
    states: list[State], chosen: list[int], deviate: Callable[[State, torch.Tensor | None], torch.Tensor]
) -> torch.Tensor:
    """The deviation of one member at the end of the run, in the sampler's space.

    Args:
        states: the nominal run.
        chosen: indices of the states at which the network is called.
        deviate: ``δD`` at a state, for a deviation δ of x (None for no deviation): one perturbed network call.
    """
    delta = previous = previous_step = None
    for position, index in enumerate(chosen):
        change = deviate(states[index], delta)
        end = chosen[position + 1] if position + 1 < len(chosen) else len(states)
        left = math.prod(state.contraction for state in states[index:end])
        step = -math.log(left) if left > 0 else math.inf
        slope = change
        if previous is not None and 0 < step < math.inf:
            slope = change + (change - previous) * (0.5 * step / previous_step)
        delta = (1 - left) * slope if delta is None else left * delta + (1 - left) * slope
        if step > 0:
            previous, previous_step = change, step
    return delta

"""The nominal run: what an estimator may know and ask of the sampling run that makes the picture.

With alpha the scale of the signal in x (1, or ``1 - sigma`` for a rectified flow) and D the network's prediction of the
clean latent (``denoised``), a sampler's step from one state to the next is ``x' = a x + (alpha' - a alpha) D + noise``.
The coefficient a tells samplers apart; it is read off the run itself, so no sampler is written anew here.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Protocol

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
        variance: of ``denoised`` under the posterior of the last layer, ``(n, ...)``, were x certain; None where
            nobody looked. See :class:`Estimator <.estimators.Estimator>`.
    """

    sigma: float
    noise: float
    signal: float
    x: torch.Tensor
    denoised: torch.Tensor
    contraction: float = 0.0
    variance: torch.Tensor | None = None

    @property
    def level(self) -> float:
        return level(self.noise, self.signal)


def level(noise: float, signal: float) -> float:
    """Noise over signal; a million where there is no signal at all."""
    return noise / max(signal, 1e-6)


def nearest(levels: Sequence[float], wanted: float) -> int:
    """The place in ``levels`` of the noise level nearest to ``wanted``, by its logarithm.

    Of several at one level the last: where a sampler of higher order corrects itself, that is what it keeps.
    """
    least = 1e-9
    return min(range(len(levels)), key=lambda i: (abs(math.log(max(levels[i], least) / max(wanted, least))), -i))


def contraction(state: State, x_next: torch.Tensor, signal_next: float, mask: torch.Tensor | None = None) -> float:
    """The coefficient a of a step to ``x_next``, by projection on ``x - alpha D``, which noise is independent of.

    For a deterministic sampler it is the ratio of the noise levels, for one that renews its noise it is less.

    Args:
        mask: broadcasts to ``(n, ...)``, 1 where the picture is denoised.
    """
    denoised = state.denoised.float()
    old, new = state.x.float() - state.signal * denoised, x_next.float() - signal_next * denoised
    if mask is not None:
        old = old * mask
    finite = (old * new).flatten(1).isfinite().all(1)  # a broken picture says nothing of the others
    old, new = old[finite], new[finite]
    square = float(old.square().sum())
    return max(float((old * new).sum()) / square, 0.0) if square > 0 else 1.0


class NominalRun(Protocol):
    """What a host offers to an estimator once the nominal run is over.

    Attributes:
        states: every evaluation of the network, in order.
        signal_end, noise_end: scales at the end of the run.
        sampler: name of the sampling algorithm, "" where it has none.
        generator: source of an estimator's own random numbers.
    """

    states: list[State]
    signal_end: float
    noise_end: float
    sampler: str
    generator: torch.Generator

    def draw(self) -> torch.Tensor:
        """One draw dW from the posterior of the last layer."""
        ...

    def denoised(self, state: State, x: torch.Tensor, delta_w: torch.Tensor | None = None) -> torch.Tensor:
        """The network's prediction at another x of a state's level, with weights W* + dW. One call of the network."""
        ...

    def ride(self, change: Callable[[State, torch.Tensor], torch.Tensor]) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """Send a deviation through the sampler's own function, without noise.

        Args:
            change: the deviation of ``denoised`` at a state, for a deviation of x there.

        Returns:
            the deviation at the end, and those at every state.
        """
        ...

    def expect(self, calls: int) -> None:
        """Say how many calls of the network are to come, where it is another number than the estimator's own guess."""

    def show(self, variance: torch.Tensor) -> None:
        """Show the user what is known so far of the variance at the end."""


def signal_after(run: NominalRun, index: int) -> float:
    """Scale of the signal at the state after ``index``, or at the end."""
    return run.states[index + 1].signal if index + 1 < len(run.states) else run.signal_end


def kept(states: list[State], first: int, last: int) -> float:
    """The coefficient a of all steps from state ``first`` up to ``last``."""
    return math.prod(state.contraction for state in states[first:last])

"""What an estimator is: what it is given once the nominal run is over, and what it returns."""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple, Protocol

import torch

from .trajectory import State, Trajectory
from .trend import Trend

# What the root of a variance is, unless an estimator says otherwise.
STANDARD_DEVIATION = "standard deviation"
# ``denoised(state, x, member, scale)``: see :meth:`NominalRun.denoised`.
Denoise = Callable[..., torch.Tensor]
# The deviation of ``denoised`` at a state for a deviation of x there, asked of the network by the function given first.
Change = Callable[[Denoise, State, torch.Tensor], torch.Tensor]


@dataclasses.dataclass(frozen=True)
class Estimate:
    """What an estimator found, in the sampler's space.

    Attributes:
        variance: of the image, ``(n, ...)``.
        deviations: ``(k, n, ...)``, of the members from the image; k is 0 where there are none.
        along: variance of x at the states that were asked for, by their index; without those where it is unknown.
        measures: what the root of the variance is, if not what the estimator as a rule measures.
        problem: why some of the images are unknown, in a sentence for the user; their variance is NaN.
    """

    variance: torch.Tensor
    deviations: torch.Tensor
    along: dict[int, torch.Tensor]
    measures: str = ""
    problem: str = ""


class Shown(NamedTuple):
    """What the nominal run shows for nothing of an image, or of one part of a nested latent.

    Attributes:
        trajectory: the run, in the shape of that part.
        trend: what the head learned of its own model there; None where it learned nothing.
    """

    trajectory: Trajectory
    trend: Trend | None


class NominalRun(Protocol):
    """What a host offers to an estimator once the nominal run is over.

    Attributes:
        trajectory: the run, as the sampler steps it.
        shown: what it shows, of each part of a nested latent; of any other latent one.
        generator: source of an estimator's own random numbers. Posterior draws are not among them: these have numbers.
    """

    trajectory: Trajectory
    shown: list[Shown]
    generator: torch.Generator

    def denoised(self, state: State, x: torch.Tensor, member: int | None = None, scale: float = 1.0) -> torch.Tensor:
        """The network's prediction at another x of a state's sigma. One network call.

        Args:
            member: number of the posterior draw dW to predict with: weights are ``W* + scale dW``. None for W* alone.
        """
        ...

    def ride(self, change: Change, start: torch.Tensor | None = None) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """Send a deviation through the sampler's own function, without noise.

        Args:
            start: the deviation of the clean latent that the run begins with, ``(n, ...)``; None for zero.

        Returns:
            the deviation at the end, and those at every state.
        """
        ...

    def show(self, variance: torch.Tensor) -> None:
        """Show the user what is known so far of the variance at the end."""


class Estimator(abc.ABC):
    """From the posterior of the last layer to the variance of an image.

    Subclasses are frozen dataclasses. Each field made by :func:`knob` becomes an input of Uncertainty Options.

    Attributes:
        name: what UNCERTAINTY calls it.
        help: one short sentence for the node's tooltip: what it is, or when to take it.
        measures: what the root of its variance is.
        needs_head: whether it reads the posterior of the last layer.
        reads_evidence_alone: whether it reads nothing of a run but :mod:`.evidence`, so that little need be kept of it.
        on_scale: whether it has the size that the scores of the model's own images have, see :mod:`..reading.scale`.
        independent_guidance: whether the variance of ``denoised`` under guidance takes its two halves as independent,
            as the published code does. One W serves both, so nothing else should.
    """

    name: ClassVar[str]
    help: ClassVar[str]
    measures: ClassVar[str] = STANDARD_DEVIATION
    needs_head: ClassVar[bool] = True
    reads_evidence_alone: ClassVar[bool] = False
    on_scale: ClassVar[bool] = False
    independent_guidance: ClassVar[bool] = False

    def wants_variance(self, noise_over_signal: float, schedule: list[float]) -> bool:
        """Whether the estimate reads the variance of ``denoised`` at a state. Seeing it takes no network call.

        Args:
            noise_over_signal: of the state.
            schedule: noise over signal at the start of every step of the run.
        """
        return False

    @abc.abstractmethod
    def calls(self, levels: list[float]) -> int:
        """How many network calls the estimate takes after a run of states with these noise over signal."""

    @abc.abstractmethod
    def estimate(self, run: NominalRun, along: list[int]) -> Estimate:
        """The estimate, with the variance at the states ``along`` too.

        Raises:
            Unknown: this run does not show it.
        """


def knob(shown: int, least: int, most: int, help: str, **field: Any) -> Any:
    """A dataclass field that is an input of Uncertainty Options: its default there, its bounds, and its tooltip."""
    return dataclasses.field(metadata={"shown": shown, "least": least, "most": most, "help": help}, **field)

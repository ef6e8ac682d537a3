"""How the posterior of the last layer becomes a variance of the picture, one file an idea.

An estimator works beside the nominal run (:class:`~..nominal.NominalRun`) once that is over. To add one, write a class
of the shape of :class:`Estimator` and name it in ``ESTIMATORS`` of ``nodes/options.py``; ``python dev.py bench
frontier`` then shows what it is worth. The ensemble alone needs more than a run, a host that samples anew, and stands
beside this interface: see :mod:`.ensemble`.
"""

from __future__ import annotations

import dataclasses
from typing import Protocol

import torch

from ..nominal import NominalRun


@dataclasses.dataclass
class Estimate:
    """What an estimator found, in the sampler's space.

    Attributes:
        variance: of the picture, ``(n, ...)``.
        deviations: ``(k, n, ...)``, of the members from the picture; k is 0 where there are none.
        along: variance of x at the states that were asked for, by their index.
    """

    variance: torch.Tensor
    deviations: torch.Tensor
    along: dict[int, torch.Tensor]


class Estimator(Protocol):
    """What every estimator offers.

    Attributes:
        name: what UNCERTAINTY calls it.
        independent_guidance: whether the variance of ``denoised`` under guidance takes its two halves as independent,
            as the published code does; one W serves both, so it is False for all but that.
    """

    name: str
    independent_guidance: bool

    def looks(self, level: float, schedule: list[float]) -> bool:
        """Whether to look at the variance of ``denoised`` at a state of this noise over signal, while the run goes on.

        Args:
            schedule: noise over signal at the steps to come, from the first.
        """
        ...

    def calls(self, count: int) -> int:
        """How many calls of the network the estimate takes beside a run of ``count``."""
        ...

    def estimate(self, run: NominalRun, along: list[int]) -> Estimate:
        """The estimate, with the variance at the states ``along`` too."""
        ...

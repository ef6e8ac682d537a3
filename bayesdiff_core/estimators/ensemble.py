"""The posterior ensemble: K draws of W, each held for the whole trajectory.

Every member starts from the same initial noise and sees the same injected noise as the nominal sample, so what
differs between members is the weights alone. This is the definition of the posterior variance of the image, the
oracle that cheaper estimators are judged by; the relative error of a pixel's variance is sqrt(2/K).
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import torch

from .base import STANDARD_DEVIATION


@dataclasses.dataclass(frozen=True)
class Ensemble:
    """Sample every member from start to end, which is for the host to do.

    Attributes:
        members: K.
    """

    members: int
    name: ClassVar[str] = "ensemble"
    measures: ClassVar[str] = STANDARD_DEVIATION
    needs_head: ClassVar[bool] = True
    on_scale: ClassVar[bool] = True


class EnsembleVariance:
    """Variance of an ensemble, accumulated member by member around the nominal sample.

    Args:
        nominal: the sample drawn with W*, any shape. Deviations from it are summed, so that a spread far below
            the magnitude of the sample keeps its digits.
    """

    def __init__(self, nominal: torch.Tensor):
        self.nominal = nominal.double()
        self.count = 0
        self.sum = torch.zeros_like(self.nominal)
        self.sum_of_squares = torch.zeros_like(self.nominal)

    def add(self, member: torch.Tensor) -> None:
        """Count one member, of the nominal sample's shape."""
        deviation = member.to(self.nominal.device).double() - self.nominal
        self.count += 1
        self.sum += deviation
        self.sum_of_squares += deviation.square()

    def variance(self) -> torch.Tensor:
        """Unbiased variance over the members, float32.

        Raises:
            ValueError: fewer than two members were added.
        """
        if self.count < 2:
            raise ValueError(f"Expected at least 2 ensemble members, got {self.count}; add more of them.")
        centred = self.sum_of_squares - self.sum.square() / self.count
        return (centred.clamp(min=0) / (self.count - 1)).float()

    def mean_square(self) -> torch.Tensor:
        """Mean square deviation from the nominal sample, float32.

        To first order in dW the members' mean is the nominal sample, so this is their variance, found from as few as
        one member and with a relative error of sqrt(2/K).
        """
        return (self.sum_of_squares / self.count).float()

"""No head: how much the image was yet to change, as its own run shows it.

Where the network went on changing its mind about ``denoised``, the image hangs on chance. It is no posterior variance,
and its size means nothing beside one. But it takes no fit and no network call, and any network shows it.
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import torch

from .base import Estimate, Estimator, NominalRun
from .evidence import read_evidence
from .past import with_past
from .trajectory import Trajectory


def spread_over_channels(cells: torch.Tensor, trajectory: Trajectory, left: torch.Tensor | None) -> torch.Tensor:
    """A variance ``(n, c, ...)`` of what is known of cells alone, ``(n, ...)``.

    Args:
        left: ``(n, ...)``, how much a mask leaves of the root of it; None for all.
    """
    cells = cells if left is None else cells * left.square()
    return cells[:, None].expand(trajectory.shape).clone()


@dataclasses.dataclass(frozen=True)
class Change(Estimator):
    """Square of what ``denoised`` was yet to change: its geometric mean over the noise levels."""

    name: ClassVar[str] = "no head"
    help: ClassVar[str] = "how much the image was yet to change in the run; needs no head."
    measures: ClassVar[str] = "change of the predicted image"
    needs_head: ClassVar[bool] = False
    reads_evidence_alone: ClassVar[bool] = True

    def calls(self, levels: list[float]) -> int:
        return 0

    def estimate(self, run: NominalRun, along: list[int]) -> Estimate:
        trajectory = run.trajectory
        variance = trajectory.pack([change_of(part) for part in trajectory.parts])
        run.show(variance)
        return Estimate(variance, torch.empty(0, *trajectory.shape), {})


def change_of(trajectory: Trajectory) -> torch.Tensor:
    """Square of the change at the end of the run, ``(n, ...)``, what came in included."""
    own = spread_over_channels(read_evidence(trajectory).change.mean(0).exp(), trajectory, trajectory.share_denoised)
    return with_past(own * trajectory.end.signal**2, trajectory)

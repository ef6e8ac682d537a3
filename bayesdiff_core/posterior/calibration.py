"""What a head learned at its fit from some of its model's own images: see :mod:`..estimators.trend`."""

from __future__ import annotations

import dataclasses
import json
import math

import torch

from ..estimators.evidence import LEVELS
from ..estimators.trend import Slopes, Trend
from ..reading.scale import ScoreScale

TENSORS = ("trend.full", "trend.blind", "trend.way")


@dataclasses.dataclass(frozen=True)
class Calibration:
    """What a head learned.

    Attributes:
        trend: how the variance of images follows what their runs show.
        scale: scores of the model's own images; None where there were too few.
    """

    trend: Trend
    scale: ScoreScale | None

    def tensors(self) -> dict[str, torch.Tensor]:
        """Its tensors, as a file keeps them."""
        found = (self.trend.full.where, self.trend.blind.where, self.trend.way)
        return {name: tensor.float().cpu().contiguous() for name, tensor in zip(TENSORS, found)}

    def to_json(self) -> str:
        """All else."""
        trend, scale = self.trend, self.scale
        return json.dumps(
            {
                "levels": [trend.full.level, trend.blind.level],
                "level_spread": trend.level_spread,
                "images": trend.images,
                "scores": None if scale is None else {"images": scale.images, "logs": scale.logs},
            }
        )

    @classmethod
    def read(cls, tensors: dict[str, torch.Tensor], text: str) -> Calibration:
        """Made of what a file keeps.

        Raises:
            KeyError, TypeError, ValueError: it keeps something else.
        """
        said = json.loads(text)
        full, blind, way = (tensors[name].float() for name in TENSORS)
        (first, second), spread = map(float, said["levels"]), float(said["level_spread"])
        covariates = len(LEVELS) + 2
        numbers = torch.cat([full, blind, way, torch.tensor([first, second, spread])])
        if (
            len(full) not in (covariates, covariates + len(LEVELS))
            or len(blind) != covariates
            or len(way) != len(LEVELS)
        ):
            raise ValueError("a trend of another number of covariates")
        if not (numbers.isfinite().all() and spread > 0):
            raise ValueError("a trend that is not finite")
        scale = None
        if said["scores"] is not None:
            logs = {str(name): (float(mean), float(std)) for name, (mean, std) in said["scores"]["logs"].items()}
            scale = ScoreScale(int(said["scores"]["images"]), logs)
            if scale.images < 2 or not all(math.isfinite(mean) and 0 <= std < math.inf for mean, std in logs.values()):
                raise ValueError("a scale of scores that is not finite")
        trend = Trend(Slopes(full, first), Slopes(blind, second), way, spread, int(said["images"]))
        return cls(trend, scale)

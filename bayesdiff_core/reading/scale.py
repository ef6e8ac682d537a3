"""A scale for scores: where one lies among those of the model's own images."""

from __future__ import annotations

import dataclasses
import math

import torch


@dataclasses.dataclass(frozen=True)
class ScoreScale:
    """Scores of some of the model's own images.

    Attributes:
        images: how many, two at least.
        logs: of each kind of score, mean and standard deviation of its logarithm over these.
    """

    images: int
    logs: dict[str, tuple[float, float]]

    @classmethod
    def of(cls, scores: dict[str, torch.Tensor]) -> ScoreScale | None:
        """The scale of scores ``(n,)`` by their kind; None of fewer than two images.

        Kinds of which a score is not positive have no scale.
        """
        images = min(map(len, scores.values()))
        usable = {name: found.double().log() for name, found in scores.items() if (found > 0).all() and images > 1}
        logs = {name: (float(found.mean()), float(found.std())) for name, found in usable.items()}
        return cls(images, logs) if logs else None

    def percentiles(self, name: str, scores: torch.Tensor) -> torch.Tensor | None:
        """How many in a hundred of the model's images a score is above, ``(n,)`` of ``(n,)``.

        The images are few, so this is the predictive distribution of one more of them: Student's t for the logarithm,
        which says 50 where it knows next to nothing. NaN for a score that is no number.

        Returns:
            None where the scale knows no such score.
        """
        if name not in self.logs:
            return None
        mean, std = self.logs[name]
        distance = scores.double().clamp(min=0).log() - mean
        return 100 * student_cdf(distance / max(std * math.sqrt(1 + 1 / self.images), 1e-9), self.images - 1)


def student_cdf(t: torch.Tensor, degrees: int) -> torch.Tensor:
    """Distribution function of Student's t, by the trapezoidal rule on ``t = sqrt(degrees) tan(angle)``."""
    angle = (t / math.sqrt(degrees)).atan()
    steps = torch.linspace(0, 1, 513, dtype=torch.float64)
    integral = torch.trapezoid((angle[:, None] * steps).cos().clamp(min=0) ** (degrees - 1), steps, dim=1) * angle
    norm = math.exp(math.lgamma((degrees + 1) / 2) - math.lgamma(degrees / 2)) / math.sqrt(math.pi)
    return 0.5 + norm * integral

"""Which images are kept."""

from __future__ import annotations

import dataclasses
from collections import defaultdict

from . import Problem
from .table import Image


@dataclasses.dataclass(frozen=True)
class Rule:
    """What to keep; one of these.

    Attributes:
        best: so many of all.
        per_prompt: so many of every prompt and combination of inputs.
        percentile: all whose score is at most at this percentile of the model's own images.
    """

    best: int | None = None
    per_prompt: int | None = None
    percentile: float | None = None

    def __post_init__(self):
        if sum(value is not None for value in dataclasses.astuple(self)) != 1:
            raise Problem(
                "Expected one of --keep, --keep-per-prompt and --keep-percentile, got none or several; give one."
            )
        if any(number is not None and number < 1 for number in (self.best, self.per_prompt)):
            raise Problem("Expected at least one image to keep, got fewer; give a number from 1 on.")

    def most(self, groups: int, count: int) -> int:
        """At most so many of ``count`` images in ``groups`` are kept."""
        wanted = self.best or (self.per_prompt or count) * (1 if self.per_prompt is None else groups)
        return min(count, wanted)

    def choose(self, images: list[Image]) -> list[Image]:
        """Those of ``images``, which come best first, that are kept, in this order.

        Raises:
            Problem: percentiles are asked for, and none are known.
        """
        if self.best is not None:
            return images[: self.best]
        if self.percentile is not None:
            if images and all(image.percentile is None for image in images):
                raise Problem(
                    "Expected percentiles for --keep-percentile, got none; connect a Laplace head to the sampler, or "
                    "keep a number with --keep."
                )
            return [i for i in images if i.percentile is not None and i.percentile <= self.percentile]
        taken: dict[str, int] = defaultdict(int)
        kept = []
        for image in images:
            group = str(sorted(image.task.inputs.items()))
            if taken[group] < self.per_prompt:
                taken[group] += 1
                kept.append(image)
        return kept

"""A line that lives: how far, how fast, how long yet, and what is kept so far."""

from __future__ import annotations

import heapq
import sys
from collections import defaultdict
from collections.abc import Iterable

from tqdm import tqdm

from .choose import Rule


class Progress:
    """Shows the runs of one pass.

    Args:
        text: before the bar.
        total, done: runs of the pass, and how many of them were there before.
        rule: what is kept.
    """

    def __init__(self, text: str, total: int, done: int, rule: Rule):
        self.rule, self.within = rule, 0
        # The best scores of each group, negated: the worst of them is on top.
        self.best: dict[str, list[float]] = defaultdict(list)
        self.bar = tqdm(
            desc=text, total=total, initial=done, unit="run", file=sys.stderr, smoothing=0.1, dynamic_ncols=True
        )

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_) -> None:
        self.bar.close()

    def __call__(self, rows: Iterable[dict], counted: bool = True) -> None:
        rows = list(rows)
        for row in rows:
            for image in row["images"]:
                self.add(image["score"], image["percentile"], str(sorted(row["inputs"].items())))
        if self.rule.percentile is None:
            kept = sum(map(len, self.best.values()))
            worst = max((-heap[0] for heap in self.best.values() if heap), default=0.0)
            words = f"kept {kept}, up to {worst:.4g}"
        else:
            words = f"kept {self.within}"
        self.bar.set_postfix_str(words, refresh=False)
        self.bar.update(len(rows) if counted else 0)

    def add(self, score: float | None, percentile: float | None, group: str) -> None:
        if self.rule.percentile is not None:
            self.within += percentile is not None and percentile <= self.rule.percentile
        elif score is not None:
            heap = self.best["" if self.rule.per_prompt is None else group]
            size = self.rule.best or self.rule.per_prompt
            (heapq.heappush if len(heap) < size else heapq.heappushpop)(heap, -score)

    @staticmethod
    def say(text: str) -> None:
        tqdm.write(f"farm: {text}", file=sys.stderr)

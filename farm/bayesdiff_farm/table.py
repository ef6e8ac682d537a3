"""What came back, one line of JSON per run of the workflow, appended as it comes."""

from __future__ import annotations

import csv
import dataclasses
import json
import math
import os
import time
from collections.abc import Iterable
from pathlib import Path

from . import Problem
from .plan import Plan, Task

SYNC_SECONDS = 1.0
COLUMNS = ("rank", "kept", "task", "place", "seed", "score", "percentile", "unknown", "inputs", "host", "seconds")


@dataclasses.dataclass(frozen=True)
class Image:
    """One image that came back.

    Attributes:
        task: the run that made it.
        place: in the run's batch.
        score: lower is more certain; NaN if unknown.
        percentile: of the model's own images; None without a head.
        files: by kind, relative to the worker's folder.
    """

    task: Task
    place: int
    score: float
    percentile: float | None
    files: dict[str, str]
    row: dict = dataclasses.field(repr=False, compare=False)

    @property
    def order(self) -> tuple:
        """Best first; what is unknown comes last, and of two alike the earlier one first."""
        return (math.isnan(self.score), self.score if self.score == self.score else 0.0, self.task.number, self.place)


class Table:
    """The lines of ``path``, by pass and number of the task.

    What a crash left of a last line is cut off.

    Raises:
        Problem: the file cannot be read or written.
    """

    def __init__(self, path: Path):
        self.path, self.rows, self.synced = path, {}, 0.0
        try:
            self.file = path.open("a+b")
            self.file.seek(0)
            self.size = 0
            for line in self.file:
                if not line.endswith(b"\n"):
                    break
                row = json.loads(line)
                self.rows[row["pass"], row["task"]] = row
                self.size += len(line)
            self.file.truncate(self.size)
        except (OSError, ValueError) as error:
            raise Problem(f"Expected a table of results in {path}, but it cannot be read ({error}).") from None

    def append(self, rows: list[dict]) -> None:
        """Add rows. The system has them when this returns, whatever becomes of this process; the disk, soon after.

        Raises:
            Problem: the disk is full, or gone; the table is as it was before.
        """
        text = "".join(json.dumps(row, allow_nan=False) + "\n" for row in rows).encode()
        try:
            self.file.write(text)
            self.file.flush()
            if (now := time.monotonic()) > self.synced + SYNC_SECONDS:
                os.fsync(self.file.fileno())
                self.synced = now
        except OSError as error:
            self.undo()
            raise Problem(
                f"Expected room for the results in {self.path.parent}, got '{error.strerror}'; free some, and go "
                "on with --resume."
            ) from None
        self.size += len(text)
        self.rows |= {(row["pass"], row["task"]): row for row in rows}

    def undo(self) -> None:
        """Cut off what was written of rows that did not fit. What is still in the buffer cannot be written either."""
        path = self.path
        try:
            self.file.close()
        except OSError:
            pass
        with path.open("r+b") as file:
            file.truncate(self.size)

    def close(self) -> None:
        self.file.close()

    def done(self, which: str) -> set[int]:
        """Numbers of the tasks of a pass that need not be done again."""
        return {row["task"] for row in self.rows_of(which)}

    def rows_of(self, which: str) -> list[dict]:
        return [row for (of, _), row in self.rows.items() if of == which]

    def images(self, plan: Plan, which: str) -> list[Image]:
        """All images of a pass, best first."""
        found = []
        for row in self.rows_of(which):
            task = plan.task(row["task"])
            for place, one in enumerate(row["images"]):
                score = math.nan if one["score"] is None else one["score"]
                found.append(Image(task, place, score, one["percentile"], one["files"], row))
        return sorted(found, key=lambda image: image.order)


def write_csv(path: Path, images: Iterable[Image], kept: set[tuple[int, int]]) -> None:
    """A table for people and spreadsheets, one line per image, best first."""
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        for rank, image in enumerate(images, 1):
            writer.writerow(
                {
                    "rank": rank,
                    "kept": (image.task.number, image.place) in kept,
                    "task": image.task.number,
                    "place": image.place,
                    "seed": image.task.seed,
                    "score": "" if math.isnan(image.score) else image.score,
                    "percentile": "" if image.percentile is None else image.percentile,
                    "unknown": image.row.get("unknown", ""),
                    "inputs": json.dumps(image.task.inputs, ensure_ascii=False) if image.task.inputs else "",
                    "host": image.row["host"],
                    "seconds": image.row["seconds"],
                }
            )

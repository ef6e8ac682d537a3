"""Hands tasks to whoever is free, and keeps what comes back."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Callable, Iterable

from . import Problem
from .plan import Task
from .table import Table
from .worker import differing

# How often a task is tried that takes its worker with it, or fails in a node.
TRIES = 3
# So many failures without one success are no accident.
HOPELESS = 3


@dataclasses.dataclass
class Driver:
    """Runs tasks on a crew.

    Attributes:
        crew: see :class:`~bayesdiff_farm.crew.Crew`.
        table: where rows go.
        say: tells the user a sentence.
        same: what no worker may have otherwise; that of the first ones if empty.
        free: workers that wait for a task.
        hosts: identities of the workers that are at work.
    """

    crew: object
    table: Table
    say: Callable[[str], None]
    same: dict[str, str] = dataclasses.field(default_factory=dict)
    free: collections.deque[int] = dataclasses.field(default_factory=collections.deque)
    hosts: dict[int, dict] = dataclasses.field(default_factory=dict)

    def assemble(self) -> None:
        """Wait until every worker is ready or gone, and refuse those that differ, before any work.

        Raises:
            Problem: none is left.
        """
        reasons, ready = [], []
        while self.crew.busy:
            for event in self.crew.wait(60):
                if event.kind == "ready":
                    ready.append(event)
                elif event.kind == "gone":
                    reasons.append(event.said)
        ready.sort(key=lambda event: (event.said["host"], event.worker))
        if not self.same and ready:
            # What most have; of two alike that of the host whose name comes first.
            alike = collections.Counter(str(sorted(event.said["same"].items())) for event in ready)
            most = max(alike.values())
            self.same = next(e.said["same"] for e in ready if alike[str(sorted(e.said["same"].items()))] == most)
        reasons += filter(None, [self.welcome(event.worker, event.said) for event in ready])
        for reason in dict.fromkeys(reasons):
            self.say(reason)
        if not self.hosts:
            raise Problem("Expected at least one worker, got none; see above.")
        devices = sorted({identity["device"] for identity in self.hosts.values()})
        if len(devices) > 1:
            self.say(f"Workers compute on {', '.join(devices)}: images may differ by rounding between them.")

    def welcome(self, worker: int, identity: dict) -> str:
        """Put a worker to work, or refuse it; why, or an empty text."""
        if wrong := differing(self.same, identity["same"]):
            self.hosts.pop(worker, None)
            self.crew.dismiss(worker)
            return f"Refused a worker on {identity['host']}, which has {wrong}; copy the same files there."
        self.hosts[worker] = identity
        self.free.append(worker)
        return ""

    def run(self, tasks: Iterable[Task], early: bool, progress: Callable[[list[dict]], None]) -> int:
        """Run tasks to the last one. How many were given up; they have no row.

        Raises:
            Problem: no worker is left, the host refuses the workflow, all fail, or a disk is full.
        """
        waiting, again = iter(tasks), collections.deque()
        tries: collections.Counter[int] = collections.Counter()
        failed, succeeded = 0, 0
        while True:
            while self.free:
                task = again.popleft() if again else next(waiting, None)
                if task is None:
                    break
                self.crew.give(self.free.popleft(), task, early)
            if not any(task for _, task in self.crew.busy.values()) and not again:
                if len(self.free) > 0:
                    return failed
            if not self.crew.busy:
                raise Problem("Expected at least one worker, but all are gone; go on with --resume.")
            rows = []
            for event in self.crew.wait(1.0):
                if event.kind == "ready":
                    if reason := self.welcome(event.worker, event.said):
                        self.say(reason)
                    continue
                if event.kind != "done":
                    self.hosts.pop(event.worker, None)
                    reason = event.said
                else:
                    self.free.append(event.worker)
                    if "failed" not in event.said:
                        rows.append(event.said)
                        continue
                    reason = event.said["failed"]
                    if event.said["refused"]:
                        raise Problem(f"Expected a workflow that ComfyUI takes, got: {reason}")
                    if "no space left" in reason.lower():
                        raise Problem(f"Expected room for images, got '{reason}'; free some, and go on with --resume.")
                if event.task is None:
                    self.say(f"A worker is gone: {reason}")
                    continue
                tries[event.task.number] += 1
                if tries[event.task.number] < TRIES:
                    again.append(event.task)
                else:
                    failed += 1
                    self.say(f"Gave up seed {event.task.seed} after {TRIES} tries: {reason}")
                    if failed == HOPELESS and not succeeded:
                        raise Problem(f"Expected images, got {HOPELESS} failures and nothing else; the last: {reason}")
            if rows:
                self.table.append(rows)
                succeeded += len(rows)
                progress(rows)

"""The workers, in actors of Ray: it places them, sees when one is lost, and starts another in its place."""

from __future__ import annotations

import dataclasses
import logging
import os
import signal
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

from . import Problem
from .plan import Plan, Task
from .worker import Site, Worker

# How often Ray starts an actor again that was lost.
RESTARTS = 20
# Without a cluster all of Ray stays on loopback: it knows this switch from machines whose firewalls ask the user.
LOOPBACK = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0", "RAY_USAGE_STATS_ENABLED": "0"}
# A task's result is a few hundred bytes.
OBJECT_STORE = 80 * 2**20


@dataclasses.dataclass(frozen=True)
class Event:
    """What happened to a worker.

    Attributes:
        kind: it is ready (``said`` is its identity), has done its task (``said`` is the row), lost it, or is gone for
            good; then ``said`` is why.
    """

    kind: Literal["ready", "done", "lost", "gone"]
    worker: int
    said: dict | str
    task: Task | None = None


def has_token() -> bool:
    """Whether this user has a token of Ray's, which ``ray start`` then asks for."""
    named = any(os.environ.get(name) for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"))
    return named or (Path.home() / ".ray" / "auth_token").exists()


def connect(address: str | None, dashboard: bool = False) -> None:
    """Join a cluster, or start Ray on this machine alone.

    Raises:
        Problem: there is no such cluster, or Ray does not start.
    """
    settings = LOOPBACK if address is None else {"RAY_AUTH_MODE": "token"} if has_token() else {}
    for name, value in settings.items():
        os.environ.setdefault(name, value)
    import ray

    # Ray would put its own in its place.
    on_stop = signal.getsignal(signal.SIGTERM)
    own = {} if address else dict(object_store_memory=OBJECT_STORE, include_dashboard=dashboard)
    try:
        ray.init(address=address or "local", logging_level=logging.ERROR, log_to_driver=False, **own)
    except (ConnectionError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
        if address is None:
            raise Problem(f"Expected Ray to start on this machine, got '{error}'; fix that and try again.") from None
        raise Problem(f"Expected a Ray cluster at {address}, got '{error}'; start one with: ray start --head") from None
    signal.signal(signal.SIGTERM, on_stop)


def resources(workers: int | None, cpus: int, gpus: float) -> tuple[int, dict]:
    """How many workers, and what each takes: a GPU where there are any, else CPUs.

    Raises:
        Problem: there is no room for so many.
    """
    import ray

    there = ray.cluster_resources()
    if there.get("GPU"):
        each = dict(num_gpus=gpus, num_cpus=0)
        most = int(there["GPU"] / gpus)
    else:
        each = dict(num_gpus=0, num_cpus=cpus)
        most = int(there.get("CPU", 0) / cpus)
    count = workers or (most if there.get("GPU") else 1)
    if not 1 <= count <= most:
        what = f"{there.get('GPU', 0):g} GPUs" if there.get("GPU") else f"{there.get('CPU', 0):g} CPUs"
        wanted = "one worker" if count <= 1 else f"{count} workers"
        raise Problem(f"Expected room for {wanted}, got {what}; give fewer --workers, or less --gpus or --cpus.")
    return count, each


class Crew:
    """Workers in actors.

    Args:
        count, each: how many, and what resources each takes.
        site, plan: what they need to know.
        kind: the class of the workers.
    """

    def __init__(self, count: int, each: dict, site: Site, plan: Plan, kind: type = Worker):
        import ray

        self.ray = ray
        # A lost task goes back to the driver, which gives it to whoever is free.
        actor = ray.remote(kind).options(max_restarts=RESTARTS, max_task_retries=0, **each)
        self.actors = [actor.remote(site, plan) for _ in range(count)]
        # What each worker is at: starting (no task) or a task.
        self.busy: dict = {}
        for worker in range(count):
            self.start(worker)

    def start(self, worker: int) -> None:
        """Let a worker start, or start again once Ray has placed it anew."""
        reference = self.actors[worker].start.options(max_task_retries=-1).remote()
        self.busy[reference] = (worker, None)

    def give(self, worker: int, task: Task, early: bool) -> None:
        self.busy[self.actors[worker].run.remote(task, early)] = (worker, task)

    def wait(self, seconds: float) -> list[Event]:
        """What has happened, if anything has within the time."""
        if not self.busy:
            return []
        ready, _ = self.ray.wait(list(self.busy), timeout=seconds)
        # All that is there, at once: one write of the table for many.
        more, _ = self.ray.wait(list(self.busy), num_returns=len(self.busy), timeout=0)
        return [self.event(reference) for reference in dict.fromkeys([*ready, *more])]

    def event(self, reference) -> Event:
        worker, task = self.busy.pop(reference)
        errors = self.ray.exceptions
        try:
            said = self.ray.get(reference)
        except errors.RayTaskError as error:
            cause = getattr(error, "cause", None)
            self.dismiss(worker)
            return Event("gone", worker, str(cause) if isinstance(cause, Problem) else str(error), task)
        except errors.RayActorError as error:
            if task is None:  # Ray has started it as often as it may
                return Event("gone", worker, "its worker ended too often", task)
            self.start(worker)
            return Event("lost", worker, f"the worker ended ({type(error).__name__})", task)
        return Event("ready" if task is None else "done", worker, said, task)

    def dismiss(self, worker: int) -> None:
        self.ray.kill(self.actors[worker])

    def read(self, host_worker: int, name: str) -> bytes | None:
        """A file that a worker's machine has; None if not."""
        try:
            return self.ray.get(self.actors[host_worker].read.remote(name))
        except self.ray.exceptions.RayError:
            return None

    def discard(self, workers: Iterable[int]) -> None:
        """Let workers remove all that they and those beside them made."""
        for worker in workers:
            try:
                self.ray.get(self.actors[worker].discard.remote())
            except self.ray.exceptions.RayError:
                pass

    def close(self) -> None:
        """End all workers; each one's server ends with it."""
        for actor in self.actors:
            self.ray.kill(actor)
        self.ray.shutdown()

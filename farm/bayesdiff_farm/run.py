"""A run from start to end, in its folder; it can stop anywhere and go on."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import uuid
from collections.abc import Iterable
from pathlib import Path

from filelock import FileLock, Timeout

from . import Problem
from .choose import Rule
from .crew import Crew, connect, resources
from .driver import Driver
from .plan import Plan
from .progress import Progress
from .table import Image, Table, write_csv
from .worker import Site


@dataclasses.dataclass(frozen=True)
class Settings:
    """What a run needs to know beside its plan and its rule.

    Attributes:
        workers: how many; None is one per GPU, or one without GPUs.
        cpus, gpus: what each takes.
        address: of a Ray cluster; None is this machine alone.
        comfyui, python, arguments: see :class:`~bayesdiff_farm.worker.Site`.
        finish: how many images of a first pass are finished; None is as many as are kept.
        discard: whether to remove in the end what was not kept.
    """

    workers: int | None = None
    cpus: int = 1
    gpus: float = 1.0
    address: str | None = None
    comfyui: str | None = None
    python: str | None = None
    arguments: tuple[str, ...] = ()
    finish: int | None = None
    discard: bool = False


class Run:
    """Makes a plan's images in a folder, and keeps the best.

    Args:
        folder: of the run; made if need be.
        plan: what to make; None goes on with what the folder was begun with.

    Raises:
        Problem: the folder cannot be written, is in use, or holds another run.
    """

    def __init__(self, folder: Path, plan: Plan | None, rule: Rule, settings: Settings):
        self.folder, self.rule, self.settings = folder.resolve(), rule, settings
        self.crew: Crew | None = None
        self.driver: Driver | None = None
        self.open_folder(plan)

    def open_folder(self, plan: Plan | None) -> None:
        began = self.folder / "run.json"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self.lock = FileLock(self.folder / "lock")
            self.lock.acquire(timeout=0)
            if plan is None:
                if not began.exists():
                    raise Problem(f"Expected a run to resume in {self.folder}, found none; leave out --resume.")
                self.about = json.loads(began.read_text(encoding="utf-8"))
            elif began.exists():
                raise Problem(
                    f"Expected a new folder, got {self.folder} with a run in it; add --resume, or name another."
                )
            else:
                self.about = {"plan": dataclasses.asdict(plan), "token": uuid.uuid4().hex, "same": {}}
                self.remember()
            (self.folder / "token").write_text(self.about["token"], encoding="utf-8")
            (self.folder / "work").mkdir(exist_ok=True)
        except Timeout:
            raise Problem(
                f"Expected no other run in {self.folder}, but one is at work; wait, or name another."
            ) from None
        except (OSError, ValueError) as error:
            raise Problem(f"Expected a folder to write to, got {self.folder} ({error}); name another.") from None
        self.plan = Plan(**self.about["plan"])
        self.check_passes()
        self.table = Table(self.folder / "results.jsonl")

    def remember(self) -> None:
        """Keep what the run is, in one step: a crash leaves the old file or the new one."""
        new = self.folder / "run.json.new"
        new.write_text(json.dumps(self.about, indent=1), encoding="utf-8")
        os.replace(new, self.folder / "run.json")

    def check_passes(self) -> None:
        """Make sure that two passes are cheaper than one.

        Raises:
            Problem: they are not, or what to keep is known only of finished images.
        """
        if (share := self.plan.early) is None:
            return
        if self.rule.percentile is not None:
            raise Problem(
                "Expected a number to keep with --early, got a percentile, which is of finished images; give --keep."
            )
        groups = self.plan.count // self.plan.seeds
        finished = dataclasses.replace(self.rule, **self.finishing()).most(groups, self.plan.count)
        if share * self.plan.count + finished >= self.plan.count:
            raise Problem(
                f"Expected two passes to cost less than {self.plan.count} runs, got {share * self.plan.count:.0f} "
                f"for the early scores and {finished} to finish; leave out --early, or keep fewer."
            )

    # ---------------------------------------------------------------- working

    def assemble(self) -> Driver:
        """The workers; they start when there is something to do."""
        if self.driver is None:
            Progress.say("starting the workers")
            connect(self.settings.address)
            count, each = resources(self.settings.workers, self.settings.cpus, self.settings.gpus)
            site = Site(
                folder=str(self.folder),
                token=self.about["token"],
                comfyui=self.settings.comfyui,
                python=self.settings.python,
                arguments=list(self.settings.arguments),
                threads=None if each["num_gpus"] else self.settings.cpus,
            )
            self.crew = Crew(count, each, site, self.plan)
            self.driver = Driver(self.crew, self.table, Progress.say, self.about["same"])
            self.driver.assemble()
            if self.about["same"] != self.driver.same:
                self.about["same"] = self.driver.same
                self.remember()
            Progress.say(f"{len(self.driver.hosts)} workers are ready")
        return self.driver

    def work(self, numbers: Iterable[int], early: bool, total: int, text: str) -> None:
        """Do what is not done yet of some tasks."""
        done = self.table.done("early" if early else "final")
        left = [number for number in numbers if number not in done]
        if not left:
            return
        driver = self.assemble()
        with Progress(text, total, total - len(left), self.rule) as progress:
            progress(self.table.rows_of("early" if early else "final"), counted=False)
            driver.run(map(self.plan.task, left), early, progress)

    def read(self, image: Image, name: str) -> bytes | None:
        """A file of an image, from this machine or from that which made it."""
        path = self.folder / "work" / name
        if path.is_file():
            return path.read_bytes()
        if self.driver is not None:
            for worker, identity in self.driver.hosts.items():
                if identity["host"] == image.row["host"] and (content := self.crew.read(worker, name)) is not None:
                    return content
        return None

    def make(self) -> list[Image]:
        """Everything; the kept images.

        Raises:
            Problem: see :class:`~bayesdiff_farm.driver.Driver`.
        """
        from .report import contact_sheet, fetch, histogram, lacking

        count = self.plan.count
        numbers: Iterable[int] = range(count)
        if self.plan.early is not None:
            self.work(numbers, True, count, "early scores")
            early = self.table.images(self.plan, "early")
            rule = dataclasses.replace(self.rule, **self.finishing())
            numbers = sorted({image.task.number for image in rule.choose(early)})
        self.work(numbers, False, len(list(numbers)), "images")
        wanted = set(numbers)
        images = [image for image in self.table.images(self.plan, "final") if image.task.number in wanted]
        kept = self.rule.choose(images)
        for _ in range(2):
            # A machine that is gone took its files along, and a cleaned folder has none.
            if not (lost := {image.task.number for image in kept if lacking(image, self.read)}):
                break
            driver = self.assemble()
            if lost := {image.task.number for image in kept if lacking(image, self.read)}:
                Progress.say(f"making {len(lost)} of the kept again, whose files are gone")
                with Progress("again", len(lost), 0, self.rule) as progress:
                    driver.run(map(self.plan.task, sorted(lost)), False, progress)
                kept = self.rule.choose([i for i in self.table.images(self.plan, "final") if i.task.number in wanted])
        try:
            pictures = fetch(self.folder / "kept", self.plan, kept, self.read)
            names = {(image.task.number, image.place) for image in kept}
            write_csv(self.folder / "table.csv", images, names)
            histogram(self.folder / "histogram.png", images, kept)
            if pictures:
                contact_sheet(self.folder / "contact_sheet.png", kept, pictures)
            if self.settings.discard:
                self.discard()
        except OSError as error:
            raise Problem(f"Expected room for the kept in {self.folder}, got '{error}'; go on with --resume.") from None
        return kept

    def discard(self) -> None:
        """Remove what was not kept, here and where the workers are."""
        if self.driver is not None:
            self.crew.discard(self.driver.hosts)
        shutil.rmtree(self.folder / "work", ignore_errors=True)

    def finishing(self) -> dict:
        """How the first pass's rule differs from the last one's."""
        number = self.settings.finish
        return {} if number is None else {"best": number} if self.rule.best is not None else {"per_prompt": number}

    def close(self) -> None:
        """End all workers and servers."""
        self.table.close()
        if self.crew is not None:
            self.crew.close()
        self.lock.release()

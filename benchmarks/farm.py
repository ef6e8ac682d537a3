"""What the farm adds to the work itself, and whether one driver keeps up with many workers.

    python dev.py bench farm [--tasks 8] [--repeats 3] [--simulated 100000] [--json PATH]

*measured*: runs of the demo model, a batch of 8 in 20 steps, by one and by two workers of a core each, against one
ComfyUI whose queue is filled by hand. Each repeat measures all three; rates are medians. *overhead* is the time of a
run beyond that in which ComfyUI executes it, as a share of it.

*simulated*: the farm's own driver and table with workers that are only numbers. Their speeds differ by a factor of 2 or
so, one run in a thousand fails, one in ten thousand takes its worker along, which comes back after 30 s. Waiting takes
no time here; what the driver itself needs does, and so does each call of Ray, as long as it was measured to take.
*efficiency* is the rate over the sum of the workers' rates; *overhead* the driver's own time for one run, as a share of
a worker's.
"""

from __future__ import annotations

import heapq
import os
import random
import statistics
import tempfile
import time
from pathlib import Path

import psutil
from bayesdiff_farm.crew import Crew, Event, connect
from bayesdiff_farm.driver import Driver
from bayesdiff_farm.plan import Plan, Task
from bayesdiff_farm.server import Server
from bayesdiff_farm.table import Table
from bayesdiff_farm.worker import Site
from reporting import make_parser, write_rows

BATCH, STEPS, SECONDS = 8, 20, 2.5
WORKERS = (1, 2, 8, 32, 128, 512)


def node(class_type: str, **inputs) -> dict:
    return {"class_type": class_type, "inputs": inputs}


def make_plan(count: int) -> Plan:
    prompts = dict(model=["demo", 0], positive=["demo", 1], negative=["demo", 2])
    settings = dict(seed=0, steps=STEPS, cfg=3.0, sampler_name="euler", scheduler="normal", denoise=1.0)
    workflow = {
        "demo": node("BayesDiffDemoModel", prompt="any animal bird"),
        "empty": node("EmptyLatentImage", width=128, height=128, batch_size=BATCH),
        "ours": node(
            "BayesDiffKSampler", latent_image=["empty", 0], quality="instant", members=8, **prompts, **settings
        ),
        "decode": node("VAEDecode", samples=["ours", 0], vae=["demo", 3]),
    }
    return Plan(workflow, "ours", ["ours.seed"], 0, count)


def silent(*_) -> None:
    pass


# ---------------------------------------------------------------- measured


def pin(process: int, core: int) -> None:
    """Keep a server on one core, with all its threads."""
    for thread in psutil.Process(process).threads():
        os.sched_setaffinity(thread.id, {core})


class ByHand:
    """One ComfyUI whose queue is filled at once."""

    def __init__(self, folder: Path, base: Path, plan: Plan):
        self.plan = plan
        python, comfyui = os.environ["COMFYUI_PYTHON"], Path(os.environ["COMFYUI_PATH"])
        self.server = Server(comfyui, python, folder, ["--base-directory", str(base)], threads=1)
        pin(self.server.process.pid, 0)

    def measure(self, numbers: range) -> tuple[float, float]:
        """Seconds a run, and the share of them in which nothing was executed."""
        start = time.perf_counter()
        prompts = [self.server.queue(self.plan.graph_of(self.plan.task(number))) for number in numbers]
        executed = sum(self.server.result(prompt)["seconds"] for prompt in prompts)
        seconds = time.perf_counter() - start
        return seconds / len(numbers), 1 - executed / seconds


def measure_farm(driver: Driver, plan: Plan, workers: int, numbers: range) -> tuple[float, float]:
    """Seconds a run by so many workers, and the share of these beyond ComfyUI's own time."""
    executed: list[float] = []
    spare = [driver.free.pop() for _ in range(len(driver.free) - workers)]
    start = time.perf_counter()
    driver.run(map(plan.task, numbers), False, lambda rows: executed.extend(row["seconds"] for row in rows))
    seconds = time.perf_counter() - start
    driver.free.extend(spare)
    return seconds / len(numbers), 1 - sum(executed) / (seconds * workers)


def measured(tasks: int, repeats: int) -> list[dict]:
    found: dict[int, list[tuple[float, float]]] = {0: [], 1: [], 2: []}
    with tempfile.TemporaryDirectory(prefix="bayesdiff-") as name:
        folder, plan = Path(name), make_plan(10**6)
        (folder / "base" / "custom_nodes").mkdir(parents=True)
        (folder / "base" / "custom_nodes" / "BayesDiff").symlink_to(Path(__file__).resolve().parent.parent)
        (folder / "token").write_text("bench")
        os.environ["BAYESDIFF_FARM_BASE"] = f"{name}/base"
        site = Site(name, "bench", os.environ["COMFYUI_PATH"], os.environ["COMFYUI_PYTHON"], [], 1)
        by_hand = ByHand(folder / "by_hand", folder / "base", plan)
        connect(None)
        crew = Crew(2, dict(num_cpus=1), site, plan)
        try:
            driver = Driver(crew, Table(folder / "results.jsonl"), print)
            driver.assemble()
            for core, worker in enumerate(sorted(driver.hosts)):
                pin(driver.hosts[worker]["server"], core)
            numbers = iter(range(0, 10**6, tasks))
            for repeat in range(repeats + 1):
                rounds = {
                    0: by_hand.measure(range(start := next(numbers), start + tasks)),
                    1: measure_farm(driver, plan, 1, range(start := next(numbers), start + tasks)),
                    2: measure_farm(driver, plan, 2, range(start := next(numbers), start + tasks)),
                }
                if repeat:  # the first one warms up
                    for workers, one in rounds.items():
                        found[workers].append(one)
        finally:
            crew.close()
            by_hand.server.stop()
    hand = statistics.median(seconds for seconds, _ in found[0])
    rows = []
    for workers, one in found.items():
        seconds = statistics.median(seconds for seconds, _ in one)
        efficiency = statistics.median(a / b / max(1, workers) for (a, _), (b, _) in zip(found[0], one))
        rows.append(
            {
                "part": "measured",
                "workers": workers or "by hand",
                "images_per_minute": 60 * BATCH / seconds,
                "efficiency": efficiency if workers else 1.0,
                "overhead": statistics.median(share for _, share in one),
            }
        )
    print(f"a run by hand: {hand:.2f} s")
    return rows


# ---------------------------------------------------------------- simulated


class Idler:
    """A worker that has nothing to do."""

    def __init__(self, site: Site, plan: Plan):
        pass

    def start(self) -> dict:
        return {"host": "here", "device": "none", "same": {}}

    def run(self, task: Task, early: bool) -> dict:
        return row_of(task, 0.5)


def row_of(task: Task, score: float) -> dict:
    files = {kind: [f"host-0123abcd/output/{task.number:07}_00001_.png"] for kind in ("images", "maps", "latents")}
    image = {"score": score, "percentile": 50.0, "files": files}
    about = {"pass": "final", "task": task.number, "seed": task.seed, "inputs": {}, "host": "host", "seconds": SECONDS}
    return about | {"images": [image] * BATCH}


def seconds_of_a_call(waiting: int, count: int = 4000) -> float:
    """What Ray needs for a run that takes no time, while the driver waits for so many."""
    plan = make_plan(count)
    connect(None)
    crew = Crew(2, dict(num_cpus=1), Site("", "", "", "", [], 1), plan, Idler)
    try:
        while crew.busy:
            crew.wait(60)
        left, start = count, time.perf_counter()
        for number in range(waiting):
            crew.give(number % 2, plan.task(number), False)
        while left > 0:
            for event in crew.wait(60):
                crew.give(event.worker, event.task, False)
                left -= 1
        return (time.perf_counter() - start) / count
    finally:
        crew.close()


class Numbers:
    """A crew of workers that are only numbers, see the top of this file."""

    def __init__(self, count: int, call: float):
        self.random = random.Random(0)
        self.speeds = [self.random.uniform(0.67, 1.33) for _ in range(count)]
        self.call, self.now, self.own, self.left = call, 0.0, 0.0, time.perf_counter()
        self.events: list[tuple[float, int, Event]] = []
        self.busy: dict[int, tuple[int, Task | None]] = {}
        self.number = 0
        for worker in range(count):
            self.later(0.0, Event("ready", worker, {"host": "here", "device": "none", "same": {}}))

    def later(self, seconds: float, event: Event) -> None:
        self.number += 1
        self.busy[self.number] = (event.worker, event.task)
        heapq.heappush(self.events, (self.now + seconds, self.number, event))

    def give(self, worker: int, task: Task, early: bool) -> None:
        self.now += self.call
        self.own += self.call
        seconds, luck = SECONDS / self.speeds[worker] * self.random.uniform(0.9, 1.1), self.random.random()
        if luck < 1e-4:
            self.later(seconds * self.random.random(), Event("lost", worker, "lost", task))
        elif luck < 1.1e-3:
            self.later(seconds, Event("done", worker, {"failed": "bad luck", "refused": False}, task))
        else:
            self.later(seconds, Event("done", worker, row_of(task, self.random.random()), task))

    def wait(self, seconds: float) -> list[Event]:
        spent = time.perf_counter() - self.left
        self.now += spent
        self.own += spent
        found: list[Event] = []
        while self.events and (not found or self.events[0][0] <= self.now):
            at, number, event = heapq.heappop(self.events)
            self.now = max(self.now, at)
            del self.busy[number]
            found.append(event)
        for event in found:
            if event.kind == "lost":
                self.later(30.0, Event("ready", event.worker, {"host": "here", "device": "none", "same": {}}))
        self.left = time.perf_counter()
        return found


def simulated(workers: int, tasks: int, call: float) -> dict:
    plan = make_plan(tasks)
    with tempfile.TemporaryDirectory() as name:
        crew, table = Numbers(workers, call), Table(Path(name) / "results.jsonl")
        driver = Driver(crew, table, silent)
        driver.assemble()
        crew.now = crew.own = 0.0
        given_up = driver.run(map(plan.task, range(tasks)), False, silent)
        assert len(table.done("final")) + given_up == tasks, "every run is there or given up"
        table.close()
    rate = len(table.rows) / crew.now
    return {
        "part": "simulated",
        "workers": workers,
        "images_per_minute": 60 * BATCH * rate,
        "efficiency": rate * SECONDS / sum(crew.speeds),
        "overhead": crew.own / tasks / SECONDS,
        "runs": tasks,
    }


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--tasks", type=int, default=8, help="runs of each measurement")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--simulated", type=int, default=100_000, help="runs of the simulation; 0 leaves it out")
    arguments = parser.parse_args()
    rows = measured(arguments.tasks, arguments.repeats) if arguments.repeats else []
    if arguments.simulated:
        calls = [seconds_of_a_call(workers) for workers in WORKERS]
        print("Ray, for a run: " + ", ".join(f"{1000 * c:.2f} ms of {w}" for w, c in zip(WORKERS, calls)))
        rows += [simulated(workers, arguments.simulated, call) for workers, call in zip(WORKERS, calls)]
    print("| | workers | images a minute | efficiency | overhead |\n|---|---|---|---|---|")
    for row in rows:
        rate, efficiency = row["images_per_minute"], row["efficiency"]
        print(f"| {row['part']} | {row['workers']} | {rate:.1f} | {efficiency:.3f} | {row['overhead']:.2%} |")
    write_rows(arguments.json, rows)


if __name__ == "__main__":
    main()

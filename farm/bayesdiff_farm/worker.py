"""A worker: a ComfyUI of its own, what it has, and what it makes. Ray holds it in an actor."""

from __future__ import annotations

import dataclasses
import hashlib
import math
import os
import shutil
import socket
import sys
import tempfile
import uuid
from pathlib import Path

from . import Problem
from .plan import Plan, Task
from .server import Died, Failed, Server

NODE = "BayesDiffKSampler"
CHUNK = 2**22
# Files of these kinds belong to each image; a latent's file holds a whole batch.
KINDS = {"images": "farm_images", "maps": "farm_maps", "latents": "farm_latents"}


@dataclasses.dataclass(frozen=True)
class Site:
    """How a worker finds ComfyUI and where it works.

    Attributes:
        folder: of the run. On a machine that does not have it, a temporary folder takes its place.
        token: what the run's file ``token`` there says, which tells that it is the same folder.
        comfyui, python: None are those of the machine's COMFYUI_PATH and COMFYUI_PYTHON.
        arguments: more of ComfyUI's command line.
        threads: of a CPU; None on a GPU.
    """

    folder: str
    token: str
    comfyui: str | None
    python: str | None
    arguments: list[str]
    threads: int | None


class Worker:
    """Makes images of a plan."""

    def __init__(self, site: Site, plan: Plan):
        self.site, self.plan, self.host = site, plan, socket.gethostname()
        self.root = self.working_folder()
        self.server: Server | None = None

    def working_folder(self) -> Path:
        """Where this machine's workers keep their files."""
        token = Path(self.site.folder) / "token"
        if token.exists() and token.read_text(encoding="utf-8") == self.site.token:
            return Path(self.site.folder) / "work"
        return Path(tempfile.gettempdir()) / f"bayesdiff-farm-{self.site.token}"

    def start(self) -> dict:
        """Start the server, unless it runs; what this worker is.

        Raises:
            Problem: it does not start, or lacks the pack.
        """
        if self.server is None:
            comfyui = self.site.comfyui or os.environ.get("COMFYUI_PATH")
            if not comfyui:
                raise Problem(f"Expected COMFYUI_PATH on {self.host}, got nothing; set it there, or give --comfyui.")
            python = self.site.python or os.environ.get("COMFYUI_PYTHON")
            # ComfyUI's own base directory, if it is not its folder.
            base = os.environ.get("BAYESDIFF_FARM_BASE")
            arguments = self.site.arguments + (["--base-directory", base] if base else [])
            folder = self.root / f"{self.host}-{uuid.uuid4().hex[:8]}"
            # Where input images are, unless a base directory says otherwise.
            self.input = Path(base or comfyui) / "input"
            self.server = Server(Path(comfyui).resolve(), python, folder, arguments, self.site.threads)
        return self.identity()

    def identity(self) -> dict:
        """Host, device, and what must not differ from worker to worker: versions, pack, and files by their hash.

        Raises:
            Problem: ComfyUI has no such pack.
        """
        described = self.server.get(f"/object_info/{NODE}").get(NODE)
        if described is None:
            raise Problem(f"Expected the pack BayesDiff in ComfyUI on {self.host}, found none; install it there.")
        stats = self.server.get("/system_stats")
        folders = self.server.get("/internal/folder_paths")
        name = described["python_module"].rpartition(".")[2]
        packs = [Path(path) / name for path in folders["custom_nodes"] if (Path(path) / name).is_dir()]
        same = {"ComfyUI": stats["system"]["comfyui_version"], "PyTorch": stats["system"]["pytorch_version"]}
        same |= {"the pack BayesDiff": hash_of_sources(packs[0])} if packs else {}
        return {
            "host": self.host,
            "folder": str(self.root),
            "process": os.getpid(),
            "server": self.server.process.pid,
            "device": ", ".join(device["name"].split(" : ")[0] for device in stats["devices"]),
            "same": same | self.files(folders),
        }

    def files(self, folders: dict[str, list[str]]) -> dict[str, str]:
        """Hashes of the model, head and input files that the graph names."""
        graph = self.plan.graph_of(self.plan.task(0))
        named = {value for node in graph.values() for value in node["inputs"].values() if isinstance(value, str)}
        named |= {value for values in self.plan.grid.values() for value in values if isinstance(value, str)}
        roots = {kind: [Path(path) for path in paths] for kind, paths in folders.items() if kind != "custom_nodes"}
        roots["input"] = [self.input]
        found = {}
        for kind, paths in sorted(roots.items()):
            for name in sorted(filter(None, named)):
                path = next((path / name for path in paths if (path / name).is_file()), None)
                if path:
                    found[f"{kind}/{name}"] = self.hash_of(path)
        return found

    def hash_of(self, path: Path) -> str:
        """SHA-256 of a file, remembered as long as its size and time stay."""
        stat = path.stat()
        key = hashlib.sha256(f"{path} {stat.st_size} {stat.st_mtime_ns}".encode()).hexdigest()[:32]
        known = self.root / "hashes" / f"{self.host}-{key}"
        if not known.exists():
            digest = hashlib.sha256()
            with path.open("rb") as file:
                while chunk := file.read(CHUNK):
                    digest.update(chunk)
            known.parent.mkdir(exist_ok=True)
            new = known.with_suffix(f".{os.getpid()}")
            new.write_text(digest.hexdigest())
            new.replace(known)
        return known.read_text()

    def run(self, task: Task, early: bool) -> dict:
        """Make the images of a task: a row of the table, or ``{"failed": sentence}``.

        Where the server died, this process ends too, and Ray starts another.
        """
        try:
            said = self.server.run(self.plan.graph_of(task, early))
        except Failed as problem:
            return {"failed": str(problem), "refused": problem.refused}
        except Died as problem:
            print(f"farm: {self.host}: {problem}; starting another.", file=sys.stderr, flush=True)
            self.server.stop()
            os._exit(1)
        scores = [float(text) for text in texts(said, "farm_scores")]
        if not scores:
            return {"failed": said["why"] or "the sampler returned no scores", "refused": False}
        percentiles = [known(float(text)) for text in texts(said, "farm_percentiles")] or [None] * len(scores)
        files = {kind: self.saved(said, node, kind) for kind, node in KINDS.items() if node in said}
        row = {
            "pass": "early" if early else "final",
            "task": task.number,
            "seed": task.seed,
            "inputs": task.inputs,
            "host": self.host,
            "seconds": round(said["seconds"], 3),
            "images": [
                {
                    "score": known(score),
                    "percentile": percentile,
                    "files": {kind: of_image(names, i, len(scores)) for kind, names in files.items()},
                }
                for i, (score, percentile) in enumerate(zip(scores, percentiles))
            ],
        }
        if not all(math.isfinite(score) for score in scores):
            row["unknown"] = said["why"] or "see ComfyUI's log"
        return row

    def saved(self, said: dict, node: str, kind: str) -> list[str]:
        """The files that a node saved, relative to where this machine's workers keep theirs."""
        items = said[node]["latents" if kind == "latents" else "images"]
        paths = [self.server.folder / item["type"] / item["subfolder"] / item["filename"] for item in items]
        return [path.relative_to(self.root).as_posix() for path in paths]

    def read(self, name: str) -> bytes | None:
        """A file of this machine's workers; None where there is none."""
        path = (self.root / name).resolve()
        return path.read_bytes() if path.is_relative_to(self.root.resolve()) and path.is_file() else None

    def discard(self) -> None:
        """Stop, and remove all that this machine's workers made."""
        if self.server is not None:
            self.server.stop()
        shutil.rmtree(self.root, ignore_errors=True)


def known(number: float) -> float | None:
    return number if math.isfinite(number) else None


def texts(said: dict, node: str) -> list[str]:
    return list(said.get(node, {}).get("text", []))


def of_image(names: list[str], i: int, count: int) -> list[str]:
    """The files of one image of a batch; of a clip, one for each frame."""
    if len(names) < count:
        return names
    frames = len(names) // count
    return names[i * frames : (i + 1) * frames]


def hash_of_sources(pack: Path) -> str:
    """A hash of the pack's Python files."""
    digest = hashlib.sha256()
    parts = [path for name in ("bayesdiff_core", "host", "nodes") for path in (pack / name).rglob("*.py")]
    for path in sorted([pack / "__init__.py", *parts]):
        digest.update(path.relative_to(pack).as_posix().encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()


def short(value: str) -> str:
    return value[:12]


def differing(wanted: dict[str, str], got: dict[str, str]) -> str:
    """What differs between two workers' ``same``, in words; empty if nothing does."""
    return ", ".join(
        f"{name} {short(got.get(name, 'none'))} for {short(wanted.get(name, 'none'))}"
        for name in sorted({**wanted, **got})
        if wanted.get(name) != got.get(name)
    )

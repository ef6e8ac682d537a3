"""A small workflow, the farm's command as a user starts it in a ComfyUI with the pack, and what it leaves."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import psutil

ROOT = Path(__file__).resolve().parent.parent.parent
STEPS, SEEDS, BATCH = 4, 6, 2
SETTINGS = dict(seed=99, steps=STEPS, cfg=3.0, sampler_name="euler", scheduler="normal", denoise=1.0)


def node(class_type: str, **inputs) -> dict:
    return {"class_type": class_type, "inputs": inputs}


def small_workflow(**changes) -> dict:
    prompts = dict(model=["demo", 0], positive=["demo", 1], negative=["demo", 2])
    ours = dict(latent_image=["empty", 0], quality="instant", members=8, **prompts) | SETTINGS | changes
    return {
        "demo": node("BayesDiffDemoModel", prompt="any animal bird"),
        "empty": node("EmptyLatentImage", width=128, height=128, batch_size=BATCH),
        "ours": node("BayesDiffKSampler", **ours),
        "decode": node("VAEDecode", samples=["ours", 0], vae=["demo", 3]),
        "save": node("SaveImage", images=["decode", 0], filename_prefix="mine"),
    }


class Farm:
    """The farm's command in folders below ``root``."""

    def __init__(self, root: Path):
        self.root = root
        self.environment = os.environ | {
            "COMFYUI_PATH": os.environ["BAYESDIFF_COMFYUI"],
            "BAYESDIFF_FARM_BASE": str(self.base("base")),
        }

    def base(self, name: str) -> Path:
        """A base directory of ComfyUI that holds the pack."""
        folder = self.root / name
        (folder / "custom_nodes").mkdir(parents=True)
        (folder / "custom_nodes" / "BayesDiff").symlink_to(ROOT, target_is_directory=True)
        return folder

    def workflow(self, graph: dict) -> Path:
        path = self.root / f"{len(list(self.root.iterdir()))}.json"
        path.write_text(json.dumps(graph))
        return path

    def start(self, out: Path, *arguments, **options) -> subprocess.Popen:
        command = [sys.executable, "-m", "bayesdiff_farm", "--out", out, *arguments]
        texts = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, encoding="utf-8")
        return subprocess.Popen([str(part) for part in command], env=self.environment, **texts, **options)

    def run(self, out: Path, *arguments) -> tuple[int, str]:
        """The exit status and all that was said."""
        process = self.start(out, *arguments)
        said = "".join(process.communicate(timeout=250))
        return process.returncode, said


def rows(out: Path) -> list[dict]:
    path = out / "results.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def wait_for_rows(out: Path, count: int, process: subprocess.Popen) -> None:
    deadline = time.monotonic() + 200
    while len(rows(out)) < count:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline, "no results come"
        time.sleep(0.05)


def servers(out: Path) -> dict[int, int]:
    """ComfyUI processes of a run, with the process of the worker that each was started by."""
    found = {}
    for process in psutil.process_iter(["cmdline", "ppid"]):
        command = " ".join(process.info["cmdline"] or [])
        if "main.py" in command and str(out) in command:
            found[process.pid] = process.info["ppid"]
    return found


def wait_until_gone(out: Path) -> None:
    deadline = time.monotonic() + 20
    while left := servers(out):
        assert time.monotonic() < deadline, f"left behind: {left}"
        time.sleep(0.2)

"""Two machines: the second one in a network, a mount and a host name of its own, without the run's folder."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import uuid
from pathlib import Path

import pytest
from bayesdiff_farm.server import Server
from small import SEEDS, node, rows, servers, small_workflow, wait_for_rows, wait_until_gone
from test_farm import assert_same, kept

HEAD, SECOND, SPACE, PORT = "10.77.0.1", "10.77.0.2", "bayesdiff-farm", 6399
HEAD_FILE = "head.safetensors"
RAY = Path(sys.executable).parent / "ray"


def ip(*arguments: str, space: bool = False) -> None:
    command = ["ip", "netns", "exec", SPACE, "ip"] if space else ["ip"]
    subprocess.run([*command, *arguments], check=True, capture_output=True)


@pytest.fixture
def network():
    """A network of this machine and another one that is made up."""
    if not shutil.which("ip") or not shutil.which("unshare"):
        pytest.skip("needs ip and unshare")
    try:
        ip("netns", "add", SPACE)
        ip("link", "add", "farm0", "type", "veth", "peer", "name", "farm1", "netns", SPACE)
        ip("addr", "add", f"{HEAD}/24", "dev", "farm0")
        ip("link", "set", "farm0", "up")
        ip("addr", "add", f"{SECOND}/24", "dev", "farm1", space=True)
        ip("link", "set", "farm1", "up", space=True)
        ip("link", "set", "lo", "up", space=True)
    except subprocess.CalledProcessError as error:
        subprocess.run(["ip", "netns", "del", SPACE], capture_output=True)
        pytest.skip(f"may not make a network: {error.stderr!r}")
    yield
    ip("netns", "del", SPACE)


class Cluster:
    """A Ray cluster of two nodes with a CPU each; the second one sees an empty folder in place of ``hidden``."""

    def __init__(self, environment: dict, second_base: Path, hidden: Path):
        def start(*arguments: str, **changes: str) -> subprocess.Popen:
            texts = dict(stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
            made = subprocess.Popen(arguments, env=environment | changes, start_new_session=True, **texts)
            said = "".join(iter(lambda: "" if "Ray runtime started" in (line := made.stdout.readline()) else line, ""))
            assert made.poll() is None, said
            return made

        ray = [str(RAY), "start", "--num-cpus=1", "--disable-usage-stats", "--block"]
        self.first = start(*ray, "--head", f"--port={PORT}", f"--node-ip-address={HEAD}", "--include-dashboard=false")
        inside = f"hostname aaa; mount -t tmpfs tmpfs {hidden}; exec {' '.join(ray)} "
        inside += f"--address={HEAD}:{PORT} --node-ip-address={SECOND}"
        space = ["ip", "netns", "exec", SPACE, "unshare", "--mount", "--uts", "--pid", "--mount-proc"]
        space += ["--fork", "--kill-child"]
        self.second = start(*space, "sh", "-c", inside, BAYESDIFF_FARM_BASE=str(second_base))

    def lose_second(self) -> None:
        """As if its plug were pulled: all its processes end at once."""
        self.second.kill()
        self.second.wait()

    def close(self) -> None:
        self.second.kill()
        self.first.terminate()
        self.first.wait(30)


@pytest.fixture
def cluster(farm, network):
    made = []

    def make(second_base: Path, hidden: Path) -> Cluster:
        hidden.mkdir()
        # Whoever has no token is no part of it.
        farm.environment |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": uuid.uuid4().hex * 2}
        made.append(Cluster(farm.environment, second_base, hidden))
        return made[0]

    yield make
    for one in made:
        one.close()
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN"):
        farm.environment.pop(name, None)
    for token in farm.root.glob("hidden*/out/token"):
        shutil.rmtree(Path(tempfile.gettempdir()) / f"bayesdiff-farm-{token.read_text()}", ignore_errors=True)


def test_a_second_machine_is_lost_and_what_it_made_is_made_again(farm, reference, cluster):
    hidden = farm.root / "hidden"
    two = cluster(Path(farm.environment["BAYESDIFF_FARM_BASE"]), hidden)
    arguments = ("--seeds", SEEDS, "--keep", 3, "--workers", 2, "--address", f"{HEAD}:{PORT}")
    process = farm.start(hidden / "out", farm.workflow(small_workflow()), *arguments)
    wait_for_rows(hidden / "out", 3, process)
    assert "aaa" in {row["host"] for row in rows(hidden / "out")}, "both machines work"
    two.lose_second()
    assert len(servers(hidden / "out")) == 1, "its server went with it"
    said = "".join(process.communicate(timeout=250))
    assert process.returncode == 0 and "2 workers are ready" in said, said
    assert_same(hidden / "out", reference, again=True)
    wait_until_gone(hidden / "out")


def two_heads(farm, first: Path, second: Path) -> None:
    """Fit two heads, and save each, by the same name, where a ComfyUI with one of the base directories finds it."""
    graph = small_workflow()
    del graph["ours"], graph["decode"], graph["save"]
    settings = dict(samples=8, steps=4, cfg=3.0, noise_levels=2, structure="low-rank", explained_variance=0.99)
    prompts = dict(model=["demo", 0], positive=["demo", 1], negative=["demo", 2], latent=["empty", 0])
    for seed, base in enumerate((first, second)):
        fit = dict(fit_on="own samples", folder="input", seed=seed)
        graph[f"fit{seed}"] = node("BayesDiffFitLaplaceHead", **fit, **settings, **prompts)
        graph[base.name] = node(
            "BayesDiffSaveLaplaceHead", head=[f"fit{seed}", 0], filename_prefix=base.name, dtype="float32"
        )
        (base / "models" / "laplace_heads").mkdir(parents=True)
    arguments = ["--base-directory", str(first)]
    python = os.environ["COMFYUI_PYTHON"]
    server = Server(Path(os.environ["BAYESDIFF_COMFYUI"]), python, farm.root / "fit", arguments, threads=1)
    try:
        server.run(graph)
    finally:
        server.stop()
    for base in (first, second):
        made = first / "models" / "laplace_heads" / f"{base.name}_00001_.safetensors"
        made.rename(base / "models" / "laplace_heads" / HEAD_FILE)


def test_a_machine_with_another_head_is_refused_and_files_come_from_the_other(farm, cluster):
    first, second, hidden = Path(farm.environment["BAYESDIFF_FARM_BASE"]), farm.base("second"), farm.root / "hidden2"
    two_heads(farm, first, second)
    graph = small_workflow(head=["head", 0]) | {"head": node("BayesDiffLoadLaplaceHead", head_name=HEAD_FILE)}
    cluster(second, hidden)
    out, file = hidden / "out", farm.workflow(graph)
    arguments = ("--workers", 2, "--address", f"{HEAD}:{PORT}", "--save", "images,latents")
    code, said = farm.run(out, file, "--seeds", 3, "--keep-percentile", 100, *arguments)
    assert code == 0, said
    assert said.count("Refused a worker on ") == 1 and f"laplace_heads/{HEAD_FILE}" in said
    assert {row["host"] for row in rows(out)} == {"aaa"}, "of two the one whose name comes first"
    percentiles = [image["percentile"] for row in rows(out) for image in row["images"]]
    assert len(percentiles) == 6 and all(0 <= value <= 100 for value in percentiles)
    assert len([name for name in kept(out) if name.endswith(".png")]) == 6
    assert not list((out / "work").rglob("*.png")), "images came from the other machine"

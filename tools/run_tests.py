"""Run the tests: those in tests/core without ComfyUI, then the others with it, then the farm's in its own Python.

Started by ``python dev.py test [ARGUMENTS]``. Paths among the arguments go to the process they belong to, all other
arguments to all.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TESTS, CORE, FARM = ROOT / "tests", ROOT / "tests" / "core", ROOT / "farm" / "tests"
# Options of pytest whose value may look like a path of tests.
VALUED = ("-k", "-m", "--deselect", "--ignore", "--ignore-glob")
MOST_WORKERS = 4
# Exit statuses of pytest.
PASSED, NO_TESTS = 0, 5
# As `python -m pytest`, but without the repository on sys.path, where our nodes/ would hide ComfyUI's nodes.py.
PYTEST = """
import sys
sys.path[:] = filter(None, sys.path)
sys.argv[0] = "pytest"
import pytest
sys.exit(pytest.main())
"""


def testpaths() -> list[str]:
    """The folders that are tested if no path is given. Python 3.10 has no reader for TOML."""
    line = re.search(r"^testpaths = \[.*?\]", (ROOT / "pyproject.toml").read_text(encoding="utf-8"), re.M | re.S)
    assert line, "pyproject.toml names the testpaths"
    return [path for path in re.findall(r'"(.*?)"', line[0]) if (ROOT / path).exists()]


def split(arguments: list[str]) -> tuple[list[str], list[str], list[str]]:
    """pytest's arguments without and with ComfyUI, and for the farm; empty if there is nothing to run."""
    core, others, farm, options = [], [], [], []
    for before, argument in zip(["", *arguments], arguments):
        path = (ROOT / argument.split("::")[0]).resolve()
        if (
            argument.startswith("-")
            or before in VALUED
            or not (path.is_relative_to(TESTS) or path.is_relative_to(FARM))
        ):
            options.append(argument)
        elif not path.exists():  # pytest on several processes would only find no tests
            sys.exit(f"Expected a file or folder of tests, got {argument}; name one that exists.")
        elif path == TESTS:
            core.append(str(CORE))
            others += [path for path in testpaths() if ROOT / path != CORE]
        elif path.is_relative_to(FARM):
            farm.append(argument)
        else:
            (core if path.is_relative_to(CORE) else others).append(argument)
    if not core and not others and not farm:
        return split(["tests", str(FARM), *arguments])
    return core and core + options, others and others + options, farm and farm + options


def run_farm(arguments: list[str]) -> int:
    """Run pytest in the farm's Python, on one process: each test has workers of its own."""
    settings = ["-c", str(FARM.parent / "pyproject.toml"), f"--confcutdir={FARM}"]
    return subprocess.run([os.environ["BAYESDIFF_FARM_PYTHON"], "-m", "pytest", *settings, *arguments]).returncode


def pytest(arguments: list[str], environment: dict[str, str]) -> int:
    """Run pytest on as many processes as there are cores, up to a few; each computes on one thread.

    Small networks gain nothing by a second thread, and lose much where two processes fight for it.
    """
    workers = min(os.cpu_count() or 1, MOST_WORKERS)
    shared = ["-n", str(workers), "--dist", "loadfile"] if workers > 1 and not wants_one(arguments) else []
    environment = {"OMP_NUM_THREADS": "1"} | environment
    process = subprocess.Popen([sys.executable, "-c", PYTEST, *shared, *arguments], cwd=ROOT, env=environment)
    try:
        return process.wait()
    except KeyboardInterrupt:
        process.wait()  # it was interrupted too, and cleans up
        raise


def wants_one(arguments: list[str]) -> bool:
    """Whether pytest is to run in one process: the browser's tests share one page, a debugger one terminal.

    A single test, named with ``::``, gains nothing by more processes, and one process says if there is no such test.
    """
    own = ("-n", "--numprocesses", "--pdb", "-s", "--dist")
    return any(
        argument.split("=")[0] in own or "tests/browser" in argument or "::" in argument for argument in arguments
    )


def main(arguments: list[str]) -> int:
    core, others, farm = split(arguments)
    codes = []
    if core:
        print("Tests without ComfyUI", flush=True)
        environment = {name: value for name, value in os.environ.items() if name != "BAYESDIFF_COMFYUI"}
        codes.append(pytest(core, environment))
    failed = any(code not in (PASSED, NO_TESTS) for code in codes)
    stop = any(argument == "--exitfirst" or re.match("-[lqsv]*x", argument) for argument in arguments)
    if others and not (failed and stop):
        print("Tests with ComfyUI", flush=True)
        codes.append(pytest(others, dict(os.environ)))
        if failed:
            print("Tests without ComfyUI failed, see above", flush=True)
    if farm and not (stop and any(code not in (PASSED, NO_TESTS) for code in codes)):
        print("Tests of the farm", flush=True)
        codes.append(run_farm(farm))
    return next((code for code in codes if code not in (PASSED, NO_TESTS)), min(codes))


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except KeyboardInterrupt:
        sys.exit(130)

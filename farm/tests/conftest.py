"""What the farm's tests share."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from small import SEEDS, Farm, small_workflow, wait_until_gone


@pytest.fixture(scope="session")
def farm(tmp_path_factory) -> Farm:
    return Farm(tmp_path_factory.mktemp("farm"))


@pytest.fixture(scope="session")
def reference(farm) -> Path:
    """The folder of a run by one worker, which nothing disturbed."""
    out = farm.root / "reference"
    code, said = farm.run(out, farm.workflow(small_workflow()), "--seeds", SEEDS, "--keep", 3)
    assert code == 0, said
    wait_until_gone(out)
    return out


@pytest.fixture
def small_disk(request, tmp_path):
    """A disk of its own; the parameter is its size, and options of umount."""
    size, *options = request.param
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    if os.name == "nt" or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("may not mount a small disk")
    yield folder
    subprocess.run(["umount", *options, str(folder)], check=True)

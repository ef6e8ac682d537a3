"""What the farm's tests share."""

from __future__ import annotations

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

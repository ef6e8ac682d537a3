"""The version has one value, wherever it is written."""

import re
from pathlib import Path

import pytest

from bayesdiff_core import VERSION

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("path", ["pyproject.toml", "farm/pyproject.toml"])
def test_pyproject_has_the_version_of_the_package(path):
    # Python 3.10 has no tomllib.
    found = re.findall(r'^version = "(.*)"$', (ROOT / path).read_text(encoding="utf-8"), re.M)
    assert found == [VERSION]


def test_the_changelog_has_a_section_for_this_version():
    assert VERSION in re.findall(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.M)

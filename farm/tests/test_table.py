"""The table on the disk: what a crash or a full disk leaves of it."""

from __future__ import annotations

import json

import pytest
from bayesdiff_farm import Problem
from bayesdiff_farm.table import Table


def row(number: int, size: int = 10) -> dict:
    return {"pass": "final", "task": number, "images": [], "text": "x" * size}


def test_a_torn_last_line_is_cut_off_and_the_rest_stays(tmp_path):
    path = tmp_path / "results.jsonl"
    table = Table(path)
    table.append([row(0), row(1)])
    table.append([row(2)])
    table.close()
    whole = path.read_bytes()
    for end in range(1, len(whole) + 1):
        path.write_bytes(whole[:end])
        again = Table(path)
        lines = whole[:end].count(b"\n")
        assert again.done("final") == set(range(lines)) and again.done("early") == set()
        again.append([row(7)])
        again.close()
        assert [json.loads(line)["task"] for line in path.read_text().splitlines()] == [*range(lines), 7]


def test_a_table_that_is_none_is_refused(tmp_path):
    path = tmp_path / "results.jsonl"
    path.write_text("what is this\n")
    with pytest.raises(Problem, match="^Expected a table of results"):
        Table(path)


@pytest.mark.parametrize("small_disk", [("64k",)], indirect=True, ids=["64k"])
def test_a_full_disk_leaves_whole_lines_and_a_sentence(small_disk):
    table = Table(small_disk / "results.jsonl")
    table.append([row(0, 30000)])
    filler = small_disk / "filler"
    filler.write_bytes(b"x" * 20000)
    with pytest.raises(Problem, match="^Expected room for the results .*--resume"):
        table.append([row(1, 30000)])
    assert Table(small_disk / "results.jsonl").done("final") == {0}
    filler.unlink()
    again = Table(small_disk / "results.jsonl")
    again.append([row(1, 30000)])
    again.close()
    assert Table(small_disk / "results.jsonl").done("final") == {0, 1}

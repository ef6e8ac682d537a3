"""What all benchmarks share: a parser that shows their docstring, and their rows as JSON."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path


def make_parser(doc: str) -> argparse.ArgumentParser:
    """A parser of a benchmark's arguments, which shows its docstring as it is written and knows ``--json``."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, metavar="PATH", help="where to write the rows")
    return parser


def list_of(kind: Callable = str, separator: str = ",") -> Callable[[str], list]:
    """The type of an argument that holds several values."""
    return lambda text: [kind(part) for part in text.split(separator)]


def write_rows(path: Path | None, rows: list[dict]) -> None:
    """Write rows as JSON, if a path was given."""
    if path:
        path.write_text(json.dumps(rows, indent=1), encoding="utf-8")

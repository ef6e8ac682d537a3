"""Sentences in the log: a node that samples many times says each of them once."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_said: ContextVar[set[str] | None] = ContextVar("bayesdiff_said", default=None)


@contextmanager
def once_each() -> Iterator[None]:
    """Inside, the same sentence is said once."""
    token = None if _said.get() is not None else _said.set(set())
    try:
        yield
    finally:
        if token is not None:
            _said.reset(token)


def say(sentence: str, level: int = logging.WARNING) -> None:
    """Log a sentence for the user."""
    said = _said.get()
    if said is not None:
        if sentence in said:
            return
        said.add(sentence)
    logging.log(level, f"BayesDiff: {sentence}")

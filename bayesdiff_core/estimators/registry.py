"""Estimators by name, and the qualities that users choose from. Nodes and benchmarks both read this."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

from .base import Estimator
from .change import Change
from .deviations import Deviations
from .ensemble import Ensemble
from .instant import Instant
from .moments import Moments
from .paper import Paper
from .redrawing import Redrawing
from .tangents import Tangents


class Kind(NamedTuple):
    """An estimator that can be chosen by name: its class, and the fields that the name fixes."""

    estimator: type[Estimator]
    fixed: Mapping[str, Any] = {}


# A new estimator gets a line here, and appears in Uncertainty Options.
ESTIMATORS: dict[str, Kind] = {
    "no head": Kind(Change),
    "deviations": Kind(Deviations),
    "deviations, not moderated": Kind(Deviations, {"moderated": False}),
    "tangents": Kind(Tangents),
    "moments": Kind(Moments),
    "paper": Kind(Paper),
}


class Knob(NamedTuple):
    """A number that estimators take: what Uncertainty Options asks for."""

    name: str
    shown: int
    least: int
    most: int
    help: str


def knobs() -> list[Knob]:
    """The numbers of all estimators, in the order in which they first appear; a name means one input for all."""
    found: dict[str, dict[str, Any]] = {}
    users: dict[str, dict[str, list[str]]] = {}
    for kind in ESTIMATORS.values():
        for field in dataclasses.fields(kind.estimator):  # pyright: ignore[reportArgumentType], all are dataclasses
            if "shown" not in field.metadata or field.name in kind.fixed:
                continue
            found.setdefault(field.name, dict(field.metadata))
            named = users.setdefault(field.name, {}).setdefault(field.metadata["help"], [])
            if kind.estimator.name not in named:
                named.append(kind.estimator.name)
    helps = {
        name: " ".join(f"For {' and '.join(names)}: {text}" for text, names in texts.items())
        for name, texts in users.items()
    }
    return [Knob(name, of["shown"], of["least"], of["most"], helps[name]) for name, of in found.items()]


def estimator_help() -> str:
    """What each estimator is, for the tooltip of the choice."""
    texts = {kind.estimator.name: kind.estimator.help for kind in ESTIMATORS.values()}
    return " ".join(f"{name.capitalize()}: {text}" for name, text in texts.items())


def make_estimator(name: str, numbers: Mapping[str, int]) -> Estimator:
    """The estimator of a name, made of those of the numbers that it takes.

    Raises:
        ValueError: no estimator has that name.
    """
    if name not in ESTIMATORS:
        raise ValueError(f"Expected one of {', '.join(ESTIMATORS)} as the estimator, got {name}; choose one of these.")
    kind = ESTIMATORS[name]
    taken = {field.name for field in dataclasses.fields(kind.estimator)}  # pyright: ignore[reportArgumentType]
    return kind.estimator(**{key: value for key, value in numbers.items() if key in taken} | dict(kind.fixed))


# ---------------------------------------------------------------- qualities

ENSEMBLE = "ensemble"
# What a sampler takes where no head is connected.
NO_HEAD = Change()
# Chosen on the frontier of fidelity and cost, see docs/sampling.md.
MEMBERS: dict[str, Deviations] = {
    "draft": Deviations(states=5, share=0.25),
    "balanced": Deviations(states=7, share=1.0),
    "precise": Deviations(states=8, share=3.0),
}
DEFAULT_QUALITY = "instant"
QUALITIES: dict[str, Instant | Deviations] = {DEFAULT_QUALITY: Instant(), **MEMBERS}
# What ranks in Best of N. Quick is one member at three states, see docs/filter.md.
RANKINGS: dict[str, Instant | Deviations] = {"quick": Deviations(states=3, share=0.25), **QUALITIES}
# What judges a finished image: it has as many members as the quality has at 20 steps, at this many states, or it is
# drawn again.
JUDGED_STATES = 5
REDRAW = Redrawing()
DEFAULT_JUDGE = "balanced"
JUDGES: dict[str, Deviations | Redrawing] = {
    **{
        name: Deviations(states=JUDGED_STATES, members=quality.members_within(20, quality.states))
        for name, quality in MEMBERS.items()
    },
    REDRAW.name: REDRAW,
}


def make_quality(name: str, members: int) -> Estimator | Ensemble:
    """The estimator of a quality; an ensemble of ``members`` for ``ensemble``."""
    return Ensemble(members) if name == ENSEMBLE else QUALITIES[name]

"""Estimators by name: what a user can choose is read off the classes."""

import dataclasses
from typing import ClassVar

import pytest
import torch

from bayesdiff_core.estimators import registry
from bayesdiff_core.estimators.base import Estimate, Estimator, knob
from bayesdiff_core.estimators.change import Change
from bayesdiff_core.estimators.deviations import Deviations
from bayesdiff_core.estimators.ensemble import Ensemble
from bayesdiff_core.estimators.instant import Instant
from bayesdiff_core.estimators.moments import Moments
from bayesdiff_core.estimators.paper import Paper
from bayesdiff_core.estimators.redrawing import Redrawing
from bayesdiff_core.estimators.tangents import Tangents
from bayesdiff_core.estimators.trajectory import SaveAt

NUMBERS = dict(members=3, states=6, every=2, draws=4)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Constant(Estimator):
    level: int = knob(3, 1, 9, "the variance.", default=3)
    name: ClassVar[str] = "constant"
    help: ClassVar[str] = "the same everywhere."

    def calls(self, levels):
        return 0

    def estimate(self, run, along):
        shape = run.trajectory.shape
        variance = torch.full(shape, float(self.level))
        return Estimate(variance, torch.empty(0, *shape), {index: variance for index in along})


def test_every_name_makes_its_estimator_of_the_numbers_that_it_takes():
    made = {name: registry.make_estimator(name, NUMBERS) for name in registry.ESTIMATORS}
    assert made == {
        "deviations": Deviations(members=3, states=6),
        "deviations, not moderated": Deviations(members=3, states=6, moderated=False),
        "tangents": Tangents(members=3),
        "moments": Moments(every=2, draws=4),
        "paper": Paper(every=2, draws=4),
        "no head": Change(),
    }
    with pytest.raises(ValueError, match="Expected one of no head, .* as the estimator, got kron; choose one"):
        registry.make_estimator("kron", NUMBERS)


def test_the_numbers_and_their_help_are_read_off_the_classes():
    knobs = {knob.name: knob for knob in registry.knobs()}
    assert list(knobs) == ["members", "states", "every", "draws"]
    assert knobs["members"].help == "For deviations and tangents: how many draws of the last layer."
    assert knobs["draws"].help.startswith("For moments: pairs of probes") and "For paper: draws" in knobs["draws"].help
    for number in knobs.values():
        assert number.least <= number.shown <= number.most
    assert "Tangents: linear" in registry.estimator_help()


def test_a_new_estimator_is_one_line(monkeypatch):
    monkeypatch.setitem(registry.ESTIMATORS, "constant", registry.Kind(Constant))
    last = registry.knobs()[-1]
    assert (last.name, last.shown, last.help) == ("level", 3, "For constant: the variance.")
    assert registry.estimator_help().endswith("Constant: the same everywhere.")
    assert registry.make_estimator("constant", NUMBERS | {"level": 7}) == Constant(level=7)


def test_a_number_that_a_name_fixes_is_not_asked_for(monkeypatch):
    """Another estimator may ask for the same number: the name's own value stays."""
    monkeypatch.setitem(registry.ESTIMATORS, "constant", registry.Kind(Constant, {"level": 5}))
    monkeypatch.setitem(registry.ESTIMATORS, "one tangent", registry.Kind(Tangents, {"members": 1}))
    assert [knob.name for knob in registry.knobs()] == ["members", "states", "every", "draws"]
    assert registry.make_estimator("constant", NUMBERS | {"level": 7}) == Constant(level=5)
    assert registry.make_estimator("one tangent", NUMBERS) == Tangents(members=1)
    assert registry.make_estimator("tangents", NUMBERS) == Tangents(members=3)


def test_qualities():
    assert registry.make_quality("draft", 8) is registry.QUALITIES["draft"]
    assert registry.make_quality(registry.ENSEMBLE, 8) == Ensemble(8)
    assert registry.DEFAULT_QUALITY in registry.QUALITIES
    assert registry.make_quality("instant", 8) == Instant() and not registry.NO_HEAD.needs_head
    members = {name: judge.members for name, judge in registry.JUDGES.items() if name != "redraw"}
    assert members == {"draft": 1, "balanced": 2, "precise": 7}
    assert registry.JUDGES["redraw"] == Redrawing() and registry.DEFAULT_JUDGE in registry.JUDGES
    # What graphs of 0.1 name.
    assert {"draft", "balanced", "precise"} <= {*registry.QUALITIES} and "quick" in registry.RANKINGS


def test_where_a_trajectory_is_kept():
    schedule = torch.tensor([10.0, 8.0, 6.0, 4.0, 2.0, 0.0])
    assert SaveAt().of(schedule) == [8.0, 6.0, 4.0, 2.0] and SaveAt().steps(schedule) == [1, 2, 3, 4]
    assert SaveAt((2.2, 7.5)).of(schedule) == [7.5, 2.2] and SaveAt((2.2, 7.5)).steps(schedule) == [1, 4]
    assert SaveAt().of(schedule[:1]) == [] and SaveAt((3.0,)).steps(schedule[:1]) == []

"""What a run shows, against runs whose evidence is known by hand."""

import dataclasses
import math

import hypothesis
import hypothesis.strategies as st
import pytest
import torch

from bayesdiff_core.estimators.evidence import (
    LEVELS,
    at_levels,
    blur_box,
    levels_needed,
    log_gradient,
    read_evidence,
    still_needed,
)
from bayesdiff_core.estimators.trajectory import Scales, State, Trajectory, Unknown

SHAPES = [(2, 4, 9), (2, 4, 6, 8), (1, 16, 3, 6, 6)]


def run_of(changes: dict[float, torch.Tensor], share=None, variance=None) -> Trajectory:
    """A run whose prediction at each noise over signal is so far from its last one, which is at 0.01."""
    image = torch.randn(next(iter(changes.values())).shape, generator=torch.Generator().manual_seed(1))
    states = [(level, image + change) for level, change in changes.items()] + [(0.01, image)]
    return Trajectory(
        tuple(
            State(level, Scales(level, 1.0), found, found, 0.5, None if variance is None else variance * level)
            for level, found in states
        ),
        Scales(0.0, 1.0),
        share_denoised=share,
    )


@pytest.mark.parametrize("shape", SHAPES)
def test_the_change_is_read_at_the_levels_and_between_them(shape):
    """A change that is constant over the image, and a power of the level, is that power at every level of the grid."""
    levels = (40.0, 10.0, 1.0, 0.1)
    evidence = read_evidence(run_of({level: torch.full(shape, level**0.5) for level in levels}))
    expected = torch.tensor([math.log(level) for level in LEVELS])
    assert evidence.change.shape == (len(LEVELS), shape[0], *shape[2:])
    assert torch.allclose(evidence.change, expected.reshape(-1, *[1] * (len(shape) - 1)).expand_as(evidence.change))
    assert evidence.variance is None and evidence.inside.all()
    assert len(evidence.covariates) == len(LEVELS) + 2


def test_beyond_the_states_of_a_short_run_the_nearest_counts():
    evidence = read_evidence(run_of({2.0: torch.full((1, 4, 5, 5), 3.0)}, variance=torch.ones(1, 4, 5, 5)))
    assert torch.allclose(evidence.change, torch.full_like(evidence.change, math.log(9)))
    ends = evidence.variance[[0, -1], 0, 0, 0]
    assert float(ends[0]) == pytest.approx(math.log(2)) and math.log(0.01) < float(ends[1]) < math.log(2)


def test_of_states_at_one_level_the_last_counts():
    found = at_levels([2.0, 1.0, 1.0], [torch.zeros(1), torch.ones(1), torch.full((1,), 5.0)], [1.0, 2.0])
    assert found.flatten().tolist() == [5, 0]


def test_a_run_of_one_prediction_is_unknown():
    with pytest.raises(Unknown, match="at least two predictions"):
        read_evidence(run_of({0.01: torch.ones(1, 4, 5, 5)}))


@pytest.mark.parametrize("shape", SHAPES)
def test_what_a_mask_keeps_tells_nothing(shape):
    share = torch.ones(shape[0], *shape[2:])
    share[..., shape[-1] // 2 :] = 0
    change = torch.rand(shape, generator=torch.Generator().manual_seed(0)) + 0.5
    wild = change.clone()
    wild[..., shape[-1] // 2 :] = 1e6
    inside = share > 0
    found, other = (read_evidence(run_of({2.0: each}, share)).change[:, inside] for each in (change, wild))
    assert torch.equal(found, other)
    assert torch.equal(read_evidence(run_of({2.0: change}, share)).inside, inside)


def test_images_do_not_see_each_other():
    change = torch.rand(3, 4, 6, 6, generator=torch.Generator().manual_seed(0))
    together = read_evidence(run_of({2.0: change, 0.5: 0.3 * change}))
    broken = change.clone()
    broken[1] = torch.nan
    beside = read_evidence(run_of({2.0: broken, 0.5: 0.3 * broken}))
    assert torch.equal(together.change[:, [0, 2]], beside.change[:, [0, 2]])
    assert torch.equal(together.covariates[:, [0, 2]], beside.covariates[:, [0, 2]])


def test_levels_that_are_needed_are_the_two_neighbours_of_each():
    schedule = [100.0, 50.0, 20.0, 10.0, 5.0, 3.0, 2.0, 1.0, 0.5, 0.3, 0.1, 0.05]
    needed = levels_needed(schedule)
    assert {100.0, 50.0, 0.05}.isdisjoint(needed) and {20.0, 10.0, 5.0, 0.3, 0.1} <= needed
    maps = [torch.full((1,), float(i)) for i in range(len(schedule))]
    few = [(level, value) for level, value in zip(schedule, maps) if level in needed]
    assert torch.equal(at_levels(schedule, maps, LEVELS), at_levels(*zip(*few), LEVELS))


def test_the_gradient_is_that_of_the_last_two_dimensions():
    ramp = torch.arange(6.0).reshape(1, 1, 1, 6).expand(1, 3, 5, 6)
    found = log_gradient(ramp)
    assert found.shape == (2, 1, 5, 6) and torch.allclose(found[0, :, :, :-1], torch.zeros(1, 5, 5))
    assert log_gradient(torch.randn(2, 4, 9)).shape == (2, 2, 9)


def test_blur_keeps_a_constant_and_a_sum():
    values = torch.zeros(1, 7, 7)
    values[0, 3, 3] = 9
    assert torch.allclose(blur_box(values)[0, 2:5, 2:5], torch.ones(3, 3))
    assert torch.allclose(blur_box(torch.full((2, 5), 3.0)), torch.full((2, 5), 3.0))


LEVELS_OF_RUNS = st.lists(st.floats(-2, 2).map(lambda power: round(10**power, 3)), min_size=2, max_size=60)


@hypothesis.given(levels=LEVELS_OF_RUNS.map(lambda levels: sorted(levels, reverse=True)))
def test_what_is_forgotten_on_the_way_changes_no_evidence(levels):
    """A run that falls, twice at some levels, as samplers of higher order are."""
    hypothesis.assume(levels[0] > levels[-1])
    generator, image = torch.Generator().manual_seed(0), torch.randn(1, 2, 4, 4)
    states = [
        State(
            level,
            Scales(level, 1.0),
            image,
            image + level * torch.randn(image.shape, generator=generator),
            0.5,
            image**2 + 1,
        )
        for level in levels
    ]
    kept: set[int] = set()
    for place in range(len(levels)):
        kept = (kept | {place}) & still_needed(levels[: place + 1])
        assert len(kept) <= 2 * len(LEVELS) + 2
    whole = Trajectory(tuple(states), Scales(0.0, 1.0))
    left = dataclasses.replace(whole, states=tuple(states[place] for place in sorted(kept)))
    assert torch.equal(read_evidence(left).covariates, read_evidence(whole).covariates)


@pytest.mark.parametrize("scales", [Scales(3.0, 1.0), Scales(0.2, 0.8), Scales(0.0, 1.0)])
def test_the_noise_left_in_each_image_is_counted_in_that_of_its_sigma(scales):
    generator, times = torch.Generator().manual_seed(1), torch.tensor([0.5, 1.0, 4.0])
    image, noise = torch.randn(2, 3, 4, 32, 32, generator=generator)
    x = scales.signal * image + scales.noise * times[:, None, None, None] * noise
    run = Trajectory((State(1.0, scales, x, image, math.nan),), Scales(0.0, 1.0))
    assert torch.allclose(run.noise_left, times if scales.noise else torch.ones(3), rtol=0.05)

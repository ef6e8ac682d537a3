"""What a soft mask leaves, beside members of a linear network that are walked through the mask step by step."""

import dataclasses

import pytest
import torch

from bayesdiff_core.estimators.deviations import LOW
from bayesdiff_core.estimators.soft_mask import left_by_mask
from bayesdiff_core.estimators.trajectory import Scales, State, Trajectory

LEVELS = (14.0, 6.0, 3.0, 1.5, 0.7, 0.3, 0.05)
SHAPE = (2, 4, 5, 6)


def run_of(share: torch.Tensor | None, levels=LEVELS, signal=lambda level: 1.0) -> Trajectory:
    """A run whose gamma is the square root of the level, in any sampler's space."""
    states = [
        State(level, Scales(level * signal(level), signal(level)), torch.ones(SHAPE), torch.ones(SHAPE), 0.5,
              torch.full(SHAPE, level))
        for level in levels
    ]  # fmt: skip
    return Trajectory(tuple(states), Scales(0.0, 1.0), share_denoised=share, schedule=LEVELS)


def walked(share: float) -> float:
    """The deviation of a member at the end of the run, in the sampler's own x; what the host does to it."""
    delta = 0.0
    for level, below in zip(LEVELS, [*LEVELS[1:], 0.0]):
        shown = share * delta
        denoised = share * (level**0.5 + shown / (1 + (level / LOW) ** 2))
        delta = denoised + (delta - denoised) * below / level  # Euler's step
    return delta


@pytest.mark.parametrize("share", [0.9, 0.5, 0.1])
def test_it_is_what_members_have_left(share):
    left = left_by_mask(run_of(torch.full((2, 5, 6), share)))
    assert left.shape == (2, 5, 6) and torch.allclose(left, torch.tensor(walked(share) / walked(1.0)), rtol=1e-4)
    assert walked(share) / walked(1.0) < share


def test_it_is_the_same_in_every_models_space():
    share = torch.linspace(0, 1, 60).reshape(2, 5, 6)
    flow = left_by_mask(run_of(share, signal=lambda level: 1 / (1 + level)))
    assert torch.allclose(flow, left_by_mask(run_of(share)))
    assert float(flow[0, 0, 0]) == 0 and float(flow[1, 4, 5]) == 1
    assert (flow.flatten().diff() > 0).all(), "the more is denoised, the more is left"


def test_states_that_were_not_kept_are_read_from_their_neighbours():
    share = torch.full((2, 5, 6), 0.5)
    fewer = left_by_mask(run_of(share, levels=tuple(level for level in LEVELS if level not in (3.0, 0.7))))
    assert torch.allclose(fewer, left_by_mask(run_of(share)), rtol=0.05)
    without_last = left_by_mask(run_of(share, levels=LEVELS[:-1]))
    assert torch.allclose(without_last, left_by_mask(run_of(share)), rtol=0.3)


def test_hard_masks_and_runs_that_show_nothing_keep_their_share():
    hard = (torch.arange(60).reshape(2, 5, 6) % 2).float()
    assert left_by_mask(run_of(hard)) is hard and left_by_mask(run_of(None)) is None
    blind, soft = run_of(None), torch.full((2, 5, 6), 0.5)
    states = tuple(dataclasses.replace(state, variance=None) for state in blind.states)
    assert left_by_mask(dataclasses.replace(blind, states=states, share_denoised=soft)) is soft

"""Nested latents: what is packed into one row for the sampler is read part by part."""

from __future__ import annotations

import dataclasses

import torch

from bayesdiff_core.estimators.base import Shown
from bayesdiff_core.estimators.change import Change
from bayesdiff_core.estimators.deviations import Deviations
from bayesdiff_core.estimators.parts import pack, unpack
from bayesdiff_core.estimators.trajectory import Past, Scales, State, Trajectory
from bayesdiff_core.reading.grid import LatentGrid
from bayesdiff_core.reading.uncertainty import Uncertainty

SHAPES = (torch.Size((4, 2, 6, 5)), torch.Size((8, 9, 3)))
LEVELS = (8.0, 3.0, 1.0, 0.3)


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def trajectories() -> tuple[Trajectory, list[Trajectory]]:
    """A run of a nested latent, and the same of each part alone."""
    alone = []
    for number, shape in enumerate(SHAPES):
        states = [
            State(
                level, Scales(level, 1.0), randn(2, *shape, seed=10 * number + step),
                randn(2, *shape, seed=100 + 10 * number + step), 0.5, randn(2, *shape, seed=7 + number).square(),
            )
            for step, level in enumerate(LEVELS)
        ]  # fmt: skip
        past = Past(randn(2, *shape).square(), randn(3, 2, *shape))
        share = (randn(2, *shape[1:], seed=3) > 0).float()
        alone.append(Trajectory(tuple(states), Scales(0.0, 1.0), share_denoised=share, past=past))

    def packed(*tensors):
        return pack(tensors, SHAPES)

    states = [
        dataclasses.replace(
            first, x=packed(first.x, second.x), denoised=packed(first.denoised, second.denoised),
            variance=packed(first.variance, second.variance),
        )
        for first, second in zip(*(part.states for part in alone))
    ]  # fmt: skip
    shares = [part.share_denoised[:, None].expand(2, *shape) for part, shape in zip(alone, SHAPES)]
    past = Past(*(packed(*(getattr(part.past, name) for part in alone)) for name in ("variance", "deviations")))
    whole = Trajectory(
        tuple(states), Scales(0.0, 1.0), share_denoised=packed(*shares)[:, 0], past=past, shapes=SHAPES
    )  # fmt: skip
    return whole, alone


def test_what_is_packed_is_unpacked():
    for lead in ((2,), (3, 2), (0, 2)):
        parts = [randn(*lead, *shape) for shape in SHAPES]
        row = pack(parts, SHAPES)
        assert row.shape == (*lead, 1, sum(shape.numel() for shape in SHAPES))
        assert all(torch.equal(one, other) for one, other in zip(parts, unpack(row, SHAPES), strict=True))
    alone = randn(2, 4, 6, 5)
    assert pack([alone], ()) is alone and unpack(alone, ()) == [alone]


def test_a_run_shows_each_part_as_if_it_were_alone():
    whole, alone = trajectories()
    for part, own in zip(whole.parts, alone, strict=True):
        for one, other in zip(part.states, own.states, strict=True):
            assert all(torch.equal(getattr(one, name), getattr(other, name)) for name in ("x", "denoised", "variance"))
        assert torch.equal(part.share_denoised, own.share_denoised)
        assert torch.equal(part.past.variance, own.past.variance)
        assert torch.equal(part.past.deviations, own.past.deviations)
    assert alone[0].parts == [alone[0]]


def test_a_part_whose_layer_is_not_known_has_no_variance_of_its_own():
    whole, _ = trajectories()
    states = []
    for state in whole.states:
        picture, sound = unpack(state.variance, SHAPES)
        states.append(dataclasses.replace(state, variance=pack([picture, torch.full_like(sound, torch.nan)], SHAPES)))
    picture, sound = dataclasses.replace(whole, states=tuple(states)).parts
    assert all(state.variance is not None for state in picture.states)
    assert all(state.variance is None for state in sound.states)


@dataclasses.dataclass
class Run:
    """A nominal run whose network answers with a fixed change of ``denoised``."""

    trajectory: Trajectory
    generator: torch.Generator | None = None

    @property
    def shown(self):
        return [Shown(part, None) for part in self.trajectory.parts]

    def show(self, variance):
        pass

    def denoised(self, state, x, member=None, scale=1.0):
        numbers = torch.arange(x[0].numel(), dtype=torch.float32).reshape(x.shape[1:])
        return state.denoised + 0.1 * torch.sin(numbers * (member + 1))


def test_estimates_of_parts_are_those_of_each_alone():
    whole, alone = trajectories()
    whole, picture = (dataclasses.replace(each, past=None) for each in (whole, alone[0]))
    found = unpack(Change().estimate(Run(whole), []).variance, SHAPES)
    assert torch.allclose(found[0], Change().estimate(Run(picture), []).variance)
    # The picture comes first in the row, so the network above answers it as it does alone.
    for estimator in (Deviations(members=2, moderated=False), Deviations(members=2)):
        together = unpack(estimator.estimate(Run(whole), []).variance, SHAPES)
        assert torch.allclose(together[0], estimator.estimate(Run(picture), []).variance, rtol=1e-4)


def test_sound_has_scores_over_time_and_no_map():
    variance = torch.ones(2, 8, 9, 3) * torch.arange(1.0, 10).reshape(9, 1).square()
    sound = Uncertainty(variance, randn(2, 8, 9, 3), LatentGrid(1, time=2), "any", 0, {}, 1.0, torch.empty(0))
    assert sound.frames == 9
    assert torch.allclose(sound.frame_scores("mean std")[0], torch.arange(1.0, 10))
    turned = dataclasses.replace(
        sound, variance=variance.movedim(2, 3), latent=sound.latent.movedim(2, 3), grid=LatentGrid(1, time=3)
    )
    assert torch.equal(sound.frame_scores(), turned.frame_scores())
    flat = dataclasses.replace(sound, variance=variance[..., 0], latent=sound.latent[..., 0])
    assert torch.allclose(flat.frame_scores("mean std")[0], torch.arange(1.0, 10))


def test_a_single_frame_may_come_again_in_a_clip():
    grid = LatentGrid(16, 4, group=5)
    assert [grid.frames_of(cells) for cells in (1, 2, 5, 6, 7, 12)] == [1, 5, 17, 18, 22, 39]
    cells = grid.cells_of(22)
    assert cells.tolist() == [0, *[1] * 4, *[2] * 4, *[3] * 4, *[4] * 4, 5, *[6] * 4]
    by_cell = grid.by_cell(torch.arange(22.0)[None])
    assert by_cell.shape == (1, 7, 4)
    assert by_cell[0, 0].tolist() == [0] * 4 and by_cell[0, 5].tolist() == [17] * 4
    assert by_cell[0, 6].tolist() == [18, 19, 20, 21]

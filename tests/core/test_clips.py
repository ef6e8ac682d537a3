"""Clips: maps, scores and masks of each frame, where a VAE packs several frames into a latent one."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from bayesdiff_core.reading import clip_masks, masks
from bayesdiff_core.reading.grid import LatentGrid
from bayesdiff_core.reading.maps import map_tops, normalise_map, resize_map
from bayesdiff_core.reading.scores import SCORES, inside_cells
from bayesdiff_core.reading.uncertainty import Uncertainty

CELLS, FRAMES, HEIGHT, WIDTH = 4, 13, 5, 6


def clips(variance, frames=4):
    latent = torch.randn(variance.shape, generator=torch.Generator().manual_seed(1))
    return Uncertainty(variance, latent, LatentGrid(8, frames), "instant", 0, {}, 1.0, variance[None][:0])


@pytest.fixture
def pair():
    """Two clips, unsure of one corner; the first most in its latent frame 2, the second in 0."""
    variance = 0.01 * torch.rand(2, 3, CELLS, HEIGHT, WIDTH, generator=torch.Generator().manual_seed(0))
    variance[0, :, 2, :2, :2] = 4
    variance[1, :, 0, :2, :2] = 9
    return clips(variance)


# ---------------------------------------------------------------- frames of a latent frame


@pytest.mark.parametrize("frames", [1, 4, 6, 8])
@pytest.mark.parametrize("cells", [1, 2, 5])
def test_every_frame_has_its_latent_frame(cells, frames):
    grid = LatentGrid(8, frames)
    found = grid.cells_of(grid.frames_of(cells)).tolist()
    assert found == [0] + [cell for cell in range(1, cells) for _ in range(frames)]
    values = torch.rand(2, len(found), 3)
    by_cell = grid.by_cell(values)
    assert by_cell.shape == (2, cells, frames, 3)
    assert torch.equal(by_cell[:, 1:].flatten(1, 2), values[:, 1:])
    assert torch.equal(by_cell[:, 0], values[:, :1].expand(-1, frames, -1))


# ---------------------------------------------------------------- maps


def test_a_map_for_each_frame_clip_after_clip(pair):
    assert (len(pair), pair.cells_in_time, pair.frames) == (2, CELLS, FRAMES)
    assert pair.std_map().shape == (2, CELLS, HEIGHT, WIDTH)
    maps = pair.maps()
    assert maps.shape == (2 * FRAMES, 8 * HEIGHT, 8 * WIDTH) and pair.maps((7, 9)).shape == (2 * FRAMES, 7, 9)
    assert torch.equal(maps[0], resize_map(pair.std_map()[:1, 0], 8 * HEIGHT, 8 * WIDTH)[0])
    corner = pair.by_clip(maps)[..., :8, :8].mean((2, 3))
    assert (corner[0] > 1).tolist() == [5 <= frame <= 8 for frame in range(FRAMES)], "those of latent frame 2"
    assert (corner[1] > 1).tolist() == [frame == 0 for frame in range(FRAMES)]
    assert torch.equal(maps, torch.cat([pair.select(torch.tensor([i])).maps() for i in range(2)]))


def test_one_scale_for_each_clip_so_that_brightness_compares_frames(pair):
    std = pair.by_clip(pair.maps())
    values = normalise_map(std, per_image=True)
    assert values.shape == std.shape and values.amax((1, 2, 3)).tolist() == [1, 1]
    assert values[0, 0].max() < 0.2, "a sure frame of an unsure clip stays dark"
    assert map_tops(std, per_image=False).unique().numel() == 1


def test_a_broken_clip_is_named(pair):
    variance = pair.variance.clone()
    variance[1, 0, 3, 0, 0] = torch.nan
    with pytest.raises(ValueError, match=r"infinity in 1 of 2 clips \(the first is number 1.* whether the clips them"):
        dataclasses.replace(pair, variance=variance).maps()


# ---------------------------------------------------------------- scores


@pytest.mark.parametrize("name", SCORES)
def test_scores_of_clips_and_of_their_frames(pair, name):
    whole, frames = pair.scores(name), pair.frame_scores(name)
    assert whole.shape == (2,) and frames.shape == (2, FRAMES) and frames.isfinite().all()
    for i in range(2):
        for frame, cell in ((0, 0), (5, 2), (8, 2), (9, 3)):
            alone = dataclasses.replace(
                pair, variance=pair.variance[[i], :, cell], latent=pair.latent[[i], :, cell]
            )  # as an image
            assert torch.allclose(frames[i, frame], alone.scores(name)[0])
    if name not in ("median", "content-normalised"):
        assert frames[0].argmax() == 5 and frames[1].argmax() == 0
    image = dataclasses.replace(pair, variance=pair.variance[:, :, 0], latent=pair.latent[:, :, 0])
    assert torch.equal(image.frame_scores(name), image.scores(name)[:, None])


@pytest.mark.parametrize("name", SCORES)
def test_a_mask_of_frames_scores_these_alone(pair, name):
    late = torch.zeros(FRAMES, 40, 48)
    late[9:] = 1
    of_late = dataclasses.replace(pair, variance=pair.variance[:, :, 3:], latent=pair.latent[:, :, 3:])
    assert torch.allclose(pair.scores(name, late), of_late.scores(name))
    assert torch.equal(pair.scores(name, late), pair.scores(name, late.repeat(2, 1, 1)))
    frames = pair.frame_scores(name, late)
    assert frames[:, :9].isnan().all() and frames[:, 9:].isfinite().all()
    assert torch.equal(pair.scores(name, torch.ones(1, 8, 8)), pair.scores(name))
    assert torch.equal(pair.scores(name, torch.ones(2, 8, 8)), pair.scores(name))
    assert torch.equal(pair.scores(name, torch.ones(CELLS, 8, 8)), pair.scores(name))


def test_a_part_of_a_latent_frame_is_inside_and_an_empty_clip_is_one_sentence(pair):
    one = torch.zeros(2 * FRAMES, 8, 8)
    one[6] = one[FRAMES + 2] = 1
    inside = inside_cells(pair.mask_of_cells(one), 2, CELLS, HEIGHT, WIDTH)
    assert inside[0, 2].all() and inside[1, 1].all() and inside.float().mean() == 1 / CELLS
    one[6] = 0
    with pytest.raises(ValueError, match=r"got an empty one \(number 0, numbered"):
        pair.scores(mask=one)


@pytest.mark.parametrize("count", [3, 7, 14, 25, 52])
def test_masks_of_another_length_are_one_sentence(pair, count):
    sentence = f"one for each of the 2 clips, or one for each of the 13 frames of a clip or of all clips, got {count};"
    with pytest.raises(ValueError, match=sentence):
        pair.scores(mask=torch.ones(count, 8, 8))


# ---------------------------------------------------------------- masks


def test_masks_by_any_count_mean_the_same_frames():
    grid, generator = LatentGrid(8, 4), torch.Generator().manual_seed(0)
    given = torch.rand(2, FRAMES, 3, 4, generator=generator)
    of = lambda mask, clips=2: clip_masks.frame_masks(mask, clips, CELLS, grid)  # noqa: E731
    assert torch.equal(of(given.flatten(0, 1)), given) and torch.equal(of(given.flatten(0, 1)[:, None]), given)
    assert torch.equal(of(given[0]), given[:1]) and torch.equal(of(given[0], 1), given[:1])
    assert torch.equal(of(given[:, 0]), given[:, :1]) and torch.equal(of(given[0, 0]), given[:1, :1])
    cells = given[:, [0, 1, 5, 9]]
    expected = given[:, [0] + [1] * 4 + [5] * 4 + [9] * 4]
    for mask in (cells.flatten(0, 1), cells[:, None], cells[:, None].expand(-1, 16, -1, -1, -1)):
        assert torch.equal(of(mask), expected)
    assert torch.equal(of(given[:, None, :1]), given[:, :1])


def test_a_latent_frame_is_redrawn_as_far_as_any_of_its_frames():
    grid, frames = LatentGrid(8, 4), torch.zeros(2, FRAMES, 3, 4)
    frames[0, 6, 1], frames[1, 0, 2], frames[1, 9, 0] = 1, 0.5, 0.25
    found = clip_masks.cell_masks(frames, grid)
    assert found.shape == (2, 1, CELLS, 3, 4)
    assert found.nonzero()[:, :4].unique(dim=0).tolist() == [[0, 0, 2, 1], [1, 0, 0, 2], [1, 0, 3, 0]]
    assert torch.equal(clip_masks.frame_masks(found, 2, CELLS, grid)[0, 5:9], frames[0, [6] * 4])


def test_a_share_of_a_clip_goes_to_its_uncertain_frames(pair):
    std = pair.by_clip(pair.maps())
    mask = masks.most_uncertain_area(std, 0.05)
    assert mask.mean((1, 2, 3)).tolist() == [pytest.approx(0.05, abs=1e-3)] * 2
    assert mask[0, 5:9].sum() > 0.6 * mask[0].sum() and mask[1, 0, :16, :16].all()
    assert masks.otsu(std)[0, 5:9].any() and not masks.otsu(std)[0, :5].any()


def test_growing_and_fading_over_time():
    mask = torch.zeros(1, 9, 2, 3)
    mask[0, 4, 1, 2] = 1
    assert clip_masks.grow_over_time(mask, 2)[0, :, 1, 2].tolist() == [0, 0, 1, 1, 1, 1, 1, 0, 0]
    faded = clip_masks.fade(mask, 3)
    assert faded[0, :, 1, 2].tolist() == [0, 0.25, 0.5, 0.75, 1, 0.75, 0.5, 0.25, 0] and faded[0, :, 0].sum() == 0
    assert clip_masks.grow_over_time(mask, 0) is mask and clip_masks.fade(mask, 0) is mask


def test_spans_of_frames_and_empty_ones():
    assert clip_masks.span(5, 1, 3).tolist() == [0, 1, 1, 1, 0]
    assert clip_masks.span(5, 0, -1).tolist() == [1] * 5
    assert clip_masks.span(5, -2, -1).tolist() == [0, 0, 0, 1, 1]
    assert clip_masks.span(5, 3, 99).tolist() == [
        0,
        0,
        0,
        1,
        1,
    ]
    for first, last in ((3, 2), (5, 9), (0, -6)):
        with pytest.raises(ValueError, match=f"some of the 5 frames, .* got {first} to {last}; choose first_frame and"):
            clip_masks.span(5, first, last)


def test_a_repair_of_a_clip_stays_in_its_span(pair):
    std = pair.by_clip(pair.maps())
    allowed = clip_masks.span(FRAMES, 3, 6)[:, None, None].expand(std.shape)
    mask = masks.repair_mask(std, 0.02, 1, allowed)
    assert mask.shape == std.shape and mask[0].any() and not mask[:, :3].any() and not mask[:, 7:].any()
    assert torch.equal(masks.repair_mask(std, 1.0, 0, allowed), allowed)

import dataclasses

import pytest
import torch

from bayesdiff_core.reading import masks
from bayesdiff_core.reading.grid import LatentGrid
from bayesdiff_core.reading.maps import (
    COLOUR_MAPS,
    antithetic_draws,
    colour_map,
    map_tops,
    normalise_map,
    overlay_map,
    pixel_variance,
    resize_map,
)
from bayesdiff_core.reading.uncertainty import Uncertainty


def uncertainty(variance):
    nominal = torch.zeros_like(variance)
    return Uncertainty(variance, nominal, LatentGrid(8, 4), "ensemble", 8, {}, 9.0, nominal[None])


def test_map_and_score_of_known_variances():
    variance = torch.zeros(2, 4, 2, 2)
    variance[1, :, 0, 0] = torch.tensor([1.0, 4.0, 9.0, 16.0])
    result = uncertainty(variance)
    assert result.std_map()[1, 0, 0] == pytest.approx(7.5**0.5)
    assert result.std_map().sum() == pytest.approx(7.5**0.5)
    assert result.scores().tolist() == [0.0, pytest.approx((1 + 2 + 3 + 4) / 16)]


def test_normalising_each_image_or_the_batch():
    values = torch.stack([torch.full((10, 10), 1.0), torch.full((10, 10), 4.0)])
    assert torch.equal(normalise_map(values, per_image=True), torch.ones(2, 10, 10))
    assert torch.equal(normalise_map(values, per_image=False)[:, 0, 0], torch.tensor([0.25, 1.0]))
    assert torch.equal(normalise_map(torch.zeros(1, 3, 3), per_image=True), torch.zeros(1, 3, 3))


def test_one_hot_cell_does_not_dim_the_rest():
    values = torch.ones(1, 50, 50)
    values[0, 0, 0] = 1000
    assert normalise_map(values, per_image=True)[0, 1, 1] == 1


def test_the_value_that_is_brightest():
    values = torch.stack([torch.full((10, 10), 1.0), torch.full((10, 10), 4.0)])
    assert map_tops(values, per_image=True).tolist() == [1.0, 4.0]
    assert map_tops(values, per_image=False).tolist() == [4.0, 4.0]


@pytest.mark.parametrize("name", COLOUR_MAPS)
def test_colours_rise_in_lightness_and_stay_in_range(name):
    colours = colour_map(torch.linspace(0, 1, 101)[None, None], name)[0, 0]
    luminance = colours @ torch.tensor([0.2126, 0.7152, 0.0722])
    assert colours.shape == (101, 3) and colours.min() >= 0 and colours.max() <= 1
    assert (luminance.diff() > 0).all()


def test_overlay_keeps_certain_parts_and_hides_uncertain_ones():
    image = torch.rand(1, 4, 4, 3)
    values = torch.zeros(1, 4, 4)
    values[0, 0, 0] = 1
    overlay = overlay_map(image, values, opacity=1.0)
    assert torch.allclose(overlay[0, 0, 0], colour_map(values)[0, 0, 0])
    grey = (image[0, 1, 1] * torch.tensor([0.2126, 0.7152, 0.0722])).sum()
    assert torch.allclose(overlay[0, 1, 1], grey.expand(3))
    assert torch.allclose(overlay_map(image, values, 0.0)[0, 0, 0].diff(), torch.zeros(2), atol=1e-6)


def test_resizing_keeps_a_constant_and_the_place():
    assert torch.allclose(resize_map(torch.full((2, 4, 4), 0.3), 32, 24), torch.full((2, 32, 24), 0.3))
    values = torch.zeros(1, 4, 4)
    values[0, 1, 2] = 1
    resized = resize_map(values, 32, 32)[0]
    row, column = divmod(int(resized.argmax()), 32)
    assert 8 <= row < 16 and 16 <= column < 24


def test_draws_have_the_variance_and_cancel_in_pairs():
    variance = torch.tensor([0.0, 1.0, 9.0]).expand(2000, 3)
    first, second, third, _ = antithetic_draws(variance, 2, torch.Generator().manual_seed(0))
    assert torch.equal(first, -second) and not torch.equal(first, third)
    assert first.var(0).tolist() == [0.0, pytest.approx(1, rel=0.1), pytest.approx(9, rel=0.1)]


def test_pixel_variance_is_the_mean_square_over_members_and_colours():
    image = torch.rand(2, 4, 5, 3, generator=torch.Generator().manual_seed(0))
    change = torch.zeros(2, 4, 5, 3)
    change[1, 2, 3] = torch.tensor([0.3, 0.0, -0.3])
    found = pixel_variance(image, [image + change, image - 2 * change])
    assert found.shape == (2, 4, 5) and found[1, 2, 3] == pytest.approx(0.09 * 2 / 3 * (1 + 4) / 2, rel=1e-4)
    found[1, 2, 3] = 0
    assert not found.any()


@pytest.mark.parametrize("area", [0.01, 0.15, 0.5, 1.0])
def test_mask_has_the_asked_area_and_the_highest_values(area):
    values = torch.rand(3, 20, 30, generator=torch.Generator().manual_seed(0))
    mask = masks.most_uncertain_area(values, area)
    assert mask.sum((1, 2)).tolist() == [pytest.approx(area * 600, abs=1)] * 3
    for value, marked in zip(values, mask.bool()):
        assert not (~marked).any() or value[marked].min() >= value[~marked].max()


def test_ties_do_not_widen_the_mask():
    assert masks.most_uncertain_area(torch.ones(1, 10, 10), 0.2).sum() == 20


def test_growing_and_blurring():
    mask = torch.zeros(1, 21, 21)
    mask[0, 10, 10] = 1
    assert masks.grow(mask, 3).sum() == 49 and masks.grow(mask, 0) is mask
    soft = masks.blur(mask, 2.0)
    assert soft.sum() == pytest.approx(1.0, abs=1e-5) and soft.argmax() == mask.argmax()
    assert soft[0, 10, 12] == pytest.approx(float(soft[0, 10, 10]) * 2.718281828**-0.5, rel=1e-3)
    assert torch.allclose(masks.blur(torch.ones(1, 9, 9), 4.0), torch.ones(1, 9, 9)) and masks.blur(mask, 0.0) is mask


def test_growing_does_by_rows_and_columns_what_a_square_does():
    mask = (torch.rand(2, 30, 40, generator=torch.Generator().manual_seed(0)) > 0.99).float()
    expected = torch.nn.functional.max_pool2d(mask[:, None], 7, stride=1, padding=3)[:, 0]
    assert torch.equal(masks.grow(mask, 3), expected)
    assert torch.equal(masks.grow(mask, 100), torch.ones_like(mask))


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_masks_of_a_map_without_structure(value):
    """All zero: nothing is uncertain, nothing is masked. All the same: the area asked for, and no two classes."""
    values = torch.full((2, 10, 10), value)
    shares = [masks.most_uncertain_area(values, 0.2), masks.most_uncertain_of_batch(values, 0.2)]
    assert [mask.mean().item() for mask in shares] == [pytest.approx(0.2 * value)] * 2
    assert not masks.otsu(values).any()
    assert masks.above(values, 0.5).mean() == value


@pytest.mark.parametrize("full", [0.0, 1.0])
def test_empty_and_full_masks_stay_what_they_are(full):
    mask = torch.full((2, 9, 12), full)
    for change in (masks.fill_holes, masks.bounding_box, lambda m: masks.drop_islands(m, 5), lambda m: masks.grow(m, 2),
                   lambda m: masks.blur(m, 1.5)):  # fmt: skip
        assert torch.allclose(change(mask), mask)


def test_the_share_of_a_batch_goes_to_the_uncertain_images():
    values = (
        torch.rand(3, 20, 20, generator=torch.Generator().manual_seed(0)) + torch.tensor([0, 0.5, 3])[:, None, None]
    )
    mask = masks.most_uncertain_of_batch(values, 0.4)
    assert mask.mean() == pytest.approx(0.4, abs=1e-3)
    most, middle, least = mask.mean((1, 2)).flip(0).tolist()
    assert most == 1 and 0 < middle < 0.3 and least == 0
    alone = masks.most_uncertain_of_batch(values[:1], 0.4)
    assert torch.equal(alone, masks.most_uncertain_area(values[:1], 0.4)), "a batch of one is its own"


def test_otsu_separates_two_groups_image_by_image():
    generator = torch.Generator().manual_seed(0)
    values = 1 + 0.1 * torch.randn(2, 40, 40, generator=generator)
    values[0, 5:15, 5:15] += 3
    values[1, 20:25, :] += 30
    values[1] *= 100
    mask = masks.otsu(values)
    expected = torch.zeros(2, 40, 40)
    expected[0, 5:15, 5:15] = expected[1, 20:25, :] = 1
    assert torch.equal(mask, expected)


def test_holes_islands_and_boxes_of_each_image():
    mask = torch.zeros(2, 20, 20)
    mask[0, 2:9, 2:9] = 1
    mask[0, 4:7, 4:7] = 0
    mask[0, 15, 15] = mask[0, 16, 16] = 1  # two that touch at a corner
    mask[1, 0, :3] = 1
    filled = masks.fill_holes(mask)
    assert filled[0, 2:9, 2:9].all() and filled.sum() == mask.sum() + 9
    assert torch.equal(masks.drop_islands(filled, 2), filled)
    dropped = masks.drop_islands(filled, 3)
    assert dropped.sum().item() == 49 + 3 and not dropped[0, 15, 15]
    box = masks.bounding_box(mask)
    assert box.sum((1, 2)).tolist() == [15 * 15, 3] and box[0, 2:17, 2:17].all()


def test_a_grid_knows_pixels_and_frames_of_a_cell():
    grid = LatentGrid(8, 4)
    assert grid.pixels_of(16) == 128 and [grid.frames_of(cells) for cells in (1, 2, 5)] == [1, 5, 17]
    assert LatentGrid().frames_of(1) == 1


def test_maps_at_the_size_of_the_images_and_at_any_other():
    result = dataclasses.replace(uncertainty(torch.rand(2, 4, 3, 5)), grid=LatentGrid(16))
    assert len(result) == 2 and result.image_size() == (48, 80)
    assert torch.equal(result.maps(), resize_map(result.std_map(), 48, 80))
    assert torch.equal(result.maps((7, 9)), resize_map(result.std_map(), 7, 9))


@pytest.mark.parametrize("shape", [(8, 12), (1, 8, 12), (1, 1, 8, 12)])
def test_one_mask_fits_every_image_at_their_size(shape):
    mask = torch.zeros(shape)
    mask[..., :4, 6:] = 1
    expected = torch.zeros(3, 16, 24)
    expected[:, :8, 12:] = 1
    assert torch.equal(masks.fit_mask(mask, 3, 16, 24), expected)


def test_masks_repeat_in_turn_and_those_too_many_are_left_out():
    mask = torch.rand(2, 5, 7, generator=torch.Generator().manual_seed(0))
    assert torch.equal(masks.fit_mask(mask, 5, 5, 7), mask[[0, 1, 0, 1, 0]])
    assert torch.equal(masks.fit_mask(mask, 1, 5, 7), mask[:1])


def test_the_most_uncertain_cells_of_what_is_allowed_are_repaired():
    """The share is of the whole image; what lies outside neither counts nor is marked by growing."""
    values = torch.arange(100.0).reshape(1, 10, 10)
    allowed = torch.zeros(10, 10)
    allowed[2:5, 3:7] = 1
    expected = torch.zeros(1, 10, 10)
    expected[0, 4, 5:7] = 1
    assert torch.equal(masks.repair_mask(values, 0.02, 0, allowed), expected)
    expected[0, 3:5, 4:7] = 1
    assert torch.equal(masks.repair_mask(values, 0.02, 1, allowed), expected)
    assert torch.equal(masks.repair_mask(values, 1.0, 3, allowed), allowed[None]), "no more than is allowed"
    assert torch.equal(masks.repair_mask(values, 0.02, 0, allowed / 2), masks.repair_mask(values, 0.02, 0, allowed) / 2)


def test_a_repair_stays_inside_what_is_allowed():
    values, allowed = torch.rand(3, 32, 32), torch.zeros(2, 16, 16)
    allowed[0, :8], allowed[1, 8:] = 1, 1
    assert torch.equal(masks.fit_mask(allowed, 3, 32, 32)[2], masks.resize_mask(allowed[:1], 32, 32)[0])
    free, bounded = masks.repair_mask(values, 0.1, 2), masks.repair_mask(values, 0.1, 2, allowed)
    assert torch.equal(free, masks.grow(masks.most_uncertain_area(values, 0.1), 2))
    assert bounded.any() and not bounded[0, 16:].any() and not bounded[1, :16].any() and not bounded[2, 16:].any()
    assert not masks.repair_mask(values, 0.1, 2, torch.zeros(1, 8, 8)).any()

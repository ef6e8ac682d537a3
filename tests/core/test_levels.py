"""Maps in whole numbers, and their masks."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch

from bayesdiff_core.reading import levels, masks
from bayesdiff_core.reading.grid import LatentGrid
from bayesdiff_core.reading.levels import MOST, Levels
from bayesdiff_core.reading.maps import resize_map
from bayesdiff_core.reading.uncertainty import Uncertainty


def uncertainty_of(std: torch.Tensor, unknown: str = "") -> Uncertainty:
    """Of maps ``(n, h, w)``, which four channels share."""
    variance = std.square()[:, None].expand(-1, 4, -1, -1)
    return Uncertainty(
        variance, torch.zeros_like(variance), LatentGrid(8), "test", 0, {}, 1.0, torch.empty(0, *variance.shape),
        unknown=unknown,
    )  # fmt: skip


def random_maps(count: int = 3, height: int = 7, width: int = 9) -> torch.Tensor:
    return torch.rand(count, height, width, generator=torch.Generator().manual_seed(3))


def test_levels_are_the_map_to_half_a_step():
    std = random_maps()
    found = Levels.of(uncertainty_of(std))
    assert found.top == pytest.approx(float(std.max())) and int(found.cells.max()) == MOST
    assert torch.allclose(found.cells[:, 0].double() * found.top / MOST, std.double(), atol=0.51 * found.top / MOST)


def test_an_enlarged_map_is_the_map_that_the_other_nodes_show():
    cells = (random_maps(1) * MOST).round().long()
    for size in ((56, 72), (7, 9), (40, 31), (3, 2)):
        found = levels.enlarge(cells[0], *size).double() / levels.unit(*size)
        assert torch.allclose(found, resize_map(cells.double(), *size)[0], atol=1e-6), size


def test_no_product_leaves_what_float64_holds_exactly():
    """A page counts in float64: an image of 16384 pixels a side is the largest that a browser shows."""
    assert MOST * levels.unit(16384, 16384) < 2**53
    assert float(MOST * levels.unit(16384, 16384) - 1) != float(MOST * levels.unit(16384, 16384))


@pytest.mark.parametrize("area", [0.0, 0.001, 0.15, 0.5, 1.0])
def test_the_area_share_marks_as_many_as_the_mask_node(area):
    values = levels.enlarge((random_maps(1)[0] * MOST).round().long() + 1, 56, 72)
    mask = levels.most_uncertain(values, area)
    assert int(mask.sum()) == math.ceil(area * values.numel())
    expected = masks.most_uncertain_area(values[None].double(), area)[0] > 0
    # The two choose otherwise among equal pixels alone.
    assert (values[mask != expected] == values[mask].min()).all() if mask.any() else not expected.any()


def test_of_equal_pixels_the_first_are_marked_and_never_those_of_no_uncertainty():
    flat = torch.full((4, 5), 7)
    assert levels.most_uncertain(flat, 0.3).flatten().tolist() == [True] * 6 + [False] * 14
    assert not levels.most_uncertain(torch.zeros(4, 5, dtype=torch.int64), 1.0).any()


def test_a_value_and_a_percentile_mark_what_exceeds_them():
    std = random_maps()
    found = Levels.of(uncertainty_of(std))
    values = levels.enlarge(found.cells[1, 0], 7, 9)
    assert torch.equal(levels.above_std(values, 0.5, found.top), std[1] > 0.5)
    limit = std.flatten().quantile(0.8)
    above = levels.above_percentile(values, 80.0, found.percentiles())
    assert abs(int(above.sum()) - int((std[1] > limit).sum())) <= 1
    assert not levels.above_percentile(values, 100.0, found.percentiles()).any()
    assert not levels.above_std(values, 0.0, 0.0).any()


def test_percentiles_are_those_of_all_cells():
    percentiles = Levels(torch.arange(1001).reshape(1, 1, 7, 143) * 5, 1.0, torch.tensor([True])).percentiles()
    assert percentiles == [5 * i for i in range(1001)]


def test_what_is_unknown_has_no_level_and_does_not_count():
    std = random_maps()
    std[1] = math.nan
    found = Levels.of(uncertainty_of(std, unknown="Nobody knows."))
    known = Levels.of(uncertainty_of(std[[0, 2]]))
    assert found.known.tolist() == [True, False, True] and found.top == known.top
    assert torch.equal(found.cells[[0, 2]], known.cells) and found.percentiles() == known.percentiles()
    nothing = Levels.of(uncertainty_of(torch.full((2, 3, 3), math.nan), unknown="Nobody knows."))
    assert not nothing.known.any() and nothing.top == 0 and len(nothing.percentiles()) == 1001


def test_a_clip_has_a_map_for_each_latent_frame():
    std = random_maps(6).reshape(2, 3, 7, 9)
    variance = std.square()[:, None].expand(-1, 4, -1, -1, -1)
    clips = dataclasses.replace(uncertainty_of(std[:, 0]), variance=variance, grid=LatentGrid(8, 4))
    found = Levels.of(clips)
    assert found.cells.shape == (2, 3, 7, 9)
    assert torch.equal(found.cells.flatten(0, 1), Levels.of(uncertainty_of(std.flatten(0, 1))).cells[:, 0])

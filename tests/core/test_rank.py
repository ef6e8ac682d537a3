"""Rules of the filter, and the contact sheet."""

import math

import pytest
import torch

from bayesdiff_core.drawing.sheets import contact_sheet
from bayesdiff_core.reading import rank
from bayesdiff_core.reading.grid import LatentGrid
from bayesdiff_core.reading.uncertainty import Moment, Uncertainty

SCORES = torch.tensor([0.3, math.nan, 0.1, 0.2, 0.9, 0.2], dtype=torch.float64)


def indices(kept: torch.Tensor) -> list[int]:
    return kept.nonzero().flatten().tolist()


def test_rank_is_stable_and_puts_the_unknown_last():
    assert rank.rank(SCORES).tolist() == [2, 3, 5, 0, 4, 1]
    assert rank.rank(torch.tensor([math.inf, 1.0, -math.inf, math.nan])).tolist() == [1, 0, 2, 3]


@pytest.mark.parametrize(("count", "kept"), [(0, []), (1, [2]), (2, [2, 3]), (5, [0, 2, 3, 4, 5]), (9, list(range(6)))])
def test_keeping_the_best(count, kept):
    assert indices(rank.keep_best(SCORES, count)) == kept


@pytest.mark.parametrize(
    ("fraction", "kept"), [(0.0, 6), (0.08, 6), (0.1, 5), (0.25, 4), (0.5, 3), (0.9, 1), (0.95, 0), (1.0, 0)]
)
def test_dropping_a_fraction_rounds_to_whole_images(fraction, kept):
    chosen = rank.drop_fraction(SCORES, fraction)
    assert chosen.sum() == kept
    assert indices(chosen) == sorted(rank.rank(SCORES).tolist()[:kept])


def test_dropping_outliers_drops_a_sixth_of_normal_scores():
    scores = torch.randn(20000, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 3 + 50
    assert 1 - rank.drop_outliers(scores, 1.0).double().mean() == pytest.approx(0.1587, abs=0.005)
    # Mean 0.34, deviation 0.286.
    assert indices(rank.drop_outliers(SCORES, 1.0)) == [0, 2, 3, 5]
    assert indices(rank.drop_outliers(SCORES, 2.0)) == [0, 2, 3, 4, 5]


@pytest.mark.parametrize("deviations", [0.0, 0.1, 1.0])
@pytest.mark.parametrize("count", [1, 3, 7, 49])
def test_equal_scores_are_no_outliers(deviations, count):
    for value in (0.1, 0.7, 1e-9, 123.456):
        assert rank.drop_outliers(torch.full((count,), value, dtype=torch.float64), deviations).all()


def test_threshold_and_nothing_but_unknown_scores():
    assert indices(rank.keep_below(SCORES, 0.2)) == [2, 3, 5]
    unknown = torch.full((3,), math.nan)
    assert not rank.keep_below(unknown, 1e9).any() and not rank.drop_outliers(unknown, 5.0).any()
    assert indices(rank.keep_best(unknown, 2)) == [0, 1]


@pytest.mark.parametrize("members", [0, 3])
def test_selecting_takes_everything_of_an_image(members):
    values = torch.arange(4.0)[:, None, None, None].expand(4, 2, 3, 3)
    moment = Moment(7.0, values + 1, values + 2)
    deviations = values.expand(members, -1, -1, -1, -1)
    full = Uncertainty(values, values + 3, LatentGrid(8), "deviations", 3, {"a": "b"}, 2.0, deviations, (moment,))
    chosen = full.select(torch.tensor([3, 1]))
    assert chosen.variance[:, 0, 0, 0].tolist() == [3.0, 1.0] and chosen.latent[:, 0, 0, 0].tolist() == [6.0, 4.0]
    assert chosen.deviations.shape == (members, 2, 2, 3, 3) and (chosen.deviations[:, 0] == 3).all()
    assert chosen.trajectory[0].variance[:, 0, 0, 0].tolist() == [5.0, 3.0] and chosen.trajectory[0].sigma == 7.0
    assert chosen.scores().tolist() == full.scores()[[3, 1]].tolist() and chosen.head == {"a": "b"}


@pytest.mark.parametrize(("count", "height", "width"), [(1, 64, 64), (5, 32, 96), (9, 300, 100)])
def test_contact_sheet_shows_every_image_whole_and_its_label(count, height, width):
    images = torch.linspace(0.2, 0.9, count)[:, None, None, None].expand(count, height, width, 4)
    sheet = contact_sheet(images, [f"{i}  ·  0.123" for i in range(count)], [i % 2 == 0 for i in range(count)])
    assert sheet.shape[0] == 1 and sheet.shape[-1] == 3 and 0 <= sheet.min() and sheet.max() <= 1
    side = 256
    size = round(height * side / max(height, width)) * round(width * side / max(height, width))
    for value in images[:, 0, 0, 0]:
        assert ((sheet[0] - value).abs().amax(-1) < 0.005).sum() >= size
    text = (sheet[0, ..., 0] - sheet[0, ..., 1]).abs() > 0.2  # coloured
    assert text.sum() > 50 * count

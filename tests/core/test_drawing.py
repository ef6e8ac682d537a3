import math

import pytest
import torch

from bayesdiff_core.drawing.pillow import nice_ticks
from bayesdiff_core.drawing.plots import plot_over_sigma, plot_scores
from bayesdiff_core.drawing.sheets import sheet, with_colour_bars
from bayesdiff_core.reading.maps import colour_map


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [(0, 1, [0, 0.2, 0.4, 0.6, 0.8, 1.0]), (0, 1e-5, [0, 2e-6, 4e-6, 6e-6, 8e-6, 1e-5]), (3, 47, [10, 20, 30, 40]),
     (2, 2, [2]), (-1, 1, [-1, -0.5, 0, 0.5, 1])],
)  # fmt: skip
def test_ticks_are_round_and_inside(low, high, expected):
    assert nice_ticks(low, high, 6) == pytest.approx(expected)


def is_close(pixel, colour) -> bool:
    return bool((pixel - torch.tensor(colour)).abs().max() < 0.03)


@pytest.mark.parametrize("side", [64, 128, 1024])
def test_a_colour_bar_beside_each_map_leaves_the_map_as_it_was(side):
    values = torch.rand(2, side, side, generator=torch.Generator().manual_seed(0))
    heat_maps = colour_map(values, "viridis")
    found = with_colour_bars(heat_maps, torch.tensor([0.3, 0.0]), "viridis")
    assert found.shape[:2] == (2, side) and found.shape[2] > side
    assert torch.equal(found[:, :, :side], heat_maps)
    margin = found[0, :, side:]
    assert is_close(margin[0, 0], [1.0, 1.0, 1.0])
    bar = margin[:, max(11, side // 36)]
    assert any(is_close(pixel, [0.993, 0.906, 0.144]) for pixel in bar[: side // 2]), "bright above"
    assert any(is_close(pixel, [0.267, 0.005, 0.329]) for pixel in bar[side // 2 :]), "dark below"


def test_a_sheet_has_a_row_per_image_and_what_was_given_in_it():
    red, green = torch.zeros(3, 32, 48, 3), torch.zeros(3, 32, 20, 3)
    red[..., 0] = torch.tensor([0.2, 0.6, 1.0])[:, None, None]
    green[..., 1] = 1
    found = sheet([red, green], ["1", "2", "3"])
    assert found.shape[0] == 1 and found.shape[2] == 48 + 20 + 3 * 4 and found.shape[1] % 3 == 1
    height = found.shape[1] // 3
    for row, shade in enumerate([0.2, 0.6, 1.0]):
        middle = found[0, row * height + height // 2]
        assert is_close(middle[20], [shade, 0, 0]) and is_close(middle[60], [0, 1, 0])
        above = found[0, row * height : row * height + 15]
        assert above.min() < 0.5 and above.mean() > 0.9, "the caption"


def ink(image, colour=(0.192, 0.408, 0.557)) -> torch.Tensor:
    return (image[0] - torch.tensor(colour)).abs().amax(-1) < 0.02


@pytest.mark.parametrize("scores", [[0.2], [0.3, 0.3, 0.3], [0.0], [1e-8, 2e-8], [float(i) for i in range(64)]])
def test_a_histogram_of_any_batch(scores):
    image = plot_scores(scores, "median", 400, 256)
    assert image.shape == (1, 256, 400, 3) and ink(image).any()


def test_bars_are_as_high_as_their_counts():
    image = plot_scores([0.0] * 6 + [1.0] * 3, "median", 800, 600)
    columns = ink(image).sum(0)
    tall, short = columns[:400].max(), columns[400:].max()
    assert tall == pytest.approx(2 * float(short), rel=0.02)
    assert not columns[380:420].any(), "nothing lies between the two"


def test_the_curve_over_sigma_rises_where_the_uncertainty_does():
    sigmas = [10.0, 1.0, 0.1]
    for stds, up in ((torch.tensor([[0.1], [0.2], [0.4]]), True), (torch.tensor([[0.4], [0.2], [0.1]]), False)):
        drawn = ink(plot_over_sigma(sigmas, stds, 600, 400))
        rows = torch.arange(400.0)
        columns = drawn.any(0).nonzero().flatten()
        left, right = (float(rows[drawn[:, x]].mean()) for x in (columns[3], columns[-4]))
        assert (right < left) is up and math.isfinite(left)
    assert plot_over_sigma([2.0], torch.zeros(1, 3), 300, 200).shape == (1, 200, 300, 3), (
        "one moment, of no uncertainty"
    )

import pytest
import torch
from bayesdiff.bayesdiff_core import masks
from bayesdiff.bayesdiff_core.maps import colour_map, normalise_map, overlay_map, resize_map
from bayesdiff.bayesdiff_core.uncertainty import Uncertainty


def uncertainty(variance):
    nominal = torch.zeros_like(variance)
    return Uncertainty(variance, nominal, 8, "ensemble", 8, {}, 9.0, nominal[None])


def test_map_and_score_of_known_variances():
    variance = torch.zeros(2, 4, 2, 2)
    variance[1, :, 0, 0] = torch.tensor([1.0, 4.0, 9.0, 16.0])
    result = uncertainty(variance)
    assert result.std_map()[1, 0, 0] == pytest.approx(7.5**0.5)
    assert result.std_map().sum() == pytest.approx(7.5**0.5)
    assert result.scores().tolist() == [0.0, pytest.approx((1 + 2 + 3 + 4) / 16)]


def test_video_latents_are_refused_with_a_sentence():
    with pytest.raises(ValueError, match=r"Expected the uncertainty of image latents .* got shape \(1, 16, 3, 4, 4\)"):
        uncertainty(torch.ones(1, 16, 3, 4, 4)).std_map()


def test_normalising_each_image_or_the_batch():
    values = torch.stack([torch.full((10, 10), 1.0), torch.full((10, 10), 4.0)])
    assert torch.equal(normalise_map(values, per_image=True), torch.ones(2, 10, 10))
    assert torch.equal(normalise_map(values, per_image=False)[:, 0, 0], torch.tensor([0.25, 1.0]))
    assert torch.equal(normalise_map(torch.zeros(1, 3, 3), per_image=True), torch.zeros(1, 3, 3))


def test_one_hot_cell_does_not_dim_the_rest():
    values = torch.ones(1, 50, 50)
    values[0, 0, 0] = 1000
    assert normalise_map(values, per_image=True)[0, 1, 1] == 1


def test_colours_rise_in_lightness_and_stay_in_range():
    colours = colour_map(torch.linspace(0, 1, 101)[None, None])[0, 0]
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

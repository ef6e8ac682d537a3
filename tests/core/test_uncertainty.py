"""UNCERTAINTY: what can be read off it, and some of its images apart from the others."""

import dataclasses
import math

import pytest
import torch

from bayesdiff_core.reading.grid import LatentGrid
from bayesdiff_core.reading.maps import resize_map
from bayesdiff_core.reading.uncertainty import Moment, Uncertainty, require_finite, std_of


@pytest.fixture
def batch() -> Uncertainty:
    """Three images of 4 channels and 3 by 5 cells, with two members and two points of the trajectory."""
    generator = torch.Generator().manual_seed(0)
    variance, latent = torch.rand(2, 3, 4, 3, 5, generator=generator)
    deviations = torch.randn(2, 3, 4, 3, 5, generator=generator)
    points = tuple(Moment(sigma, latent + sigma, sigma * variance) for sigma in (7.0, 2.0))
    return Uncertainty(variance, latent, LatentGrid(16, 4), "deviations", 2, {"a": "b"}, 3.0, deviations, points)


def same(first: Uncertainty, second: Uncertainty) -> bool:
    """To the bit, in everything."""
    pairs = [(getattr(first, name), getattr(second, name)) for name in ("variance", "latent", "deviations")]
    for one, other in zip(first.trajectory, second.trajectory, strict=True):
        pairs += [(one.latent, other.latent), (one.variance, other.variance)]
    rest = [dataclasses.replace(found, variance=0, latent=0, deviations=0, trajectory=()) for found in (first, second)]
    sigmas = [[moment.sigma for moment in found.trajectory] for found in (first, second)]
    return all(torch.equal(*pair) for pair in pairs) and rest[0] == rest[1] and sigmas[0] == sigmas[1]


def with_variance(batch: Uncertainty, variance: torch.Tensor) -> Uncertainty:
    return dataclasses.replace(batch, variance=variance)


def test_selected_images_joined_again_are_the_batch(batch):
    first, others = batch.select(torch.tensor([0])), batch.select(torch.tensor([1, 2]))
    assert (len(batch), len(first), len(others)) == (3, 1, 2)
    assert same(Uncertainty.join([first, others]), batch)
    turned = Uncertainty.join([others, first])
    assert not same(turned, batch) and same(turned, batch.select(torch.tensor([1, 2, 0])))
    assert same(Uncertainty.join([batch]), batch)


def test_selecting_leaves_the_batch_as_it_was(batch):
    before, chosen = dataclasses.replace(batch, variance=batch.variance.clone()), batch.select(torch.tensor([2, 2]))
    chosen.variance.zero_()
    assert len(chosen) == 2 and same(batch, before)


def test_joining_what_keeps_no_trajectory_and_no_members(batch):
    bare = dataclasses.replace(batch, trajectory=(), deviations=batch.deviations[:0])
    joined = Uncertainty.join([bare, bare])
    assert joined.trajectory == () and joined.deviations.shape == (0, 6, 4, 3, 5) and len(joined) == 6


def test_images_and_single_frames_have_maps(batch):
    frame = with_variance(batch, batch.variance[:, :, None])
    for found in (batch, frame):
        assert found.require_images() is None and found.image_size() == (48, 80)
        assert torch.equal(found.std_map(), std_of(batch.variance))
        assert torch.equal(found.maps(), resize_map(batch.std_map(), 48, 80))
        assert found.maps((7, 9)).shape == (3, 7, 9)


def test_what_is_neither_image_nor_clip_has_no_maps(batch):
    other = with_variance(batch, torch.ones(2, 64, 100))
    for read in (other.require_images, other.std_map, other.maps):
        with pytest.raises(ValueError, match=r"or of clips \(.*\), got shape \(2, 64, 100\); connect the uncertainty"):
            read()


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_variances_that_are_no_numbers_are_named_by_image(batch, value):
    variance = batch.variance.clone()
    variance[1, 2, 0, 0] = variance[2, 0, 1, 1] = value
    other = with_variance(batch, variance)
    sentence = r"NaN or infinity in 2 of 3 images \(the first is number 1, numbered from 0\)"
    for read in (other.require_images, other.std_map, other.maps, lambda: require_finite(variance)):
        with pytest.raises(ValueError, match=sentence):
            read()
    other.select(torch.tensor([0])).require_images()


def test_the_reason_says_which_images_are_unknown(batch):
    first, second, third = (batch.select(torch.tensor([number])) for number in range(3))
    assert first.why_unknown == ""
    second = dataclasses.replace(second, variance=torch.full_like(second.variance, math.nan), unknown="It ran away.")
    assert second.why_unknown == "It ran away."
    joined = Uncertainty.join([first, second, third])
    assert joined.why_unknown == "It ran away. This holds for 1 of 3 images: 1 (counted from 0)."
    assert joined.select(torch.tensor([2, 0])).why_unknown == ""
    third = dataclasses.replace(third, variance=torch.full_like(third.variance, math.nan), unknown="It is blank.")
    other = Uncertainty.join([first, second, third, second])
    assert other.why_unknown == "It ran away. It is blank. This holds for 3 of 4 images: 1, 2, 3 (counted from 0)."
    with pytest.raises(ValueError, match="3 of 4 images"):
        other.require_images()

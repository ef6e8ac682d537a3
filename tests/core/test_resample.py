"""Draws of the noisy latent: their mean and variance are those asked for."""

from __future__ import annotations

import pytest
import torch

from bayesdiff_core.estimators.trajectory import nearest_sigma
from bayesdiff_core.reading.grid import LatentGrid
from bayesdiff_core.reading.uncertainty import Moment, Uncertainty
from bayesdiff_core.resampling import draw_latent, nearest_moment


def moment(sigma: float = 2.0) -> Moment:
    generator = torch.Generator().manual_seed(0)
    latent = torch.randn(2, 4, 6, 6, generator=generator)
    return Moment(sigma, latent, torch.rand(2, 4, 6, 6, generator=generator))


def uncertainty(*moments: Moment) -> Uncertainty:
    nothing = torch.zeros(2, 4, 6, 6)
    return Uncertainty(nothing, nothing, LatentGrid(8), "deviations", 1, {}, 1.0, nothing[None], moments)


@pytest.mark.parametrize("strength", [0.5, 1.0, 3.0])
def test_draws_have_the_mean_and_the_variance_asked_for(strength):
    point, generator, count = moment(), torch.Generator().manual_seed(1), 4000
    draws = torch.stack([draw_latent(point, strength, generator) for _ in range(count)])
    std = strength * point.variance.sqrt()
    standard = (draws.mean(0) - point.latent) / (std / count**0.5)
    assert standard.abs().max() < 5 and abs(float(standard.std()) - 1) < 0.1
    ratio = draws.var(0) / std.square()
    assert (ratio - 1).abs().max() < 5 * (2 / count) ** 0.5
    # Cell by cell on its own: neighbours do not go together.
    first, second = ((draws[:, 0, 0, 0, i] - point.latent[0, 0, 0, i]) for i in (0, 1))
    assert abs(float((first * second).mean() / (first.std() * second.std()))) < 5 / count**0.5


def test_no_strength_a_mask_and_a_negative_variance_leave_the_latent_as_it_is():
    point, generator = moment(), torch.Generator().manual_seed(1)
    assert torch.equal(draw_latent(point, 0.0, generator), point.latent)
    mask = torch.zeros(1, 1, 6, 6)
    mask[..., :3] = 1
    changed = draw_latent(point, 1.0, generator, mask) != point.latent
    assert changed[..., :3].all() and not changed[..., 3:].any()
    negative = Moment(2.0, point.latent, -point.variance)
    assert torch.equal(draw_latent(negative, 1.0, generator), point.latent)


def test_a_seed_gives_the_same_draws_and_leaves_the_global_generator_alone():
    point, state = moment(), torch.get_rng_state()
    first, second = (draw_latent(point, 1.0, torch.Generator().manual_seed(3)) for _ in range(2))
    assert torch.equal(first, second) and torch.equal(torch.get_rng_state(), state)


def test_the_nearest_point_is_found_by_the_logarithm_of_sigma():
    found = uncertainty(*(moment(sigma) for sigma in (10.0, 1.0, 0.1)))
    assert [nearest_moment(found, sigma).sigma for sigma in (50.0, 4.0, 3.0, 0.3, 0.0)] == [10.0, 10.0, 1.0, 0.1, 0.1]
    with pytest.raises(ValueError, match="Expected an uncertainty that keeps its trajectory.*with a Laplace head"):
        nearest_moment(uncertainty(), 1.0)


def test_of_several_at_the_nearest_level_the_last_is_meant():
    assert nearest_sigma([10.0, 1.0, 1.0, 0.0], 1.2) == 2
    assert nearest_sigma([10.0, 1.0, 0.0], 0.0) == 2

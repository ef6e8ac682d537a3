"""Moderated variances against variances that are known because they were drawn."""

import pytest
import torch
from measure import spearman

from bayesdiff_core.estimators.degrees import effective_channels, log_noise, mean_root
from bayesdiff_core.estimators.moderation import moderate

SHAPE, CHANNELS = (3, 40, 40), 4


def drawn(members: int, spread: float):
    """True variances around a trend in two covariates, mean squares of ``members`` normal draws, the covariates."""
    generator = torch.Generator().manual_seed(0)
    trend_of = torch.randn(2, *SHAPE, generator=generator)
    rest = spread * torch.randn(SHAPE, generator=generator)
    level = torch.tensor([-2.0, 0.0, 1.0]).reshape(3, 1, 1)
    truth = (level + trend_of[0] - 0.5 * trend_of[1] + rest).exp()
    draws = torch.randn(members, 3, CHANNELS, 40, 40, generator=generator) * truth[:, None].sqrt()
    return truth, draws.square().mean(0), trend_of


def error(found: torch.Tensor, truth: torch.Tensor) -> float:
    return float((found.mean(1).log() - truth.log()).square().mean())


@pytest.mark.parametrize("members", [1, 4, 16])
@pytest.mark.parametrize("spread", [0.05, 0.5, 2.0])
def test_moderated_variances_are_nearer_to_the_truth(members, spread):
    truth, squares, trend_of = drawn(members, spread)
    found = moderate(squares, members * CHANNELS, trend_of)
    assert found.shape == squares.shape and (found > 0).all()
    raw, moderated = error(squares, truth), error(found, truth)
    # What is left of the noise n of a logarithm beside a spread s is n s / (n + s), the least that can be.
    noise, wide = log_noise(members * CHANNELS), spread**2
    assert moderated < raw and moderated == pytest.approx(noise * wide / (noise + wide), rel=0.4, abs=0.01)
    assert spearman(found.mean(1), truth) > spearman(squares.mean(1), truth)
    # How uncertain an image is as a whole, the trend does not touch.
    ratio = found.mean(1).sqrt().mean((1, 2)) / truth.sqrt().mean((1, 2))
    assert ratio.tolist() == pytest.approx([1, 1, 1], rel=0.05)


def test_covariates_that_tell_nothing_do_no_harm():
    truth, squares, _ = drawn(4, 2.0)
    useless = torch.randn(6, *SHAPE, generator=torch.Generator().manual_seed(5))
    assert error(moderate(squares, 4 * CHANNELS, useless), truth) < 1.05 * error(squares, truth)


def test_doubling_is_doubling_and_nothing_is_nothing():
    _, squares, trend_of = drawn(2, 0.5)
    once, twice = moderate(squares, 8, trend_of), moderate(2 * squares, 8, trend_of)
    assert torch.allclose(twice, 2 * once, rtol=1e-4)
    assert not moderate(torch.zeros_like(squares), 8, trend_of).any()
    assert torch.equal(moderate(squares, 8, trend_of[:0]), squares)


def test_cells_that_no_member_touched_stay_zero_and_bend_nothing():
    _, squares, trend_of = drawn(2, 0.5)
    outside = torch.zeros(SHAPE, dtype=torch.bool)
    outside[:, :, 25:], outside[2] = True, True
    masked = squares.masked_fill(outside[:, None], 0.0)
    found = moderate(masked, 8, trend_of)
    assert not found[outside[:, None].expand_as(found)].any() and torch.isfinite(found).all()
    elsewhere = trend_of.masked_fill(outside, 1e6)
    assert torch.allclose(moderate(masked, 8, elsewhere), found, rtol=1e-4)


def test_channels_share_as_the_members_say():
    _, squares, trend_of = drawn(4, 0.5)
    weights = torch.tensor([1.0, 2.0, 3.0, 4.0]).reshape(1, 4, 1, 1)
    found = moderate(squares * weights, 16, trend_of).mean((0, 2, 3))
    assert (found / found[0]).tolist() == pytest.approx([1, 2, 3, 4], rel=0.1)


def test_channels_that_move_together_count_once():
    generator = torch.Generator().manual_seed(0)
    apart = torch.randn(2, 3, 4, 20, 20, generator=generator) * torch.tensor([1.0, 5.0, 0.1, 2.0]).reshape(4, 1, 1)
    assert effective_channels(apart) == pytest.approx(4, rel=0.02)
    grey = apart[:, :, :1].expand(-1, -1, 3, -1, -1) * torch.tensor([1.0, -2.0, 3.0]).reshape(3, 1, 1)
    assert effective_channels(grey) == pytest.approx(1)
    assert effective_channels(torch.cat([apart[:, :, :1], apart[:, :, :2]], 2)) == pytest.approx(9 / 5, rel=0.02)
    assert effective_channels(torch.zeros(1, 1, 4, 8, 8)) == 4


def test_a_mean_of_standard_deviations_falls_short_of_the_root():
    draws = torch.randn(200_000, 3, generator=torch.Generator().manual_seed(0)).square().mean(1).sqrt()
    assert mean_root(3) == pytest.approx(float(draws.mean()), rel=0.005)
    assert mean_root(100_000) == pytest.approx(1, rel=1e-4)

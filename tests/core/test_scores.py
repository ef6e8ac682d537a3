import dataclasses

import pytest
import torch

from bayesdiff_core.reading.grid import LatentGrid
from bayesdiff_core.reading.scores import (
    DEFAULT,
    SCORES,
    SEMANTIC_SCORES,
    feature_disagreement,
    feature_entropy,
    score_table,
)
from bayesdiff_core.reading.uncertainty import Uncertainty


def uncertainty(variance, latent=None):
    latent = torch.zeros_like(variance) if latent is None else latent
    return Uncertainty(variance, latent, LatentGrid(8), "ensemble", 8, {}, 9.0, torch.empty(0, *variance.shape))


@pytest.fixture
def batch():
    """Three images of 16 by 16 cells: noise of one size, of twice that size, and the first with a hot corner."""
    generator = torch.Generator().manual_seed(0)
    variance = torch.rand(1, 4, 16, 16, generator=generator).repeat(3, 1, 1, 1)
    variance[1] *= 4
    variance[2, :, :3, :3] *= 100
    return uncertainty(variance, torch.randn(1, 4, 16, 16, generator=generator).repeat(3, 1, 1, 1))


def test_known_values(batch):
    std, variance = batch.std_map().flatten(1), batch.variance
    assert torch.allclose(batch.scores("sum"), variance.sum((1, 2, 3)))
    assert torch.allclose(batch.scores("mean std"), variance.sqrt().mean((1, 2, 3)))
    assert torch.allclose(batch.scores("median"), std.quantile(0.5, dim=1))
    assert torch.allclose(batch.scores("upper quantile"), std.quantile(0.95, dim=1))
    squares = batch.std_map().unfold(1, 2, 1).unfold(2, 2, 1).mean((-1, -2))
    assert torch.allclose(batch.scores("patch maximum"), squares.amax((1, 2)))
    assert torch.equal(batch.scores(), SCORES[DEFAULT](variance, batch.latent))
    assert torch.equal(batch.scores("median"), SCORES["median"](variance, batch.latent, None))


@pytest.mark.parametrize("name", SCORES)
def test_every_score_rises_with_the_uncertainty(batch, name):
    first, second, _ = batch.scores(name).tolist()
    assert second > first > 0


def test_robust_scores_overlook_a_hot_corner_and_the_patch_maximum_does_not(batch):
    for name in ("median", "content-normalised"):
        first, _, third = batch.scores(name).tolist()
        assert third == pytest.approx(first, rel=0.15)
    first, second, third = batch.scores("patch maximum").tolist()
    assert third > second > first


def test_content_normalised_forgives_texture():
    variance = torch.ones(2, 4, 16, 16)
    latent = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(0)).repeat(2, 1, 1, 1)
    latent[1] *= 10
    rough_and_rougher = uncertainty(variance, latent).scores("content-normalised")
    assert rough_and_rougher[1] < 0.3 * rough_and_rougher[0]
    assert uncertainty(variance).scores("content-normalised").tolist() == [1.0, 1.0], "a flat image explains nothing"
    assert uncertainty(0 * variance).scores("content-normalised").tolist() == [0.0, 0.0]


@pytest.mark.parametrize("name", SCORES)
def test_a_mask_restricts_a_score_to_its_inside(batch, name):
    """The hot corner is all or nothing of it; a mask in pixels, one for all or one each."""
    corner = torch.zeros(1, 128, 128)
    corner[:, :24, :24] = 1
    first, _, third = batch.scores(name, 1 - corner).tolist()
    assert third == pytest.approx(first, rel=1e-4)
    first, _, third = batch.scores(name, corner).tolist()
    assert third > 2 * first or name == "content-normalised" and third > 1.2 * first
    assert torch.equal(batch.scores(name, corner.expand(3, -1, -1)), batch.scores(name, corner))
    assert torch.equal(batch.scores(name, torch.ones(1, 50, 70)), batch.scores(name))


@pytest.mark.parametrize("name", SCORES)
def test_a_mask_finer_than_a_cell_has_an_inside(batch, name):
    mask = torch.zeros(1, 128, 128)
    mask[0, 4, 4] = 1
    assert torch.isfinite(batch.scores(name, mask)).all()


def test_empty_and_unmatched_masks_are_one_sentence(batch):
    masks = torch.ones(3, 64, 64)
    masks[1] = 0
    with pytest.raises(ValueError, match=r"got an empty one \(number 1, numbered from 0\); mark a part"):
        batch.scores(mask=masks)
    with pytest.raises(ValueError, match="one for each of the 3 images, got 2"):
        batch.scores(mask=masks[:2])


@pytest.mark.parametrize("name", SCORES)
@pytest.mark.parametrize("shape", [(2, 16, 1, 8, 6), (2, 16, 3, 8, 6), (1, 4, 1, 1), (1, 4, 3, 90)])
def test_any_layout_has_a_score(name, shape):
    """A sampler returns scores with its latent: they must not fail where a map would."""
    variance = torch.rand(shape, generator=torch.Generator().manual_seed(0))
    assert uncertainty(variance).scores(name).shape == shape[:1]
    assert uncertainty(variance.new_full(shape, torch.nan)).scores(name).isnan().all()


def test_maps_of_no_numbers_are_one_sentence(batch):
    for bad in (torch.nan, torch.inf):
        variance = batch.variance.clone()
        variance[1, 0, 2, 3] = bad
        with pytest.raises(ValueError, match=r"got NaN or infinity in 1 of 3 images \(the first is number 1, numbered"):
            dataclasses.replace(batch, variance=variance).std_map()


def test_negative_variances_count_as_none_but_in_the_papers_sum(batch):
    negative = dataclasses.replace(batch, variance=-batch.variance)
    assert negative.scores("sum").tolist() == (-batch.scores("sum")).tolist()
    assert not negative.std_map().any()
    for name in SCORES.keys() - {"sum"}:
        assert negative.scores(name).tolist() == [0.0] * 3


def test_features_that_agree_and_that_do_not():
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(1, 3, 32, generator=generator).repeat(5, 1, 1)
    features[:, 1] += 0.1 * torch.randn(5, 32, generator=generator)
    features[:, 2] += torch.randn(5, 32, generator=generator)
    for score in SEMANTIC_SCORES.values():
        same, near, far = score(features).tolist()
        assert same < near < far
    assert feature_disagreement(features)[0] == pytest.approx(0, abs=1e-12)
    assert torch.allclose(feature_disagreement(7 * features), feature_disagreement(features)), "lengths do not count"
    opposite = torch.tensor([[[1.0, 0.0]], [[-1.0, 0.0]]])
    assert feature_disagreement(opposite).item() == pytest.approx(1.0)


def test_entropy_is_that_of_the_gaussian():
    features = torch.randn(6, 2, 5, generator=torch.Generator().manual_seed(0))
    spread = features.var(0, correction=0) + 1e-3
    expected = torch.distributions.MultivariateNormal(torch.zeros(2, 5), spread.diag_embed()).entropy()
    assert torch.allclose(feature_entropy(features), expected, rtol=1e-5)


def test_table_ranks_the_most_certain_first():
    lines = score_table([0.3, 0.1, 0.2], "median").splitlines()
    assert lines[:2] == ["| batch index | median | rank |", "|---|---|---|"]
    assert lines[2:] == ["| 0 | 0.3 | 3 |", "| 1 | 0.1 | 1 |", "| 2 | 0.2 | 2 |"]


def test_table_ranks_what_is_no_number_last():
    lines = score_table([0.3, float("nan"), 0.1, 0.3], "median").splitlines()
    assert lines[2:] == ["| 0 | 0.3 | 2 |", "| 1 | nan | 4 |", "| 2 | 0.1 | 1 |", "| 3 | 0.3 | 3 |"]

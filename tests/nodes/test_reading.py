"""Reading an uncertainty with the demo model's VAE and the host's own CLIP vision class, in this process."""

from __future__ import annotations

import dataclasses
import math

import comfy.utils
import pytest
import torch
from bayesdiff.bayesdiff_core.reading.grid import LatentGrid
from bayesdiff.bayesdiff_core.reading.maps import colour_map, normalise_map, overlay_map, resize_map
from bayesdiff.bayesdiff_core.reading.scores import SCORES, SEMANTIC_SCORES
from bayesdiff.bayesdiff_core.reading.uncertainty import Moment, Uncertainty
from bayesdiff.host.decode import decode, decoded_std
from bayesdiff.nodes.map import UncertaintyMap
from bayesdiff.nodes.mask import AREA, BATCH, OTSU, VALUE, UncertaintyToMask
from bayesdiff.nodes.plot import HISTOGRAM, OVER_SIGMA, UncertaintyPlot
from bayesdiff.nodes.score import UncertaintyScore
from small_models import small_clip_vision

SIDE = 64  # pixels


@pytest.fixture(autouse=True)
def inference():
    with torch.inference_mode():
        yield


@pytest.fixture
def clip_vision(tmp_path):
    return small_clip_vision(tmp_path / "clip_vision.json")


@pytest.fixture
def found(demo):
    """Three encoded images, unsure of their upper left quarter and the more so the later; three members."""
    vae, generator = demo[3], torch.Generator().manual_seed(0)
    image = resize_map(torch.rand(9, 4, 4, generator=generator), SIDE, SIDE).reshape(3, 3, SIDE, SIDE).movedim(1, -1)
    latent = vae.encode(image)
    deviations = 0.02 * torch.randn(3, *latent.shape, generator=generator)
    deviations[..., :4, :4] *= 20
    deviations *= torch.tensor([0.5, 1.0, 2.0]).view(3, 1, 1, 1)
    moments = (Moment(10.0, latent, torch.ones_like(latent)), Moment(1.0, latent, 4 * torch.ones_like(latent)))
    return Uncertainty(
        deviations.square().mean(0), latent, LatentGrid(8), "deviations", 3, {}, 2.0, deviations, moments
    )


def of_one(found: Uncertainty) -> Uncertainty:
    return dataclasses.replace(
        found, variance=found.variance[:1], latent=found.latent[:1], deviations=found.deviations[:, :1]
    )


def without_members(found: Uncertainty) -> Uncertainty:
    return dataclasses.replace(found, deviations=found.deviations[:0])


# ---------------------------------------------------------------- maps


def test_the_map_is_what_it_was_where_nothing_else_is_asked(demo, found):
    heat_map, overlay, values, std, std_image, sheet = UncertaintyMap.execute(found, demo[3], "each image", 0.85).args
    expected = resize_map(found.std_map(), SIDE, SIDE)
    image = demo[3].decode(found.latent)
    assert torch.equal(values, normalise_map(expected, per_image=True))
    assert torch.equal(heat_map, colour_map(values)) and torch.equal(overlay, overlay_map(image, values, 0.85))
    assert torch.equal(std, expected) and torch.equal(std_image[..., 2], expected)
    assert sheet.shape[0] == 1 and sheet.shape[1] > 3 * SIDE and sheet.shape[2] > 3 * SIDE


def test_pixels_are_the_spread_of_decoded_members(demo, found):
    std = UncertaintyMap.execute(found, demo[3], "each image", 0.85, resolution="pixels").args[3]
    decoded = torch.stack([demo[3].decode(found.latent + change) for change in found.deviations])
    expected = (decoded - demo[3].decode(found.latent)).square().mean((0, -1)).sqrt()
    assert torch.allclose(std, expected, atol=1e-6)
    inside, outside = std[:, :28, :28].mean((1, 2)), std[:, 36:, 36:].mean((1, 2))
    assert (inside > 3 * outside).all() and (inside.diff() > 0).all()


def test_pixels_without_enough_members_come_from_draws_of_our_own(demo, found):
    alone, image = without_members(found), demo[3].decode(found.latent)
    state = torch.get_rng_state()
    std = decoded_std(demo[3], dataclasses.replace(found, deviations=found.deviations[:2]), image)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(std, decoded_std(demo[3], alone, image)), "the same map each time"
    assert (std[:, :28, :28].mean((1, 2)) > 3 * std[:, 36:, 36:].mean((1, 2))).all()
    assert decoded_std(demo[3], dataclasses.replace(alone, variance=0 * alone.variance), image).max() == 0


def test_tiles_hardly_change_the_map(demo, found):
    whole, tiled = (
        UncertaintyMap.execute(found, demo[3], "each image", 0.85, resolution=name, tile_size=32).args
        for name in ("pixels", "pixels, tiled")
    )
    assert not torch.equal(tiled[3], whole[3])
    assert torch.corrcoef(torch.stack([tiled[3].flatten(), whole[3].flatten()]))[0, 1] > 0.9


def test_one_image_is_as_in_its_batch(demo, found):
    alone = UncertaintyMap.execute(of_one(found), demo[3], "each image", 0.85, "pixels").args
    together = UncertaintyMap.execute(found, demo[3], "each image", 0.85, "pixels").args
    for one, many in list(zip(alone, together))[:5]:
        assert torch.allclose(one[0], many[0], atol=1e-3)


def test_decoding_members_shows_progress(demo, found, monkeypatch):
    seen = []
    monkeypatch.setattr(comfy.utils, "PROGRESS_BAR_HOOK", lambda value, total, *_, **__: seen.append((value, total)))
    UncertaintyMap.execute(found, demo[3], "each image", 0.85, resolution="pixels")
    assert seen == [(1, 3), (2, 3), (3, 3)]


def test_a_colour_bar_widens_the_heat_map_alone(demo, found):
    plain = UncertaintyMap.execute(found, demo[3], "whole batch", 0.85, colours="viridis").args
    barred = UncertaintyMap.execute(found, demo[3], "whole batch", 0.85, colours="viridis", colour_bar=True).args
    assert torch.equal(barred[0][:, :, :SIDE], plain[0]) and barred[0].shape[2] > SIDE
    for before, after in zip(plain[1:5], barred[1:5]):
        assert torch.equal(before, after)


@pytest.mark.parametrize("name", ["map", "mask", "score", "plot"])
def test_no_numbers_are_one_sentence_in_every_node(demo, found, name):
    bad = dataclasses.replace(found, variance=found.variance * math.nan)
    frames = dataclasses.replace(bad, variance=bad.variance[:, :, None].expand(-1, -1, 3, -1, -1))
    for wrong, sentence in ((bad, "infinity in 3 of 3 images"), (frames, "infinity in 3 of 3 clips")):
        with pytest.raises(ValueError, match=sentence):
            if name == "map":
                UncertaintyMap.execute(wrong, demo[3], "each image", 0.85)
            elif name == "mask":
                UncertaintyToMask.execute(wrong, 0.2, 0, 0.0)
            elif name == "score":
                UncertaintyScore.execute(wrong, "median")
            else:
                UncertaintyPlot.execute(wrong, HISTOGRAM, "median", 256, 192)


# ---------------------------------------------------------------- masks


def test_the_mask_is_what_it_was_where_nothing_else_is_asked(found):
    mask = UncertaintyToMask.execute(found, 0.2, 0, 0.0).args[0]
    std = resize_map(found.std_map(), SIDE, SIDE)
    assert mask.mean((1, 2)).tolist() == [pytest.approx(0.2, abs=1e-3)] * 3
    for image, marked in zip(std, mask.bool()):
        assert image[marked].min() >= image[~marked].max()


@pytest.mark.parametrize("threshold", [AREA, BATCH, VALUE, OTSU])
@pytest.mark.parametrize("images", [1, 3])
def test_every_threshold_finds_the_uncertain_quarter(found, threshold, images):
    given = found if images == 3 else of_one(found)
    mask = UncertaintyToMask.execute(given, 0.2, 0, 0.0, threshold=threshold, value=0.15, fill_holes=True).args[0]
    assert mask.shape == (images, SIDE, SIDE) and set(mask.unique().tolist()) <= {0.0, 1.0}
    assert mask[-1, :36, :36].sum() > 0.95 * mask[-1].sum() > 0
    if images == 3 and threshold in (BATCH, VALUE):
        assert (mask.mean((1, 2)).diff() > 0).all(), "the less certain, the larger"


@pytest.mark.parametrize("threshold", [AREA, BATCH, VALUE, OTSU])
def test_no_uncertainty_is_no_mask_and_inverted_all(found, threshold):
    none = dataclasses.replace(found, variance=0 * found.variance)
    options = dict(fill_holes=True, smallest_island=9, bounding_box=True, soft=True)
    assert not UncertaintyToMask.execute(none, 0.2, 4, 2.0, threshold, **options).args[0].any()
    assert UncertaintyToMask.execute(none, 0.2, 4, 2.0, threshold, **options, invert=True).args[0].all()


def test_soft_masks_follow_the_map_inside_and_boxes_hold_it(found):
    hard, soft, box, inverted = (
        UncertaintyToMask.execute(found, 0.2, 3, 0.0, **{name: True} if name else {}).args[0]
        for name in ("", "soft", "bounding_box", "invert")
    )
    values = normalise_map(resize_map(found.std_map(), SIDE, SIDE), per_image=True)
    assert torch.equal(soft, hard * values) and (soft.amax((1, 2)) == 1).all()
    assert (box >= hard).all() and torch.equal(inverted, 1 - hard)


# ---------------------------------------------------------------- scores and plots


@pytest.mark.parametrize("score", SCORES)
def test_the_score_node_gives_the_score_and_a_table(found, score):
    mask = torch.zeros(1, SIDE, SIDE)
    mask[:, 40:, 40:] = 1
    whole, table, frames = UncertaintyScore.execute(found, score).args
    assert whole == frames == found.scores(score).tolist() and len(table.splitlines()) == 2 + len(whole)
    assert (
        UncertaintyScore.execute(found, score, mask).args[0]
        == SCORES[score](found.variance, found.latent, mask).tolist()
    )
    assert max(UncertaintyScore.execute(found, score, mask).args[0]) < max(whole)


@pytest.mark.parametrize("score", SEMANTIC_SCORES)
def test_semantic_scores_see_the_decoded_members(demo, found, clip_vision, score):
    vae = demo[3]
    scores = UncertaintyScore.execute(found, score, vae=vae, clip_vision=clip_vision).args[0]
    agreeing = dataclasses.replace(found, deviations=0 * found.deviations)
    least = UncertaintyScore.execute(agreeing, score, vae=vae, clip_vision=clip_vision).args[0]
    assert all(high > low for high, low in zip(scores, least))
    alone = UncertaintyScore.execute(of_one(found), score, vae=vae, clip_vision=clip_vision).args[0]
    assert alone == pytest.approx(scores[:1], rel=0.01)
    mask = torch.zeros(1, SIDE, SIDE)
    mask[:, 44:, 44:] = 1
    inside = UncertaintyScore.execute(found, score, mask, vae, clip_vision).args[0]
    assert all(low < part < high for low, part, high in zip(least, inside, scores))
    full = UncertaintyScore.execute(found, score, torch.ones(3, 8, 8), vae, clip_vision).args[0]
    assert full == pytest.approx(scores, rel=1e-3)


@pytest.mark.parametrize("score", SEMANTIC_SCORES)
def test_what_a_semantic_score_lacks_is_one_sentence(demo, found, clip_vision, score):
    vae = demo[3]
    with pytest.raises(ValueError, match="got no vae and no clip_vision; connect vae and clip_vision, or choose"):
        UncertaintyScore.execute(found, score)
    with pytest.raises(ValueError, match="got no clip_vision; connect clip_vision, or choose another score"):
        UncertaintyScore.execute(found, score, vae=vae)
    with pytest.raises(ValueError, match="Expected posterior members .* got an uncertainty without any"):
        UncertaintyScore.execute(without_members(found), score, vae=vae, clip_vision=clip_vision)
    with pytest.raises(ValueError, match="got an empty one .number 0, 1, 2, numbered from 0.; mark a part"):
        UncertaintyScore.execute(found, score, torch.zeros(3, 8, 8), vae, clip_vision)


def test_plots(found):
    for given in (found, of_one(found)):
        for plot in (HISTOGRAM, OVER_SIGMA):
            image = UncertaintyPlot.execute(given, plot, "median", 320, 200).args[0]
            assert image.shape == (1, 200, 320, 3) and image.std() > 0.05
    with pytest.raises(ValueError, match="Expected an uncertainty that keeps its trajectory"):
        UncertaintyPlot.execute(dataclasses.replace(found, trajectory=()), OVER_SIGMA, "median", 320, 200)


def test_decoding_drops_what_is_no_colour(demo, found):
    assert decode(demo[3], found.latent).shape == (3, SIDE, SIDE, 3)
    assert decode(demo[3], found.latent, tile=32).shape == (3, SIDE, SIDE, 3)

"""Clips of the host's video families: maps, scores, plots and filters, frame by frame, through a small video VAE."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from bayesdiff.bayesdiff_core.reading.grid import LatentGrid
from bayesdiff.bayesdiff_core.reading.maps import colour_map
from bayesdiff.bayesdiff_core.reading.scores import SCORES, SEMANTIC_SCORES
from bayesdiff.bayesdiff_core.reading.uncertainty import Uncertainty
from bayesdiff.host.decode import decode, seen_through
from bayesdiff.host.latents import latent_grid
from bayesdiff.nodes.best_of_n import KSamplerBestOfN
from bayesdiff.nodes.filter import FilterByUncertainty
from bayesdiff.nodes.map import UncertaintyMap
from bayesdiff.nodes.plot import OVER_FRAMES, UncertaintyPlot
from bayesdiff.nodes.sampler import KSamplerBayesDiff
from bayesdiff.nodes.score import UncertaintyScore
from comfy_execution.graph_utils import ExecutionBlocker
from families import FAMILIES, set_up
from small_models import small_clip_vision, small_video_vae

CELLS, FRAMES, SIDE = 4, 13, 48
VIDEO = {"Wan": 4, "Hunyuan-Video": 4, "Mochi": 6, "Cosmos": 8, "LTXV": 8}  # frames of a latent frame


@pytest.fixture(autouse=True)
def inference(inference_mode):
    yield


@pytest.fixture(scope="module")
def vae():
    with torch.inference_mode():
        return small_video_vae()


@pytest.fixture
def pair():
    """Two clips of 13 frames; the first is unsure of its frames 5 to 8, the second of its first frame."""
    generator = torch.Generator().manual_seed(0)
    latent = torch.randn(2, 16, CELLS, 6, 6, generator=generator)
    deviations = 0.02 * torch.randn(3, *latent.shape, generator=generator)
    deviations[:, 0, :, 2, :3] *= 40
    deviations[:, 1, :, 0, :3] *= 20
    variance = deviations.square().mean(0)
    return Uncertainty(variance, latent, LatentGrid(8, 4), "deviations", 3, {}, 2.0, deviations)


def of_frame(uncertainty: Uncertainty, clip: int, frame: int) -> int:
    return clip * uncertainty.frames + frame


# ---------------------------------------------------------------- families


@pytest.mark.parametrize("name", VIDEO)
def test_every_video_family_has_maps_and_scores_of_its_frames(name):
    setup, shape = set_up(name), list(FAMILIES[name].latent)
    shape[0], shape[2] = 2, 3
    latent = {"samples": torch.zeros(shape)}
    uncertainty = KSamplerBayesDiff.execute(
        **setup.inputs() | {"latent_image": latent}, quality="instant", members=3
    ).args[1]
    frames, side = 1 + 2 * VIDEO[name], setup.downscale * shape[-1]
    assert latent_grid(setup.model) == uncertainty.grid == LatentGrid(setup.downscale, VIDEO[name])
    assert uncertainty.frames == frames and uncertainty.maps().shape == (2 * frames, side, side)
    scores, _, of_frames = UncertaintyScore.execute(uncertainty, "mean std").args
    assert len(scores) == 2 and len(of_frames) == 2 * frames and all(score > 0 for score in of_frames)


# ---------------------------------------------------------------- maps


@pytest.mark.parametrize("resolution", ["latent", "pixels", "pixels, tiled"])
def test_maps_stand_beside_the_frames_that_vae_decode_gives(vae, pair, resolution):
    image = decode(vae, pair.latent)
    heat_map, overlay, values, std, std_image, sheet = UncertaintyMap.execute(
        pair, vae, "each image", 0.85, resolution, tile_size=64
    ).args
    assert image.shape == heat_map.shape == overlay.shape == std_image.shape == (2 * FRAMES, SIDE, SIDE, 3)
    assert values.shape == std.shape == (2 * FRAMES, SIDE, SIDE) and torch.equal(heat_map, colour_map(values))
    assert values.unflatten(0, (2, -1)).amax((1, 2, 3)).tolist() == [1, 1], "one scale for each clip"
    unsure = pair.by_clip(std)[0].mean((1, 2))
    if resolution == "latent":
        assert torch.equal(std, pair.maps()) and unsure.argmax() in range(5, 9)
    else:
        # A decoder of clips looks back in time: what is unsure of frames 5 to 8 comes after, not before.
        assert unsure[:5].max() < 0.2 * unsure[5:].max()
    if resolution == "pixels":
        decoded = torch.stack([decode(vae, pair.latent + change) for change in pair.deviations])
        assert torch.allclose(std, (decoded - image).square().mean((0, -1)).sqrt(), atol=1e-6)
    assert sheet.shape[0] == 1 and sheet.shape[2] > 8 * SIDE and sheet.std() > 0.05


def test_the_vae_tells_how_many_frames_a_latent_frame_has(vae, pair):
    wrong = dataclasses.replace(pair, grid=LatentGrid(16, 8))
    assert seen_through(vae, wrong).grid == LatentGrid(8, 4)
    for one, other in zip(UncertaintyMap.execute(wrong, vae, "whole batch", 0.85).args,
                          UncertaintyMap.execute(pair, vae, "whole batch", 0.85).args):  # fmt: skip
        assert torch.equal(one, other)


def test_a_vae_that_packs_frames_in_another_way_is_one_sentence(pair, monkeypatch):
    """As MiniMax's: 5 latent frames for each 17 frames, and 2 for the last 5."""
    vae = small_video_vae()
    monkeypatch.setattr(vae, "upscale_ratio", (lambda cells: max(1, (cells - 2) // 5 * 17 + 5), 8, 8))
    with pytest.raises(
        ValueError, match="decodes 4 latent frames to 10 frames, .* one to 3, got one that decodes them to 5;"
    ):
        UncertaintyMap.execute(pair, vae, "each image", 0.85)


def test_one_frame_is_an_image(vae, pair):
    still = dataclasses.replace(
        pair, variance=pair.variance[:, :, :1], latent=pair.latent[:, :, :1], deviations=pair.deviations[:, :, :, :1]
    )
    heat_map, *_, sheet = UncertaintyMap.execute(still, vae, "each image", 0.85, "pixels").args
    assert heat_map.shape == (2, SIDE, SIDE, 3) and sheet.shape[2] < 4 * SIDE
    assert UncertaintyScore.execute(still, "median").args[0] == UncertaintyScore.execute(still, "median").args[2]
    with pytest.raises(ValueError, match="Expected the uncertainty of clips for the plot .* got that of single images"):
        UncertaintyPlot.execute(still, OVER_FRAMES, "median", 320, 200)


def test_a_colour_bar_stands_beside_every_frame(vae, pair):
    plain = UncertaintyMap.execute(pair, vae, "each image", 0.85).args[0]
    barred = UncertaintyMap.execute(pair, vae, "each image", 0.85, colour_bar=True).args[0]
    assert torch.equal(barred[:, :, :SIDE], plain) and barred.shape[2] > SIDE
    assert torch.equal(barred[0, :, SIDE:], barred[FRAMES - 1, :, SIDE:]), "the clip has one scale"


# ---------------------------------------------------------------- scores and plots


@pytest.mark.parametrize("name", SCORES)
def test_scores_of_clips_of_frames_and_of_some_frames(pair, name):
    scores, table, of_frames = UncertaintyScore.execute(pair, name).args
    assert scores == pair.scores(name).tolist() and len(table.splitlines()) == 4
    assert of_frames == pair.frame_scores(name).flatten().tolist() and len(of_frames) == 2 * FRAMES
    late = torch.zeros(FRAMES, SIDE, SIDE)
    late[9:] = 1
    part, _, of_late = UncertaintyScore.execute(pair, name, late).args
    assert part[0] < scores[0] and torch.tensor(of_late).isnan().tolist() == 2 * ([True] * 9 + [False] * 4)
    with pytest.raises(ValueError, match=r"one for each of the 13 frames of a clip or of all clips, got 5; give"):
        UncertaintyScore.execute(pair, name, torch.ones(5, 8, 8))


@pytest.mark.parametrize("name", SEMANTIC_SCORES)
def test_semantic_scores_see_every_frame(vae, pair, name, tmp_path):
    clip_vision = small_clip_vision(tmp_path / "clip_vision.json")
    scores, _, of_frames = UncertaintyScore.execute(pair, name, vae=vae, clip_vision=clip_vision).args
    of_clips = torch.tensor(of_frames).unflatten(0, (2, FRAMES))
    assert scores == pytest.approx(of_clips.mean(1).tolist(), rel=1e-5)
    assert of_clips[0, :5].max() < of_clips[0, 5:].max(), "a decoder of clips looks back in time, not forward"
    mask = torch.zeros(FRAMES, 8, 8)
    mask[0] = 1
    inside = UncertaintyScore.execute(pair, name, mask, vae, clip_vision).args[2]
    assert inside[0] == pytest.approx(of_frames[0], rel=1e-3) and min(inside) == pytest.approx(inside[-1], abs=1e-6)


def test_the_plot_over_frames_rises_where_a_clip_is_unsure(pair):
    for clips in (pair, pair.select(torch.tensor([0]))):
        image = UncertaintyPlot.execute(clips, OVER_FRAMES, "mean std", 640, 400).args[0]
        assert image.shape == (1, 400, 640, 3) and image.std() > 0.05


# ---------------------------------------------------------------- filter and Best of N


def test_a_filter_splits_clips_with_all_that_belongs_to_them(vae, pair):
    images = decode(vae, pair.latent)
    latent = {"samples": pair.latent, "noise_mask": torch.rand(2, 1, CELLS, 6, 6)}
    masks = pair.by_clip(pair.maps()).clamp(max=1).flatten(0, 1)
    names = [output.id for output in FilterByUncertainty.define_schema().outputs]
    for given in (dict(uncertainty=[pair]), dict(scores=pair.scores().tolist())):
        found = FilterByUncertainty.execute(
            ["keep the best"], [1], [0.5], [1.0], [1.0], ["best first"], images=[images], masks=[masks],
            latent=[latent], **given,
        )  # fmt: skip
        found = dict(zip(names, found.args))
        best = int(pair.scores().argmin())
        for side, clip in (("kept", best), ("dropped", 1 - best)):
            frames = slice(clip * FRAMES, (clip + 1) * FRAMES)
            assert torch.equal(found[f"{side}_images"], images[frames])
            assert torch.equal(found[f"{side}_masks"], masks[frames])
            assert torch.equal(found[f"{side}_latent"]["samples"], pair.latent[[clip]])
            assert torch.equal(found[f"{side}_latent"]["noise_mask"], latent["noise_mask"][[clip]])
        sheet = found["contact_sheet"]
        assert sheet.shape[2] > 3 * sheet.shape[1] > 200, "a strip for each clip"


def test_masks_for_a_filter_may_be_of_one_clip_or_of_the_batch(vae, pair):
    images, mask = decode(vae, pair.latent), torch.rand(FRAMES, 8, 8)
    run = lambda masks: FilterByUncertainty.execute(  # noqa: E731
        ["keep the best"], [2], [0.5], [1.0], [1.0], ["as in the batch"], uncertainty=[pair], images=[images],
        masks=[masks],
    ).args[2]  # fmt: skip
    assert torch.equal(run(mask), mask.repeat(2, 1, 1)) and torch.equal(run(mask[:2]), mask[:2])
    assert torch.equal(run(mask[:1]), mask[:1].expand(2, -1, -1))
    with pytest.raises(ValueError, match="Expected 2 clips of 13 frames at the input masks, clip after clip, got 7"):
        run(mask[:7])
    images = images[:-1]
    with pytest.raises(ValueError, match="at the input images, clip after clip, got 25 frames"):
        run(mask)


def test_a_broken_clip_is_dropped_and_the_other_is_read(vae, pair):
    variance = pair.variance.clone()
    variance[0, 0, 0, 0, 0] = torch.nan
    broken = dataclasses.replace(pair, variance=variance)
    with pytest.raises(ValueError, match=r"NaN or infinity in 1 of 2 clips"):
        UncertaintyMap.execute(broken, vae, "each image", 0.85)
    kept = FilterByUncertainty.execute(
        ["keep the best"], [1], [0.5], [1.0], [1.0], ["best first"], uncertainty=[broken]
    ).args[5]
    assert UncertaintyMap.execute(kept, vae, "each image", 0.85).args[0].shape[0] == FRAMES


def test_best_of_n_finishes_the_stock_samplers_clips():
    setup = set_up("Wan")
    inputs = setup.inputs() | {"steps": 4}
    found = KSamplerBestOfN.execute(
        **inputs, candidates=3, keep=2, share=0.5, quality="quick", batch_size=1, score_finished=True
    ).args
    latent, uncertainty, scores = found[:3]
    assert uncertainty.latent.shape == (2, 16, 2, 8, 8) and uncertainty.maps().shape[0] == 2 * 5
    assert scores == uncertainty.scores().tolist() and not isinstance(found[1], ExecutionBlocker)
    number = latent["batch_index"][0]
    start = {"samples": setup.latent["samples"], "batch_index": [number]}
    stock = KSamplerBayesDiff.execute(**inputs | {"latent_image": start}, quality="instant", members=3).args[0]
    assert torch.equal(latent["samples"][:1], stock["samples"])

"""Nested latents, video with sound, through every node."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import comfy.samplers
import nodes
import pytest
import torch
from bayesdiff.bayesdiff_core.posterior.storage import load_head, save_head
from bayesdiff.bayesdiff_core.reading.grid import LatentGrid
from bayesdiff.host.latents import host_mask
from bayesdiff.host.nested import by_part, latent_of, parts_of
from bayesdiff.host.posterior import Posterior
from bayesdiff.nodes.best_of_n import KSamplerBestOfN
from bayesdiff.nodes.filter import FilterByUncertainty
from bayesdiff.nodes.head import FitLaplaceHead
from bayesdiff.nodes.mask import UncertaintyToMask
from bayesdiff.nodes.plot import UncertaintyPlot
from bayesdiff.nodes.renoise import UncertaintyWithoutHead
from bayesdiff.nodes.repair import Repair
from bayesdiff.nodes.resample import Resample
from bayesdiff.nodes.sampler import KSamplerAdvancedBayesDiff, KSamplerBayesDiff
from bayesdiff.nodes.score import UncertaintyScore
from bayesdiff.nodes.sound import SeparateAVUncertainty
from comfy.nested_tensor import NestedTensor
from comfy_execution.graph_utils import ExecutionBlocker
from sounding import SOUNDING, set_up_sounding

STEPS = 6
ALONE = "MiniMax H3"  # takes one clip a call

pytestmark = pytest.mark.usefixtures("inference_mode")


@dataclasses.dataclass
class Given:
    """A model that makes video with sound, its head, and a way to sample."""

    name: str
    setup: object
    head: object

    @property
    def family(self):
        return SOUNDING[self.name]

    def inputs(self, **changes) -> dict:
        setup = self.setup
        return dict(
            model=setup.model, positive=setup.positive, negative=setup.negative, seed=5, steps=STEPS, cfg=3.0,
            sampler_name="euler", scheduler="simple", denoise=1.0, latent_image=setup.latent,
        ) | changes  # fmt: skip

    def sample(self, quality="balanced", head=True, members=2, **changes):
        """Latent and uncertainty, whose latent is the stock sampler's to the bit."""
        inputs = self.inputs(**changes)
        before = inputs.pop("uncertainty", None)
        stock = nodes.KSampler().sample(**inputs)[0]["samples"]
        own = dict(quality=quality, members=members, head=self.head if head else None, uncertainty=before)
        found, uncertainty, *_ = KSamplerBayesDiff.execute(**inputs, **own).args
        assert same(found["samples"], stock) and same(latent_of(uncertainty), stock)
        return found, uncertainty


def size(part) -> float:
    """Root mean square standard deviation."""
    return float(part.variance.mean().sqrt())


def widgets(node) -> dict:
    """What the widgets of a node show at first."""
    found = {}
    for given in node.GET_SCHEMA().inputs:
        default = getattr(given, "default", None)
        options = getattr(given, "options", None)
        if default is not None or options:
            found[given.id] = options[0] if default is None else default
    return found


def same(first, second) -> bool:
    return all(torch.equal(one, other) for one, other in zip(parts_of(first), parts_of(second), strict=True))


def is_grown() -> bool:
    """Whether the host can mask nested latents and go on from them; the oldest that samples them cannot."""
    return "denoise_mask.is_nested" in Path(comfy.samplers.__file__).read_text()


@pytest.fixture(scope="module", params=SOUNDING)
def given(request):
    with torch.inference_mode():
        setup = set_up_sounding(request.param)
        head = FitLaplaceHead.execute(
            setup.model, setup.positive, setup.negative, setup.latent, "own samples", 4, 4, 3.0, 2, "low-rank", 0.99, 0,
            "input", own_images=3,
        ).args[0]  # fmt: skip
        return Given(request.param, setup, head)


def test_each_part_has_a_head_of_its_own_in_one_file(given, tmp_path):
    paths = [head.about["layer"] for head in (given.head, *given.head.others)]
    assert paths == [given.family.path, given.family.sound_path]
    assert all(head.calibration is not None for head in (given.head, *given.head.others))
    save_head(given.head, tmp_path / "head.safetensors")
    loaded = load_head(tmp_path / "head.safetensors")
    posteriors = [Posterior.bind(head, given.setup.model, 7) for head in (given.head, loaded)]
    for one, other in zip(*(posterior.draws(3) for posterior in posteriors), strict=True):
        assert torch.allclose(one, other)
    video, sound = posteriors[0].draws(3)
    count = min(video.numel(), sound.numel())
    normal = [(draw.flatten()[:count] - draw.flatten()[:count].mean()) for draw in (video, sound)]
    assert abs(torch.nn.functional.cosine_similarity(*normal, dim=0)) < 0.2, "draws of two layers are independent"


def test_pictures_alone_are_no_data_for_it(given):
    setup, image = given.setup, torch.rand(1, 64, 64, 3)
    with pytest.raises(ValueError, match="which have no sound; set fit_on to one of these"):
        FitLaplaceHead.execute(
            setup.model, setup.positive, setup.negative, setup.latent, "images", 4, 4, 3.0, 2, "low-rank", 0.99, 0,
            "input", image=image, vae=object(),
        )  # fmt: skip


@pytest.mark.parametrize("quality", ["no head", "instant", "draft", "balanced", "precise", "ensemble"])
def test_every_quality_tells_of_video_and_sound(given, quality):
    head = quality != "no head"
    _, uncertainty = given.sample(quality if head else "instant", head, members=3)
    video, sound = uncertainty.parts
    assert (video.grid.pixels, video.grid.time, sound.grid.time) == (given.family.downscale, 0, given.family.time)
    for part in (video, sound):
        assert not part.unknown and part.variance.isfinite().all() and size(part) > 0
    if not head or quality == "instant":
        assert uncertainty.cost == 1


def test_the_variance_is_that_of_members(given):
    """Members followed closely agree with whole runs under the same draws, in either part."""
    _, ensemble = given.sample("ensemble", members=12)
    _, precise = given.sample("precise")
    for one, other in zip(ensemble.parts, precise.parts):
        ratio = float(size(other) / size(one))
        assert 0.4 < ratio < 2.5


def test_the_sound_moves_with_the_picture_and_has_draws_of_its_own(given):
    """Without its own head the sound still varies, because it hears of the picture; with it, more."""
    bare = dataclasses.replace(given.head, others=())
    whole = given.sample("ensemble", members=6)[1].parts[1]
    heard = Given(given.name, given.setup, bare).sample("ensemble", members=6)[1].parts[1]
    assert 0 < size(heard) < size(whole)
    alone = Given(given.name, given.setup, bare).sample("instant")[1]
    assert not alone.unknown and alone.others[0].unknown.startswith("Expected a Laplace head that was fitted with this")


def test_maps_masks_and_scores_are_of_the_video(given):
    _, uncertainty = given.sample("instant")
    frames, (height, width) = uncertainty.frames, uncertainty.image_size()
    clips = len(uncertainty)
    assert uncertainty.maps().shape == (clips * frames, height, width)
    mask, latent = UncertaintyToMask.execute(uncertainty, **widgets(UncertaintyToMask)).args
    assert mask.shape == (clips * frames, height, width)
    latent = UncertaintyToMask.execute(
        uncertainty, **widgets(UncertaintyToMask), latent={"samples": latent_of(uncertainty)}
    ).args[1]
    video, sound = latent["noise_mask"].unbind()
    assert video.any() and not sound.any(), "the sound is kept"
    assert len(UncertaintyScore.execute(uncertainty, "mean std").args[0]) == clips


def test_the_sound_is_a_curve_over_time(given):
    _, uncertainty = given.sample("instant")
    video, sound = SeparateAVUncertainty.execute(uncertainty).args
    assert not video.others and len(video) == len(sound)
    length = given.family.sound[given.family.time]
    assert sound.frames == length
    scores, _, of_frames = UncertaintyScore.execute(sound, "mean std").args
    assert torch.tensor(of_frames).reshape(len(sound), length).mean(1).tolist() == pytest.approx(scores, rel=1e-4)
    plot = UncertaintyPlot.execute(sound, "uncertainty over frames", "mean std", 320, 240).args[0]
    assert plot.shape == (1, 240, 320, 3)
    with pytest.raises(ValueError, match="got that of sound, which has no map"):
        UncertaintyToMask.execute(sound, **widgets(UncertaintyToMask))
    none = SeparateAVUncertainty.execute(video).args[1]
    assert isinstance(none, ExecutionBlocker) and "has no sound" in none.message


@pytest.mark.skipif(not is_grown(), reason="this host's own samplers cannot go on from a nested latent")
def test_a_run_that_is_cut_tells_what_the_whole_one_does(given):
    _, whole = given.sample("instant")
    latent, uncertainty = given.setup.latent, None
    for first, last in ((0, 2), (2, STEPS)):
        inputs = given.inputs(latent_image=latent) | dict(
            add_noise="enable" if first == 0 else "disable", noise_seed=5, start_at_step=first, end_at_step=last,
            return_with_leftover_noise="disable" if last == STEPS else "enable",
        )  # fmt: skip
        del inputs["seed"], inputs["denoise"]
        latent, uncertainty, *_ = KSamplerAdvancedBayesDiff.execute(
            **inputs, quality="instant", members=2, head=given.head, uncertainty=uncertainty
        ).args
    for one, other in zip(whole.parts, uncertainty.parts):
        assert torch.allclose(one.variance, other.variance, rtol=2e-2)


def test_an_enlarged_clip_goes_on_with_its_uncertainty(given):
    latent, before = given.sample("balanced")
    video, sound = latent["samples"].unbind()
    larger = torch.nn.functional.interpolate(video, size=(video.shape[2], *(2 * side for side in video.shape[3:])))
    start = {"samples": NestedTensor([larger, sound])}
    alone = given.sample("balanced", latent_image=start, denoise=0.5)[1]
    carried = given.sample("balanced", latent_image=start, denoise=0.5, uncertainty=before)[1]
    for one, other in zip(carried.parts, alone.parts):
        assert size(one) > size(other)
    inputs = given.inputs(latent_image={"samples": larger})
    with pytest.raises(ValueError, match=r"as many parts \(video, sound\): 1, got one with 2"):
        KSamplerBayesDiff.execute(**inputs, quality="instant", members=2, head=given.head, uncertainty=before)


def test_filter_splits_clips_with_their_sound(given):
    latent, uncertainty = given.sample("instant")
    if given.name == ALONE:
        uncertainty = type(uncertainty).join([uncertainty, uncertainty])
        latent = {"samples": latent_of(uncertainty)}
    chosen = {name: [value] for name, value in (widgets(FilterByUncertainty) | {"keep": 1}).items()}
    found = FilterByUncertainty.execute(**chosen, latent=[latent], uncertainty=[uncertainty]).args
    outputs = dict(zip([output.id for output in FilterByUncertainty.GET_SCHEMA().outputs], found))
    best = int(uncertainty.scores().argmin())
    assert same(outputs["kept_latent"]["samples"], by_part(lambda part: part[best : best + 1], latent["samples"]))
    assert same(outputs["kept_latent"]["samples"], latent_of(outputs["kept_uncertainty"]))
    assert len(outputs["dropped_uncertainty"].others) == 1


def test_best_of_n_keeps_clips_with_their_sound(given):
    inputs = given.inputs() | widgets(KSamplerBestOfN) | given.inputs()
    inputs |= dict(candidates=3, keep=1, batch_size=1, score_finished=True, head=given.head)
    latent_image = inputs.pop("latent_image")
    first = {"samples": by_part(lambda part: part[:1], latent_image["samples"])}
    inputs.pop("denoise", None)
    latent, uncertainty, *_ = KSamplerBestOfN.execute(latent_image=first, **inputs).args
    assert same(latent["samples"], latent_of(uncertainty)) and len(uncertainty) == 1


@pytest.mark.parametrize("method", ["redraw", "re-noise"])
def test_a_finished_clip_is_judged_with_its_sound(given, method):
    latent, _ = given.sample("instant", head=False)
    inputs = given.inputs()
    prompts = {name: inputs[name] for name in ("model", "positive", "negative")}
    chosen = widgets(UncertaintyWithoutHead) | {"latent": latent, "cfg": 3.0, "method": method}
    found, _ = UncertaintyWithoutHead.execute(**prompts, **chosen).args
    assert all(size(part) > 0 for part in found.parts) and len(found.parts) == 2


def test_variations_are_of_both_parts(given):
    latent, uncertainty = given.sample("balanced")
    inputs = given.inputs(latent_image=latent)
    found = Resample.execute(
        **inputs, uncertainty=uncertainty, start_at=0.5, variations=2, strength=1.0, include_original=True
    ).args[0]["samples"]
    for part, own in zip(found.unbind(), latent["samples"].unbind()):
        assert len(part) == 3 * len(own) and torch.equal(part[0], own[0])
        assert all((part[number] - own[0]).std() > 0 for number in (1, 2))


@pytest.mark.skipif(not is_grown(), reason="this host takes no masks of nested latents")
def test_a_repair_redraws_the_picture_and_keeps_the_sound(given):
    latent, uncertainty = given.sample("balanced")
    inputs = widgets(Repair) | given.inputs(latent_image=latent, denoise=0.6)
    found = Repair.execute(**inputs | dict(head=given.head, uncertainty=uncertainty, rounds=1, area=0.4)).args
    versions = found[3]["samples"]
    picture, sound = (part.unflatten(0, (-1, 2)) for part in versions.unbind())
    assert (picture[:, 1] - picture[:, 0]).abs().max() > 0.01
    assert torch.allclose(sound[:, 1], sound[:, 0], atol=1e-4)


def test_a_mask_for_the_host_has_a_part_for_each():
    nested = NestedTensor([torch.zeros(1, 16, 2, 8, 8), torch.zeros(1, 8, 9, 4)])
    video, sound = host_mask(torch.ones(1, 64, 64), nested, LatentGrid(8, 4)).unbind()
    assert video.shape == (1, 1, 2, 64, 64) and video.all() and sound.shape == (1, 8, 9, 4) and not sound.any()

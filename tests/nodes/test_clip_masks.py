"""Masks of clips and of stills of video families, through the host's own samplers and inpainting nodes."""

from __future__ import annotations

import dataclasses

import nodes
import pytest
import torch
from bayesdiff.bayesdiff_core.reading.uncertainty import Uncertainty
from bayesdiff.host.latents import latent_grid
from bayesdiff.nodes.mask import UncertaintyToMask
from bayesdiff.nodes.repair import Repair
from bayesdiff.nodes.resample import Resample
from bayesdiff.nodes.sampler import KSamplerBayesDiff
from comfy_extras.nodes_ip2p import InstructPixToPixConditioning
from factory import fit_own_head
from families import FAMILIES, set_up
from family import Family
from small_models import small_video_vae

STILLS = ["Qwen-Image", "Cosmos Predict 2", "Wan", "Hunyuan-Video"]
CLIPS = ["Wan", "Hunyuan-Video", "LTXV", "Cosmos", "Mochi"]
CELLS = 3


@pytest.fixture(autouse=True)
def inference(inference_mode):
    yield


class Given:
    """A family with two stills or clips, sampled by our sampler, and an uncertainty of our making."""

    def __init__(self, name: str, cells: int, count: int = 2, steps: int = 3):
        self.setup, shape = set_up(name), list(FAMILIES[name].latent)
        shape[0], shape[2] = count, cells
        self.inputs = self.setup.inputs() | {"latent_image": {"samples": torch.zeros(shape)}, "steps": steps}
        head = fit_own_head(self.setup.model, self.setup.guidance, tuple(shape[1:]), 2, 2, 2)
        sampled = KSamplerBayesDiff.execute(**self.inputs, head=head, quality="draft", members=3)
        self.latent, self.found = sampled.args[:2]
        self.shape, self.grid = shape, latent_grid(self.setup.model)

    def unsure(self, where) -> Uncertainty:
        """Unsure where ``where`` ``(n, t, h, w)`` is true, and nowhere else."""
        variance = where.float()[:, None].expand(self.shape).contiguous()
        return dataclasses.replace(self.found, variance=variance)

    def halves(self) -> torch.Tensor:
        """The left half of the first, the right half of the second."""
        where = torch.zeros(self.shape[0], *self.shape[2:], dtype=torch.bool)
        half = self.shape[-1] // 2
        where[0, ..., :half], where[1:, ..., half:] = True, True
        return where

    def stock(self, latent: dict) -> torch.Tensor:
        inputs = self.inputs | {"latent_image": latent, "seed": 9}
        return nodes.KSampler().sample(**inputs)[0]["samples"]

    def changed(self, samples: torch.Tensor, before: torch.Tensor | None = None) -> torch.Tensor:
        """Which cells differ from what was sampled, ``(n, t, h, w)``."""
        before = self.latent["samples"] if before is None else before
        return (samples - before).abs().amax(1) > 1e-4 * before.std()


def exact(uncertainty: Uncertainty, **more) -> tuple[torch.Tensor, dict]:
    """Mask and latent of all that the uncertainty is unsure of, and not of more."""
    return UncertaintyToMask.execute(uncertainty, 1.0, 0, 0.0, threshold="value", value=0.6, **more).args


# ---------------------------------------------------------------- stills


@pytest.mark.parametrize("name", STILLS)
def test_each_still_of_a_batch_is_redrawn_inside_its_own_mask(name):
    given = Given(name, 1)
    where = given.halves()
    mask, latent = exact(given.unsure(where))
    assert mask.shape == (2, 8 * given.shape[-2], 8 * given.shape[-1])
    assert latent["noise_mask"].shape == (2, 1, 1, *mask.shape[1:]) and torch.equal(latent["noise_mask"][:, 0, 0], mask)
    assert torch.equal(given.changed(given.stock(latent)), where)
    # The stock node gives both images the average: a mixture of old and new everywhere.
    (mixed,) = nodes.SetLatentNoiseMask().set_mask(given.latent, mask)
    assert given.changed(given.stock(mixed)).all()


def test_a_latent_of_the_stock_inpainting_nodes_gets_its_own_masks():
    given, vae = Given("Wan", 4, count=1), small_video_vae()
    where = torch.zeros(1, 4, 8, 8, dtype=torch.bool)
    where[:, 2, :, :4] = True
    frames, unsure = vae.decode(given.latent["samples"])[0], given.unsure(where)
    mask = exact(unsure)[0]
    # VAE Encode (for Inpainting) cannot take a VAE of clips on hosts of 2025.
    _, _, conditioned = nodes.InpaintModelConditioning().encode(
        given.setup.positive, given.setup.negative, frames.clone(), vae, mask
    )
    for latent in (conditioned, given.latent):
        ours = exact(unsure, latent=latent)[1]
        assert torch.equal(ours["samples"], latent["samples"]) and ours["noise_mask"].shape == (1, 1, 4, 64, 64)
        assert torch.equal(given.changed(given.stock(ours), latent["samples"]), where)


def test_an_inpainting_network_sees_the_masks_of_its_frames(monkeypatch):
    """Where the prompt holds no mask of its own, the host gives the network the noise mask."""
    inpainting = Family(
        "WAN21_I2V", FAMILIES["Wan"].options | dict(model_type="i2v", in_dim=36), "head.head",
        (1, 16, 4, 8, 8), (7, 16),
    )  # fmt: skip
    model, vae, given = inpainting.build(), small_video_vae(), Given("Wan", 4)
    where = torch.zeros(2, 4, 8, 8, dtype=torch.bool)
    where[0, 2, :, :4] = where[1, 0, :, 4:] = True
    latent, pixels = exact(given.unsure(where))[1], torch.rand(13, 64, 64, 3)
    positive, negative, _ = InstructPixToPixConditioning.execute(
        inpainting.conditioning(1), inpainting.conditioning(2), pixels, vae
    ).args
    seen, concat_cond = [], model.model.concat_cond
    monkeypatch.setattr(model.model, "concat_cond", lambda **options: seen.append(concat_cond(**options)) or seen[-1])
    changes = dict(model=model, positive=positive, negative=negative, latent_image=latent)
    samples = nodes.KSampler().sample(**given.inputs | changes)[0]["samples"]
    assert torch.equal(given.changed(samples), where)
    assert all(torch.equal(shown[:, 0] == 0, where) for shown in seen) and seen


def test_our_sampler_returns_the_stock_samplers_latent_and_is_sure_of_what_stays(caplog):
    given = Given("Wan", CELLS)
    where = given.halves()
    mask, latent = exact(given.unsure(where))
    inputs = given.inputs | {"latent_image": latent, "seed": 9}
    ours, uncertainty = KSamplerBayesDiff.execute(**inputs, quality="instant", members=3).args[:2]
    assert torch.equal(ours["samples"], given.stock(latent)) and "frames of one clip" not in caplog.text
    assert torch.equal(uncertainty.std_map() > 0, where)
    mixed = given.latent | {"noise_mask": mask}
    ours = KSamplerBayesDiff.execute(**inputs | {"latent_image": mixed}, quality="instant", members=3).args[0]
    assert torch.equal(ours["samples"], given.stock(mixed)) and "frames of one clip" in caplog.text


def test_a_latent_of_another_batch_is_one_sentence():
    given = Given("Wan", 2)
    for samples in (given.latent["samples"][:1], given.latent["samples"][:, :, :1], torch.zeros(2, 4, 8, 8)):
        with pytest.raises(ValueError, match="Expected a latent of as many images and frames as the uncertainty has"):
            exact(given.unsure(given.halves()), latent={"samples": samples})


# ---------------------------------------------------------------- clips


@pytest.mark.parametrize("name", CLIPS)
def test_each_frame_of_each_clip_is_redrawn_inside_its_own_mask(name):
    given = Given(name, CELLS)
    where = torch.zeros(2, CELLS, *given.shape[3:], dtype=torch.bool)
    half = given.shape[-1] // 2
    where[0, 0, :half], where[0, 2, half:], where[1, 1, :, :half] = True, True, True
    mask, latent = exact(given.unsure(where), grow_frames=0)
    frames = given.grid.frames_of(CELLS)
    assert mask.shape[0] == 2 * frames and latent["noise_mask"].shape[:3] == (2, 1, CELLS)
    assert torch.equal(given.changed(given.stock(latent)), where)


def test_the_host_misplaces_masks_of_frames_and_ours_stay():
    """Of 13 frames in 4 latent frames, the host looks at frames 1 and 2, 4 and 5, 7 and 8, 11 and 12."""
    given = Given("Wan", 4, count=1)
    cells = given.grid.cells_of(13).tolist()
    for frame in (0, 3, 6, 9):
        mask = torch.zeros(13, 64, 64)
        mask[frame] = 1
        (stock,) = nodes.SetLatentNoiseMask().set_mask(given.latent, mask)
        assert not given.changed(given.stock(stock)).any(), "the host overlooks it"
        where = torch.zeros(1, 4, 8, 8, dtype=torch.bool)
        where[:, cells[frame]] = True
        span = dict(first_frame=frame, last_frame=frame, invert=True)
        latent = exact(given.unsure(torch.zeros_like(where)), **span)[1]
        assert torch.equal(given.changed(given.stock(latent)), where)


def test_spans_growing_fading_and_inverting_over_time():
    given = Given("Wan", 4, count=2)
    everywhere = given.unsure(torch.ones(2, 4, 8, 8))
    frames = lambda **more: exact(everywhere, **more)[0].unflatten(0, (2, 13)).mean((2, 3))  # noqa: E731
    assert frames().eq(1).all()
    assert frames(first_frame=3, last_frame=5)[1].tolist() == [0, 0, 0, 1, 1, 1, 0, 0, 0, 0, 0, 0, 0]
    assert frames(first_frame=-2)[0].tolist() == [0] * 11 + [1, 1]
    faded = frames(first_frame=4, last_frame=5, fade_frames=3)
    assert faded[0].tolist() == [0, 0.25, 0.5, 0.75, 1, 1, 0.75, 0.5, 0.25, 0, 0, 0, 0]
    late = torch.zeros(2, 4, 8, 8)
    late[:, 3] = 1
    grown, plain = (
        exact(given.unsure(late), grow_frames=count)[0].unflatten(0, (2, 13)).mean((2, 3)) for count in (2, 0)
    )
    assert plain[0].nonzero().min() == 9 and grown[0].nonzero().min() == 7
    inverted = exact(given.unsure(late), first_frame=6, invert=True)[0].unflatten(0, (2, 13)).mean((2, 3))
    assert torch.equal(inverted[0, :6], torch.zeros(6)) and torch.equal(inverted[0, 6:], 1 - plain[0, 6:])
    with pytest.raises(ValueError, match="Expected a span with some of the 13 frames, .*got 13 to -1"):
        exact(everywhere, first_frame=13)


# ---------------------------------------------------------------- resampling and repair


def redraw(given: Given, node, latent: dict, **more) -> torch.Tensor:
    """All versions of each, ``(n, versions, ...)``; the first is the original."""
    inputs = {name: value for name, value in given.inputs.items() if name != "latent_image"} | {"latent_image": latent}
    if node is Resample:
        output = Resample.execute(
            **inputs, uncertainty=given.found, start_at=0.7, variations=1, strength=30.0, include_original=True, **more
        ).args[0]
    else:
        unsure = given.unsure(torch.ones(given.shape[0], *given.shape[2:]))
        settings = dict(quality="redraw", rounds=1, area=1.0, grow=0, method="inpaint")
        output = Repair.execute(**inputs, uncertainty=unsure, **settings, **more).args[3]
    return output["samples"].unflatten(0, (given.shape[0], 2))


@pytest.mark.parametrize("node", [Resample, Repair])
@pytest.mark.parametrize("name", ["Qwen-Image", "Wan"])
def test_each_still_is_redrawn_inside_its_own_noise_mask(name, node):
    given = Given(name, 1, steps=6)
    where = given.halves()
    for latent in (exact(given.unsure(where))[1], given.latent | {"noise_mask": exact(given.unsure(where))[0]}):
        before, after = redraw(given, node, latent).unbind(1)
        assert torch.equal(before, given.latent["samples"]) and torch.equal(given.changed(after), where)


@pytest.mark.parametrize("node", [Resample, Repair])
@pytest.mark.parametrize("name", CLIPS)
def test_a_region_a_span_or_both_are_redrawn(name, node):
    given, half = Given(name, CELLS, steps=6), FAMILIES[name].latent[-1] // 2
    frames, first = given.grid.frames_of(CELLS), 1 + given.grid.frames
    everything = torch.ones(2, CELLS, *given.shape[3:], dtype=torch.bool)
    last, left = everything.clone(), everything.clone()
    last[:, :2] = False
    left[..., half:] = False
    region = left.float()[:, :1, :].expand(-1, frames, -1, -1).flatten(0, 1)
    for mask, span, where in (
        (None, {}, everything), (None, dict(first_frame=first), last), (region, {}, left),
        (region, dict(first_frame=first), last & left), (region[:1], dict(first_frame=-1), last & left),
        (region[:frames], {}, left),
    ):  # fmt: skip
        latent = given.latent if mask is None else given.latent | {"noise_mask": mask}
        assert torch.equal(given.changed(redraw(given, node, latent, **span)[:, 1]), where), (span, where.shape)


@pytest.mark.parametrize("node", [Resample, Repair])
def test_a_span_fades_over_time(node):
    given = Given("Wan", 6, steps=6)
    hard, soft = (
        redraw(given, node, given.latent, first_frame=17, fade_frames=fade).diff(dim=1)[:, 0].std((1, 3, 4))
        for fade in (0, 8)
    )
    assert (hard[:, :5] < 1e-3 * hard[:, 5:]).all(), "the last latent frame alone"
    assert (soft[:, :3] < 1e-3 * hard[:, 5:]).all(), "more than eight frames before the span nothing changes"
    assert (soft[:, 3:5] > 1e-3 * hard[:, 5:]).all() and (soft[:, 3] < soft[:, 4]).all(), "then more and more"


@pytest.mark.parametrize("node", [Resample, Repair])
def test_masks_of_other_lengths_and_empty_spans_are_one_sentence(node):
    given = Given("Wan", CELLS, steps=6)
    with pytest.raises(ValueError, match="each of the 2 clips, or one for each of the 9 frames .* got 7; give"):
        redraw(given, node, given.latent | {"noise_mask": torch.ones(7, 8, 8)})
    with pytest.raises(ValueError, match="Expected a span with some of the 9 frames, .* got 5 to 4; choose first_fr"):
        redraw(given, node, given.latent, first_frame=5, last_frame=4)
    if node is Resample:
        with pytest.raises(ValueError, match="one for each of the 9 frames .* got 7; give"):
            redraw(given, node, given.latent, mask=torch.ones(7, 8, 8))


def test_masks_of_repair_come_frame_by_frame():
    given = Given("Wan", CELLS)
    inputs = given.inputs | dict(latent_image=given.latent)
    output = Repair.execute(
        **inputs, quality="redraw", rounds=2, area=0.1, grow=0, method="inpaint", last_frame=4, uncertainty=given.found
    ).args
    latent, best, scores, candidates, masks, report = output
    assert candidates["samples"].shape[0] == 6 and masks.shape == (6 * 9, 64, 64) and len(scores) == 2
    of_rounds = masks.unflatten(0, (2, 3, 9))
    assert not of_rounds[:, 0].any() and of_rounds[:, 1:, :5].any() and not of_rounds[:, :, 5:].any()
    assert torch.equal(latent["samples"], best.latent) and "Round 2, image 1" in report

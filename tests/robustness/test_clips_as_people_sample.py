"""Clips as people sample them: from a picture, from references, in windows over frames, in little memory."""

from __future__ import annotations

import comfy.model_management
import pytest
import torch
from bayesdiff.host.settings import Guidance
from bayesdiff.nodes.map import UncertaintyMap
from comfy_extras.nodes_wan import WanImageToVideo, WanVaceToVideo
from factory import fit_own_head
from families import set_up
from in_process import traces
from running import in_windows, little_memory, ours, stock
from small_models import small_video_vae

RUN = dict(steps=4, seed=3)
SIZE = dict(width=64, height=48, length=13)
QUALITIES = ["no head", "instant", "draft", "ensemble"]

pytestmark = pytest.mark.usefixtures("inference_mode")


@pytest.fixture(scope="module")
def picture():
    return torch.rand(1, 48, 64, 3, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def vae():
    with torch.inference_mode():
        return small_video_vae()


class Clip:
    """A small model of a family with its prompts and an empty latent, as its own conditioning node gives them.

    Args:
        shown: makes positive, negative and latent of those of the family; None for the family's own prompts.
    """

    def __init__(self, name: str, shown=None):
        family = set_up(name)
        positive, negative, self.latent = family.positive, family.negative, {"samples": torch.zeros(1, 16, 4, 6, 8)}
        if shown is not None:
            positive, negative, self.latent = shown(positive, negative)[:3]
        self.prompted = (family.model, positive, negative, None)
        guidance = Guidance(positive, negative, 3.0)
        self.head = fit_own_head(family.model, guidance, self.latent["samples"].shape[1:], 2, 2, 2)

    def check(self, quality: str, prompted: tuple | None = None):
        """The uncertainty of a run, whose latent is the stock sampler's to the bit."""
        prompted, head = prompted or self.prompted, None if quality == "no head" else self.head
        before = traces(prompted[0])
        expected = stock(prompted, self.latent, **RUN)["samples"]
        latent, uncertainty, _ = ours(prompted, head, self.latent, quality.replace("no head", "instant"), **RUN)
        assert torch.equal(latent["samples"], expected) and traces(prompted[0]) == before
        assert uncertainty.variance.shape == expected.shape
        return uncertainty


def frames_of_map(uncertainty, vae) -> int:
    return len(UncertaintyMap.execute(uncertainty, vae, "each image", 0.5).args[0])


@pytest.fixture(scope="module")
def from_picture(vae, picture):
    with torch.inference_mode():
        return Clip(
            "Wan image",
            lambda *prompts: WanImageToVideo.execute(*prompts, vae, **SIZE, batch_size=2, start_image=picture).args,
        )


@pytest.mark.parametrize("quality", QUALITIES)
def test_a_clip_from_a_picture(from_picture, vae, quality):
    uncertainty = from_picture.check(quality)
    assert not uncertainty.unknown and (uncertainty.variance > 0).all()
    assert frames_of_map(uncertainty, vae) == 2 * 13


@pytest.fixture(scope="module")
def with_reference(vae, picture):
    with torch.inference_mode():
        return Clip(
            "Wan VACE",
            lambda *prompts: (
                WanVaceToVideo.execute(*prompts, vae, **SIZE, batch_size=1, strength=1.0, reference_image=picture).args
            ),
        )


@pytest.mark.parametrize("quality", QUALITIES)
def test_a_reference_stands_before_the_frames(with_reference, vae, quality):
    """The stock Trim Video Latent cuts a latent frame off the clip, so four frames are to be cut off its map."""
    uncertainty = with_reference.check(quality)
    assert not uncertainty.unknown and (uncertainty.variance > 0).all()
    assert frames_of_map(uncertainty, vae) == 4 + 13


@pytest.fixture(scope="module")
def plain():
    with torch.inference_mode():
        return Clip("Wan")


@pytest.mark.parametrize("quality", QUALITIES)
def test_windows_over_the_frames(plain, quality):
    uncertainty = plain.check(quality, (in_windows(plain.prompted[0], 3, dim=2), *plain.prompted[1:]))
    assert not uncertainty.unknown and (uncertainty.variance > 0).all()


@pytest.mark.parametrize("quality", QUALITIES)
def test_a_clip_whose_weights_are_cast_piece_by_piece(plain, monkeypatch, quality):
    comfy.model_management.unload_all_models()
    with little_memory(monkeypatch, "LOW_VRAM"):
        uncertainty = plain.check(quality)
        model = plain.prompted[0]
        assert model.model.model_lowvram and model.loaded_size() < model.model_size(), "not all of it is loaded"
    assert not uncertainty.unknown and (uncertainty.variance > 0).all()


@pytest.mark.parametrize("quality", QUALITIES)
def test_a_network_that_takes_one_clip_a_call(quality):
    """No call of ours has another batch than the run's."""
    clip = Clip("Wan")
    network, calls = clip.prompted[0].model.diffusion_model, []
    forward = network.forward

    def one_clip(x, *args, **kwargs):
        calls.append(len(x))
        return forward(x, *args, **kwargs)

    network.forward = one_clip
    uncertainty = clip.check(quality)
    assert set(calls) == {2}, "the two prompts of one clip"
    assert not uncertainty.unknown and (uncertainty.variance > 0).all()

"""The small video model: what its weights make in the host's own classes, and clips of the stock sampler's."""

from __future__ import annotations

import nodes
import pytest
import torch
from bayesdiff.host.demo_model import FOLDER, emoji_names, load_video_model, motion_names
from bayesdiff.nodes.demo import DemoVideoModel
from bayesdiff.nodes.sampler import KSamplerBayesDiff
from comfy_extras.nodes_hunyuan import EmptyHunyuanLatentVideo
from factory import sampler_inputs

SIDE, FRAMES = 80, 13


@pytest.fixture(scope="module")
def video():
    with torch.inference_mode():
        yield DemoVideoModel.execute("tiger face", "slides right", "doughnut").args


@pytest.fixture(scope="module")
def clip(video):
    """Inputs of a sampling run, and the stock sampler's latent and frames."""
    inputs = sampler_inputs(video, seed=11, steps=20, scheduler="simple")
    inputs |= {"latent_image": EmptyHunyuanLatentVideo.execute(SIDE, SIDE, FRAMES, 2)[0]}
    latent = nodes.KSampler().sample(**inputs)[0]
    return inputs, latent, video[3].decode(latent["samples"])


def test_the_network_and_the_autoencoder_are_the_hosts_video_classes(video):
    model, *_, vae = video
    assert type(model.model).__name__ == "WAN21" and type(vae.first_stage_model).__name__ == "WanVAE"
    assert vae.latent_dim == 3 and vae.temporal_compression_decode() == 4 and vae.spacial_compression_decode() == 8


def test_our_sampler_returns_the_stock_samplers_clip_to_the_bit(clip):
    inputs, latent, _ = clip
    ours, uncertainty, scores = KSamplerBayesDiff.execute(**inputs, quality="instant", members=8).args[:3]
    assert latent["samples"].shape == (2, 16, 4, 10, 10) and torch.equal(ours["samples"], latent["samples"])
    assert uncertainty.variance.shape == ours["samples"].shape and len(scores) == 2
    assert (uncertainty.variance.flatten(1).mean(1) > 0).all()


def middle(frames: torch.Tensor) -> torch.Tensor:
    """Where the picture differs from its ground, on average: ``(t, 2)``, x and y in pixels."""
    ground = frames[:, :4].flatten(1, 2).median(1).values[:, None, None]
    ink = (frames - ground).abs().sum(-1)
    ink = torch.where(ink > 0.3, ink, 0.0)
    y, x = torch.arange(SIDE) + 0.5, torch.arange(SIDE) + 0.5
    return torch.stack([(ink.sum(1) * x).sum(1), (ink.sum(2) * y).sum(1)], 1) / ink.sum((1, 2)).clamp(min=1e-6)[:, None]


def test_the_prompt_decides_what_moves_and_where(video, clip):
    inputs, _, frames = clip
    assert frames.shape == (2, FRAMES, SIDE, SIDE, 3)
    for motion, axis, sign in (("slides right", 0, 1), ("slides left", 0, -1), ("rises", 1, -1), ("falls", 1, 1)):
        positive = load_video_model("tiger face", motion, "doughnut")[1]
        latent = nodes.KSampler().sample(**inputs | {"positive": positive})[0]
        for clip_of_it in video[3].decode(latent["samples"]):
            way = middle(clip_of_it)
            assert sign * (way[-1] - way[0])[axis] > 15, (motion, way)


def test_every_prompt_has_tokens_of_its_own():
    names, motions = emoji_names(), motion_names()
    prompts = [(names[0], motion, names[1]) for motion in motions]
    prompts += [(name, motions[0], names[0]) for name in names[1:]]
    prompts += [(names[0], "passes behind", name) for name in names[2:]]
    tokens = torch.stack([load_video_model(*prompt)[1][0][0][0] for prompt in prompts[:3] + prompts[-3:]])
    assert len(tokens.flatten(1).unique(dim=0)) == 6
    alone, beside = (load_video_model(names[0], "turns", name)[1][0][0] for name in names[1:3])
    assert torch.equal(alone, beside)


@pytest.fixture(scope="module")
def clips():
    """Eight clips of the training's kind, ``(8, 13, 80, 80, 3)`` from 0 to 1."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(FOLDER))
        import train_video
    cpu = torch.device("cpu")
    found = train_video.render(train_video.read_sprites(cpu), train_video.known_scenes(8, cpu, 5))
    return (found.movedim(1, -1) + 1) / 2


@pytest.mark.parametrize("frames", [1, 5, 13])
@pytest.mark.parametrize("folded", [True, False])
def test_training_over_whole_clips_is_the_hosts_way_frame_by_frame(video, clips, frames, folded):
    from whole_clips import WholeClips

    vae, pixels = video[3].first_stage_model, 2 * clips[:2, :frames].movedim(-1, 1) - 1
    whole = WholeClips(vae, torch.float32, folded)
    latents = vae.encode(pixels)
    assert torch.allclose(whole.encode(pixels), latents, atol=1e-4)
    assert torch.allclose(whole.decode(latents), vae.decode(latents), atol=1e-4)


def test_the_autoencoder_gives_back_clips(video, clips):
    for clip_of_it in clips:
        again = video[3].decode(video[3].encode(clip_of_it))[0]
        error = (again - clip_of_it).square().mean()
        # Of a clip without its emoji, so nothing but its ground, the error is ten times the bound.
        assert again.shape == clip_of_it.shape and error < 0.003

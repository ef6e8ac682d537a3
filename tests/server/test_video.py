"""A clip on a real server: stock loaders, our nodes between stock nodes, and a video file of clip and heat map."""

from __future__ import annotations

from pathlib import Path

import av
import comfy_server
import numpy
import pytest
import safetensors.torch
import torch
from PIL import Image
from small_models import video_model_weights, video_vae_weights

HERE = Path(__file__).resolve().parent
FRAMES, SIDE, CLIPS = 13, 64, 2


@pytest.fixture(scope="module")
def probed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("video")
    for kind, weights in (("diffusion_models", video_model_weights()), ("vae", video_vae_weights())):
        (folder / "models" / kind).mkdir(parents=True)
        safetensors.torch.save_file(weights, folder / "models" / kind / "small.safetensors")
    with comfy_server.ComfyServer(folder, arguments=("--cache-classic",), packs=(HERE / "probe",)) as server:
        yield server


def node(class_type: str, **inputs) -> dict:
    return {"class_type": class_type, "inputs": inputs}


def sampled() -> dict:
    settings = dict(
        model=["model", 0], positive=["prompt", 0], negative=["negative", 0], seed=3, steps=4, cfg=3.0,
        sampler_name="euler", scheduler="normal", denoise=1.0,
    )  # fmt: skip
    return {
        "model": node("UNETLoader", unet_name="small.safetensors", weight_dtype="default"),
        "vae": node("VAELoader", vae_name="small.safetensors"),
        "prompt": node("Prompt", width=4096, seed=1),
        "negative": node("Prompt", width=4096, seed=2),
        "empty": node("EmptyHunyuanLatentVideo", width=SIDE, height=SIDE, length=FRAMES, batch_size=CLIPS),
        "ours": node("BayesDiffKSampler", latent_image=["empty", 0], quality="instant", members=3, **settings),
        "frames": node("VAEDecode", samples=["ours", 0], vae=["vae", 0]),
    }


def pictures(paths: list[Path]) -> torch.Tensor:
    return torch.stack([torch.from_numpy(numpy.array(Image.open(path).convert("RGB"))).float() for path in paths])


def test_a_video_of_a_clip_and_its_heat_map_by_the_stock_nodes(probed):
    graph = sampled() | {
        "map": node(
            "BayesDiffUncertaintyMap", uncertainty=["ours", 1], vae=["vae", 0], scale="each image", opacity=0.85,
        ),
        "beside": node(
            "ImageStitch", image1=["frames", 0], image2=["map", 0], direction="right", match_image_size=True,
            spacing_width=0, spacing_color="white",
        ),
        "video": node("CreateVideo", images=["beside", 0], fps=8.0),
        "save": node("SaveVideo", video=["video", 0], filename_prefix="clip", format="mp4", codec="h264"),
        "images": node("SaveImage", images=["beside", 0], filename_prefix="beside"),
        "heat": node("SaveImage", images=["map", 0], filename_prefix="heat"),
        "sheet": node("SaveImage", images=["map", 5], filename_prefix="sheet"),
        "score": node("BayesDiffUncertaintyScore", uncertainty=["ours", 1], score="mean std"),
        "scores": node("Probe", value=["score", 0], name="scores"),
        "frame_scores": node("Probe", value=["score", 2], name="frame_scores"),
        "plot": node(
            "BayesDiffUncertaintyPlot", uncertainty=["ours", 1], plot="uncertainty over frames", score="median",
            width=640, height=400,
        ),
        "plotted": node("SaveImage", images=["plot", 0], filename_prefix="plot"),
        "filter": node(
            "BayesDiffFilter", rule="keep the best", keep=1, fraction=0.5, deviations=1.0, threshold=1.0,
            order="best first", uncertainty=["ours", 1], latent=["ours", 0], images=["frames", 0],
        ),
        "kept": node("SaveImage", images=["filter", 1], filename_prefix="kept"),
        "contact": node("SaveImage", images=["filter", 14], filename_prefix="contact"),
    }  # fmt: skip
    files = probed.files(probed.run(graph))
    with av.open(str(files["save"][0])) as video:
        assert video.streams.video[0].average_rate == 8
        seen = torch.stack([torch.from_numpy(frame.to_ndarray(format="rgb24")) for frame in video.decode(video=0)])
    beside, heat = pictures(files["images"]), pictures(files["heat"])
    assert seen.shape == beside.shape == (CLIPS * FRAMES, SIDE, 2 * SIDE, 3)
    assert torch.equal(beside[:, :, SIDE:], heat), "the map lies beside its own frame"
    assert (seen.float() - beside).abs().mean() < 12, "H.264 keeps most of it"
    latent_frames = [0, 1, 5, 9]
    assert all(torch.equal(heat[first], heat[first + 3]) for first in latent_frames[1:])
    assert not torch.equal(heat[0], heat[1]) and not torch.equal(heat[4], heat[5])
    output = probed.folder / "output"
    scores, of_frames = (
        safetensors.torch.load_file(output / f"{name}.safetensors")["value"] for name in ("scores", "frame_scores")
    )
    assert scores.shape == (CLIPS,) and of_frames.shape == (CLIPS * FRAMES,)
    best = int(scores.argmin())
    assert torch.equal(pictures(files["kept"]), beside[best * FRAMES : (best + 1) * FRAMES, :, :SIDE])
    assert all(pictures(files[name]).std() > 10 for name in ("sheet", "plotted", "contact"))


def test_a_span_is_redrawn_by_the_stock_sampler_and_the_rest_stays(probed):
    graph = sampled() | {
        "mask": node(
            "BayesDiffUncertaintyToMask", uncertainty=["ours", 1], area=1.0, grow=0, blur=0.0, first_frame=9,
            latent=["ours", 0],
        ),
        "again": node(
            "KSampler", latent_image=["mask", 1], model=["model", 0], positive=["prompt", 0], negative=["negative", 0],
            seed=4, steps=4, cfg=3.0, sampler_name="euler", scheduler="normal", denoise=0.7,
        ),
        "before": node("Probe", value=["ours", 0], name="before"),
        "after": node("Probe", value=["again", 0], name="after"),
    }  # fmt: skip
    probed.run(graph)
    before, after = (
        safetensors.torch.load_file(probed.folder / "output" / f"{name}.safetensors")["value"]
        for name in ("before", "after")
    )
    change = (after - before).abs().amax((1, 3, 4))
    assert (change[:, :3] < 1e-4).all() and (change[:, 3] > 0.1).all()

"""The viewer in a server without a page: its automatic choice, and what a change of its widgets runs anew."""

from __future__ import annotations

import numpy
import pytest
from PIL import Image

WIDGETS = {"threshold": "area share", "area": 0.2, "grow": 0, "blur": 0.0, "keep": 2, "choice": ""}


def graph(**viewer) -> dict:
    """Four images of the demo model in the viewer; what was kept, and its masks, are saved."""
    nodes = {
        "demo": ("BayesDiffDemoModel", {"prompt": "owl"}),
        "empty": ("EmptyLatentImage", {"width": 128, "height": 128, "batch_size": 4}),
        "sample": (
            "BayesDiffKSampler",
            dict(
                model=["demo", 0], positive=["demo", 1], negative=["demo", 2], latent_image=["empty", 0], seed=3,
                steps=4, cfg=3.0, sampler_name="euler", scheduler="normal", denoise=1.0, quality="instant", members=2,
            ),
        ),
        "decode": ("VAEDecode", {"samples": ["sample", 0], "vae": ["demo", 3]}),
        "viewer": ("BayesDiffUncertaintyViewer", {"images": ["decode", 0], "uncertainty": ["sample", 1], **viewer}),
        "kept": ("SaveImage", {"images": ["viewer", 0], "filename_prefix": "viewer_kept"}),
        "mask": ("MaskToImage", {"mask": ["viewer", 6]}),
        "masks": ("SaveImage", {"images": ["mask", 0], "filename_prefix": "viewer_mask"}),
        "all": ("SaveImage", {"images": ["decode", 0], "filename_prefix": "viewer_all"}),
    }  # fmt: skip
    return {name: {"class_type": kind, "inputs": inputs} for name, (kind, inputs) in nodes.items()}


def pixels(paths) -> list[numpy.ndarray]:
    return [numpy.asarray(Image.open(path)) for path in paths]


def cached(entry: dict) -> set[str]:
    return {
        node for kind, about in entry["status"]["messages"] if kind == "execution_cached" for node in about["nodes"]
    }


def same(one: list[numpy.ndarray], other: list[numpy.ndarray]) -> bool:
    return len(one) == len(other) and all(map(numpy.array_equal, one, other))


def test_without_a_page_the_surest_go_on_and_a_change_runs_what_follows_alone(server):
    entry = server.run(graph(**WIDGETS))
    (shown,) = entry["outputs"]["viewer"]["bayesdiff_viewer"]
    files = server.files(entry)
    images = pixels(files["all"])
    assert same(pixels(files["kept"]), [images[i] for i in sorted(shown["order"][:2])])
    assert [mask[..., 0].mean() / 255 for mask in pixels(files["masks"])] == pytest.approx([0.2, 0.2], abs=1e-3)

    for change, kept, area in ({"area": 0.4}, sorted(shown["order"][:2]), 0.4), ({"choice": "0, 3"}, [0, 3], 0.2):
        entry = server.run(graph(**WIDGETS | change))
        assert cached(entry) == {"demo", "empty", "sample", "decode", "all"}
        files = server.files(entry)
        assert same(pixels(files["kept"]), [images[i] for i in kept])
        assert pixels(files["masks"])[0][..., 0].mean() / 255 == pytest.approx(area, abs=1e-3)
        assert entry["outputs"]["viewer"]["bayesdiff_viewer"] == [shown], "the page loads no file anew"


def test_all_widgets_may_be_left_out(server):
    files = server.files(server.run(graph()))
    assert len(files["kept"]) == len(files["masks"]) == 1


def test_none_kept_stops_what_follows_alone(server):
    entry = server.run(graph(choice="none"))
    assert entry["status"]["status_str"] == "success"
    assert set(server.files(entry)) == {"all"}

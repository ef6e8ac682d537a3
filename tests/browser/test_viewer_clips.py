"""Clips in the viewer's panel, of ComfyUI's own video model and video VAE: image, map and mask in step."""

from __future__ import annotations

import re

import numpy
import pytest
from playwright.sync_api import expect
from viewer_page import MODULES, VIEWER, open_graph, shown_masks

pytestmark = pytest.mark.timeout(900)

FRAMES, SIDE, CLIPS = 13, 64, 2
SETTINGS = dict(seed=3, steps=4, cfg=3.0, sampler_name="euler", scheduler="normal", denoise=1.0, members=3)
GRAPH = {
    "1": ("UNETLoader", {"unet_name": "small.safetensors", "weight_dtype": "default"}),
    "2": ("VAELoader", {"vae_name": "small.safetensors"}),
    "3": ("Prompt", {"width": 4096, "seed": 1}),
    "4": ("EmptyHunyuanLatentVideo", {"width": SIDE, "height": SIDE, "length": FRAMES, "batch_size": CLIPS}),
    "6": (
        "BayesDiffKSampler",
        {"model": ["1", 0], "positive": ["3", 0], "negative": ["3", 0], "latent_image": ["4", 0], **SETTINGS}
        | {"quality": "instant"},
    ),
    "7": ("VAEDecode", {"samples": ["6", 0], "vae": ["2", 0]}),
    "5": (VIEWER, {"images": ["7", 0], "uncertainty": ["6", 1], "keep": 1, "grow": 2}),
    "8": ("SaveImage", {"images": ["7", 0], "filename_prefix": "clip_all"}),
    "9": ("SaveImage", {"images": ["5", 0], "filename_prefix": "clip_kept"}),
    "10": ("MaskToImage", {"mask": ["5", 6]}),
    "11": ("SaveImage", {"images": ["10", 0], "filename_prefix": "clip_mask"}),
}


def test_a_clip_is_looked_through_and_chosen_frame_by_frame(open_page, probed_server):
    api = {name: {"class_type": kind, "inputs": inputs} for name, (kind, inputs) in GRAPH.items()}
    with open_page(probed_server) as page:
        panel = open_graph(page, probed_server, api)
        found = panel.run()
        (batch,) = page.evaluate("() => app.nodeOutputs[5].bayesdiff_viewer")
        first = batch["order"][0]
        assert len(batch["images"]) == CLIPS and len(batch["map_of"]) == FRAMES
        assert batch["map_of"] == sorted(batch["map_of"]) and len(set(batch["map_of"])) == len(
            batch["images"][first]["levels"]
        )
        expect(panel.items).to_have_count(CLIPS)
        heats = page.evaluate(
            """async ([modules, batch, first]) => {
                const {brightestOf, paint} = await import(`${modules}/colours.js`)
                const {readLevels} = await import(`${modules}/levels.js`)
                return Promise.all(batch.images[first].levels.map(async file => {
                    const answer = await fetch(app.api.apiURL(`/view?${new URLSearchParams(file)}`))
                    const map = readLevels(await answer.arrayBuffer(), batch.cells)
                    const canvas = document.createElement('canvas')
                    paint(canvas, map, brightestOf(map), true)
                    return canvas.toDataURL()
                }))
            }""",
            [MODULES, batch, first],
        )
        assert len(set(heats)) == len(heats), "the maps differ, so that one out of step is seen"
        masks = shown_masks(panel)[first]
        scrubber = panel.element.get_by_role("slider", name="Frame of the clip")
        image = panel.view.locator("img").first
        scrubber.focus()
        for frame, place in enumerate(batch["map_of"]):
            expect(panel.element.locator(".bd-count")).to_have_text(f"{frame + 1} / {FRAMES}")
            expect(image).to_have_attribute("src", re.compile(batch["images"][first]["images"][frame]["filename"]))
            shown = "() => document.querySelector('.bd-stage canvas').toDataURL()"
            page.wait_for_function(f"heat => ({shown})() === heat", arg=heats[place])
            expect(panel.said.first).to_contain_text("masked")
            pixels = page.evaluate(
                """async image => {
                    await image.decode()
                    const canvas = new OffscreenCanvas(image.naturalWidth, image.naturalHeight)
                    const context = canvas.getContext('2d')
                    context.drawImage(image, 0, 0)
                    return [...context.getImageData(0, 0, canvas.width, canvas.height).data]
                }""",
                image.element_handle(),
            )
            pixels = numpy.array(pixels).reshape(SIDE, SIDE, 4)[..., :3]
            assert numpy.array_equal(pixels, found["8"][first * FRAMES + frame])
            assert numpy.array_equal(found["9"][frame], found["8"][first * FRAMES + frame])
            assert (found["11"][frame][..., 0].flatten() > 0).astype(int).tolist() == masks[frame]
            page.keyboard.press("ArrowRight")

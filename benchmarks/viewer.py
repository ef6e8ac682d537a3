"""How long the page takes for each frame of a drag in Uncertainty Viewer, in a headless Chromium.

    python dev.py bench viewer

Two images of 4096 x 4096 pixels with maps of 128 x 128 cells in the real page. Each drag moves in 40 steps; printed are
the milliseconds from a step's event to the frame that shows it, and those of the panel's own code in it.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from comfy_server import ComfyServer
from playwright.sync_api import sync_playwright

SIDE, STEPS, CELLS, WIDTHS = 4096, 40, 128, (480, 1200)
GRAPH = {
    "1": {"class_type": "BayesDiffDemoModel", "inputs": {"prompt": "owl"}},
    "2": {"class_type": "EmptyLatentImage", "inputs": {"width": 8 * CELLS, "height": 8 * CELLS, "batch_size": 2}},
    "3": {
        "class_type": "BayesDiffKSampler",
        "inputs": dict(
            model=["1", 0], positive=["1", 1], negative=["1", 2], latent_image=["2", 0], seed=1, steps=2, cfg=1.0,
            sampler_name="euler", scheduler="normal", denoise=1.0, quality="instant", members=2,
        ),
    },
    "4": {"class_type": "VAEDecode", "inputs": {"samples": ["3", 0], "vae": ["1", 3]}},
    "5": {
        "class_type": "ImageScale",
        "inputs": dict(image=["4", 0], upscale_method="bilinear", width=SIDE, height=SIDE, crop="disabled"),
    },
    "6": {"class_type": "BayesDiffUncertaintyViewer", "inputs": {"images": ["5", 0], "uncertainty": ["3", 1]}},
}  # fmt: skip
READY = (
    "() => document.querySelector('.bd-item')"
    " && [...document.querySelectorAll('.bd-stage img')].every(image => image.complete)"
)
# A drag of so many steps, each until the frame after it is drawn: the middle and the longest time of these, and the
# middle time of the panel's own code.
DRAG = """async ([kind, steps]) => {
    const view = document.querySelector('.bd-view'), box = view.getBoundingClientRect()
    const slider = document.querySelector('.bd-rows input[type=range]')
    const frame = () => new Promise(done => requestAnimationFrame(() => setTimeout(done, 0)))
    const at = (x, y) => ({bubbles: true, cancelable: true, pointerId: 1,
                           clientX: box.left + box.width * x, clientY: box.top + box.height * y})
    const drags = {
        threshold: way => { slider.value = 0.05 + 0.5 * way; slider.dispatchEvent(new Event('input')) },
        hover: way => view.dispatchEvent(new PointerEvent('pointermove', at(0.3 + 0.4 * way, 0.3 + 0.3 * way))),
        zoom: way => view.dispatchEvent(new WheelEvent('wheel', {...at(0.5, 0.5), deltaY: way < 0.5 ? -1 : 1})),
    }
    view.focus()
    await frame()
    const frames = [], own = []
    for (let i = 0; i < steps; i++) {
        const start = performance.now()
        drags[kind](i / steps)
        own.push(performance.now() - start)
        await frame()
        frames.push(performance.now() - start)
    }
    const middle = list => list.sort((a, b) => a - b)[list.length >> 1]
    return [middle(frames), Math.max(...frames), middle(own)]
}"""


def main() -> None:
    with tempfile.TemporaryDirectory() as folder, ComfyServer(Path(folder)) as server, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=os.environ["BAYESDIFF_CHROMIUM"])
        page = browser.new_page(viewport={"width": 1700, "height": 1200})
        page.set_default_timeout(600_000)
        page.goto(f"http://127.0.0.1:{server.port}/?template=quickstart&source=BayesDiff")
        page.wait_for_function("() => !location.search && window.app?.graph?.nodes?.length", polling=100)
        page.evaluate("graph => app.loadApiJson(graph, 'bench')", GRAPH)
        page.evaluate("() => app.queuePrompt(0, 1)")
        page.wait_for_function(READY, polling=200)
        print(
            f"{SIDE} x {SIDE} pixels, {CELLS} x {CELLS} cells; ms per frame: middle, longest; of these the panel's own"
        )
        for width in WIDTHS:
            page.evaluate(
                "width => { const node = app.graph.nodes.find(n => n.type === 'BayesDiffUncertaintyViewer');"
                "node.pos = [0, 0]; node.setSize([width, 1000]); app.canvas.ds.scale = 1;"
                "app.canvas.ds.offset = [300, 80]; app.canvas.setDirty(true, true) }",
                width,
            )
            page.wait_for_timeout(1500)
            for kind in ("threshold", "hover", "zoom"):
                median, longest, own = page.evaluate(DRAG, [kind, STEPS])
                print(f"node of {width} px, {kind}: {median:.0f}, {longest:.0f}; {own:.1f}", flush=True)
        browser.close()


if __name__ == "__main__":
    main()

"""How long the page takes for each frame of a drag in Uncertainty Viewer, in a headless Chromium.

    python dev.py bench viewer [--busy]

Batches in the real page: 64 images of 128 x 128 pixels, and two of 4096 x 4096 pixels. Each drag moves in 40 steps;
printed are the milliseconds from a step's event to the frame that shows it, those of the panel's own code in it, and
how long the page stands still afterwards. With --busy, every core computes something else meanwhile.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from contextlib import contextmanager, nullcontext
from pathlib import Path

from comfy_server import ComfyServer
from playwright.sync_api import sync_playwright
from viewer_page import as_graph, demo_images

STEPS, WIDTHS = 40, (320, 480, 800, 1200)
VIEWER = "BayesDiffUncertaintyViewer"
# Of each batch: how many images, and the sides of the sampled images and of the shown ones.
BATCHES = {"64 images": (64, 128, 128), "4K images, maps of 128 x 128": (2, 1024, 4096)}
# What is dragged, and what the mask is set to meanwhile.
DRAGS = {
    "threshold": ("threshold", {}),
    "threshold, soft": ("threshold", {"grow": 24, "blur": 32}),
    "hover": ("hover", {}),
    "zoom": ("zoom", {}),
    "zoom, soft": ("zoom", {"grow": 24, "blur": 32}),
    "other image": ("turn", {}),
    "keep and drop": ("toggle", {}),
}


def graph(count: int, side: int, shown: int) -> dict:
    scale = dict(image=["4", 0], upscale_method="bilinear", width=shown, height=shown, crop="disabled")
    nodes = {"5": ("ImageScale", scale), "6": (VIEWER, {"images": ["5", 0], "uncertainty": ["3", 1]})}
    return as_graph(demo_images(count, side, seed=1) | nodes)


READY = (
    "() => document.querySelector('.bd-item')"
    " && [...document.querySelectorAll('.bd-stage img')].every(image => image.complete)"
)
# A drag of so many steps, each until the frame after it is drawn: the middle and the longest time of these, the middle
# time of the panel's own code, and how long the page stands still after the drag, when a draft becomes the mask itself.
DRAG = """async ([kind, steps]) => {
    const view = document.querySelector('.bd-view'), box = view.getBoundingClientRect()
    const slider = document.querySelector('.bd-rows input[type=range]')
    let turns = 0
    const frame = () => new Promise(done => requestAnimationFrame(() => setTimeout(done, 0)))
    const press = key => view.dispatchEvent(new KeyboardEvent('keydown', {key, bubbles: true, cancelable: true}))
    const at = (x, y) => ({bubbles: true, cancelable: true, pointerId: 1,
                           clientX: box.left + box.width * x, clientY: box.top + box.height * y})
    const drags = {
        threshold: way => { slider.value = 0.05 + 0.5 * way; slider.dispatchEvent(new Event('input')) },
        hover: way => view.dispatchEvent(new PointerEvent('pointermove', at(0.3 + 0.4 * way, 0.3 + 0.3 * way))),
        zoom: way => view.dispatchEvent(new WheelEvent('wheel', {...at(0.5, 0.5), deltaY: way < 0.5 ? -1 : 1})),
        turn: () => press(turns++ % 2 ? 'ArrowLeft' : 'ArrowRight'),
        toggle: () => press('k'),
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
    let still = 0
    for (let now = performance.now(), end = now + 1000; now < end;) {
        await frame()
        still = Math.max(still, performance.now() - now)
        now = performance.now()
    }
    const middle = list => list.sort((a, b) => a - b)[list.length >> 1]
    return [middle(frames), Math.max(...frames), middle(own), still]
}"""
PLACE = """([type, width, settings]) => {
    const node = app.graph.nodes.find(node => node.type === type)
    node.pos = [0, 0]
    node.setSize([width, 1000])
    app.canvas.ds.scale = 1
    app.canvas.ds.offset = [300, 80]
    app.canvas.setDirty(true, true)
    for (const widget of node.widgets) if (widget.name in settings) {
        widget.value = settings[widget.name]
        widget.callback(widget.value)
    }
}"""


@contextmanager
def others_compute():
    """Every core is busy with something else."""
    beside = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(os.cpu_count() or 1)]
    try:
        yield
    finally:
        for process in beside:
            process.kill()
            process.wait()


def measure(browser, server: ComfyServer) -> None:
    print("ms per frame: middle, longest; of these the panel's own; still after it; load average of the machine")
    for name, batch in BATCHES.items():
        page = browser.new_page(viewport={"width": 1700, "height": 1200})
        page.set_default_timeout(600_000)
        page.goto(f"http://127.0.0.1:{server.port}/?template=quickstart&source=BayesDiff")
        page.wait_for_function("() => !location.search && window.app?.graph?.nodes?.length", polling=100)
        page.evaluate("graph => app.loadApiJson(graph, 'bench')", graph(*batch))
        page.evaluate("() => app.queuePrompt(0, 1)")
        page.wait_for_function(READY, polling=200)
        for width in WIDTHS:
            for drag, (kind, settings) in DRAGS.items():
                page.evaluate(PLACE, [VIEWER, width, {"grow": 8, "blur": 0} | settings])
                page.wait_for_timeout(1000)
                middle, longest, own, still = page.evaluate(DRAG, [kind, STEPS])
                print(
                    f"{name}, node of {width} px, {drag}: {middle:.0f}, {longest:.0f}; {own:.1f}; {still:.0f}; "
                    f"{os.getloadavg()[0]:.1f}",
                    flush=True,
                )
        page.close()


def main(arguments: list[str]) -> None:
    with tempfile.TemporaryDirectory() as folder, ComfyServer(Path(folder)) as server, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=os.environ["BAYESDIFF_CHROMIUM"])
        with others_compute() if "--busy" in arguments else nullcontext():
            measure(browser, server)
        browser.close()


if __name__ == "__main__":
    main(sys.argv[1:])

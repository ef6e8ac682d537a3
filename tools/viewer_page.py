"""The panel of Uncertainty Viewer in an open page of a real server; for the tests of the page and its benchmark."""

from __future__ import annotations

import numpy
from PIL import Image
from playwright.sync_api import expect

VIEWER = "BayesDiffUncertaintyViewer"
COUNT = 4
WIDGETS = """id => Object.fromEntries(app.graph.getNodeById(id).widgets.map(widget => [widget.name, widget.value]))"""
# Without it each run has another seed than the graph says.
FIX_SEEDS = """() => app.graph._nodes.flatMap(node => node.widgets ?? []).filter(
    widget => widget.name === 'control_after_generate').forEach(widget => { widget.value = 'fixed' })"""
MODULES = "/extensions/BayesDiff/viewer"


def demo_images(count: int, side: int = 128, seed: int = 3) -> dict[str, tuple[str, dict]]:
    """Images of the demo model, node 4, and their uncertainty, node 3: kinds and inputs by number."""
    return {
        "1": ("BayesDiffDemoModel", {"prompt": "owl"}),
        "2": ("EmptyLatentImage", {"width": side, "height": side, "batch_size": count}),
        "3": (
            "BayesDiffKSampler",
            dict(
                model=["1", 0], positive=["1", 1], negative=["1", 2], latent_image=["2", 0], seed=seed, steps=2,
                cfg=1.0, sampler_name="euler", scheduler="normal", denoise=1.0, quality="instant", members=2,
            ),
        ),
        "4": ("VAEDecode", {"samples": ["3", 0], "vae": ["1", 3]}),
    }  # fmt: skip


def as_graph(nodes: dict[str, tuple[str, dict]]) -> dict:
    return {name: {"class_type": kind, "inputs": inputs} for name, (kind, inputs) in nodes.items()}


def graph(count: int = COUNT, **viewer) -> dict:
    """Images of the demo model in the viewer, node 5; what was kept, and its masks, are saved."""
    nodes = demo_images(count) | {
        "5": (VIEWER, {"images": ["4", 0], "uncertainty": ["3", 1], "keep": 2, "grow": 0} | viewer),
        "6": ("SaveImage", {"images": ["5", 0], "filename_prefix": "page_kept"}),
        "7": ("MaskToImage", {"mask": ["5", 6]}),
        "8": ("SaveImage", {"images": ["7", 0], "filename_prefix": "page_mask"}),
        "9": ("SaveImage", {"images": ["4", 0], "filename_prefix": "page_all"}),
    }
    return as_graph(nodes)


class Panel:
    """The panel of one node in an open page."""

    def __init__(self, page, server, node_id: int = 5):
        self.page, self.server, self.node_id = page, server, node_id
        self.element = page.locator(".bd-panel").first
        self.items, self.view = self.element.locator(".bd-item"), self.element.locator(".bd-view")
        self.slider = self.element.get_by_role("slider", name="Threshold of the mask")
        self.said = self.element.locator("output")

    def widgets(self) -> dict:
        return self.page.evaluate(WIDGETS, self.node_id)

    def place(self, width: int = 520, height: int = 940) -> None:
        """The node alone in sight."""
        self.page.evaluate(
            """([id, width, height]) => {
                const node = app.graph.getNodeById(id), view = app.canvas.ds
                node.pos = [0, 0]
                node.setSize([width, height])
                const others = app.graph._nodes.filter(other => other !== node)
                others.forEach((other, i) => { other.pos = [-900, -900 + 90 * i] })
                view.scale = 1
                view.offset = [400, 160]
                app.canvas.setDirty(true, true)
            }""",
            [self.node_id, width, height],
        )
        self.page.wait_for_timeout(300)
        # Nodes 2.0 of older pages does not follow a position that a script sets, so the view goes there.
        self.page.evaluate(
            """() => {
                const {left, top} = document.querySelector('.bd-panel').getBoundingClientRect(), view = app.canvas.ds
                if (left === 0 && top === 0) return  // not drawn yet
                view.offset = [view.offset[0] + 400 - left, view.offset[1] + 450 - top]
                app.canvas.setDirty(true, true)
            }"""
        )
        self.page.wait_for_timeout(300)

    def run(self, press=None) -> dict[str, list[numpy.ndarray]]:
        """Queue the graph, by default as the page's button does: the saved images by node."""
        before = self.page.evaluate("() => { window.done = 0; app.api.addEventListener('execution_success', "
                                    "event => { window.done = event.detail.prompt_id }, {once: true}) }")  # fmt: skip
        assert before is None
        (press or (lambda: self.page.evaluate("() => app.queuePrompt(0, 1)")))()
        self.page.wait_for_function("() => window.done", polling=100)
        entry = self.server.get(f"/history/{self.page.evaluate('() => window.done')}")
        files = self.server.files(next(iter(entry.values())))
        return {name: [numpy.asarray(Image.open(path)) for path in paths] for name, paths in files.items()}


def open_graph(page, server, api: dict | None, nodes_2: bool = False) -> Panel:
    """The viewer of a graph in the page, or of the quick start."""
    page.goto(f"http://127.0.0.1:{server.port}/?template=quickstart&source=BayesDiff")
    page.wait_for_function(
        "() => !location.search && window.app?.extensionManager?.workflow?.activeWorkflow?.filename === 'quickstart'",
        polling=100,
    )
    page.evaluate("on => app.extensionManager.setting.set('Comfy.VueNodes.Enabled', on)", nodes_2)
    if api is not None:
        page.evaluate("graph => app.loadApiJson(graph, 'viewer')", api)
    page.evaluate(FIX_SEEDS)
    panel = Panel(page, server, 5 if api else 7)
    panel.place()
    expect(panel.element).to_be_visible()
    return panel


def shown_masks(panel: Panel) -> dict[int, list[list[int]]]:
    """By image, the mask of each of its frames as the page computes it from what it was sent."""
    found = panel.page.evaluate(
        """async ([modules, id]) => {
            const {readLevels} = await import(`${modules}/levels.js`)
            const {ground, maskOf} = await import(`${modules}/mask.js`)
            const {sample} = await import(`${modules}/runs.js`)
            const upTo = length => Int32Array.from({length}, (_, i) => i)
            const [batch] = app.nodeOutputs[id].bayesdiff_viewer, found = {}
            const settings = Object.fromEntries(app.graph.getNodeById(id).widgets.map(w => [w.name, w.value]))
            for (const [i, {levels}] of batch.images.entries()) {
                const masks = await Promise.all(levels.map(async level => {
                    const file = await fetch(app.api.apiURL(`/view?${new URLSearchParams(level)}`))
                    const map = ground(readLevels(await file.arrayBuffer(), batch.cells), batch.size)
                    const {runs, sigma} = maskOf(map, settings, batch)
                    return [...sample(runs, sigma, upTo(runs.height), upTo(runs.width))]
                }))
                found[i] = batch.map_of.map(place => masks[place])
            }
            return found
        }""",
        [MODULES, panel.node_id],
    )
    return {int(number): frames for number, frames in found.items()}

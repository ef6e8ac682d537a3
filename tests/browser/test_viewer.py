"""The viewer's panel in ComfyUI's page: two front ends, each with its classic renderer and with Nodes 2.0."""

from __future__ import annotations

import json
import random
import re

import numpy
import pytest
import torch
from bayesdiff.bayesdiff_core.reading import levels, masks
from PIL import Image
from playwright.sync_api import expect

pytestmark = pytest.mark.timeout(900)

VIEWER = "BayesDiffUncertaintyViewer"
COUNT = 4
WIDGETS = """id => Object.fromEntries(app.graph.getNodeById(id).widgets.map(widget => [widget.name, widget.value]))"""
# Without it each run has another seed than the graph says.
FIX_SEEDS = """() => app.graph._nodes.flatMap(node => node.widgets ?? []).filter(
    widget => widget.name === 'control_after_generate').forEach(widget => { widget.value = 'fixed' })"""
MODULES = "/extensions/BayesDiff/viewer"


def graph(count: int = COUNT, **viewer) -> dict:
    """Images of the demo model in the viewer, node 5; what was kept, and its masks, are saved."""
    nodes = {
        "1": ("BayesDiffDemoModel", {"prompt": "owl"}),
        "2": ("EmptyLatentImage", {"width": 128, "height": 128, "batch_size": count}),
        "3": (
            "BayesDiffKSampler",
            dict(
                model=["1", 0], positive=["1", 1], negative=["1", 2], latent_image=["2", 0], seed=3, steps=2, cfg=1.0,
                sampler_name="euler", scheduler="normal", denoise=1.0, quality="instant", members=2,
            ),
        ),
        "4": ("VAEDecode", {"samples": ["3", 0], "vae": ["1", 3]}),
        "5": (VIEWER, {"images": ["4", 0], "uncertainty": ["3", 1], "keep": 2, "grow": 0} | viewer),
        "6": ("SaveImage", {"images": ["5", 0], "filename_prefix": "page_kept"}),
        "7": ("MaskToImage", {"mask": ["5", 6]}),
        "8": ("SaveImage", {"images": ["7", 0], "filename_prefix": "page_mask"}),
        "9": ("SaveImage", {"images": ["4", 0], "filename_prefix": "page_all"}),
    }  # fmt: skip
    return {name: {"class_type": kind, "inputs": inputs} for name, (kind, inputs) in nodes.items()}


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


def open_graph(page, server, api: dict, nodes_2: bool = False) -> Panel:
    page.goto(f"http://127.0.0.1:{server.port}/?template=quickstart&source=BayesDiff")
    page.wait_for_function(
        "() => !location.search && window.app?.extensionManager?.workflow?.activeWorkflow?.filename === 'quickstart'",
        polling=100,
    )
    page.evaluate("on => app.extensionManager.setting.set('Comfy.VueNodes.Enabled', on)", nodes_2)
    page.evaluate("graph => app.loadApiJson(graph, 'viewer')", api)
    page.evaluate(FIX_SEEDS)
    panel = Panel(page, server)
    panel.place()
    expect(panel.element).to_be_visible()
    return panel


@pytest.fixture
def panel(page, server):
    return open_graph(page, server, graph())


def shown_masks(panel: Panel) -> dict[int, list[int]]:
    """By image, the mask as the page computes it from what it was sent."""
    found = panel.page.evaluate(
        """async ([modules, id]) => {
            const {readLevels} = await import(`${modules}/levels.js`)
            const {ground, maskOf} = await import(`${modules}/mask.js`)
            const {sample} = await import(`${modules}/runs.js`)
            const upTo = length => Int32Array.from({length}, (_, i) => i)
            const [batch] = app.nodeOutputs[id].bayesdiff_viewer, found = {}
            const settings = Object.fromEntries(app.graph.getNodeById(id).widgets.map(w => [w.name, w.value]))
            for (const [i, {levels}] of batch.images.entries()) {
                const file = await fetch(app.api.apiURL(`/view?${new URLSearchParams(levels[0])}`))
                const map = ground(readLevels(await file.arrayBuffer(), batch.cells), batch.size)
                const {runs, sigma} = maskOf(map, settings, batch)
                found[i] = [...sample(runs, sigma, upTo(runs.height), upTo(runs.width))]
            }
            return found
        }""",
        [MODULES, panel.node_id],
    )
    return {int(number): mask for number, mask in found.items()}


# ---------------------------------------------------------------- from the first image to mask and choice


@pytest.mark.parametrize("nodes_2", [False, True], ids=["classic", "nodes 2.0"])
@pytest.mark.parametrize("front_end", ["server", "newest_server"])
def test_see_set_the_mask_choose_and_run(open_page, request, front_end, nodes_2):
    server = request.getfixturevalue(front_end)
    with open_page(server) as page:
        panel = open_graph(page, server, graph(), nodes_2)
        expect(panel.element).to_contain_text("Run the graph once")
        images = panel.run()["9"]
        expect(panel.items).to_have_count(COUNT)
        expect(panel.said.last).to_contain_text("Automatic: the surest 2 of 4 go on")
        expect(panel.said.first).to_contain_text("15.0 % masked")
        (batch,) = page.evaluate("() => app.nodeOutputs[5].bayesdiff_viewer")

        # The slider says at once what it masks.
        panel.slider.focus()
        for _ in range(3):
            page.keyboard.press("ArrowRight")
        expect(panel.said.first).to_contain_text("16.5 % masked")
        assert panel.widgets()["area"] == pytest.approx(0.165)

        # One dropped by a click, one kept by a key.
        panel.items.nth(0).locator(".bd-mark").click()
        panel.view.click()
        page.keyboard.press("4")
        kept = sorted([batch["order"][1], batch["order"][3]])
        assert panel.widgets()["choice"] == ", ".join(map(str, kept))
        expect(panel.said.last).to_contain_text("Your choice: 2 of 4 go on.")
        found = panel.run(lambda: page.keyboard.press("Enter"))
        assert [numpy.array_equal(image, images[i]) for image, i in zip(found["6"], kept, strict=True)] == [True, True]
        masks = shown_masks(panel)
        for image, i in zip(found["8"], kept, strict=True):
            assert (image[..., 0].flatten() > 0).astype(int).tolist() == masks[i]

        # Both are steps to undo, and the panel follows.
        page.keyboard.press("Control+z")
        page.wait_for_function(f"() => ({WIDGETS})(5).choice.split(',').length === 1")
        expect(panel.said.last).to_contain_text("Your choice: 1 of 4 go on.")
        expect(panel.items).to_have_count(COUNT)


def test_a_reload_keeps_the_choice_and_the_threshold(panel, page):
    panel.run()
    panel.view.click()
    page.keyboard.press("1")
    panel.slider.focus()
    page.keyboard.press("End")
    chosen = panel.widgets()
    assert chosen["area"] == 1 and chosen["choice"]
    # The page keeps the graph a moment after each change.
    page.wait_for_function("text => Object.values(sessionStorage).concat(Object.values(localStorage)).some("
                           "kept => kept.includes(text))", arg=json.dumps(chosen["choice"]))  # fmt: skip
    page.reload()
    page.wait_for_function(f"() => window.app?.graph?.getNodeById(5)?.widgets && ({WIDGETS})(5).area === 1")
    assert panel.widgets() == chosen


def test_two_viewers_and_a_batch_that_shrank(page, server):
    two = graph(choice="1, 3")
    two["15"] = {"class_type": VIEWER, "inputs": {"images": ["4", 0], "uncertainty": ["3", 1], "keep": 3}}
    panel = open_graph(page, server, two)
    panel.run()
    said = page.locator(".bd-panel").filter(has_text="Automatic: the surest 3 of 4")
    expect(said).to_have_count(1)
    expect(page.locator(".bd-panel").filter(has_text="Your choice: 2 of 4")).to_have_count(1)
    page.evaluate("() => { app.graph.getNodeById(2).widgets.find(w => w.name === 'batch_size').value = 2 }")
    found = panel.run()
    assert len(found["6"]) == 1
    expect(page.locator(".bd-panel").filter(has_text="Your choice: 1 of 2")).to_have_count(1)


def test_other_images_than_those_of_the_choice_are_told(panel, page):
    panel.run()
    panel.view.click()
    page.keyboard.press("1")
    page.evaluate("() => { app.graph.getNodeById(3).widgets.find(w => w.name === 'seed').value = 4 }")
    panel.run()
    expect(panel.said.last).to_contain_text("These are other images than those you chose from")


# ---------------------------------------------------------------- bad input


def test_what_is_wrong_is_one_sentence_in_the_panel_and_never_html(page, server):
    hostile = "<img src=x onerror='window.hostile = 1'>"
    api = graph()
    api["10"] = {"class_type": "ImageFromBatch", "inputs": {"image": ["4", 0], "batch_index": 0, "length": 3}}
    api["5"]["inputs"]["images"] = ["10", 0]
    panel = open_graph(page, server, api)
    page.evaluate(
        "title => { const n = app.graph.getNodeById(5); n.title = title; n.properties.bayesdiff_chosen_of = title }",
        hostile,
    )
    page.evaluate("() => app.queuePrompt(0, 1)")
    expect(panel.element).to_contain_text("Expected 4 in the batch at the input images, one per score, got 3")
    problem = {"problem": hostile}
    page.evaluate("told => app.graph.getNodeById(5).onExecuted({bayesdiff_viewer: [told]})", problem)
    expect(panel.element).to_contain_text("<img src=x")
    assert page.evaluate("() => window.hostile") is None


def test_what_is_unknown_says_why(panel, page):
    panel.run()
    batch = page.evaluate("() => app.nodeOutputs[5].bayesdiff_viewer[0]")
    number, *surer = reversed(batch["order"])
    batch["images"][number] |= {"levels": None, "score": None}
    batch["unknown"] = "The model could not be read."
    page.evaluate("told => app.graph.getNodeById(5).onExecuted({bayesdiff_viewer: [told]})", batch)
    expect(panel.element.locator(".bd-notice")).to_have_text("The model could not be read.")
    panel.view.focus()
    for _ in surer:
        page.keyboard.press("ArrowRight")
    expect(panel.element.locator(".bd-title")).to_contain_text("uncertainty unknown")
    expect(panel.element.get_by_role("combobox", name="Look")).to_have_value("plain")
    expect(panel.said.first).to_be_empty()


def test_the_frames_of_a_clip_turn_image_map_and_mask_together(panel, page):
    """Two clips of the four images: three frames each, of which the last two have one map."""
    panel.run()
    batch = page.evaluate("() => app.nodeOutputs[5].bayesdiff_viewer[0]")
    one, other = batch["images"][:2]
    frames = {"images": [*one["images"], *other["images"], *one["images"]], "levels": one["levels"] + other["levels"]}
    batch |= {"images": [one | frames, other | frames], "order": [0, 1], "map_of": [0, 1, 1]}
    page.evaluate("told => app.graph.getNodeById(5).onExecuted({bayesdiff_viewer: [told]})", batch)
    scrubber = panel.element.get_by_role("slider", name="Frame of the clip")
    shown = panel.view.locator("img").first
    page.evaluate(
        """async ([modules, batch]) => {
            const {brightestOf, paint} = await import(`${modules}/colours.js`)
            const {readLevels} = await import(`${modules}/levels.js`)
            window.heats = []
            for (const file of batch.images[0].levels) {
                const answer = await fetch(app.api.apiURL(`/view?${new URLSearchParams(file)}`))
                const map = readLevels(await answer.arrayBuffer(), batch.cells)
                const canvas = document.createElement('canvas')
                paint(canvas, map, brightestOf(map), true)
                window.heats.push(canvas.toDataURL())
            }
        }""",
        [MODULES, batch],
    )
    scrubber.focus()
    for frame, of in enumerate(batch["map_of"]):
        expect(panel.element.locator(".bd-count")).to_have_text(f"{frame + 1} / 3")
        expect(shown).to_have_attribute("src", re.compile(frames["images"][frame]["filename"]))
        heat = "document.querySelector('.bd-stage canvas').toDataURL()"
        page.wait_for_function(f"of => window.heats[of] === {heat}", arg=of, timeout=60_000)
        expect(panel.said.first).to_contain_text("15.0 % masked")
        page.keyboard.press("ArrowRight")


# ---------------------------------------------------------------- keys, names, widths, languages


def test_the_keyboard_is_enough_and_everything_has_a_name(panel, page):
    panel.run()
    panel.view.focus()
    title = panel.element.locator(".bd-title")
    expect(title).to_contain_text("1 of 4")
    page.keyboard.press("ArrowRight")
    expect(title).to_contain_text("2 of 4")
    zoom = "() => document.querySelector('.bd-stage').style.transform + document.querySelector('.bd-stage').style.width"
    fitted = page.evaluate(zoom)
    page.keyboard.press("Space")
    assert page.evaluate(zoom) != fitted
    page.keyboard.press("0")
    assert page.evaluate(zoom) == fitted
    look = panel.element.get_by_role("combobox", name="Look")
    page.keyboard.press("m")
    expect(look).to_have_value("plain")
    look.select_option("wipe")
    border = panel.element.get_by_role("slider", name="Border between the two pictures")
    border.focus()
    page.keyboard.press("Home")
    expect(border).to_have_attribute("aria-valuenow", "0")
    panel.items.nth(1).focus()
    page.keyboard.press("Space")
    expect(panel.items.nth(1)).to_have_attribute("aria-selected", "false")
    page.keyboard.press("ArrowLeft")
    expect(panel.items.nth(0)).to_be_focused()
    unnamed = panel.element.evaluate(
        """panel => [...panel.querySelectorAll('button, input, select, [role=slider], [role=option], [role=listbox], '
            + '[tabindex="0"]')].filter(e => !(e.getAttribute('aria-label') || e.textContent || '').trim())
            .map(e => e.outerHTML)"""
    )
    assert unnamed == []


def test_sixty_four_images_fit_from_320_to_1200_pixels(page, server):
    panel = open_graph(page, server, graph(count=64))
    panel.run()
    expect(panel.items).to_have_count(64)
    for width in (320, 480, 1200):
        panel.place(width)
        page.wait_for_timeout(500)
        wide = panel.element.evaluate(
            """panel => [...panel.querySelectorAll('.bd-row, .bd-view, .bd-strip, .bd-said')].filter(e => e.offsetWidth)
                .filter(e => e.getBoundingClientRect().right > panel.getBoundingClientRect().right + 1).length"""
        )
        assert wide == 0 and panel.view.bounding_box()["height"] > 150, width


def test_the_panel_speaks_the_language_of_the_page(panel, page):
    page.evaluate("() => app.extensionManager.setting.set('Comfy.Locale', 'zh')")
    page.evaluate("graph => app.loadApiJson(graph, 'viewer')", graph())
    expect(panel.element).to_contain_text("先运行一次工作流")


# ---------------------------------------------------------------- the same mask as torch


def random_case(number: int) -> dict:
    """A map, ties and flat ones too, and thresholds on it; what torch makes of them, as text of 0 and 1."""
    draw, generator = random.Random(number), torch.Generator().manual_seed(number)
    shape, size = [draw.randint(1, 20) for _ in range(2)], [draw.randint(1, 90) for _ in range(2)]
    cells = {
        0: lambda: torch.randint(0, 65536, shape, generator=generator),
        1: lambda: torch.randint(0, 3, shape, generator=generator) * 30000,
        2: lambda: torch.full(shape, draw.choice([0, 1, 65535])),
        3: lambda: (torch.rand(shape, generator=generator) ** 8 * 65535).round().long(),
    }[number % 4]()
    top = draw.random() * draw.choice([0, 1, 100])
    area, std, percentile = (
        draw.choice([0, 1, draw.random()]),
        top * draw.random(),
        draw.choice([0, 100, 99.95, 100 * draw.random()]),
    )
    percentiles = levels.Levels(cells[None], top, torch.tensor([True])).percentiles()
    values = levels.enlarge(cells, *size)
    masks = [
        levels.most_uncertain(values, area),
        levels.above_std(values, std, top),
        levels.above_percentile(values, percentile, percentiles),
    ]
    return {
        "cells": cells.flatten().tolist(), "shape": shape, "size": size, "area": area, "std": std, "top": top,
        "percentile": percentile, "percentiles": percentiles,
        "masks": ["".join(map(str, mask.flatten().int().tolist())) for mask in masks],
    }  # fmt: skip


def test_the_page_and_torch_make_the_same_mask_to_the_pixel(page, server):
    page.goto(f"http://127.0.0.1:{server.port}/system_stats")
    cases = [random_case(number) for number in range(200)]
    found = page.evaluate(
        """async ([modules, cases]) => {
            const {enlarge, mostUncertain, aboveStd, abovePercentile} = await import(`${modules}/levels.js`)
            const {sample} = await import(`${modules}/runs.js`)
            const upTo = length => Int32Array.from({length}, (_, i) => i)
            return cases.map(({cells, shape, size, area, std, top, percentile, percentiles}) => {
                const map = enlarge({cells: Uint16Array.from(cells), rows: shape[0], columns: shape[1]}, size)
                const above = abovePercentile(map, percentile, percentiles)
                return [mostUncertain(map, area), aboveStd(map, std, top), above].map(
                    mask => sample(mask, 0, ...size.map(upTo)).join(''))
            })
        }""",
        [MODULES, cases],
    )
    assert found == [case["masks"] for case in cases]
    assert any("1" in mask and "0" in mask for case in cases for mask in case["masks"])


@pytest.mark.parametrize(("cells", "most"), [(128, 65536), (512, 65536), (128, 4), (37, 65536)])
def test_so_they_do_on_a_map_of_4k(page, server, cells, most):
    """Compared by the runs of each row: where they begin and end."""
    page.goto(f"http://127.0.0.1:{server.port}/system_stats")
    generator, height, width = torch.Generator().manual_seed(cells), 2160, 4096
    smooth = torch.linspace(0, 6, cells).sin().square()[:, None] * torch.linspace(0, 9, cells).cos().square()
    noise = torch.rand(cells, cells, generator=generator)
    level = ((0.7 * smooth + 0.3 * noise) * (most - 1)).round().long() * (65535 // (most - 1))
    values, top = levels.enlarge(level, height, width), 0.7
    percentiles = levels.Levels(level[None], top, torch.tensor([True])).percentiles()
    expected = [
        levels.most_uncertain(values, 0.15),
        levels.above_std(values, 0.31, top),
        levels.above_percentile(values, 90, percentiles),
    ]
    found = page.evaluate(
        """async ([modules, cells, side, size, top, percentiles]) => {
            const {aboveStd, abovePercentile, enlarge, mostUncertain} = await import(`${modules}/levels.js`)
            const map = enlarge({cells: Uint16Array.from(cells), rows: side, columns: side}, size)
            const masks = [mostUncertain(map, 0.15), aboveStd(map, 0.31, top), abovePercentile(map, 90, percentiles)]
            return masks.map(({starts, ends}) => [[...starts], [...ends.subarray(0, starts.at(-1))]])
        }""",
        [MODULES, level.flatten().tolist(), cells, [height, width], top, percentiles],
    )
    for mask, (starts, ends) in zip(expected, found, strict=True):
        changes = torch.nn.functional.pad(mask.int(), (1, 1)).diff(dim=1).nonzero()
        assert changes[:, 1].tolist() == ends
        assert [0, *torch.bincount(changes[:, 0], minlength=height).cumsum(0).tolist()] == starts


def test_the_page_grows_and_blurs_as_the_mask_node(page, server):
    page.goto(f"http://127.0.0.1:{server.port}/system_stats")
    generator = torch.Generator().manual_seed(1)
    for height, width, pixels, sigma in ((40, 60, 0, 3.0), (64, 50, 4, 0.5), (30, 20, 40, 2.5), (17, 33, 1, 12.0)):
        mask = (torch.rand(1, height, width, generator=generator) > 0.95).float()
        found, share = page.evaluate(
            """async ([path, mask, height, width, pixels, sigma]) => {
                const {Writer, grow, sample, share} = await import(path)
                const runs = new Writer(height, width), upTo = length => Int32Array.from({length}, (_, i) => i)
                for (let y = 0; y < height; y++, runs.endRow())
                    for (let x = 0; x < width; x++) if (mask[y * width + x]) runs.add(x, x + 1)
                const wider = grow(runs, pixels)
                return [[...sample(wider, sigma, upTo(height), upTo(width))], share(wider, sigma)]
            }""",
            [f"{MODULES}/runs.js", mask.flatten().int().tolist(), height, width, pixels, sigma],
        )
        expected = masks.blur(masks.grow(mask, pixels), sigma)
        assert torch.allclose(torch.tensor(found, dtype=torch.float32), expected.flatten(), atol=1e-5)
        assert share == pytest.approx(float(expected.mean()), abs=1e-5)

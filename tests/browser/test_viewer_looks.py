"""How the viewer's panel is looked at and heard: keys, names, widths, themes, languages, clips."""

from __future__ import annotations

import re

import pytest
import torch
from bayesdiff.bayesdiff_core.reading import levels
from playwright.sync_api import expect
from viewer_page import MODULES, graph, open_graph

pytestmark = pytest.mark.timeout(900)


@pytest.fixture
def panel(page, server):
    return open_graph(page, server, graph())


def test_pointing_at_the_image_reads_the_map_there(panel, page):
    panel.run()
    (batch,) = page.evaluate("() => app.nodeOutputs[5].bayesdiff_viewer")
    data = page.evaluate(
        "async file => [...new Uint16Array(await (await fetch("
        "app.api.apiURL(`/view?${new URLSearchParams(file)}`))).arrayBuffer())]",
        batch["images"][batch["order"][0]]["levels"][0],
    )
    height, width = batch["size"]
    std = levels.enlarge(torch.tensor(data).reshape(batch["cells"]), height, width) / levels.unit(height, width)
    std = std / levels.MOST * batch["top"]
    box = panel.view.locator("img").first.bounding_box()
    for row, column in ((10, 20), (64, 64), (127, 100)):
        page.mouse.move(
            box["x"] + (column + 0.5) / width * box["width"], box["y"] + (row + 0.5) / height * box["height"]
        )
        expect(panel.element.locator(".bd-reading")).to_contain_text("of all maps")
        said = panel.element.locator(".bd-reading .bd-said").inner_text()
        shown, above = map(float, re.fullmatch(r"std ([\d.e-]+) · above ([\d.]+) % of all maps", said).groups())
        assert shown == pytest.approx(float(std[row, column]), rel=0.005)
        assert 0 <= above <= 100
    page.mouse.move(5, 5)
    expect(panel.element.locator(".bd-reading")).to_contain_text("Point at the image")


# Numbers are left out.
HEARD = """\
- region "Uncertainty viewer":
  - button "Surer image (←)": ‹
  - text: Image #, # of # · score #
  - button "Less sure image (→)": ›
  - button "✓ Kept" [pressed]
  - 'group "Image #. Arrows: other image. K: keep or drop. Space: zoom. Plus, minus: zoom. M: map. Enter: run."':
    - img "Image #"
  - text: Point at the image to read its values. Click it, then the wheel zooms.
  - button "Zoom out (−)": −
  - button "Zoom in (+)": +
  - button "Fit (#)": ⤢
  - text: Look
  - combobox "Look":
    - option "Map over image" [selected]
    - 'option "Wipe: image and map"'
    - option "Image alone"
  - slider "Opacity of the map": "#"
  - text: Mask
  - combobox "How the mask is set":
    - option "Area share" [selected]
    - option "Value"
    - option "Percentile"
  - slider "Threshold of the mask": "#"
  - spinbutton "Threshold of the mask": "#"
  - status: # % masked
  - text: Grow px
  - spinbutton "Grow px": "#"
  - text: Blur px
  - spinbutton "Blur px": "#"
  - text: Choose
  - button "Surest"
  - spinbutton "How many of the surest images to keep": "#"
  - button "All"
  - button "None"
  - button "Invert"
  - status: "Automatic: the surest # of # go on. Click ✓ or ✗, or press # to #, to choose yourself."
  - button "Run (Enter)"
  - listbox "All images, the surest first. Space keeps or drops.":
    - option "Image #, score #, Kept" [selected]
    - option "Image #, score #, Kept" [selected]
    - option "Image #, score #, Dropped"
    - option "Image #, score #, Dropped\""""


def test_a_screen_reader_hears_every_control_with_its_role_and_name(panel):
    panel.run()
    expect(panel.said.first).to_contain_text("masked")
    assert re.sub(r"\d+(\.\d+)?", "#", panel.element.aria_snapshot()) == HEARD
    # The border of a wipe is there only while something is wiped.
    panel.element.get_by_role("combobox", name="Look").select_option("wipe")
    assert '- slider "Border between the two pictures"' in panel.element.aria_snapshot()


def contrast(ink: str, ground: str) -> float:
    """Of two colours of CSS, after WCAG 2."""

    def light(colour: str) -> float:
        parts = [int(part) / 255 for part in re.findall(r"\d+", colour)[:3]]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    brighter, darker = sorted((light(ink), light(ground)), reverse=True)
    return (brighter + 0.05) / (darker + 0.05)


@pytest.mark.parametrize("theme", ["dark", "light"])
def test_words_can_be_read_in_both_themes(panel, page, theme):
    """Against what lies behind them, by the measure of WCAG 2 for text."""
    panel.run()
    page.evaluate("theme => app.extensionManager.setting.set('Comfy.ColorPalette', theme)", theme)
    page.wait_for_function("dark => document.body.classList.contains('dark-theme') === dark", arg=theme == "dark")
    found = panel.element.evaluate(
        """panel => {
            const canvas = document.createElement('canvas').getContext('2d')
            const rgb = colour => {
                canvas.fillStyle = colour
                canvas.fillRect(0, 0, 1, 1)
                return `rgb(${canvas.getImageData(0, 0, 1, 1).data.slice(0, 3).join()})`
            }
            const clear = colour => /rgba\\(.*, 0\\)|transparent/.test(colour)
            const ground = element => {
                for (; element !== panel.parentElement; element = element.parentElement) {
                    const colour = getComputedStyle(element).backgroundColor
                    if (!clear(colour)) return rgb(colour)
                }
                return rgb(LiteGraph.NODE_DEFAULT_BGCOLOR)
            }
            return [...panel.querySelectorAll('span, button, select, input[type=number], output, label')]
                .filter(e => e.offsetWidth && !e.closest('.bd-view, .bd-thumb')
                    && [...e.childNodes].some(n => n.nodeType === 3 || e.matches('input')))
                .map(e => [e.textContent || e.value, rgb(getComputedStyle(e).color), ground(e)])
        }"""
    )
    assert len(found) > 15
    assert [(words, ink, ground) for words, ink, ground in found if contrast(ink, ground) < 4.5] == []


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


def test_sixty_four_images_fit_from_320_to_1200_pixels(anywhere):
    panel = anywhere(graph(count=64))
    panel.run()
    expect(panel.items).to_have_count(64)
    for width in (320, 480, 1200):
        panel.place(width)
        panel.page.wait_for_timeout(500)
        wide = panel.element.evaluate(
            """panel => {
                const end = panel.getBoundingClientRect().right + 1, node = panel.closest('[data-node-id]')
                if (node && node.getBoundingClientRect().right < end - 1) return ['the panel itself']
                return [...panel.querySelectorAll('.bd-row, .bd-view, .bd-strip, .bd-said')].filter(
                    e => e.offsetWidth && e.getBoundingClientRect().right > end).map(e => e.className)
            }"""
        )
        assert wide == [] and panel.view.bounding_box()["height"] > 150, width


def test_the_panel_speaks_the_language_of_the_page(panel, page):
    speak = "async language => await app.extensionManager.setting.set('Comfy.Locale', language)"
    page.evaluate(speak, "zh")
    try:
        page.evaluate("graph => app.loadApiJson(graph, 'viewer')", graph())
        expect(panel.element).to_contain_text("先运行一次工作流")
    finally:  # the server would remember it
        page.evaluate(speak, "en")


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

"""How the viewer's panel is looked at and heard: keys, names, widths, themes, languages, clips."""

from __future__ import annotations

import re

import pytest
from playwright.sync_api import expect
from viewer_page import MODULES, graph, open_graph

pytestmark = pytest.mark.timeout(900)


@pytest.fixture
def panel(page, server):
    return open_graph(page, server, graph())


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

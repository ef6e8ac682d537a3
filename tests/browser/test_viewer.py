"""The viewer's panel in ComfyUI's page: two front ends, each with its classic renderer and with Nodes 2.0."""

from __future__ import annotations

import re

import numpy
import pytest
from playwright.sync_api import expect
from viewer_page import COUNT, VIEWER, WIDGETS, graph, open_graph, shown_masks

pytestmark = pytest.mark.timeout(900)


@pytest.fixture
def panel(page, server):
    return open_graph(page, server, graph())


# ---------------------------------------------------------------- from the first image to mask and choice


def test_see_set_the_mask_choose_and_run(anywhere):
    panel = anywhere(graph())
    page = panel.page
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
        assert [(image[..., 0].flatten() > 0).astype(int).tolist()] == masks[i]

    # Both are steps to undo, and the panel follows.
    page.keyboard.press("Control+z")
    page.wait_for_function(f"() => ({WIDGETS})(5).choice.split(',').length === 1")
    expect(panel.said.last).to_contain_text("Your choice: 1 of 4 go on.")
    expect(panel.items).to_have_count(COUNT)

    # A reload keeps what was chosen, once the page has kept the graph, which it does a moment after each change.
    chosen = panel.widgets()
    page.wait_for_function(
        "text => [localStorage, sessionStorage].flatMap(kept => Object.values(kept)).some("
        "kept => kept.replaceAll('\\\\', '').includes(text))",
        arg=f',"{chosen["choice"]}"]',
    )
    page.reload()
    page.wait_for_function(f"text => window.app?.graph?.getNodeById(5)?.widgets && ({WIDGETS})(5).choice === text",
                           arg=chosen["choice"])  # fmt: skip
    assert panel.widgets() == chosen


def test_outputs_that_the_page_restores_late_are_shown(panel, page):
    panel.run()
    # The node made anew, as by an undo, while the page does not know its outputs yet.
    page.evaluate("() => { window.kept = app.nodeOutputs[5]; delete app.nodeOutputs[5]; "
                  "app.graph.configure(app.graph.serialize()) }")  # fmt: skip
    expect(panel.element).to_contain_text("Run the graph once")
    page.evaluate("() => { app.nodeOutputs[5] = window.kept }")
    expect(panel.items).to_have_count(COUNT)
    expect(panel.said.last).to_contain_text("Automatic: the surest 2 of 4 go on")


def test_all_none_invert_and_the_surest(panel, page):
    panel.run()
    order = page.evaluate("() => app.nodeOutputs[5].bayesdiff_viewer[0].order")

    def press(name: str) -> str:
        panel.element.get_by_role("button", name=name, exact=True).click()
        return panel.widgets()["choice"]

    assert press("All") == "all" and press("None") == "none" and press("Invert") == "all"
    panel.items.nth(2).focus()
    page.keyboard.press("Space")
    assert press("Invert") == str(order[2])
    count = panel.element.get_by_role("spinbutton", name="How many of the surest images to keep")
    count.fill("3")
    count.press("Tab")
    assert panel.widgets()["keep"] == 3 and panel.widgets()["choice"] == ""
    expect(panel.said.last).to_contain_text("Automatic: the surest 3 of 4 go on")
    for place in range(COUNT):
        expect(panel.items.nth(place)).to_have_attribute("aria-selected", "true" if place < 3 else "false")


def test_what_another_node_sets_cannot_be_moved_here(page, server):
    api = graph()
    api["16"] = {"class_type": "PrimitiveFloat", "inputs": {"value": 0.3}}
    api["5"]["inputs"]["area"] = ["16", 0]
    panel = open_graph(page, server, api)
    found = panel.run()
    expect(panel.slider).to_be_disabled()
    expect(panel.slider).to_have_attribute("title", "Set by another node")
    assert [(image[..., 0] > 0).mean() for image in found["8"]] == pytest.approx([0.3, 0.3], abs=1e-3)
    expect(panel.said.first).to_contain_text("30.0 % masked")


def test_the_quick_start_shows_its_images_and_redraws_what_is_masked(anywhere):
    panel = anywhere(None)
    # Without the part about heads, which takes the longest.
    panel.page.evaluate("() => [3, 21, 22, 23, 24, 25].forEach(id => { app.graph.getNodeById(id).mode = 2 })")
    found = panel.run()
    expect(panel.items).to_have_count(COUNT)
    expect(panel.said.last).to_contain_text("Automatic: the surest 4 of 4 go on")
    masks = shown_masks(panel)
    for number, image in enumerate(found["16"]):
        assert [(image[..., 0].flatten() > 0).astype(int).tolist()] == masks[number]
    panel.items.last.locator(".bd-mark").click()
    expect(panel.said.last).to_contain_text("Your choice: 3 of 4 go on.")
    assert len(panel.run()["17"]) == 3


def test_two_viewers_and_a_batch_that_shrank(anywhere):
    two = graph(choice="1, 3")
    two["15"] = {"class_type": VIEWER, "inputs": {"images": ["4", 0], "uncertainty": ["3", 1], "keep": 3}}
    panel = anywhere(two)
    panels = panel.page.locator(".bd-panel")
    panel.run()
    expect(panels.filter(has_text="Automatic: the surest 3 of 4")).to_have_count(1)
    expect(panels.filter(has_text="Your choice: 2 of 4")).to_have_count(1)
    # What is set in one, which may lie out of sight, is not set in the other.
    other = panels.filter(has_text="the surest 3 of 4")
    other.get_by_role("button", name="All", exact=True, include_hidden=True).dispatch_event("click")
    expect(panels.filter(has_text="Your choice: 4 of 4")).to_have_count(1)
    expect(panels.filter(has_text="Your choice: 2 of 4")).to_have_count(1)
    panel.page.evaluate("() => { app.graph.getNodeById(2).widgets.find(w => w.name === 'batch_size').value = 2 }")
    found = panel.run()
    assert len(found["6"]) == 1
    expect(panels.filter(has_text="Your choice: 1 of 2")).to_have_count(1)


def test_the_same_images_with_other_maps_are_shown_anew(page, server):
    """As after a change of quality: no image differs; scores, order and maps of the strip do."""
    api = graph()
    api["13"] = {"class_type": api["3"]["class_type"], "inputs": api["3"]["inputs"] | {"seed": 4}}
    panel = open_graph(page, server, api)
    panel.run()
    before = page.evaluate("() => app.nodeOutputs[5].bayesdiff_viewer[0]")
    page.evaluate("() => app.graph.getNodeById(13).connect(1, app.graph.getNodeById(5), 'uncertainty')")
    panel.run()
    after = page.evaluate("() => app.nodeOutputs[5].bayesdiff_viewer[0]")
    assert [each["images"] for each in before["images"]] == [each["images"] for each in after["images"]]
    for place, number in enumerate(after["order"]):
        assert before["images"][number]["score"] != after["images"][number]["score"]
        score = float(f"{after['images'][number]['score']:.3g}")
        words = re.compile(re.escape(f"Image {number}, score {score}"))
        expect(panel.items.nth(place)).to_have_attribute("aria-label", words)


def test_other_images_than_those_of_the_choice_are_told(panel, page):
    panel.run()
    panel.view.click()
    page.keyboard.press("1")
    page.evaluate("() => { app.graph.getNodeById(3).widgets.find(w => w.name === 'seed').value = 4 }")
    panel.run()
    expect(panel.said.last).to_contain_text("These are other images than those you chose from")


# ---------------------------------------------------------------- bad input


def test_what_is_wrong_is_one_sentence_in_the_panel(page, server):
    api = graph()
    api["10"] = {"class_type": "ImageFromBatch", "inputs": {"image": ["4", 0], "batch_index": 0, "length": 3}}
    api["5"]["inputs"]["images"] = ["10", 0]
    panel = open_graph(page, server, api)
    page.evaluate("() => app.queuePrompt(0, 1)")
    expect(panel.element).to_contain_text("Expected 4 in the batch at the input images, one per score, got 3")


def test_without_images_the_panel_says_what_to_connect(page, server):
    api = graph()
    del api["5"]["inputs"]["images"]
    panel = open_graph(page, server, api)
    notice = panel.element.locator(".bd-notice")
    expect(notice).to_contain_text("Connect images and their uncertainty")
    page.evaluate("() => app.graph.getNodeById(4).connect(0, app.graph.getNodeById(5), 'images')")
    expect(notice).to_contain_text("Run the graph once")
    panel.run()
    expect(panel.items).to_have_count(COUNT)


HOSTILE = "<img src=x onerror='window.hostile = 1'><b class=hostile>"


def test_nothing_of_a_graph_a_file_or_a_message_becomes_html(page, server):
    """Hostile words at every place that the panel has them from."""
    panel = open_graph(page, server, graph(choice=HOSTILE))
    page.evaluate(
        "text => { const n = app.graph.getNodeById(5); n.title = text; n.properties.bayesdiff_chosen_of = text }",
        HOSTILE,
    )
    tell = "told => app.graph.getNodeById(5).onExecuted({bayesdiff_viewer: [told]})"
    page.evaluate(tell, {"problem": HOSTILE})
    expect(panel.element).to_contain_text("<img src=x")
    page.evaluate("() => { app.graph.getNodeById(5).widgets.find(w => w.name === 'choice').value = '' }")
    panel.run()
    batch = page.evaluate("() => app.nodeOutputs[5].bayesdiff_viewer[0]")
    batch["unknown"] = HOSTILE
    for number, each in enumerate(batch["images"]):
        for file in (each["thumb"], *each["images"]):
            file["filename"] = f"{number}{HOSTILE}.png"
    page.evaluate(tell, batch)
    # What is lost of the files replaces what was unknown.
    expect(panel.element.locator(".bd-notice")).to_have_text(
        "The images are no longer on the server. Run the graph again."
    )
    expect(panel.items).to_have_count(COUNT)
    page.evaluate(
        "message => app.api.dispatchCustomEvent('execution_error', {node_type: 'BayesDiffUncertaintyViewer', "
        "node_id: '5', exception_message: message, traceback: [], prompt_id: ''})",
        HOSTILE,
    )
    expect(panel.element).to_contain_text("<img src=x")
    assert panel.element.locator("[onerror], .hostile").count() == 0
    assert page.evaluate("() => window.hostile") is None


def test_a_map_that_is_no_number_says_so_and_harms_nothing_else(open_page, probed_server):
    api = graph()
    api["14"] = {"class_type": "Spoil", "inputs": {"uncertainty": ["3", 1]}}
    api["5"]["inputs"]["uncertainty"] = ["14", 0]
    with open_page(probed_server) as page:
        panel = open_graph(page, probed_server, api)
        found = panel.run()
        expect(panel.element.locator(".bd-notice")).to_contain_text("got NaN or infinity in 1 of 4 images")
        expect(panel.items).to_have_count(COUNT)
        expect(panel.items.last).to_have_attribute("aria-label", "Image 0, uncertainty unknown, Dropped")
        # The others have their maps and masks, and go on.
        expect(panel.said.first).to_contain_text("15.0 % masked")
        (batch,) = page.evaluate("() => app.nodeOutputs[5].bayesdiff_viewer")
        for image, number in zip(found["6"], sorted(batch["order"][:2]), strict=True):
            assert numpy.array_equal(image, found["9"][number])
        panel.items.last.click()
        expect(panel.said.first).to_be_empty()
        expect(panel.element.get_by_role("combobox", name="Look")).to_have_value("plain")
        page.keyboard.press("k")
        assert panel.widgets()["choice"] == ", ".join(map(str, sorted([0, *batch["order"][:2]])))


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

"""The pack as a user sees it: ComfyUI's own page in a real browser."""

from __future__ import annotations

import json
import re
from pathlib import Path

import make_workflows
import pytest
import viewer_page
from playwright.sync_api import expect

# More than two of its waits.
pytestmark = pytest.mark.timeout(900)

ROOT = Path(__file__).resolve().parents[2]
GRAPHS = {
    path.stem: json.loads(path.read_text(encoding="utf-8"))
    for path in sorted((ROOT / "tests" / "graphs").glob("*.json"))
}
# Those that name model files, which the page offers to download.
NEED_MODELS = ("sd15", "sdxl", "flux", "sdxl_refiner", "wan22")
# By node id: its widgets' values by name.
WIDGETS = """() => Object.fromEntries(app.graph._nodes.map(
    n => [n.id, Object.fromEntries((n.widgets || []).map(w => [w.name, w.value]))]))"""
# A node of a type alone in the graph: the names of what it asks for, and where on the page it lies.
ALONE = """type => {
    app.graph.clear()
    const node = LiteGraph.createNode(type), view = app.canvas.ds, box = app.canvas.canvas.getBoundingClientRect()
    app.graph.add(node)
    view.scale = 1.5
    view.offset = [400 - node.pos[0], 200 - node.pos[1]]
    app.canvas.draw(true, true)
    const [x, y] = [box.x + 400 * view.scale, box.y + 200 * view.scale], title = LiteGraph.NODE_TITLE_HEIGHT
    return {
        names: [...(node.inputs || []), ...(node.widgets || [])].map(input => input.name),
        part: {x: x - 6, y: y - title * view.scale - 6,
               width: node.size[0] * view.scale + 12, height: (node.size[1] + title) * view.scale + 12},
    }
}"""
# By node id: the widths of the images that it shows.
WIDTHS = "() => Object.fromEntries(app.graph._nodes.map(n => [n.id, (n.imgs || []).map(i => i.naturalWidth)]))"


def open_workflow(page, server, name: str) -> None:
    page.goto(f"http://127.0.0.1:{server.port}/?template={name}&source=BayesDiff")
    # The page takes the question off its address once the workflow is loaded, dialogs and all.
    page.wait_for_function(
        "name => !location.search && window.app?.extensionManager?.workflow?.activeWorkflow?.filename === name",
        arg=name,
        polling=100,
    )


def run(page) -> None:
    page.get_by_role("button", name="Run", exact=True).click()


# ---------------------------------------------------------------- templates


def test_the_template_browser_shows_every_workflow_with_its_image(page, server, screenshot):
    open_workflow(page, server, "quickstart")
    page.get_by_role("button", name="Templates").click()
    browser = page.get_by_role("dialog")
    browser.get_by_role("button", name="BayesDiff").click()
    cards = browser.get_by_test_id(re.compile("^template-workflow-"))
    expect(cards).to_have_count(len(GRAPHS))
    for name in GRAPHS:
        card = browser.get_by_test_id(f"template-workflow-{name}")
        card.scroll_into_view_if_needed()
        expect(card.get_by_role("img").first).to_have_js_property("naturalWidth", 384)
    cards.first.scroll_into_view_if_needed()
    for number in range(8):  # what was out of sight is loaded anew
        expect(cards.nth(number).get_by_role("img").first).to_have_js_property("naturalWidth", 384)
    screenshot("page_templates")
    browser.get_by_test_id("template-workflow-batch_filter").click()
    page.wait_for_function("() => app.extensionManager.workflow.activeWorkflow.filename === 'batch_filter'")


@pytest.mark.parametrize("name", GRAPHS)
def test_a_workflow_opens_whole_with_every_value_in_its_place(page, server, name):
    open_workflow(page, server, name)
    dialogs = page.get_by_role("dialog")
    if name in NEED_MODELS:
        expect(dialogs).to_have_count(1)
        expect(dialogs).to_contain_text("Missing Models")
    else:
        expect(dialogs).to_have_count(0)
    widgets = page.evaluate(WIDGETS)
    for node_id, node in GRAPHS[name].items():
        values = {key: value for key, value in node["inputs"].items() if not isinstance(value, list)}
        assert {key: widgets[node_id].get(key) for key in values} == values, node["_meta"]["title"]
    assert kinds_and_inputs(queued(page)) == kinds_and_inputs(make_workflows.runnable(GRAPHS[name]))


def queued(page) -> dict:
    """The graph as the page would queue it."""
    graph = page.evaluate("async () => (await app.graphToPrompt()).output")
    for node in graph.values():
        if node["class_type"] == "PreviewAny":
            node["inputs"].pop("preview", None)  # where the page shows the text
    return graph


def kinds_and_inputs(graph: dict) -> dict:
    return {node_id: (node["class_type"], node["inputs"]) for node_id, node in graph.items()}


def test_workflows_of_release_0_1_mean_on_the_page_what_the_tests_take_them_for(page, server):
    """What has come since has its default there: so a saved re-noising becomes a redrawing, see CHANGELOG.md."""
    open_workflow(page, server, "quickstart")
    object_info, methods = server.object_info(), []
    for path in sorted((ROOT / "tests" / "graphs" / "v0.1").glob("*.json")):
        workflow = json.loads(path.read_text(encoding="utf-8"))
        page.evaluate("graph => app.loadGraphData(graph)", workflow)
        graph = queued(page)
        expected = make_workflows.runnable(make_workflows.to_api(workflow, object_info))
        assert kinds_and_inputs(graph) == kinds_and_inputs(expected), path.stem
        methods += [n["inputs"]["method"] for n in graph.values() if n["class_type"] == "BayesDiffRenoise"]
    assert methods == ["redraw"]


def test_a_node_that_is_missing_would_be_told(page, server):
    """What the test above relies on: the page opens a dialog for a node that the host does not have."""
    open_workflow(page, server, "quickstart")
    text = (ROOT / "workflows" / "quickstart.json").read_text(encoding="utf-8")
    page.evaluate("graph => app.loadGraphData(graph)", json.loads(text.replace("BayesDiffKSampler", "NoSuchNode")))
    expect(page.get_by_role("dialog")).to_contain_text("NoSuchNode")


# ---------------------------------------------------------------- a run


def test_the_quick_start_runs_at_a_click_and_shows_its_pictures(page, server, screenshot):
    open_workflow(page, server, "quickstart")
    graph = GRAPHS["quickstart"]
    # All in view: the page loads the images of what it draws.
    page.evaluate("() => { const view = app.canvas.ds; view.scale = 0.42; view.offset = [80, 480] }")
    # Asked at every message: between two looks from outside a busy page may have got them all.
    page.evaluate(
        "() => { window.told = []; app.api.addEventListener('progress', "
        "event => window.told.push([event.detail.node, event.detail.value, event.detail.max, document.title])) }"
    )
    run(page)
    page.wait_for_function("() => window.told.filter(([node, value]) => node == 4 && value > 1).length > 3")
    screenshot("page_running")
    shown = [node_id for node_id, node in graph.items() if node["class_type"] == "SaveImage"]
    page.wait_for_function(
        "ids => document.querySelector('[role=dialog]') || !app.ui.lastQueueSize && ids.every("
        "id => app.graph.getNodeById(id).imgs?.every(i => i.complete))",
        arg=shown,
        polling=200,
    )
    expect(page.get_by_role("dialog")).to_have_count(0)
    told = [(value, total, title) for node, value, total, title in page.evaluate("() => window.told") if node == "4"]
    assert told[-1][0] == told[-1][1] and [value for value, *_ in told] == sorted(value for value, *_ in told)
    assert any(re.match(r"\[\d+%\]", title) for *_, title in told)
    widths = page.evaluate(WIDTHS)
    for node_id in shown:
        assert widths[node_id] == [260 if graph[node_id]["_meta"]["title"] == "Before and after" else 128] * 4
    expect(page.locator("table tr")).to_have_count(2 * (1 + 4))  # without a head, and with one
    screenshot("page_quickstart")
    panel = viewer_page.Panel(page, server, 7)
    panel.place(600, 900)
    expect(panel.items).to_have_count(4)
    panel.items.last.locator(".bd-mark").click()
    expect(panel.said.last).to_contain_text("Your choice: 3 of 4 go on.")
    panel.view.hover()
    page.wait_for_timeout(500)
    screenshot("page_viewer", panel.element.bounding_box())


# ---------------------------------------------------------------- nodes, help and refusals


def test_every_node_is_drawn_with_all_that_it_asks_for(page, server, screenshot):
    open_workflow(page, server, "quickstart")
    nodes = {
        name: about for name, about in server.object_info().items() if about["python_module"].endswith("BayesDiff")
    }
    assert len(nodes) == len(list((ROOT / "web" / "docs").glob("*.md")))
    for name, about in nodes.items():
        drawn = page.evaluate(ALONE, name)
        asked = {*about["input"].get("required", {}), *about["input"].get("optional", {})}
        assert asked <= {*drawn["names"]}, name
        page.wait_for_timeout(200)  # the canvas is drawn in its own time, and nothing tells when
        screenshot(f"node_{name}", drawn["part"])


def test_the_viewer_of_a_batch_is_drawn_with_what_was_chosen(page, server, screenshot):
    open_workflow(page, server, "see_and_choose")
    panel = viewer_page.Panel(page, server, 6)
    panel.place(560, 960)
    panel.run()
    expect(panel.items).to_have_count(8)
    panel.items.nth(3).locator(".bd-mark").click()
    expect(panel.said.last).to_contain_text("Your choice: 4 of 8 go on.")
    panel.view.hover()
    page.wait_for_timeout(500)
    screenshot("viewer", panel.element.bounding_box())


def test_the_help_page_of_a_node_opens_beside_it(page, server, screenshot):
    open_workflow(page, server, "quickstart")
    page.evaluate("() => { const n = app.graph.getNodeById(4); app.canvas.selectNode(n); app.canvas.centerOnNode(n) }")
    page.get_by_test_id("info-button").click()
    text = page.locator(".node-help-content")
    expect(text.get_by_role("heading", name="KSampler (BayesDiff)")).to_be_visible()
    expect(text).to_contain_text("plus a map of how unsure the model is")
    expect(text.get_by_role("img").first).to_have_js_property("naturalWidth", 560)
    screenshot("page_help")


REFUSALS = {
    "before the run": (
        ["4", "21"],  # the host runs what does not depend on a refused node
        "members",
        0,
        "Expected at least 2 ensemble members to measure a spread and at most 256, got 0; set members to 8 or so.",
    ),
    "in the run": (
        ["3"],
        "fit_on",
        "images",
        "Expected the input vae and the input image to fit on 'images', got nothing there; connect them, or set",
    ),
}


@pytest.mark.parametrize("when", REFUSALS)
def test_a_wrong_value_is_one_sentence_on_the_page(page, server, screenshot, when):
    open_workflow(page, server, "quickstart")
    *widget, sentence = REFUSALS[when]
    page.evaluate(
        "([ids, name, value]) => ids.forEach("
        "id => { app.graph.getNodeById(id).widgets.find(w => w.name === name).value = value })",
        widget,
    )
    run(page)
    expect(page.get_by_role("dialog")).to_contain_text(sentence)
    if when == "in the run":
        screenshot("page_refused")

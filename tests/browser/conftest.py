"""A Chromium of the system that looks at the server's own page; `python dev.py test --browser` names it."""

from __future__ import annotations

import io
import os
from contextlib import contextmanager
from pathlib import Path

import comfy_server
import pytest
import safetensors.torch
from PIL import Image
from playwright.sync_api import expect, sync_playwright
from small_models import video_model_weights, video_vae_weights
from viewer_page import open_graph

# A machine without a GPU draws the page slowly, and a busy one runs the quick start slowly.
PATIENCE_MS = 300_000
PROBE = Path(__file__).resolve().parents[1] / "server" / "probe"


def pytest_addoption(parser):
    parser.addoption("--screenshots", metavar="DIR", type=Path, help="where to leave pictures of the page")


@pytest.fixture(scope="session")
def browser():
    expect.set_options(timeout=PATIENCE_MS)
    with sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=os.environ["BAYESDIFF_CHROMIUM"])
        yield running
        running.close()


@pytest.fixture(scope="session")
def open_page(browser):
    """Called with a server: a page of a browser that has never seen it, for a ``with`` block.

    An error that no script of the page caught fails the test.
    """

    @contextmanager
    def opened(server):
        errors = []
        context = browser.new_context(viewport={"width": 1700, "height": 1200})
        context.add_init_script(
            "localStorage.setItem('vueNodesBannerDismissed', 'true')"
        )  # an announcement of the host
        context.set_default_timeout(PATIENCE_MS)
        page = context.new_page()
        page.on("pageerror", lambda error: errors.append(error.stack or error.message))
        yield page
        context.close()
        server.post("/queue", {"clear": True})
        server.interrupt()
        assert not errors

    return opened


@pytest.fixture(scope="session")
def probed_server(tmp_path_factory):
    """As the fixture server, with nodes that only tests need, and ComfyUI's own video model and video VAE, small."""
    folder = tmp_path_factory.mktemp("probed")
    for kind, weights in (("diffusion_models", video_model_weights()), ("vae", video_vae_weights())):
        (folder / "models" / kind).mkdir(parents=True)
        safetensors.torch.save_file(weights, folder / "models" / kind / "small.safetensors")
    with comfy_server.ComfyServer(folder, arguments=("--cache-classic",), packs=(PROBE,)) as running:
        yield running


@pytest.fixture
def page(open_page, server):
    with open_page(server) as opened:
        yield opened


@pytest.fixture(scope="session")
def newest_server(tmp_path_factory):
    """As the fixture server, with the newest front end."""
    arguments = ("--cache-classic", "--front-end-root", os.environ["BAYESDIFF_FRONT_END"])
    with comfy_server.ComfyServer(tmp_path_factory.mktemp("newest"), arguments=arguments) as running:
        yield running


EVERYWHERE = [(front_end, nodes_2) for front_end in ("server", "newest_server") for nodes_2 in (False, True)]


@pytest.fixture(params=EVERYWHERE, ids=["pinned-classic", "pinned-nodes2", "newest-classic", "newest-nodes2"])
def anywhere(open_page, request):
    """Called with a graph: its viewer's panel, in both front ends and both renderers."""
    front_end, nodes_2 = request.param
    server = request.getfixturevalue(front_end)
    with open_page(server) as page:
        yield lambda api: open_graph(page, server, api, nodes_2)


@pytest.fixture
def screenshot(page, pytestconfig, tmp_path):
    """Called with a name: a PNG of the page, or of a part of it, in 256 colours."""
    folder = pytestconfig.getoption("--screenshots") or tmp_path

    def save(name: str, part: dict | None = None) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        picture = Image.open(io.BytesIO(page.screenshot(clip=part))).convert("RGB")
        picture.quantize(256).save(folder / f"{name}.png", optimize=True)

    return save

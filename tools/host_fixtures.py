"""Fixtures of all tests that have a host: its modules in this process, and a server that is driven through its API."""

from __future__ import annotations

import comfy_server
import in_process
import pytest

in_process.import_host_and_pack()

import comfy.utils  # noqa: E402
import torch  # noqa: E402
from bayesdiff.host.demo_model import load_demo_model  # noqa: E402
from bayesdiff.host.settings import Guidance  # noqa: E402
from factory import fit_own_head  # noqa: E402

__all__ = ["demo", "demo_head", "every_step_is_told", "inference_mode", "server"]


@pytest.fixture(autouse=True)
def every_step_is_told(monkeypatch):
    """Newer hosts tell ten steps a second; tests of progress want all of them on a fast machine too."""
    for name in ("PROGRESS_THROTTLE_MIN_INTERVAL", "PROGRESS_THROTTLE_MIN_PERCENT"):
        monkeypatch.setattr(comfy.utils, name, 0, raising=False)


@pytest.fixture
def inference_mode():
    """As the host's server executes nodes."""
    with torch.inference_mode():
        yield


@pytest.fixture(scope="session")
def server(tmp_path_factory):
    """A running ComfyUI with this pack alone, shared by all tests.

    It remembers the last graph alone, which was once every host's way: a graph after another one runs anew.
    """
    with comfy_server.ComfyServer(tmp_path_factory.mktemp("server"), arguments=("--cache-classic",)) as running:
        yield running


@pytest.fixture(scope="session")
def demo():
    """The demo model in this process: ``(model, positive, negative, vae)``."""
    return load_demo_model("owl")


@pytest.fixture(scope="session")
def demo_head(demo):
    """A head of the demo model, fitted on eight samples of its own."""
    model, positive, negative, _ = demo
    with torch.inference_mode():
        return fit_own_head(model, Guidance(positive, negative, 3.0), (4, 16, 16), 8, 8, 4, source="test")

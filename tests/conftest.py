"""Two ways to a real ComfyUI: its modules in this process, and a server that is driven through its API."""

from __future__ import annotations

import comfy_server
import hypothesis
import in_process
import pytest

in_process.import_host_and_pack()

import comfy.utils  # noqa: E402
import torch  # noqa: E402
from bayesdiff.host.demo_model import load_demo_model  # noqa: E402
from bayesdiff.host.fitting import as_examples, fit_head, own_samples  # noqa: E402

# The same examples on every machine, however slow that is.
hypothesis.settings.register_profile("same", derandomize=True, database=None, deadline=None)
hypothesis.settings.load_profile("same")


@pytest.fixture(autouse=True)
def every_step_is_told(monkeypatch):
    """Newer hosts tell ten steps a second; tests of progress want all of them on a fast machine too."""
    for name in ("PROGRESS_THROTTLE_MIN_INTERVAL", "PROGRESS_THROTTLE_MIN_PERCENT"):
        monkeypatch.setattr(comfy.utils, name, 0, raising=False)


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
        latent = {"samples": torch.zeros(1, 4, 16, 16)}
        data = own_samples(model, positive, negative, latent, count=8, steps=8, cfg=3.0, seed=0)
        return fit_head(model, as_examples(data, positive), negative, cfg=3.0, levels=4, seed=0, source="test")

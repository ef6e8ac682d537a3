"""Two ways to a real ComfyUI: its modules in this process, and a server that is driven through its API.

The repository root stays off ``sys.path``, where its ``nodes`` folder would hide the host's own module; the pack
is imported as the host imports it, by its path.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parent.parent
COMFYUI = Path(os.environ["BAYESDIFF_COMFYUI"])


def import_file(name: str, path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def import_host() -> None:
    sys.path.insert(0, str(COMFYUI))
    from comfy.cli_args import args

    args.cpu = True


import_host()
import_file("bayesdiff", ROOT / "__init__.py")
ComfyServer = import_file("comfy_server", Path("/tmp/x/stub_server.py")).ComfyServer


@pytest.fixture(scope="session")
def server(tmp_path_factory):
    """A running ComfyUI with this pack alone, shared by all tests."""
    with ComfyServer(tmp_path_factory.mktemp("server")) as running:
        yield running


@pytest.fixture(scope="session")
def demo():
    """The demo model in this process: ``(model, positive, negative, vae)``."""
    from bayesdiff.host.demo_model import load_demo_model

    return load_demo_model("owl")


@pytest.fixture(scope="session")
def demo_head(demo):
    """A head of the demo model, fitted on eight samples of its own."""
    import torch
    from bayesdiff.host.fitting import fit_head, own_samples

    model, positive, negative, _ = demo
    with torch.inference_mode():
        latent = {"samples": torch.zeros(1, 4, 16, 16)}
        data = own_samples(model, positive, negative, latent, count=8, steps=8, cfg=3.0, seed=0)
        return fit_head(model, positive, negative, data, levels=4, max_rows=4096, seed=0, source="test")

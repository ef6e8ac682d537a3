"""The core by its own name, with no ComfyUI on the path: it may serve any host."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import hypothesis
import torch

# However the tests are started. The root itself stays off the path, where nodes/ would hide a module of ComfyUI.
TOOLS = str(Path(__file__).resolve().parents[2] / "tools")
if TOOLS not in sys.path:
    sys.path.append(TOOLS)

import in_process  # noqa: E402

in_process.import_core()

# The same examples on every machine, however slow that is.
hypothesis.settings.register_profile("same", derandomize=True, database=None, deadline=None)
hypothesis.settings.load_profile("same")
# The tensors here are small: on a busy machine, more threads wait for each other longer than they work.
torch.set_num_threads(1)

if importlib.util.find_spec("comfy") is not None:
    raise RuntimeError(
        "Expected no ComfyUI on the path for the tests of the core, got one; run them with python dev.py test."
    )

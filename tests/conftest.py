"""What all tests share. Those of the core know no ComfyUI, and run where none is named."""

from __future__ import annotations

import os

import hypothesis

# The same examples on every machine, however slow that is.
hypothesis.settings.register_profile("same", derandomize=True, database=None, deadline=None)
hypothesis.settings.load_profile("same")

if "BAYESDIFF_COMFYUI" in os.environ:
    from host_fixtures import *  # noqa: F403

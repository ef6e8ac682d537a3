"""The host's modules and this pack in the present process, for tests and benchmarks.

The repository root stays off ``sys.path``, where its ``nodes`` folder would hide the host's own module; the pack is
imported as the host imports it, by its path, under the name ``bayesdiff``.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).resolve().parent.parent


def import_file(name: str, path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def import_host_and_pack() -> None:
    """Import ComfyUI from the folder that ``python dev.py`` names, then the pack.

    Raises:
        SystemExit: not started by ``dev.py``.
    """
    if "BAYESDIFF_COMFYUI" not in os.environ:
        raise SystemExit("Expected BAYESDIFF_COMFYUI to name a ComfyUI folder; start this with: python dev.py ...")
    sys.path.insert(0, os.environ["BAYESDIFF_COMFYUI"])
    import torch
    from comfy.cli_args import args

    args.cpu = not torch.cuda.is_available()
    import_file("bayesdiff", ROOT / "__init__.py")

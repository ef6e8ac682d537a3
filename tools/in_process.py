"""The host's modules and this pack in the present process, for tests and benchmarks.

The repository root stays off ``sys.path``, where its ``nodes`` folder would hide the host's own module; the pack is
imported as the host imports it, by its path, under the name ``bayesdiff``. The core alone goes by its own name.
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


def import_core() -> None:
    """Import ``bayesdiff_core`` by its own name, without the host and without the pack."""
    if "bayesdiff_core" not in sys.modules:
        import_file("bayesdiff_core", ROOT / "bayesdiff_core" / "__init__.py")


def import_host_and_pack() -> None:
    """Import ComfyUI from the folder that ``python dev.py`` names, then the pack.

    Raises:
        SystemExit: not started by ``dev.py``.
    """
    if "BAYESDIFF_COMFYUI" not in os.environ:
        raise SystemExit("Expected BAYESDIFF_COMFYUI to name a ComfyUI folder; start this with: python dev.py ...")
    # Before the folder of what is run: a benchmark may bear a tool's name.
    sys.path[:0] = [os.environ["BAYESDIFF_COMFYUI"], str(ROOT / "tools")]
    import torch
    import utils.extra_config  # noqa: F401 - as the host does first; later its folder of networks would hide utils
    from comfy.cli_args import args

    args.cpu = not torch.cuda.is_available()
    # On a GPU the host would sample small models in half precision, whose rounding hides small draws.
    args.force_fp32 = True
    import_file("bayesdiff", ROOT / "__init__.py")


def contents(value):
    """A copy of nested dicts and lists, in which all else is told by its identity."""
    if isinstance(value, dict):
        return {key: contents(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [contents(part) for part in value]
    return value if isinstance(value, (str, int, float)) else id(value)


def traces(model, vae=None) -> dict:
    """Everything that we could leave behind on a model and its VAE, to compare before and after."""
    networks = [model.model.diffusion_model] + ([] if vae is None else [vae.first_stage_model])
    return {
        "hooks": [
            (name, len(m._forward_hooks), len(m._forward_pre_hooks), id(vars(m).get("forward")))
            for network in networks
            for name, m in network.named_modules()
            if m._forward_hooks or m._forward_pre_hooks or "forward" in vars(m)
        ],
        "wrappers": contents({kind: found for kind, found in model.wrappers.items() if found}),
        "options": contents(model.model_options),
        "patches": (len(model.patches), len(model.object_patches), len(model.callbacks)),
        "weights": [p.sum().item() for network in networks for p in network.parameters()],
    }

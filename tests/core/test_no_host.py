"""The core runs where there is no ComfyUI, and none is here."""

import importlib
import importlib.util
import pkgutil
import sys

import bayesdiff_core

HOST = ("comfy", "comfy_api", "comfy_execution", "folder_paths", "nodes", "bayesdiff")


def test_every_module_imports_without_comfyui():
    names = [module.name for module in pkgutil.walk_packages(bayesdiff_core.__path__, "bayesdiff_core.")]
    for name in names:
        importlib.import_module(name)
    assert "bayesdiff_core.posterior.draws" in names and "bayesdiff_core.drawing.sheets" in names
    assert [name for name in HOST if name in sys.modules] == []


def test_comfyui_cannot_be_imported():
    assert importlib.util.find_spec("comfy") is None

"""The models folder of Laplace heads."""

from __future__ import annotations

import os
from pathlib import Path

import folder_paths

FOLDER = "laplace_heads"


def register_folder() -> None:
    """Make ``models/laplace_heads`` known to the host, for safetensors files only."""
    folder_paths.add_model_folder_path(FOLDER, os.path.join(folder_paths.models_dir, FOLDER))
    paths, _ = folder_paths.folder_names_and_paths[FOLDER]
    folder_paths.folder_names_and_paths[FOLDER] = (paths, {".safetensors"})


def head_names() -> list[str]:
    """Names of the head files that exist."""
    return folder_paths.get_filename_list(FOLDER)


def head_path(name: str) -> Path:
    """Path of an existing head file.

    Raises:
        FileNotFoundError: no file of that name.
    """
    return Path(folder_paths.get_full_path_or_raise(FOLDER, name))


def new_head_path(prefix: str) -> Path:
    """A path in the models folder that no file has yet: the prefix and a counter, as the host names pictures."""
    root = folder_paths.get_folder_paths(FOLDER)[0]
    folder, name, counter, _, _ = folder_paths.get_save_image_path(prefix, root)
    return Path(folder) / f"{name}_{counter:05}_.safetensors"

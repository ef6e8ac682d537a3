"""The models folder of Laplace heads, and folders of images to fit them on."""

from __future__ import annotations

import os
from pathlib import Path

import folder_paths
import numpy
import torch
from PIL import Image, ImageOps

FOLDER = "laplace_heads"
INPUT = "input"


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
    """A path in the models folder that no file has yet: the prefix and a counter, as the host names images.

    Raises:
        OSError: its folder is not there and cannot be made, in one sentence.
    """
    root = folder_paths.get_folder_paths(FOLDER)[0]
    try:
        folder, name, counter, _, _ = folder_paths.get_save_image_path(prefix, root)
    except OSError as error:
        raise OSError(
            f"Expected a folder for the head {prefix} in the models folder, got '{error.strerror or error}'; choose "
            "another filename_prefix or make that folder writable."
        ) from error
    return Path(folder) / f"{name}_{counter:05}_.safetensors"


def image_folders() -> list[str]:
    """The input folder and the folders in it, by the names that a combo shows."""
    root = Path(folder_paths.get_input_directory())
    return [INPUT] + sorted(f"{INPUT}/{path.name}" for path in root.glob("*") if path.is_dir())


def image_paths(folder: str) -> list[Path]:
    """The images directly in a folder that :func:`image_folders` named, sorted by name.

    Raises:
        ValueError: there is no image.
    """
    root = Path(folder_paths.get_input_directory())
    path = root / folder.removeprefix(INPUT).lstrip("/")
    names = sorted(entry.name for entry in path.iterdir() if entry.is_file())
    found = [path / name for name in folder_paths.filter_files_content_types(names, ["image"])]
    if not found:
        raise ValueError(f"Expected images in the folder {folder}, got none; put some there or choose another folder.")
    return found


def image_fingerprint(folder: str) -> list[tuple[str, int, int]]:
    """Changes when a file in the folder does."""
    path = Path(folder_paths.get_input_directory()) / folder.removeprefix(INPUT).lstrip("/")
    stats = sorted((entry.name, entry.stat()) for entry in path.glob("*") if entry.is_file())
    return [(name, stat.st_mtime_ns, stat.st_size) for name, stat in stats]


def read_image(path: Path) -> torch.Tensor:
    """``(1, height, width, 3)`` in [0, 1]; what is transparent becomes white.

    Raises:
        ValueError: not an image, or one that is cut short.
    """
    try:
        image = ImageOps.exif_transpose(Image.open(path)).convert("RGBA")
    except OSError as error:
        raise ValueError(
            f"Expected an image such as PNG, JPEG or WebP, but {path.name} cannot be read as one ({error}); remove it "
            "from the folder or save it again."
        ) from error
    canvas = Image.new("RGBA", image.size, "white")
    canvas.alpha_composite(image)
    return torch.from_numpy(numpy.array(canvas.convert("RGB"), dtype=numpy.float32) / 255)[None]


def read_caption(path: Path) -> str | None:
    """The text of an image's caption file, which has its name and the ending txt; None without one.

    Raises:
        ValueError: not UTF-8.
    """
    caption = path.with_suffix(".txt")
    try:
        return caption.read_text(encoding="utf-8").strip() if caption.exists() else None
    except UnicodeDecodeError as error:
        raise ValueError(
            f"Expected a caption in UTF-8, but {caption.name} is in another encoding; save it as UTF-8 or remove it."
        ) from error

"""What a page is shown, in the host's temp folder: files named by what is in them, so that the same is written once."""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import comfy.utils
import folder_paths
import numpy
import torch
from PIL import Image

SUBFOLDER = "bayesdiff"
# Quick to write; the files live as long as the server.
COMPRESSION = 1


def with_progress(images: torch.Tensor) -> Iterator[torch.Tensor]:
    """The images one by one; each moves the node's progress bar, where a run can be cancelled."""
    bar = comfy.utils.ProgressBar(len(images))
    for image in images:
        yield image
        bar.update(1)


def keep_image(image: torch.Tensor) -> dict[str, str]:
    """An image ``(h, w, c)`` in [0, 1] as PNG, rounded as the host's own preview does: where it is, for ``/view``.

    One channel is grey, four have transparency; what is no number is black.
    """
    pixels = numpy.clip(255.0 * image.float().nan_to_num().cpu().numpy(), 0, 255).astype(numpy.uint8)
    pixels = pixels[..., 0] if pixels.shape[-1] < 3 else pixels[..., :4]

    def png() -> bytes:
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, "PNG", compress_level=COMPRESSION)
        return buffer.getvalue()

    return keep(str(pixels.shape).encode() + pixels.tobytes(), ".png", png)


def keep_levels(cells: torch.Tensor) -> dict[str, str]:
    """Levels of a map ``(h, w)``, 0 to 65535, as little-endian uint16 in rows: where they are, for ``/view``."""
    data = cells.cpu().numpy().astype("<u2").tobytes()
    return keep(data, ".u16", lambda: data)


def keep(content: bytes, suffix: str, make: Callable[[], bytes]) -> dict[str, str]:
    """The file of some content, written unless it is there.

    Raises:
        OSError: it cannot be written.
    """
    folder = Path(folder_paths.get_temp_directory()) / SUBFOLDER
    name = hashlib.blake2b(content, digest_size=16).hexdigest() + suffix
    if not (folder / name).exists():
        folder.mkdir(parents=True, exist_ok=True)
        part = folder / f"{name}.part"
        part.write_bytes(make())
        os.replace(part, folder / name)
    return {"filename": name, "subfolder": SUBFOLDER, "type": "temp"}

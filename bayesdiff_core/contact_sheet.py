"""A sheet of labelled thumbnails."""

from __future__ import annotations

import math

import numpy
import torch
from PIL import Image, ImageDraw, ImageFont

SHEET, LARGEST, SMALLEST = 2048, 256, 96  # pixels: width to aim at, longer side of a thumbnail
BACKGROUND, GOOD, BAD = (24, 24, 24), (120, 200, 120), (225, 115, 100)


def contact_sheet(images: torch.Tensor, labels: list[str], good: list[bool]) -> torch.Tensor:
    """Draw pictures in rows, each with a label under it.

    Args:
        images: ``(n, h, w, c)`` in [0, 1], at least three channels of which three are drawn.
        labels: n of them.
        good: n of them; whether the label is green or red.

    Returns:
        ``(1, height, width, 3)`` in [0, 1].
    """
    count, height, width = images.shape[:3]
    columns = math.ceil(math.sqrt(count))
    side = max(SMALLEST, min(LARGEST, SHEET // columns))
    scale = side / max(height, width)
    size = max(1, round(width * scale)), max(1, round(height * scale))
    gap, text = max(4, side // 32), max(10, side // 12)
    cell = side + gap, size[1] + text + 2 * gap
    sheet = Image.new("RGB", (columns * cell[0] + gap, math.ceil(count / columns) * cell[1] + gap), BACKGROUND)
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(text)
    pixels = (images[..., :3].float().cpu().clamp(0, 1) * 255).round().to(torch.uint8).numpy()
    for place, (picture, label, is_good) in enumerate(zip(pixels, labels, good)):
        left, top = gap + place % columns * cell[0], gap + place // columns * cell[1]
        thumbnail = Image.fromarray(picture).resize(size, Image.Resampling.LANCZOS)
        sheet.paste(thumbnail, (left + (side - size[0]) // 2, top))
        middle = left + side // 2, top + size[1] + gap // 2
        draw.text(middle, label, font=font, fill=GOOD if is_good else BAD, anchor="ma")
    return torch.from_numpy(numpy.asarray(sheet, dtype=numpy.float32) / 255)[None]

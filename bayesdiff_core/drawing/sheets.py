"""Sheets of images: heat maps with a scale, images and clips side by side with captions, and labelled thumbnails.

Images are ``(n, height, width, 3)`` in [0, 1], as everywhere.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw

from ..reading.maps import colour_map
from .pillow import INK, font_of, from_pil, nice_ticks, number, text_height, to_pil

SHEET, LARGEST, SMALLEST = 2048, 256, 96  # pixels: width to aim at, longer side of a thumbnail
FRAMES = 8  # of a clip in a strip
BACKGROUND, GOOD, BAD = (24, 24, 24), (120, 200, 120), (225, 115, 100)


def with_colour_bars(heat_maps: torch.Tensor, tops: torch.Tensor, colours: str) -> torch.Tensor:
    """Heat maps with a scale at their right, from 0 to the value that has the brightest colour.

    Args:
        tops: ``(n,)``, that value of each map.

    Returns:
        images as high as the maps, and wider.
    """
    height, size = heat_maps.shape[1], text_height(heat_maps.shape[1])
    font, bar, edge = font_of(size), size, size
    ramp = colour_map(torch.linspace(1, 0, max(2, height - 2 * edge))[:, None].expand(-1, bar)[None], colours)
    labels = [[(tick, number(tick)) for tick in nice_ticks(0.0, float(top), height // (2 * size))] for top in tops]
    width = 2 * bar + size // 2 + round(max(font.getlength(text) for row in labels for _, text in row)) + size // 2
    found = []
    for heat_map, top, row in zip(heat_maps, tops.tolist(), labels):
        margin = Image.new("RGB", (width, height), "white")
        margin.paste(to_pil(ramp[0]), (bar // 2, edge))
        draw = ImageDraw.Draw(margin)
        for tick, text in row:
            y = edge + (1 - tick / top if top > 0 else 1) * (ramp.shape[1] - 1)
            draw.line((bar * 1.5, y, bar * 1.5 + size / 3, y), fill=INK)
            draw.text((2 * bar, y), text, fill=INK, font=font, anchor="lm")
        found.append(torch.cat([heat_map.cpu(), from_pil(margin)], dim=1))
    return torch.stack(found)


def sheet(columns: list[torch.Tensor], captions: list[str]) -> torch.Tensor:
    """All images of a batch on one sheet, ``(1, height, width, 3)``: a row each, its caption above it.

    Args:
        columns: what to show side by side, each ``(n, height, w, 3)``.
    """
    height, size, gap = columns[0].shape[1], text_height(columns[0].shape[1]), 4
    top = size + 8
    width = sum(column.shape[2] for column in columns) + gap * (len(columns) + 1)
    image = Image.new("RGB", (width, len(captions) * (height + top) + gap), "white")
    draw, font = ImageDraw.Draw(image), font_of(size)
    for row, caption in enumerate(captions):
        x, y = gap, row * (height + top)
        draw.text((gap, y + top / 2), caption, fill=INK, font=font, anchor="lm")
        for column in columns:
            image.paste(to_pil(column[row]), (x, y + top))
            x += column.shape[2] + gap
    return from_pil(image)[None]


def strip_frames(frames: int) -> list[int]:
    """Which frames of a clip a strip shows: the first, the last, and some evenly between."""
    shown = min(FRAMES, frames)
    return [round(place * (frames - 1) / max(shown - 1, 1)) for place in range(shown)]


def strips(clips: torch.Tensor) -> torch.Tensor:
    """Frames of each clip side by side, ``(n, h, width, 3)`` of ``(n, frames, height, w, c)``; of one frame, itself."""
    shown = clips[:, strip_frames(clips.shape[1]), ..., :3]
    if shown.shape[1] == 1:
        return shown[:, 0]
    most = max(shown.shape[2], shown.shape[3]) * shown.shape[1] / SHEET
    if most > 1:
        size = round(shown.shape[2] / most), round(shown.shape[3] / most)
        smaller = F.interpolate(shown.flatten(0, 1).movedim(-1, 1), size=size, mode="area")
        shown = smaller.movedim(1, -1).unflatten(0, shown.shape[:2])
    shown = F.pad(shown, (0, 0, 0, 2))  # a dark line after each frame
    return shown.movedim(1, 2).flatten(2, 3)


def contact_sheet(images: torch.Tensor, labels: list[str], good: list[bool], frames: int = 1) -> torch.Tensor:
    """Draw images in rows, each with a label under it.

    Args:
        images: ``(n, h, w, c)`` in [0, 1], at least three channels of which three are drawn.
        labels: n of them.
        good: n of them; whether the label is green or red.
        frames: how many frames of a clip each image shows side by side.

    Returns:
        ``(1, height, width, 3)`` in [0, 1].
    """
    count, height, width = images.shape[:3]
    columns = math.ceil(math.sqrt(count / frames))
    side = max(SMALLEST, min(LARGEST * frames, SHEET // columns))
    scale = side / max(height, width)
    size = max(1, round(width * scale)), max(1, round(height * scale))
    gap, text = max(4, side // frames // 32), max(10, side // frames // 12)
    cell = side + gap, size[1] + text + 2 * gap
    canvas = Image.new("RGB", (columns * cell[0] + gap, math.ceil(count / columns) * cell[1] + gap), BACKGROUND)
    draw, font = ImageDraw.Draw(canvas), font_of(text)
    for place, (image, label, is_good) in enumerate(zip(images, labels, good)):
        left, top = gap + place % columns * cell[0], gap + place // columns * cell[1]
        thumbnail = to_pil(image[..., :3]).resize(size, Image.Resampling.LANCZOS)
        canvas.paste(thumbnail, (left + (side - size[0]) // 2, top))
        middle = left + side // 2, top + size[1] + gap // 2
        draw.text(middle, label, font=font, fill=GOOD if is_good else BAD, anchor="ma")
    return from_pil(canvas)[None]

"""Sheets of images: heat maps with a scale, images side by side with captions, and labelled thumbnails.

Images are ``(n, height, width, 3)`` in [0, 1], as everywhere.
"""

from __future__ import annotations

import math

import torch
from PIL import Image, ImageDraw

from ..reading.maps import colour_map
from .pillow import INK, font_of, from_pil, nice_ticks, number, text_height, to_pil

SHEET, LARGEST, SMALLEST = 2048, 256, 96  # pixels: width to aim at, longer side of a thumbnail
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


def contact_sheet(images: torch.Tensor, labels: list[str], good: list[bool]) -> torch.Tensor:
    """Draw images in rows, each with a label under it.

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
    canvas = Image.new("RGB", (columns * cell[0] + gap, math.ceil(count / columns) * cell[1] + gap), BACKGROUND)
    draw, font = ImageDraw.Draw(canvas), font_of(text)
    for place, (image, label, is_good) in enumerate(zip(images, labels, good)):
        left, top = gap + place % columns * cell[0], gap + place // columns * cell[1]
        thumbnail = to_pil(image[..., :3]).resize(size, Image.Resampling.LANCZOS)
        canvas.paste(thumbnail, (left + (side - size[0]) // 2, top))
        middle = left + side // 2, top + size[1] + gap // 2
        draw.text(middle, label, font=font, fill=GOOD if is_good else BAD, anchor="ma")
    return from_pil(canvas)[None]

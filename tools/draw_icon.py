"""Draw the registry's icon and banner, docs/images/icon.png (400 by 400) and banner.png (21:9), with Pillow alone.

A bell curve over a heat map whose bright spot is dashed round, as a mask is: uncertainty, where it is, and what is done
about it. Run with any Python that has Pillow and NumPy.
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy
from PIL import Image, ImageDraw, ImageFont

IMAGES = Path(__file__).resolve().parent.parent / "docs" / "images"
SIDE, BANNER = 400, (1260, 540)
SCALE = 4  # drawn larger and reduced, for smooth edges
# From certain to uncertain: the colours of the pack's maps, a few of inferno's.
COLOURS = numpy.array(
    [
        (0, 0, 4),
        (40, 11, 84),
        (101, 21, 110),
        (159, 42, 99),
        (212, 72, 66),
        (245, 125, 21),
        (250, 193, 39),
        (252, 255, 164),
    ]
)
CELLS = 8
WHITE = (255, 255, 250)


def heat(columns: int, rows: int, spots: list[tuple[float, float, float, float]]) -> Image.Image:
    """A map of one pixel a cell; spots are x and y of the centre, width and height of the peak."""
    y, x = numpy.mgrid[0:rows, 0:columns] + 0.5
    values = sum(top * numpy.exp(-((x - cx) ** 2 + (y - cy) ** 2) / (2 * width**2)) for cx, cy, width, top in spots)
    values = numpy.clip(values + 0.06 + 0.03 * numpy.sin(2.1 * x + 3.7 * y), 0, 1) * (len(COLOURS) - 1)
    below = values.astype(int).clip(max=len(COLOURS) - 2)
    share = (values - below)[..., None]
    colours = COLOURS[below] * (1 - share) + COLOURS[below + 1] * share
    return Image.fromarray(colours.round().astype(numpy.uint8))


def dashed_ring(draw: ImageDraw.ImageDraw, x: float, y: float, radius: float, width: int) -> None:
    box = (x - radius, y - radius, x + radius, y + radius)
    for start in range(0, 360, 30):
        draw.arc(box, start, start + 18, fill=WHITE, width=width)


def bell(draw: ImageDraw.ImageDraw, left: float, right: float, base: float, height: float, width: int) -> None:
    """Drawn as dots, close to each other: a thick line of Pillow's has cracks at its joints."""
    for step in range(4001):
        t = step / 4000
        x, y = left + t * (right - left), base - height * math.exp(-((t - 0.5) ** 2) / (2 * 0.15**2))
        draw.ellipse((x - width / 2, y - width / 2, x + width / 2, y + width / 2), fill=WHITE)


def emblem(side: int) -> Image.Image:
    """The icon without rounded corners."""
    large = side * SCALE
    cell = large / CELLS
    picture = heat(CELLS, CELLS, [(5.5, 2.5, 1.25, 1.0), (1.6, 3.2, 0.8, 0.3)]).resize((large, large), Image.NEAREST)
    draw = ImageDraw.Draw(picture)
    dashed_ring(draw, 5.5 * cell, 2.5 * cell, 1.95 * cell, round(0.13 * cell))
    bell(draw, 0.8 * cell, 7.2 * cell, 7.1 * cell, 2.1 * cell, round(0.3 * cell))
    return picture.resize((side, side), Image.LANCZOS)


def icon() -> Image.Image:
    picture = emblem(SIDE).convert("RGBA")
    corners = Image.new("L", (SIDE * SCALE, SIDE * SCALE), 0)
    ImageDraw.Draw(corners).rounded_rectangle((0, 0, SIDE * SCALE - 1, SIDE * SCALE - 1), 64 * SCALE, fill=255)
    picture.putalpha(corners.resize((SIDE, SIDE), Image.LANCZOS))
    return picture


def banner() -> Image.Image:
    width, height = BANNER
    columns, rows = 42, 18
    spots = [(6.5, 9.0, 2.6, 0.95), (36.0, 14.5, 3.2, 0.28), (26.0, 2.0, 2.5, 0.22)]
    picture = heat(columns, rows, spots).resize((width * SCALE, height * SCALE), Image.NEAREST)
    draw = ImageDraw.Draw(picture)
    cell = width * SCALE / columns
    dashed_ring(draw, 6.5 * cell, 9 * cell, 4.6 * cell, round(0.22 * cell))
    picture = picture.resize(BANNER, Image.LANCZOS)
    draw = ImageDraw.Draw(picture)
    draw.text((400, 170), "BayesDiff", font=ImageFont.load_default(120), fill=WHITE)
    draw.text((405, 318), "Where is this picture likely wrong?", font=ImageFont.load_default(44), fill=WHITE)
    return picture


def main() -> None:
    icon().save(IMAGES / "icon.png", optimize=True)
    banner().save(IMAGES / "banner.png", optimize=True)


if __name__ == "__main__":
    main()

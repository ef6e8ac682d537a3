"""Sheets of images that the benchmark sampled."""

from __future__ import annotations

import torch
from bayesdiff.bayesdiff_core.drawing.pillow import to_pil
from bayesdiff.bayesdiff_core.reading.maps import colour_map, normalise_map, resize_map
from PIL import Image, ImageDraw, ImageFont

from .bench import DEFAULT_ESTIMATOR, Bench, thin

TILE, ENDS = 128, 4


def tile(picture: torch.Tensor) -> Image.Image:
    """An image ``(h, w, 3)``, a mask or the colours of a map, at the size that sheets have."""
    return to_pil(picture).resize((TILE, TILE), Image.Resampling.NEAREST)


def heat(values: torch.Tensor) -> torch.Tensor:
    """Colours ``(n, TILE, TILE, 3)`` of maps ``(n, h, w)``, each from its own least to its own largest."""
    return colour_map(normalise_map(resize_map(values, TILE, TILE), True))


def sheet_of(rows: list[list[Image.Image]], titles: list[str], left: int = 116) -> Image.Image:
    """Tiles in rows, each row with a title at its left."""
    gap = 4
    image = Image.new("RGB", (left + len(rows[0]) * (TILE + gap), len(rows) * (TILE + gap)), "white")
    draw, font = ImageDraw.Draw(image), ImageFont.load_default(13)
    for y, (row, title) in enumerate(zip(rows, titles)):
        draw.multiline_text((4, y * (TILE + gap) + TILE / 3), title.replace(" ", "\n"), fill="black", font=font)
        for x, found in enumerate(row):
            image.paste(found, (left + x * (TILE + gap), y * (TILE + gap)))
    return image


def draw_batches(bench: Bench, most: int = 6) -> Image.Image:
    """Batches of some prompts by the default score, most certain at the left; of a large batch only the two ends."""
    scores, rows = bench.found[DEFAULT_ESTIMATOR].scores(), []
    prompts = thin(list(range(len(bench.names))), most)
    for prompt in prompts:
        first = prompt * bench.count
        order = scores[first : first + bench.count].argsort().tolist()
        shown = order if len(order) <= ENDS * 2 else order[:ENDS] + order[-ENDS:]
        rows.append([tile(bench.pictures[first + i]) for i in shown])
    return sheet_of(rows, [bench.names[prompt] for prompt in prompts])


def draw_plants(bench: Bench, count: int = 3) -> Image.Image:
    """Images with planted faults, each next to its map; the fault is framed in both."""
    rows = []
    for planted in bench.plants.values():
        row = []
        for picture, values, where in zip(
            bench.decode(planted.found.latent[:count]), heat(planted.found.std_map()[:count]), planted.where
        ):
            scale = TILE // where.shape[-1]
            y, x = where.nonzero().T
            frame = [int(v) * scale for v in (x.min(), y.min(), x.max() + 1, y.max() + 1)]
            for shown in (tile(picture), tile(values)):
                ImageDraw.Draw(shown).rectangle(frame, outline="#20c0ff", width=2)
                row.append(shown)
        rows.append(row)
    return sheet_of(rows, list(bench.plants), 60)


def draw_repairs(bench: Bench, most: int = 8) -> Image.Image:
    """Images, their masks, and what repair, random masks and new seeds make of them; the least certain come first."""
    pictures, mask = bench.repaired
    per_prompt = len(mask) // len(bench.names)
    index = [prompt * bench.count + i for prompt in range(len(bench.names)) for i in range(per_prompt)]
    chosen = bench.found[DEFAULT_ESTIMATOR].scores()[index].argsort(descending=True)[:most].tolist()
    masks = resize_map(mask, TILE, TILE)[..., None].expand(-1, -1, -1, 3)
    others = {name: pictures[name] for name in pictures if name != "before"}
    columns = {"before": pictures["before"], "mask": masks} | others
    return sheet_of([[tile(column[i]) for i in chosen] for column in columns.values()], list(columns))


def draw_all(bench: Bench) -> dict[str, Image.Image]:
    """Every sheet that the tests were run for, by name."""
    found = {"batches": draw_batches(bench)}
    if bench.plants:
        found["plants"] = draw_plants(bench)
    if bench.repaired is not None:
        found["repairs"] = draw_repairs(bench)
    return found

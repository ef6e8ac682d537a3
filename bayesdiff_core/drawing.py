"""Pictures for people: colour bars, sheets with captions, and plots, drawn with Pillow alone.

Images are ``(n, height, width, 3)`` in [0, 1], as everywhere.
"""

from __future__ import annotations

import math

import numpy
import torch
from PIL import Image, ImageDraw, ImageFont

from .maps import colour_map

INK, PALE, BLUE = "#222222", "#d8d8d8", "#31688e"


def to_pil(image: torch.Tensor) -> Image.Image:
    return Image.fromarray((image.float().cpu().clamp(0, 1) * 255).round().to(torch.uint8).numpy())


def from_pil(image: Image.Image) -> torch.Tensor:
    return torch.from_numpy(numpy.asarray(image.convert("RGB"), dtype=numpy.float32) / 255)


def font_of(height: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(height)


def text_height(height: int) -> int:
    """A readable size of letters on pictures of a height, in pixels."""
    return max(11, height // 36)


def number(value: float) -> str:
    """Three digits of a value, as short as that can be written."""
    return f"{value:.3g}"


def nice_ticks(low: float, high: float, most: int) -> list[float]:
    """At most ``most`` round values in [low, high], evenly spaced; one value alone where the two are equal."""
    if not high > low:
        return [low]
    rough = (high - low) / max(1, most - 1)
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10, 20) if factor * power >= rough * (1 - 1e-9))
    return [i * step for i in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]


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
    """All pictures of a batch on one sheet, ``(1, height, width, 3)``: a row each, its caption above it.

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


class Axes:
    """A white picture with two labelled axes.

    Args:
        xs, ys: lowest and highest value on each axis.
        logarithmic: x is shown by its logarithm, the highest value at the left as a sampler goes.
        whole: y counts something.
        strip: height left free between the lowest y and the x axis, in lines of text.
    """

    def __init__(self, width: int, height: int, title: str, x_name: str, xs: tuple[float, float],
                 ys: tuple[float, float], logarithmic: bool = False, whole: bool = False, strip: int = 0):  # fmt: skip
        self.image = Image.new("RGB", (width, height), "white")
        self.draw, self.size = ImageDraw.Draw(self.image), max(11, height // 30)
        self.font, self.xs, self.ys, self.logarithmic = font_of(self.size), xs, ys, logarithmic
        self.left, self.right = 5 * self.size, width - 2 * self.size
        self.top, self.bottom = 3 * self.size, height - 4 * self.size
        self.base = self.bottom - round(strip * self.size * 1.1)
        self.draw.text((width / 2, self.size), title, fill=INK, font=font_of(round(1.2 * self.size)), anchor="mt")
        self.draw.text(
            ((self.left + self.right) / 2, height - self.size), x_name, fill=INK, font=self.font, anchor="ms"
        )
        for tick in nice_ticks(*ys, 6):
            if whole and tick != round(tick):
                continue
            y = self.y(tick)
            self.draw.line((self.left, y, self.right, y), fill=PALE)
            self.draw.text((self.left - self.size / 2, y), number(tick), fill=INK, font=self.font, anchor="rm")
        self.draw.line((self.left, self.bottom, self.right, self.bottom), fill=INK)

    def x(self, value: float) -> float:
        low, high = self.xs
        if self.logarithmic:
            low, high, value = math.log(high), math.log(low), math.log(value)
        return self.left + (self.right - self.left) * (0.5 if low == high else (value - low) / (high - low))

    def y(self, value: float) -> float:
        low, high = self.ys
        return self.base - (self.base - self.top) * (value - low) / (high - low)

    def x_ticks(self, values: list[float]) -> None:
        """Ticks with numbers below the axis, but for those that would run into the one before."""
        end = -math.inf
        for value in values:
            x, text = self.x(value), number(value)
            half = self.font.getlength(text) / 2
            self.draw.line((x, self.bottom, x, self.bottom + self.size / 3), fill=INK)
            if x - half > end:
                self.draw.text((x, self.bottom + self.size / 2), text, fill=INK, font=self.font, anchor="mt")
                end = x + half + self.size / 2


def plot_scores(scores: list[float], name: str, width: int, height: int) -> torch.Tensor:
    """Histogram of a batch's scores, ``(1, height, width, 3)``, and below it each picture's number at its place.

    Pictures are numbered from 0. As many bins as the root of their number, and at least eight. Numbers that would
    overlap are left out, once three rows are full.
    """
    low, high = min(scores), max(scores)
    if low == high:  # one picture, or all alike: a bar in the middle
        low, high = low - (abs(low) or 1) / 2, high + (abs(high) or 1) / 2
    bins, margin, rows = max(8, math.ceil(math.sqrt(len(scores)))), (high - low) / 25, 3
    counts, edges = numpy.histogram(scores, bins=bins, range=(low, high))
    title = f"{len(scores)} picture{'s' * (len(scores) > 1)} by uncertainty"
    axes = Axes(width, height, title, f"score: {name}", (low - margin, high + margin), (0, 1.05 * counts.max()),
                whole=True, strip=rows + 1)  # fmt: skip
    for count, start, end in zip(counts, edges, edges[1:]):
        if count:
            axes.draw.rectangle((axes.x(start) + 1, axes.y(count), axes.x(end) - 1, axes.base), fill=BLUE)
    axes.x_ticks(nice_ticks(low, high, 7))
    small, ends = font_of(round(0.8 * axes.size)), [-math.inf] * rows
    for picture, score in sorted(enumerate(scores), key=lambda item: item[1]):
        x, half = axes.x(score), small.getlength(str(picture)) / 2 + 1
        axes.draw.line((x, axes.base + 2, x, axes.base + axes.size * 0.6), fill=INK)
        row = next((row for row in range(rows) if x - half > ends[row]), None)
        if row is not None:
            y = axes.base + (row + 0.75) * axes.size
            axes.draw.text((x, y), str(picture), fill=INK, font=small, anchor="mt")
            ends[row] = x + half
    return from_pil(axes.image)[None]


def plot_over_sigma(sigmas: list[float], stds: torch.Tensor, width: int, height: int) -> torch.Tensor:
    """Mean standard deviation against the noise level, ``(1, height, width, 3)``: each picture pale, their mean bold.

    Args:
        sigmas: noise levels above zero, highest first.
        stds: ``(len(sigmas), n)``.
    """
    ceiling = 1.05 * max(float(stds.max()), torch.finfo(torch.float32).tiny)
    axes = Axes(width, height, "Mean standard deviation of the noisy latent", "sigma: noise level, sampling goes right",
                (min(sigmas), max(sigmas)), (0, ceiling), logarithmic=True)  # fmt: skip
    axes.x_ticks(sigmas)
    for curve, colour, weight in [*((curve, "#9fbfd3", 1) for curve in stds.T), (stds.mean(1), BLUE, 3)]:
        points = [(axes.x(sigma), axes.y(float(std))) for sigma, std in zip(sigmas, curve)]
        axes.draw.line(points, fill=colour, width=weight)
        for x, y in points:
            axes.draw.ellipse((x - weight, y - weight, x + weight, y + weight), fill=colour)
    return from_pil(axes.image)[None]

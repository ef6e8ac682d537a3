"""Plots of scores, and of the uncertainty over sigma and over the frames of clips.

Images are ``(n, height, width, 3)`` in [0, 1], as everywhere.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy
import torch
from PIL import Image, ImageDraw

from .pillow import INK, PALE, font_of, from_pil, nice_ticks, number

BLUE = "#31688e"


class Axis(NamedTuple):
    """One axis of a plot.

    Attributes:
        low, high: lowest and highest value.
        name: shown below a horizontal axis.
        logarithmic: values are placed by their logarithm, the highest at the left as a sampler goes.
        whole: it counts something.
    """

    low: float
    high: float
    name: str = ""
    logarithmic: bool = False
    whole: bool = False


class Axes:
    """A white image with two labelled axes.

    Args:
        size: width and height in pixels.
        strip: height left free between the lowest y and the x axis, in lines of text.
    """

    def __init__(self, size: tuple[int, int], title: str, across: Axis, up: Axis, strip: int = 0):
        width, height = size
        self.image = Image.new("RGB", size, "white")
        self.draw, self.size = ImageDraw.Draw(self.image), max(11, height // 30)
        self.font, self.across, self.up = font_of(self.size), across, up
        self.left, self.right = 5 * self.size, width - 2 * self.size
        self.top, self.bottom = 3 * self.size, height - 4 * self.size
        self.base = self.bottom - round(strip * self.size * 1.1)
        self.draw.text((width / 2, self.size), title, fill=INK, font=font_of(round(1.2 * self.size)), anchor="mt")
        self.draw.text(
            ((self.left + self.right) / 2, height - self.size), across.name, fill=INK, font=self.font, anchor="ms"
        )
        for tick in nice_ticks(up.low, up.high, 6):
            if up.whole and tick != round(tick):
                continue
            y = self.y(tick)
            self.draw.line((self.left, y, self.right, y), fill=PALE)
            self.draw.text((self.left - self.size / 2, y), number(tick), fill=INK, font=self.font, anchor="rm")
        self.draw.line((self.left, self.bottom, self.right, self.bottom), fill=INK)

    def x(self, value: float) -> float:
        """Where a value of the horizontal axis lies, in pixels from the left."""
        low, high = self.across.low, self.across.high
        if self.across.logarithmic:
            low, high, value = math.log(high), math.log(low), math.log(value)
        return self.left + (self.right - self.left) * (0.5 if low == high else (value - low) / (high - low))

    def y(self, value: float) -> float:
        """Where a value of the vertical axis lies, in pixels from the top."""
        low, high = self.up.low, self.up.high
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


def plot_scores(
    scores: list[float], name: str, width: int, height: int, percentiles: torch.Tensor | None = None
) -> torch.Tensor:
    """Histogram of a batch's scores, ``(1, height, width, 3)``, with each image's number below it at its score.

    Images are numbered from 0. The bins are as many as the root of their number, and at least eight. Numbers that would
    overlap are left out once three rows are full.

    Args:
        percentiles: ``(n,)``, of how many in a hundred of the model's images each is less certain.
    """
    low, high = min(scores), max(scores)
    if low == high:  # one image, or all alike: a bar in the middle
        low, high = low - (abs(low) or 1) / 2, high + (abs(high) or 1) / 2
    bins, margin, rows = max(8, math.ceil(math.sqrt(len(scores)))), (high - low) / 25, 3
    counts, edges = numpy.histogram(scores, bins=bins, range=(low, high))
    title = f"{len(scores)} image{'s' * (len(scores) > 1)} by uncertainty"
    words = f"score: {name}"
    if percentiles is not None:
        words += f" (above {percentiles.min():.0f} to {percentiles.max():.0f} % of this model's images)"
    across = Axis(low - margin, high + margin, words)
    axes = Axes((width, height), title, across, Axis(0, 1.05 * counts.max(), whole=True), strip=rows + 1)
    for count, start, end in zip(counts, edges, edges[1:]):
        if count:
            axes.draw.rectangle((axes.x(start) + 1, axes.y(count), axes.x(end) - 1, axes.base), fill=BLUE)
    axes.x_ticks(nice_ticks(low, high, 7))
    small, ends = font_of(round(0.8 * axes.size)), [-math.inf] * rows
    for image, score in sorted(enumerate(scores), key=lambda item: item[1]):
        x, half = axes.x(score), small.getlength(str(image)) / 2 + 1
        axes.draw.line((x, axes.base + 2, x, axes.base + axes.size * 0.6), fill=INK)
        row = next((row for row in range(rows) if x - half > ends[row]), None)
        if row is not None:
            y = axes.base + (row + 0.75) * axes.size
            axes.draw.text((x, y), str(image), fill=INK, font=small, anchor="mt")
            ends[row] = x + half
    return from_pil(axes.image)[None]


def plot_over_frames(scores: torch.Tensor, name: str, width: int, height: int) -> torch.Tensor:
    """Scores of the frames of clips, ``(1, height, width, 3)``: each clip pale with its number, the mean bold.

    Args:
        scores: ``(n, frames)``. Frames and clips are numbered from 0.
    """
    frames, ceiling = scores.shape[1], 1.05 * max(float(scores.max()), torch.finfo(torch.float32).tiny)
    across = Axis(0, max(frames - 1, 1), "frame")
    axes = Axes((width, height), f"Uncertainty of each frame: {name}", across, Axis(0, ceiling))
    axes.x_ticks([tick for tick in nice_ticks(0, frames - 1, 10) if tick == round(tick)])
    curves = [(str(number), curve, "#9fbfd3", 1) for number, curve in enumerate(scores)]
    for label, curve, colour, weight in [*curves, ("", scores.mean(0), BLUE, 3)]:
        points = [(axes.x(frame), axes.y(score)) for frame, score in enumerate(curve.tolist())]
        axes.draw.line(points, fill=colour, width=weight)
        if len(curves) > 1:
            x, y = points[int(curve.argmax())]
            axes.draw.text((x, y), label, fill=INK, font=axes.font, anchor="rb")
    return from_pil(axes.image)[None]


def plot_over_sigma(sigmas: list[float], stds: torch.Tensor, width: int, height: int) -> torch.Tensor:
    """Mean standard deviation against sigma, ``(1, height, width, 3)``: each image pale, their mean bold.

    Args:
        sigmas: above zero, highest first.
        stds: ``(len(sigmas), n)``.
    """
    ceiling = 1.05 * max(float(stds.max()), torch.finfo(torch.float32).tiny)
    across = Axis(min(sigmas), max(sigmas), "sigma (sampling goes right)", logarithmic=True)
    axes = Axes((width, height), "Mean standard deviation of the noisy latent", across, Axis(0, ceiling))
    axes.x_ticks(sigmas)
    for curve, colour, weight in [*((curve, "#9fbfd3", 1) for curve in stds.T), (stds.mean(1), BLUE, 3)]:
        points = [(axes.x(sigma), axes.y(float(std))) for sigma, std in zip(sigmas, curve)]
        axes.draw.line(points, fill=colour, width=weight)
        for x, y in points:
            axes.draw.ellipse((x - weight, y - weight, x + weight, y + weight), fill=colour)
    return from_pil(axes.image)[None]

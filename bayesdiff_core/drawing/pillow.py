"""What everything drawn has in common: images to and from Pillow, letters, and round numbers."""

from __future__ import annotations

import math

import numpy
import torch
from PIL import Image, ImageFont

INK, PALE = "#222222", "#d8d8d8"


def to_pil(image: torch.Tensor) -> Image.Image:
    """A Pillow image of ``(h, w, 3)`` in [0, 1]; what is outside is clipped."""
    return Image.fromarray((image.float().cpu().clamp(0, 1) * 255).round().to(torch.uint8).numpy())


def from_pil(image: Image.Image) -> torch.Tensor:
    """The inverse of :func:`to_pil`, float32 on the CPU."""
    return torch.from_numpy(numpy.asarray(image.convert("RGB"), dtype=numpy.float32) / 255)


def font_of(height: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """Pillow's own font at a height in pixels."""
    return ImageFont.load_default(height)


def text_height(height: int) -> int:
    """A readable size of letters on images of a height, in pixels."""
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

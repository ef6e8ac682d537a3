"""Heat maps: a latent map brought to image size, or measured in pixels, coloured, and laid over the image."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
import torch.nn.functional as F

# After Matplotlib's tables of these names (CC0), in nine even steps: near uniform and monotone in lightness.
COLOUR_MAPS = {
    "inferno": torch.tensor(
        [
            [0.001462, 0.000466, 0.013866],
            [0.121380, 0.047136, 0.282160],
            [0.316282, 0.071690, 0.485380],
            [0.497257, 0.119379, 0.424488],
            [0.735683, 0.215906, 0.330245],
            [0.888362, 0.330040, 0.201190],
            [0.978422, 0.557937, 0.034931],
            [0.964394, 0.843848, 0.273391],
            [0.988362, 0.998364, 0.644924],
        ]
    ),
    "viridis": torch.tensor(
        [
            [0.267004, 0.004874, 0.329415],
            [0.278919, 0.174879, 0.482972],
            [0.230223, 0.321297, 0.545488],
            [0.173302, 0.447386, 0.557850],
            [0.128148, 0.565107, 0.550893],
            [0.155378, 0.681539, 0.503240],
            [0.362859, 0.786695, 0.386589],
            [0.669358, 0.862217, 0.195444],
            [0.993248, 0.906157, 0.143936],
        ]
    ),
    "grey": torch.tensor([[0.0, 0.0, 0.0], [1.0, 1.0, 1.0]]),
}


def resize_map(values: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """Bilinear resize of maps ``(n, ..., h, w)`` to ``(n, ..., height, width)``."""
    planes = values.reshape(-1, 1, *values.shape[-2:])
    resized = F.interpolate(planes, size=(height, width), mode="bilinear", align_corners=False)
    return resized.reshape(*values.shape[:-2], height, width)


def map_tops(values: torch.Tensor, per_image: bool) -> torch.Tensor:
    """The value that becomes 1 in each map, ``(n,)``: the 99.5 % quantile, of the map or of the whole batch.

    Args:
        values: ``(n, h, w)``, or ``(n, frames, h, w)`` of clips, not negative.
        per_image: one scale for each image or clip, or one for the whole batch (then brightness compares images).
    """
    flat = values.flatten(1)
    if not per_image:
        flat = flat.reshape(1, -1)
    # torch.quantile refuses more than 16 million values; this has no such limit, and does not sort them.
    top = flat.kthvalue(min(flat.shape[1], int(0.995 * flat.shape[1]) + 1), dim=1).values
    return top.expand(len(values))


def normalise_map(values: torch.Tensor, per_image: bool) -> torch.Tensor:
    """Scale maps ``(n, ..., h, w)`` to [0, 1]: 0 stays 0, :func:`map_tops` becomes 1."""
    tops = map_tops(values, per_image).clamp(min=torch.finfo(values.dtype).tiny)
    return (values / tops.view(-1, *[1] * (values.ndim - 1))).clamp(0, 1)


def colour_map(values: torch.Tensor, colours: str = "inferno") -> torch.Tensor:
    """Colours ``(n, h, w, 3)`` in [0, 1] of values ``(n, h, w)`` in [0, 1], dark to bright; NaN is dark."""
    table = COLOUR_MAPS[colours].to(values.device)
    position = values.nan_to_num(0).clamp(0, 1) * (len(table) - 1)
    low = position.floor().long().clamp(max=len(table) - 2)
    return torch.lerp(table[low], table[low + 1], (position - low)[..., None])


def overlay_map(image: torch.Tensor, values: torch.Tensor, opacity: float, colours: str = "inferno") -> torch.Tensor:
    """Lay a heat map over an image.

    The image turns grey so that colour means uncertainty alone, and the map covers it in proportion to its
    value, so that certain parts stay readable.

    Args:
        image: ``(n, h, w, 3)`` in [0, 1].
        values: ``(n, h, w)`` in [0, 1].
        opacity: how much the map hides where it is 1, in [0, 1].
    """
    grey = image @ image.new_tensor([0.2126, 0.7152, 0.0722])
    return torch.lerp(grey[..., None].expand_as(image), colour_map(values, colours), opacity * values[..., None])


def antithetic_draws(variance: torch.Tensor, pairs: int, generator: torch.Generator) -> Iterator[torch.Tensor]:
    """``pairs`` draws from independent Gaussians of the given variance, each followed by its negative."""
    std = variance.clamp(min=0).sqrt()
    for _ in range(pairs):
        draw = std * torch.randn(std.shape, generator=generator)
        yield draw
        yield -draw


def pixel_variance(image: torch.Tensor, others: Iterable[torch.Tensor]) -> torch.Tensor:
    """Mean square distance of other images from one, averaged over colours: ``(n, h, w)`` of ``(n, h, w, 3)``.

    With decoded posterior members it is, to first order in dW, the variance of the decoded image.
    """
    total, count = torch.zeros(image.shape[:-1]), 0
    for other in others:
        total += (other - image).square().mean(-1).cpu()
        count += 1
    return total / count

"""Heat maps: a latent map brought to image size, coloured, and laid over the picture."""

from __future__ import annotations

import torch
import torch.nn.functional as F

# Matplotlib's "inferno" (CC0) at nine even steps: perceptually uniform, monotone in lightness.
INFERNO = torch.tensor(
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
)


def resize_map(values: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """Bilinear resize of maps ``(n, h, w)`` to ``(n, height, width)``."""
    return F.interpolate(values[:, None], size=(height, width), mode="bilinear", align_corners=False)[:, 0]


def normalise_map(values: torch.Tensor, per_image: bool) -> torch.Tensor:
    """Scale maps ``(n, h, w)`` to [0, 1]: 0 stays 0, the 99.5 % quantile becomes 1.

    Args:
        values: not negative.
        per_image: one scale for each map, or one for the whole batch (then brightness compares images).
    """
    flat = values.flatten(1)
    if not per_image:
        flat = flat.reshape(1, -1)
    # torch.quantile refuses more than 16 million values; a sorted index has no such limit.
    top = flat.sort(dim=1).values[:, min(flat.shape[1] - 1, int(0.995 * flat.shape[1]))]
    return (values / top.clamp(min=torch.finfo(values.dtype).tiny)[:, None, None]).clamp(0, 1)


def colour_map(values: torch.Tensor) -> torch.Tensor:
    """Colours ``(n, h, w, 3)`` in [0, 1] of values ``(n, h, w)`` in [0, 1], dark to bright."""
    table = INFERNO.to(values.device)
    position = values.clamp(0, 1) * (len(table) - 1)
    low = position.floor().long().clamp(max=len(table) - 2)
    return torch.lerp(table[low], table[low + 1], (position - low)[..., None])


def overlay_map(image: torch.Tensor, values: torch.Tensor, opacity: float) -> torch.Tensor:
    """Lay a heat map over a picture.

    The picture turns grey so that colour means uncertainty alone, and the map covers it in proportion to its
    value, so that certain parts stay readable.

    Args:
        image: ``(n, h, w, 3)`` in [0, 1].
        values: ``(n, h, w)`` in [0, 1].
        opacity: how much the map hides where it is 1, in [0, 1].
    """
    grey = image @ image.new_tensor([0.2126, 0.7152, 0.0722])
    return torch.lerp(grey[..., None].expand_as(image), colour_map(values), opacity * values[..., None])

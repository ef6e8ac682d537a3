"""Nested latents: picture and sound that a model samples as one.

A host packs the parts of a nested latent into one row of numbers, and its samplers step that row. So do the members of
an estimate: a network that hears the sound draws another picture for it. But what looks at the channels of a cell, or
at its neighbours, looks at each part in its own shape.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

# Of each part, without its batch.
Shapes = tuple[torch.Size, ...]


def pack(parts: Sequence[torch.Tensor], shapes: Shapes) -> torch.Tensor:
    """One row of all parts, ``(..., 1, sum of their elements)``; the part itself where there are no shapes.

    Args:
        parts: ``(..., *shape)`` of each shape.
    """
    if not shapes:
        return parts[0]
    return torch.cat([part.flatten(-len(shape)) for part, shape in zip(parts, shapes)], -1).unsqueeze(-2)


def unpack(packed: torch.Tensor, shapes: Shapes) -> list[torch.Tensor]:
    """The inverse of :func:`pack`, as views where that is possible."""
    if not shapes:
        return [packed]
    parts = packed.squeeze(-2).split([shape.numel() for shape in shapes], -1)
    return [part.unflatten(-1, shape) for part, shape in zip(parts, shapes)]

"""Nested latents of the host: picture and sound that are sampled as one, see :mod:`..bayesdiff_core.estimators.parts`.

A nested latent has neither a length nor most of a tensor's methods. So what is done to a LATENT is done part by part
here, and any other latent has one part.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from comfy.nested_tensor import NestedTensor

from ..bayesdiff_core.estimators.parts import Shapes, pack, unpack
from ..bayesdiff_core.reading.uncertainty import Uncertainty

# A latent, nested or not: what both kinds share is what a tensor has.
Latent = torch.Tensor


def parts_of(latent: Latent) -> list[torch.Tensor]:
    """The parts of a latent; of one that is not nested it is the only one."""
    return list(latent.unbind()) if latent.is_nested else [latent]


def whole(parts: list[torch.Tensor]) -> Latent:
    """The latent of these parts, nested where there are several."""
    return NestedTensor(parts) if len(parts) > 1 else parts[0]


def by_part(function: Callable[..., torch.Tensor], *latents: Latent) -> Latent:
    """The latent whose parts are ``function`` of the parts of the latents."""
    return whole([function(*parts) for parts in zip(*map(parts_of, latents))])


def count_of(latent: Latent) -> int:
    """How many images or clips a latent holds."""
    return len(parts_of(latent)[0])


def shapes_of(latent: Latent) -> Shapes:
    """Shapes of the parts of a nested latent, without the batch; none of any other."""
    return tuple(part.shape[1:] for part in latent.unbind()) if latent.is_nested else ()


def latent_of(uncertainty: Uncertainty) -> Latent:
    """The samples that an uncertainty is of, nested where it has several parts."""
    return whole([part.latent for part in uncertainty.parts])


def packed(latent: Latent) -> torch.Tensor:
    """As the host's samplers have it: the parts of a nested latent in one row, any other latent as it is."""
    return pack(parts_of(latent), shapes_of(latent))


def unpacked(row: torch.Tensor, like: Latent) -> Latent:
    """The inverse of :func:`packed`, of a latent of the same parts as another."""
    return whole(unpack(row, shapes_of(like)))


def batches_of(latent: Latent, size: int) -> list[Latent]:
    """A latent in batches of so many images."""
    return [whole(list(parts)) for parts in zip(*(part.split(size) for part in parts_of(latent)))]


def joined(latents: list[Latent]) -> Latent:
    """One latent of the images of all, in their order."""
    return by_part(lambda *same: torch.cat(same), *latents)


def normal_noise(latent: Latent, count: int, generator: torch.Generator) -> Latent:
    """Unit noise for so many images like those of a latent, part after part from one generator."""
    return by_part(lambda part: torch.randn(count, *part.shape[1:], generator=generator), latent)

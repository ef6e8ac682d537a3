"""Random numbers with an identity: number k of a seed is the same on every machine, in any order.

Two stages of one image, or two hosts, can then speak of the same posterior member. The bits come from Philox, a
counter-based generator (Salmon et al. 2011) whose stream numpy promises to keep, and become normal by the inverse of
the normal distribution function, in float64, so that no library's own sampler takes part.
"""

from __future__ import annotations

import math

import numpy
import torch


def normal_draw(shape: tuple[int, ...], seed: int, number: int) -> torch.Tensor:
    """Independent standard normal numbers of a shape, float32 on the CPU.

    Args:
        seed: taken modulo 2**64, so that any integer is one.
        number: which draw of that seed, from 0.
    """
    key = numpy.array([seed % 2**64, number], dtype=numpy.uint64)
    bits = numpy.random.Philox(key=key).random_raw(math.prod(shape))
    # The 53 bits that a float64 has room for, in the middle of their cells: never 0 and never 1.
    uniform = ((bits >> numpy.uint64(11)).astype(numpy.float64) + 0.5) * 2.0**-53
    return torch.special.ndtri(torch.from_numpy(uniform)).float().reshape(shape)

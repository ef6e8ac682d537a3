"""Draws with an identity: number k of a seed is the same everywhere, and independent of every other."""

import pytest
import torch

from bayesdiff_core.posterior.draws import normal_draw

COUNT = 1_000_000
LARGEST = 2**64 - 1


# Pinned to the bit: other machines, and later releases, must find these.
PINNED = {
    (0, 0): [[-2.2718842029571533, -0.701327919960022], [-1.2189801931381226, 0.16217155754566193]],
    (LARGEST, 1000): [[1.2801997661590576, 1.197263240814209], [-0.5548437237739563, 0.04379718005657196]],
}


@pytest.mark.parametrize(("seed", "number"), PINNED)
def test_a_number_of_a_seed_is_the_same_on_every_machine(seed, number):
    assert normal_draw((2, 2), seed, number).tolist() == PINNED[seed, number]


def test_a_draw_does_not_depend_on_those_before_it_nor_on_the_global_generator():
    third, state = normal_draw((5, 7), 4, 3), torch.get_rng_state()
    for number in (0, 7, 3):
        assert torch.equal(normal_draw((5, 7), 4, number), third) == (number == 3)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(normal_draw((7, 5), 4, 3).flatten(), third.flatten()), "a shape only cuts the row of numbers"


def test_any_integer_is_a_seed():
    """Noise nodes of other packs may name a negative one, or one that is too large."""
    for seed, same in ((-1, LARGEST), (2**64 + 3, 3)):
        assert torch.equal(normal_draw((5,), seed, 2), normal_draw((5,), same, 2))


def test_the_numbers_are_normal():
    draw = normal_draw((COUNT,), 1, 2).double()
    error = COUNT**-0.5
    assert abs(float(draw.mean())) < 5 * error
    assert abs(float(draw.var()) - 1) < 5 * 2**0.5 * error
    assert abs(float(draw.pow(3).mean())) < 5 * 15**0.5 * error
    assert abs(float(draw.pow(4).mean()) - 3) < 5 * 96**0.5 * error
    assert draw.isfinite().all() and 4.5 < draw.abs().max() < 6.5


@pytest.mark.parametrize(("seed", "number"), [(1, 3), (2, 2), (0, 0), (2**32 + 1, 2)])
def test_draws_are_independent(seed, number):
    first, second = normal_draw((COUNT,), 1, 2).double(), normal_draw((COUNT,), seed, number).double()
    assert abs(float((first * second).mean())) < 5 * COUNT**-0.5
    assert abs(float((first[1:] * second[:-1]).mean())) < 5 * COUNT**-0.5

"""Every family of images and video in the host's ``supported_models``, as ``python dev.py bench families`` tries it."""

from __future__ import annotations

import pytest
import torch
from bayesdiff.nodes.sampler import KSamplerBayesDiff
from families import EVERY, FAMILIES, set_up
from family_check import Fault, check_family

# Where no head can be fitted yet, or where the model adds no noise.
WITHOUT = {"HiDream-O1", "Hunyuan-Image 2.1 refiner", "Wan FlowRVS", "Z-Image of pixels"}
# Of these, where nothing is told without a head either.
UNKNOWN = {"Hunyuan-Image 2.1 refiner", "Wan FlowRVS"}

pytestmark = pytest.mark.usefixtures("inference_mode")


@pytest.mark.parametrize("name", sorted(EVERY.keys() - FAMILIES.keys() - WITHOUT))
def test_a_family_works(name):
    assert check_family(set_up(name))


@pytest.mark.parametrize("name", sorted(EVERY.keys() & WITHOUT))
def test_where_a_family_does_not_the_image_is_still_the_stock_samplers(name):
    setup = set_up(name)
    with pytest.raises((Fault, ValueError), match="Expected a model"):
        check_family(setup)
    expected = setup.stock()
    latent, uncertainty, scores = KSamplerBayesDiff.execute(**setup.inputs(), quality="instant", members=2).args[:3]
    assert torch.equal(latent["samples"], expected)
    assert len(scores) == len(expected)
    assert uncertainty.unknown.startswith("Expected a model") == (name in UNKNOWN)
    assert uncertainty.variance.isfinite().all() == (name not in UNKNOWN)
    assert uncertainty.variance.shape == expected.shape


def test_a_model_that_adds_no_noise_is_unknown():
    if "Wan FlowRVS" not in EVERY:
        pytest.skip("this host has no such model")
    setup = set_up("Wan FlowRVS")
    uncertainty = KSamplerBayesDiff.execute(**setup.inputs(), quality="instant", members=2).args[1]
    assert "samples from noise" in uncertainty.unknown and uncertainty.variance.isnan().all()

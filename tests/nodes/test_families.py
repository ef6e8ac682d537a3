"""The samplers on every family that the host can build small: untouched latents, and maps and masks of their size."""

from __future__ import annotations

import pytest
import torch
from bayesdiff.nodes.mask import UncertaintyToMask
from bayesdiff.nodes.sampler import KSamplerBayesDiff
from factory import fit_own_head
from families import FAMILIES, set_up


@pytest.fixture(scope="module", params=FAMILIES)
def setup(request):
    with torch.inference_mode():
        yield set_up(request.param)


def test_a_head_is_fitted_and_the_latent_stays_the_stock_samplers(setup):
    head = fit_own_head(setup.model, setup.guidance, setup.latent["samples"].shape[1:], 3, 2, 2)
    expected = setup.stock()
    for quality in ("balanced", "ensemble"):
        latent, uncertainty, scores = KSamplerBayesDiff.execute(
            **setup.inputs(), head=head, quality=quality, members=3
        ).args
        assert torch.equal(latent["samples"], expected)
        assert uncertainty.variance.shape == expected.shape and torch.isfinite(uncertainty.variance).all()
        assert (uncertainty.variance.flatten(1).mean(1) > 0).all() and len(scores) == len(expected)
        if expected.ndim == 4 or expected.shape[2] == 1:
            mask = UncertaintyToMask.execute(uncertainty, 0.2, 0, 0.0)[0]
            side = setup.downscale * expected.shape[-1]
            assert mask.shape == (len(expected), side, side) and 0.15 < mask.mean() < 0.25

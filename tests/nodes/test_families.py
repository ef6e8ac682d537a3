"""The samplers on every family that the host can build small: untouched latents, and maps and masks of their size."""

from __future__ import annotations

import pytest
import torch
from bayesdiff.host.posterior import Posterior
from bayesdiff.nodes.mask import UncertaintyToMask
from bayesdiff.nodes.sampler import KSamplerBayesDiff
from factory import fit_own_head
from families import FAMILIES, set_up
from measure import count_calls


@pytest.fixture(scope="module", params=FAMILIES)
def setup(request):
    with torch.inference_mode():
        yield set_up(request.param)


def test_a_head_is_fitted_and_the_latent_stays_the_stock_samplers(setup):
    head = fit_own_head(setup.model, setup.guidance, setup.latent["samples"].shape[1:], 3, 2, 2)
    stock_calls, expected = count_calls(Posterior.bind(head, setup.model).layer, setup.stock)
    for quality in ("balanced", "ensemble", "instant", "no head"):
        given = None if quality == "no head" else head
        calls, output = count_calls(
            Posterior.bind(head, setup.model).layer,
            lambda given=given, quality=quality: KSamplerBayesDiff.execute(
                **setup.inputs(), head=given, quality="balanced" if given is None else quality, members=3
            ),
        )
        latent, uncertainty, scores = output.args[:3]
        if quality in ("instant", "no head"):
            assert calls == stock_calls and uncertainty.cost == 1 and uncertainty.estimator == quality
        assert torch.equal(latent["samples"], expected)
        assert uncertainty.variance.shape == expected.shape and torch.isfinite(uncertainty.variance).all()
        assert (uncertainty.variance.flatten(1).mean(1) > 0).all() and len(scores) == len(expected)
        mask = UncertaintyToMask.execute(uncertainty, 0.2, 0, 0.0)[0]
        side = setup.downscale * expected.shape[-1]
        assert mask.shape == (len(expected) * uncertainty.frames, side, side) and 0.15 < mask.mean() < 0.25

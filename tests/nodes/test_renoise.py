"""Uncertainty without a head, on the demo model."""

from __future__ import annotations

import nodes
import pytest
import torch
from bayesdiff.host.last_layer import find_last_layer
from bayesdiff.nodes.renoise import UncertaintyWithoutHead
from measure import count_calls, spearman

pytestmark = pytest.mark.usefixtures("inference_mode")


@pytest.fixture(scope="module")
def finished(demo):
    model, positive, negative, _ = demo
    with torch.inference_mode():
        empty = {"samples": torch.zeros(2, 4, 16, 16)}
        return nodes.common_ksampler(model, 3, 8, 3.0, "euler", "normal", positive, negative, empty)[0]


def renoised(demo, latent, cfg=3.0, draws=4, levels=1, highest=0.5, lowest=0.5, seed=0):
    model, positive, negative, _ = demo
    settings = dict(cfg=cfg, draws=draws, levels=levels, highest=highest, lowest=lowest, seed=seed)
    return UncertaintyWithoutHead.execute(
        model=model, positive=positive, negative=negative, latent=latent, **settings
    ).args


@pytest.mark.parametrize(("levels", "cfg"), [(1, 3.0), (2, 1.0)])
def test_uncertainty_of_finished_latents(demo, finished, levels, cfg):
    state = torch.get_rng_state()
    calls, (uncertainty, scores) = count_calls(
        find_last_layer(demo[0]), lambda: renoised(demo, finished, cfg=cfg, levels=levels, highest=0.6, lowest=0.4)
    )
    assert calls == 4 * levels == uncertainty.members == uncertainty.cost and uncertainty.head == {}
    assert torch.equal(torch.get_rng_state(), state) and torch.equal(uncertainty.latent, finished["samples"])
    assert uncertainty.deviations.shape == (4 * levels, 2, 4, 16, 16)
    assert torch.allclose(uncertainty.variance, uncertainty.deviations.square().mean(0))
    assert (uncertainty.std_map() > 0).any() and all(score > 0 for score in scores)
    again = renoised(demo, finished, cfg=cfg, levels=levels, highest=0.6, lowest=0.4)[0]
    assert torch.equal(again.variance, uncertainty.variance)


def test_the_map_is_the_images_and_not_the_noises(demo, finished):
    """Two sets of draws agree on where; upside down they do not."""
    first, second = (renoised(demo, finished, draws=12, seed=seed)[0].std_map() for seed in (1, 2))
    agreement = spearman(first, second)
    assert agreement > 0.7 and agreement > spearman(first, second.flip(1)) + 0.2


def test_more_noise_leaves_more_open(demo, finished):
    scores = [renoised(demo, finished, highest=level, lowest=level)[1] for level in (0.2, 0.5, 0.8)]
    assert all(low < middle < high for low, middle, high in zip(*scores))


def test_deviations_are_in_units_of_the_users_latent(demo, finished):
    """At almost no noise a prediction is the latent itself, to within the noise that was added."""
    model = demo[0]
    sigma = float(model.get_model_object("model_sampling").percent_to_sigma(0.98))
    uncertainty = renoised(demo, finished, highest=0.02, lowest=0.02, cfg=1.0)[0]
    noise = sigma / model.model.latent_format.scale_factor
    assert 0.02 * noise < uncertainty.variance.mean().sqrt() < noise


def test_wrong_latents_are_one_sentence(demo):
    with pytest.raises(ValueError, match="Expected a latent of 4 channels for this model .SD15., got 16"):
        renoised(demo, {"samples": torch.ones(1, 16, 16, 16)})
    with pytest.raises(ValueError, match="Expected finished latents to add noise to, got an empty latent"):
        renoised(demo, {"samples": torch.zeros(1, 4, 16, 16)})

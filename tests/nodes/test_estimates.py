"""What the samplers estimate: against the ensemble, against what is known on paper, and on the way."""

from __future__ import annotations

import re

import comfy.samplers
import comfy.utils
import nodes
import pytest
import torch
from bayesdiff.bayesdiff_core.estimators.deviations import Deviations
from bayesdiff.bayesdiff_core.estimators.moments import Moments
from bayesdiff.bayesdiff_core.estimators.paper import Paper
from bayesdiff.bayesdiff_core.estimators.tangents import Tangents
from bayesdiff.host.last_layer import find_last_layer
from in_process import traces
from measure import spearman
from running import EMPTY, options, ours, scaled, stock

pytestmark = pytest.mark.usefixtures("inference_mode")


def test_one_step_has_the_posterior_variance_of_the_head(demo, demo_head):
    """One step at cfg 1 is denoised itself, x - σF: its variance is σ²γ², in the units of the VAE's latent."""
    model, positive, negative, _ = demo
    layer, seen = find_last_layer(model), []
    with layer.watched(lambda features: seen.append(features.clone())):
        stock(demo, EMPTY, steps=1, cfg=1.0)
    sigma = comfy.samplers.calculate_sigmas(model.get_model_object("model_sampling"), "normal", 1)[0]
    expected = sigma**2 * demo_head.variance(seen[0]) / model.model.latent_format.scale_factor**2
    members = 200
    variance = ours(demo, demo_head, EMPTY, steps=1, cfg=1.0, members=members)[1].variance
    # Four channels share γ²: relative error √(2/800) = 5 %.
    ratio = variance.mean(1) / expected
    assert ratio.mean() == pytest.approx(1, abs=0.05)
    assert (ratio.sub(1).abs() < 0.35).all()
    assert torch.corrcoef(torch.stack([variance.mean(1).flatten(), expected.flatten()]))[0, 1] > 0.8


@pytest.mark.parametrize("quality", ["balanced", "ensemble"])
def test_the_map_of_an_image_does_not_depend_on_its_batch(demo, demo_head, quality):
    alone = ours(demo, demo_head, {"samples": torch.zeros(1, 4, 16, 16)}, quality=quality)[1].variance
    together = ours(demo, demo_head, EMPTY, quality=quality)[1].variance
    assert torch.allclose(alone[0], together[0], rtol=0.02)


@pytest.mark.parametrize("sampler", ["euler", "euler_ancestral", "dpmpp_2m", "heun", "heunpp2", "uni_pc", "lcm"])
def test_deviations_find_the_map_of_the_ensemble(demo, demo_head, sampler):
    """The same draws, followed at six states and sampled from start to end; small enough to be linear in δW."""
    settings, head = dict(steps=12, sampler_name=sampler), scaled(demo_head, 1e-3)
    bare = Deviations(states=6, members=8, moderated=False)
    latent, found, _ = ours(demo, head, EMPTY, **settings, options=options(bare))
    assert found.estimator == "deviations" and found.members == 8
    truth = ours(demo, head, EMPTY, **settings, members=found.members)[1]
    assert spearman(found.std_map(), truth.std_map()) > 0.8
    # How much a run amplifies a small change is sharply uneven where noise is injected.
    if sampler != "euler_ancestral":
        assert 0.3 < float(found.variance.mean() / truth.variance.mean()) < 3
    shuffled = found.std_map().roll((8, 8), dims=(1, 2))
    assert spearman(shuffled, truth.std_map()) < 0.5, "the yardstick tells maps apart"


@pytest.mark.parametrize("sampler", ["euler", "euler_ancestral", "dpmpp_2m"])
def test_moderated_members_are_nearer_to_the_truth(demo, demo_head, sampler):
    """Of two members, against an ensemble of many; the score lies between what members and what the trend says."""
    settings = dict(steps=12, sampler_name=sampler)
    truth = ours(demo, demo_head, EMPTY, **settings, members=24)[1].std_map()
    found = [ours(demo, demo_head, EMPTY, **settings, options=options(Deviations(states=5, members=2, moderated=how)))
             for how in (False, True)]  # fmt: skip
    (_, bare, bare_scores), (_, moderated, scores) = found
    assert torch.equal(bare.deviations, moderated.deviations)
    assert spearman(moderated.std_map(), truth) > spearman(bare.std_map(), truth) + 0.1
    assert spearman(moderated.std_map(), truth) > 0.75
    learned = ours(demo, demo_head, EMPTY, "instant", **settings)[2]
    for score, own, theirs in zip(scores, bare_scores, learned):
        assert 0.9 * min(own, theirs) < score < 1.1 * max(own, theirs)


@pytest.mark.parametrize("sampler", ["euler", "euler_ancestral", "dpmpp_2m", "heun", "euler_cfg_pp", "uni_pc", "ddpm"])
def test_tangents_ride_through_any_sampler(demo, demo_head, sampler):
    """To first order a tangent is a member of the ensemble less the run: small draws, so the same to rounding."""
    head, members = scaled(demo_head, 1e-4), 3
    tangents = ours(demo, head, EMPTY, steps=5, sampler_name=sampler, options=options(Tangents(members=members)))[1]
    ensemble = ours(demo, head, EMPTY, steps=5, sampler_name=sampler, members=members)[1]
    assert tangents.cost == ensemble.cost == 1 + members
    error = (tangents.deviations - ensemble.deviations).square().mean().sqrt()
    assert error < 0.1 * ensemble.deviations.square().mean().sqrt()


def test_tangents_refuse_a_sampler_of_its_own_steps(demo, demo_head):
    of = dict(sampler_name="dpm_adaptive")
    latent, uncertainty, _ = ours(demo, demo_head, EMPTY, options=options(Tangents(members=1)), **of)
    assert re.search("takes the same steps for every latent, .*got 'dpm_adaptive", uncertainty.unknown)
    assert torch.equal(latent["samples"], stock(demo, EMPTY, **of)["samples"])


ESTIMATORS = {
    "bare": Deviations(states=4, members=2, moderated=False),
    "tangents": Tangents(members=2),
    "moments": Moments(every=2, draws=1),
    "paper": Paper(every=2, draws=3),
}


@pytest.mark.parametrize("name", ESTIMATORS)
@pytest.mark.parametrize("sampler", ["euler", "dpm_2", "euler_ancestral"])
def test_every_estimator_leaves_the_latent_and_says_what_it_did(demo, demo_head, sampler, name):
    estimator, before = ESTIMATORS[name], traces(demo[0])
    expected = stock(demo, EMPTY, steps=6, sampler_name=sampler)
    state = torch.get_rng_state()
    calls: list = []
    with find_last_layer(demo[0]).watched(calls.append):
        latent, found, _ = ours(demo, demo_head, EMPTY, steps=6, sampler_name=sampler, options=options(estimator))
    assert torch.equal(latent["samples"], expected["samples"]) and torch.equal(torch.get_rng_state(), state)
    assert traces(demo[0]) == before
    assert found.estimator == estimator.name and torch.isfinite(found.variance).all()
    assert found.cost == pytest.approx(len(calls) / (11 if sampler == "dpm_2" else 6))
    assert name == "paper" or (found.variance >= 0).all()
    assert found.deviations.shape == (found.members, *found.variance.shape)
    again = ours(demo, demo_head, EMPTY, steps=6, sampler_name=sampler, options=options(estimator))[1]
    assert torch.equal(again.variance, found.variance)


@pytest.mark.parametrize("name", ["bare", "tangents", "moments"])
def test_every_estimator_follows_the_posterior_covariance(demo, demo_head, name):
    def variance(factor: float) -> torch.Tensor:
        return ours(demo, scaled(demo_head, factor), EMPTY, options=options(ESTIMATORS[name]))[1].variance

    small, double, none = variance(1e-3), variance(2e-3), variance(1e-30)
    assert torch.allclose(double.mean(), 2 * small.mean(), rtol=0.05)
    assert none.max() < 1e-6 * small.mean()


@pytest.mark.parametrize("quality", ["balanced", "ensemble"])
def test_the_trajectory_at_chosen_sigmas(demo, demo_head, quality):
    """The run's own noisy latent there, as the stock sampler leaves it, and a variance that grows towards the end."""
    model, positive, negative, _ = demo
    sigmas = comfy.samplers.calculate_sigmas(model.get_model_object("model_sampling"), "normal", 8)
    wanted = (float(sigmas[6]) * 1.05, float(sigmas[3]))
    found = ours(demo, demo_head, EMPTY, steps=8, quality=quality, options=options(None, wanted))[1]
    assert [moment.sigma for moment in found.trajectory] == pytest.approx([float(sigmas[3]), float(sigmas[6])])
    for moment, end in zip(found.trajectory, (3, 6)):
        stopped = nodes.KSamplerAdvanced().sample(
            model, "enable", 3, 8, 3.0, "euler", "normal", positive, negative, EMPTY, 0, end, "enable"
        )[0]
        assert torch.allclose(moment.latent, stopped["samples"], rtol=1e-4, atol=1e-4)
        assert moment.variance.shape == moment.latent.shape and (moment.variance > 0).all()
    unasked = ours(demo, demo_head, EMPTY, steps=8, quality=quality)[1]
    assert [moment.sigma for moment in unasked.trajectory] == pytest.approx(sigmas[[2, 3, 5, 6]].tolist())
    assert torch.equal(unasked.trajectory[1].variance, found.trajectory[0].variance)
    assert not ours(demo, demo_head, EMPTY, steps=1, quality=quality)[1].trajectory


@pytest.mark.parametrize("quality", ["balanced", "ensemble"])
def test_the_preview_shows_the_growing_uncertainty_if_wished(demo, demo_head, monkeypatch, quality):
    shown = []
    monkeypatch.setattr(
        comfy.utils, "PROGRESS_BAR_HOOK", lambda value, total, preview, **__: shown.append((value, preview))
    )
    ours(demo, demo_head, EMPTY, quality=quality)
    assert shown and not any(preview for _, preview in shown)
    shown.clear()
    found = ours(demo, demo_head, EMPTY, quality=quality, members=8, options=options(None, map_preview=True))[1]
    images = [preview[1] for _, preview in shown if preview]
    assert len(images) == found.members and len({image.tobytes() for image in images}) == found.members
    # The last one is the map: bright where the model is unsure.
    small = torch.tensor(list(images[-1].convert("L").resize((16, 16)).getdata())).float()
    assert spearman(small[None], found.std_map()[:1].flatten(1)) > 0.7


@pytest.mark.parametrize("quality", ["balanced", "ensemble"])
def test_variance_follows_the_posterior_covariance(demo, demo_head, quality):
    """Small enough to be linear in δW: twice the covariance is twice the variance, and none is none."""
    small, double, none = (
        ours(demo, scaled(demo_head, factor), EMPTY, quality=quality)[1].variance for factor in (1e-3, 2e-3, 1e-30)
    )
    assert torch.allclose(double.mean(), 2 * small.mean(), rtol=0.05)
    assert none.max() < 1e-6 * small.mean()


def test_a_members_number_means_the_same_draw_everywhere(demo, demo_head):
    """Member k of an ensemble, of deviations and of tangents change the image alike, and unlike any other member."""
    head, members = scaled(demo_head, 1e-4), 3
    settings = dict(steps=8, sampler_name="euler")
    whole = ours(demo, head, EMPTY, **settings, members=members)[1].deviations
    estimators = Deviations(states=8, members=members, moderated=False), Tangents(members=members)
    for estimator in estimators:
        found = ours(demo, head, EMPTY, **settings, options=options(estimator))[1].deviations
        alike = torch.nn.functional.cosine_similarity(whole.flatten(1)[:, None], found.flatten(1)[None], dim=-1)
        assert alike.diagonal().min() > 0.9
        others = alike[~torch.eye(members, dtype=torch.bool)]
        assert others.abs().max() < 0.7 < alike.diagonal().min()
    # However many there are.
    assert torch.equal(ours(demo, head, EMPTY, **settings, members=2)[1].deviations, whole[:2])

"""The seam to the host, on the demo model: a real UNet of the host's own class, in this process."""

from __future__ import annotations

import dataclasses

import comfy.samplers
import comfy.utils
import nodes
import pytest
import torch
from bayesdiff.bayesdiff_core.estimators.deviations import Deviations
from bayesdiff.bayesdiff_core.estimators.moments import Moments
from bayesdiff.bayesdiff_core.estimators.paper import Paper
from bayesdiff.bayesdiff_core.estimators.tangents import Tangents
from bayesdiff.host.last_layer import check_head, check_latent, find_last_layer
from bayesdiff.host.sampling import Progress, Wishes, run_within
from bayesdiff.nodes.options import UncertaintyOptions
from bayesdiff.nodes.sampler import KSamplerAdvancedBayesDiff, KSamplerBayesDiff, SamplerCustomBayesDiff
from comfy.nested_tensor import NestedTensor
from comfy_extras.nodes_custom_sampler import (
    BasicGuider,
    CFGGuider,
    DualCFGGuider,
    RandomNoise,
    SamplerCustomAdvanced,
)
from comfy_extras.nodes_easycache import EasyCacheNode, LazyCacheNode
from comfy_extras.nodes_perpneg import PerpNegGuider
from in_process import traces
from measure import spearman

EMPTY = {"samples": torch.zeros(2, 4, 16, 16)}
MEMBERS = 2


@pytest.fixture(autouse=True)
def inference_mode():
    with torch.inference_mode():
        yield


def stock(demo, latent, steps=4, cfg=3.0, seed=3, sampler="euler", scheduler="normal", denoise=1.0):
    model, positive, negative, _ = demo
    return nodes.common_ksampler(
        model, seed, steps, cfg, sampler, scheduler, positive, negative, latent, denoise=denoise
    )[0]


def ours(
    demo, head, latent, steps=4, cfg=3.0, seed=3, sampler="euler", scheduler="normal", denoise=1.0, quality="ensemble",
    members=MEMBERS, options=None,
):  # fmt: skip
    model, positive, negative, _ = demo
    output = KSamplerBayesDiff.execute(
        model, seed, steps, cfg, sampler, scheduler, positive, negative, latent, denoise, head, quality, members,
        options,
    )  # fmt: skip
    return output.args


def options(estimator, **wishes) -> UncertaintyOptions:
    return UncertaintyOptions(estimator, Wishes(**wishes))


@pytest.mark.parametrize("cfg", [1.0, 7.0])
@pytest.mark.parametrize("scheduler", ["normal", "karras", "beta"])
@pytest.mark.parametrize("sampler", comfy.samplers.KSampler.SAMPLERS)
def test_latent_is_the_stock_samplers_for_every_sampler(demo, demo_head, sampler, scheduler, cfg):
    settings = dict(sampler=sampler, scheduler=scheduler, cfg=cfg)
    expected = stock(demo, EMPTY, **settings)
    state = torch.get_rng_state()
    latent, uncertainty, scores = ours(demo, demo_head, EMPTY, **settings, quality="draft")
    assert torch.equal(latent["samples"], expected["samples"])
    assert torch.equal(torch.get_rng_state(), state), (
        "the global generator must stand where the stock sampler leaves it"
    )
    assert uncertainty.variance.shape == latent["samples"].shape
    assert torch.isfinite(uncertainty.variance).all() and (uncertainty.variance.flatten(1).sum(1) > 0).all()
    assert scores == pytest.approx(uncertainty.variance.sqrt().mean((1, 2, 3)).tolist())


@pytest.mark.parametrize("scheduler", comfy.samplers.KSampler.SCHEDULERS)
@pytest.mark.parametrize("quality", ["balanced", "ensemble"])
def test_latent_is_the_stock_samplers_for_every_scheduler(demo, demo_head, scheduler, quality):
    expected = stock(demo, EMPTY, scheduler=scheduler)
    latent = ours(demo, demo_head, EMPTY, scheduler=scheduler, quality=quality)[0]
    assert torch.equal(latent["samples"], expected["samples"])


@pytest.mark.parametrize("sampler", comfy.samplers.KSampler.SAMPLERS)
def test_latent_is_the_stock_samplers_beside_an_ensemble(demo, demo_head, sampler):
    expected = stock(demo, EMPTY, sampler=sampler)
    state = torch.get_rng_state()
    latent, uncertainty, scores = ours(demo, demo_head, EMPTY, sampler=sampler)
    assert torch.equal(latent["samples"], expected["samples"])
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.isfinite(uncertainty.variance).all() and (uncertainty.variance.flatten(1).sum(1) > 0).all()
    assert scores == pytest.approx(uncertainty.variance.sqrt().mean((1, 2, 3)).tolist())


@pytest.mark.parametrize("quality", ["balanced", "ensemble"])
@pytest.mark.parametrize("cfg", [1.0, 7.0])
def test_image_to_image_with_a_mask_and_a_batch_index(demo, demo_head, cfg, quality):
    start = stock(demo, EMPTY)
    mask = torch.zeros(1, 16, 16)
    mask[:, 4:12, 4:12] = 1
    latent = start | {"noise_mask": mask, "batch_index": [5, 2], "note": "kept"}
    expected = stock(demo, latent, cfg=cfg, denoise=0.6)
    result, uncertainty, _ = ours(demo, demo_head, latent, cfg=cfg, denoise=0.6, quality=quality)
    assert torch.equal(result["samples"], expected["samples"])
    assert result["note"] == "kept" and result["batch_index"] == [5, 2] and "noise_mask" in result
    inside = mask[0].bool()
    std = uncertainty.std_map()
    # Outside the mask nothing is denoised; what is left there is float32 rounding.
    assert std[:, ~inside].max() < 1e-4 * std[:, inside].mean()


@pytest.mark.parametrize("quality", ["balanced", "ensemble"])
def test_nothing_survives_a_run(demo, demo_head, quality):
    model, *_ = demo
    before, first = traces(model), stock(demo, EMPTY)
    ours(demo, demo_head, EMPTY, quality=quality)
    assert traces(model) == before
    assert torch.equal(stock(demo, EMPTY)["samples"], first["samples"])


class Broken(RuntimeError):
    pass


@pytest.mark.parametrize("error", [Broken, KeyboardInterrupt, torch.OutOfMemoryError])
@pytest.mark.parametrize(("quality", "call"), [("ensemble", 0), ("ensemble", 5), ("ensemble", 9), ("precise", 7)])
def test_nothing_survives_an_error_at_any_stage(demo, demo_head, error, quality, call):
    """The network fails in the nominal run, in the first member and in a later one."""
    model, *_ = demo
    layer, calls = find_last_layer(model), 0
    before, first = traces(model), stock(demo, EMPTY)

    def fail(module, args):
        nonlocal calls
        calls += 1
        if calls > call:
            raise error("broken on purpose")

    handle = layer.module.register_forward_pre_hook(fail)
    with pytest.raises(error):
        ours(demo, demo_head, EMPTY, quality=quality)
    handle.remove()
    assert calls == call + 1
    assert traces(model) == before
    assert torch.equal(stock(demo, EMPTY)["samples"], first["samples"])


def test_perturbing_is_changing_the_weights(demo, demo_head):
    """The hook's output equals that of a network whose weights really are W* + δW."""
    model, *_ = demo
    layer = find_last_layer(model)
    delta = demo_head.draw(torch.Generator().manual_seed(4))
    progress = Progress(model, 1)

    def run(model):
        return stock((model, *demo[1:]), EMPTY, steps=3)

    hooked = run_within(run, model, progress, lambda: layer.perturbed(delta))[0]["samples"]
    weight, bias = layer.module.weight, layer.module.bias
    kept = weight.clone(), bias.clone()
    weight.data += delta[:-1].T.reshape(weight.shape)
    bias.data += delta[-1]
    try:
        changed = stock(demo, EMPTY, steps=3)["samples"]
    finally:
        weight.data, bias.data = kept
    assert torch.allclose(hooked, changed, atol=1e-4 * float(changed.abs().max()))
    plain = stock(demo, EMPTY, steps=3)["samples"]
    assert (hooked - plain).abs().max() > 100 * (hooked - changed).abs().max()


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


def test_uncertainty_is_reproducible_and_follows_the_seed(demo, demo_head):
    for quality in ("balanced", "ensemble"):
        first, again = (ours(demo, demo_head, EMPTY, quality=quality)[1].variance for _ in range(2))
        assert torch.equal(first, again)
        other = ours(demo, demo_head, EMPTY, seed=4, quality=quality)[1].variance
        assert not torch.allclose(first, other, rtol=0.1)


@pytest.mark.parametrize(
    ("quality", "sampler", "run", "total"),
    [
        ("ensemble", "euler", 8, 8 * (1 + MEMBERS)),
        ("balanced", "euler", 8, 8 + 6),
        ("precise", "heun", 15, 15 + 6 * 7),
    ],
)
def test_progress_counts_every_call_of_the_network_once(demo, demo_head, monkeypatch, quality, sampler, run, total):
    """Steps while the run goes on, which may take several calls each; then every call by its number."""
    seen, calls = [], []
    monkeypatch.setattr(comfy.utils, "PROGRESS_BAR_HOOK", lambda value, total, *_, **__: seen.append((value, total)))
    with find_last_layer(demo[0]).watched(calls.append):
        ours(demo, demo_head, EMPTY, steps=8, quality=quality, sampler=sampler)
    assert len(calls) == total
    assert [value for value, _ in seen] == [*range(1, 9), *range(run + 1, total + 1)]
    assert {of for _, of in seen[8:]} == {total}


def test_heads_and_latents_of_other_models_are_refused(demo, demo_head):
    model, *_ = demo
    assert check_head(demo_head, model).path == "out.2"
    other = dataclasses.replace(demo_head, about=demo_head.about | {"network": "Flux"})
    with pytest.raises(ValueError, match=r"network: UNetModel\), got one fitted on another \(network: Flux\)"):
        check_head(other, model)
    wide = dataclasses.replace(demo_head, geometry=dataclasses.replace(demo_head.geometry, in_features=320))
    with pytest.raises(ValueError, match="last layer of 64 to 4 channels, got one for 320 to 4"):
        check_head(wide, model)
    check_latent(model, {"samples": torch.zeros(1, 16, 8, 8)})
    with pytest.raises(ValueError, match=r"Expected a latent of 4 channels for this model \(SD15\), got 16"):
        check_latent(model, {"samples": torch.ones(1, 16, 8, 8)})
    nested = NestedTensor([torch.zeros(1, 4, 8, 8), torch.zeros(1, 4, 8)])
    with pytest.raises(ValueError, match="got a nested latent"):
        check_latent(model, {"samples": nested})


def test_another_checkpoint_of_the_family_is_a_warning(demo, demo_head, caplog):
    check_head(dataclasses.replace(demo_head, about=demo_head.about | {"weights": "other"}), demo[0])
    assert "fitted on another checkpoint of the same family (the head's weights: other" in caplog.text


# ---------------------------------------------------------------- deviations against the ensemble


def scaled(head, factor: float):
    """The head with ``factor`` times its posterior covariance."""
    precision = head.precision
    precision = dataclasses.replace(precision, values=precision.values / factor, rest=precision.rest / factor)
    return dataclasses.replace(head, precision=precision)


@pytest.mark.parametrize("sampler", ["euler", "euler_ancestral", "dpmpp_2m", "heun", "heunpp2", "uni_pc", "lcm"])
def test_deviations_find_the_map_of_the_ensemble(demo, demo_head, sampler):
    """The same draws, followed at six states and sampled from start to end; small enough to be linear in δW."""
    settings, head = dict(steps=12, sampler=sampler), scaled(demo_head, 1e-3)
    bare = Deviations(6, fixed_members=8, moderated=False)
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
    """Of two members, against an ensemble of many; the score of a picture stays what its members say."""
    settings = dict(steps=12, sampler=sampler)
    truth = ours(demo, demo_head, EMPTY, **settings, members=24)[1].std_map()
    found = [ours(demo, demo_head, EMPTY, **settings, options=options(Deviations(5, fixed_members=2, moderated=how)))
             for how in (False, True)]  # fmt: skip
    (_, bare, bare_scores), (_, moderated, scores) = found
    assert torch.equal(bare.deviations, moderated.deviations)
    assert spearman(moderated.std_map(), truth) > spearman(bare.std_map(), truth) + 0.1
    assert spearman(moderated.std_map(), truth) > 0.75
    assert scores == pytest.approx(bare_scores, rel=0.15)


@pytest.mark.parametrize("sampler", ["euler", "euler_ancestral", "dpmpp_2m", "heun", "euler_cfg_pp", "uni_pc", "ddpm"])
def test_tangents_ride_through_any_sampler(demo, demo_head, sampler):
    """To first order a tangent is a member of the ensemble less the run: small draws, so the same to rounding."""
    head, members = scaled(demo_head, 1e-4), 3
    tangents = ours(demo, head, EMPTY, steps=5, sampler=sampler, options=options(Tangents(members)))[1]
    ensemble = ours(demo, head, EMPTY, steps=5, sampler=sampler, members=members)[1]
    assert tangents.cost == ensemble.cost == 1 + members
    error = (tangents.deviations - ensemble.deviations).square().mean().sqrt()
    assert error < 0.1 * ensemble.deviations.square().mean().sqrt()


def test_tangents_refuse_a_sampler_of_its_own_steps(demo, demo_head):
    with pytest.raises(ValueError, match="takes the same steps for every latent, .*got 'dpm_adaptive"):
        ours(demo, demo_head, EMPTY, sampler="dpm_adaptive", options=options(Tangents(1)))


ESTIMATORS = {
    "bare": Deviations(4, fixed_members=2, moderated=False),
    "tangents": Tangents(2),
    "moments": Moments(2, 1),
    "paper": Paper(2, 3),
}


@pytest.mark.parametrize("name", ESTIMATORS)
@pytest.mark.parametrize("sampler", ["euler", "dpm_2", "euler_ancestral"])
def test_every_estimator_leaves_the_latent_and_says_what_it_did(demo, demo_head, sampler, name):
    estimator, before = ESTIMATORS[name], traces(demo[0])
    expected = stock(demo, EMPTY, steps=6, sampler=sampler)
    state = torch.get_rng_state()
    calls: list = []
    with find_last_layer(demo[0]).watched(calls.append):
        latent, found, _ = ours(demo, demo_head, EMPTY, steps=6, sampler=sampler, options=options(estimator))
    assert torch.equal(latent["samples"], expected["samples"]) and torch.equal(torch.get_rng_state(), state)
    assert traces(demo[0]) == before
    assert found.estimator == estimator.name and torch.isfinite(found.variance).all()
    assert found.cost == pytest.approx(len(calls) / (11 if sampler == "dpm_2" else 6))
    assert name == "paper" or (found.variance >= 0).all()
    assert found.deviations.shape == (found.members, *found.variance.shape)
    again = ours(demo, demo_head, EMPTY, steps=6, sampler=sampler, options=options(estimator))[1]
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
    found = ours(demo, demo_head, EMPTY, steps=8, quality=quality, options=options(None, levels=wanted))[1]
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
    pictures = [preview[1] for _, preview in shown if preview]
    assert len(pictures) == found.members and len({picture.tobytes() for picture in pictures}) == found.members
    # The last one is the map: bright where the model is unsure.
    small = torch.tensor(list(pictures[-1].convert("L").resize((16, 16)).getdata())).float()
    assert spearman(small[None], found.std_map()[:1].flatten(1)) > 0.7


@pytest.mark.parametrize("quality", ["balanced", "ensemble"])
def test_variance_follows_the_posterior_covariance(demo, demo_head, quality):
    """Small enough to be linear in δW: twice the covariance is twice the variance, and none is none."""
    small, double, none = (
        ours(demo, scaled(demo_head, factor), EMPTY, quality=quality)[1].variance for factor in (1e-3, 2e-3, 1e-30)
    )
    assert torch.allclose(double.mean(), 2 * small.mean(), rtol=0.05)
    assert none.max() < 1e-6 * small.mean()


@pytest.mark.parametrize("steps", [1, 2])
def test_a_run_of_few_steps(demo, demo_head, steps):
    expected = stock(demo, EMPTY, steps=steps)
    latent, uncertainty, _ = ours(demo, demo_head, EMPTY, steps=steps, quality="draft")
    assert torch.equal(latent["samples"], expected["samples"]) and uncertainty.variance.min() >= 0
    assert uncertainty.members == 1 and uncertainty.variance.mean() > 0


def test_nothing_to_denoise_is_no_uncertainty(demo, demo_head):
    start = stock(demo, EMPTY)
    for quality in ("balanced", "ensemble"):
        latent, uncertainty, scores = ours(demo, demo_head, start, denoise=0.0, quality=quality)
        assert torch.equal(latent["samples"], stock(demo, start, denoise=0.0)["samples"])
        assert uncertainty.variance.shape == latent["samples"].shape and not uncertainty.variance.any()
        assert scores == [0.0, 0.0]


# ---------------------------------------------------------------- the other samplers


@pytest.mark.parametrize("quality", ["balanced", "ensemble"])
def test_a_run_in_stages(demo, demo_head, quality):
    """The stock advanced sampler in two stages, and ours in place of either."""
    model, positive, negative, _ = demo

    def settings(latent, first: bool):
        noise, leftover = ("enable", "enable") if first else ("disable", "disable")
        steps = (0, 4) if first else (4, 100)
        return model, noise, 3, 8, 3.0, "euler", "normal", positive, negative, latent, *steps, leftover

    first = nodes.KSamplerAdvanced().sample(*settings(EMPTY, True))[0]
    second = nodes.KSamplerAdvanced().sample(*settings(first, False))[0]
    latent, early, _ = KSamplerAdvancedBayesDiff.execute(*settings(EMPTY, True), demo_head, quality, 2).args
    assert torch.equal(latent["samples"], first["samples"])
    latent, late, _ = KSamplerAdvancedBayesDiff.execute(*settings(first, False), demo_head, quality, 2).args
    assert torch.equal(latent["samples"], second["samples"])
    assert early.variance.mean() > 0 and late.variance.mean() > 0


GUIDERS = {
    "CFGGuider": lambda model, a, b: CFGGuider.execute(model, a, b, 3.0),
    "BasicGuider": lambda model, a, b: BasicGuider.execute(model, a),
    "DualCFGGuider": lambda model, a, b: DualCFGGuider.execute(model, a, b, b, 3.0, 2.0, "regular"),
    "PerpNegGuider": lambda model, a, b: PerpNegGuider.execute(model, a, b, b, 3.0, 1.0),
}


@pytest.mark.parametrize("quality", ["balanced", "ensemble"])
@pytest.mark.parametrize("name", GUIDERS)
def test_any_guider_with_custom_sigmas(demo, demo_head, name, quality):
    model, positive, negative, _ = demo
    guider = GUIDERS[name](model, positive, negative)[0]
    sampler = comfy.samplers.sampler_object("euler_ancestral")
    sigmas = comfy.samplers.calculate_sigmas(model.get_model_object("model_sampling"), "karras", 7)
    noise = RandomNoise.execute(5)[0]
    expected, expected_denoised = SamplerCustomAdvanced.execute(noise, guider, sampler, sigmas, EMPTY).args
    latent, denoised, uncertainty, _ = SamplerCustomBayesDiff.execute(
        noise, guider, sampler, sigmas, EMPTY, demo_head, quality, 2
    ).args
    assert torch.equal(latent["samples"], expected["samples"])
    assert torch.equal(denoised["samples"], expected_denoised["samples"])
    assert uncertainty.variance.shape == latent["samples"].shape and uncertainty.variance.mean() > 0
    assert guider.model_patcher is model and not model.wrappers


# ---------------------------------------------------------------- other ways to run a model


def test_a_compiled_model_is_sampled_as_it_is_and_its_uncertainty_found(demo, demo_head):
    """A compiled network does not see hooks that come after its compilation; its members run uncompiled."""
    from comfy_api.torch_helpers import set_torch_compile_wrapper

    compiled = demo[0].clone()
    set_torch_compile_wrapper(compiled, backend="eager")
    compiled_demo = (compiled, *demo[1:])
    expected = stock(compiled_demo, EMPTY)
    latent, uncertainty, _ = ours(compiled_demo, demo_head, EMPTY)
    assert torch.equal(latent["samples"], expected["samples"])
    assert torch.allclose(uncertainty.variance, ours(demo, demo_head, EMPTY)[1].variance, rtol=0.05)
    assert torch.equal(stock(compiled_demo, EMPTY)["samples"], expected["samples"])


def regional(demo):
    """A second positive prompt for the right half alone, by the stock nodes."""
    model, positive, negative, vae = demo
    right = nodes.ConditioningSetAreaPercentage().append(negative, 0.5, 1.0, 0.5, 0.0, 1.0)[0]
    return model, positive + right, negative, vae


def test_regional_prompts(demo, demo_head):
    """Each prompt's call is perturbed by the same draw, wherever in the picture it counts."""
    expected = stock(regional(demo), EMPTY)
    latent, uncertainty, _ = ours(regional(demo), demo_head, EMPTY)
    assert torch.equal(latent["samples"], expected["samples"])
    assert not torch.equal(latent["samples"], stock(demo, EMPTY)["samples"])
    plain = ours(demo, demo_head, EMPTY)[1]
    ratio = uncertainty.std_map() / plain.std_map()
    left, right = ratio[:, :, :6].log().abs().mean(), ratio[:, :, 10:].log().abs().mean()
    assert left < right


def controlled(demo):
    """The demo model under a small ControlNet of the host's own class, with random weights, by the stock node."""
    import comfy.cldm.cldm
    import comfy.controlnet
    import comfy.ops

    model, positive, negative, vae = demo
    options = {k: v for k, v in model.model.model_config.unet_config.items()
               if k not in ("out_channels", "transformer_depth_output", "dtype", "device")}  # fmt: skip
    network = comfy.cldm.cldm.ControlNet(
        **options, hint_channels=3, dtype=torch.float32, operations=comfy.ops.disable_weight_init
    )
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for _, parameter in sorted(network.named_parameters()):
            parameter.copy_(0.05 * torch.randn(parameter.shape, generator=generator))
    control = comfy.controlnet.ControlNet(network, load_device=model.load_device, manual_cast_dtype=None)
    picture = torch.rand(1, 128, 128, 3, generator=generator)
    positive, negative = nodes.ControlNetApplyAdvanced().apply_controlnet(
        positive, negative, control, picture, 1.0, 0.0, 1.0
    )
    return model, positive, negative, vae


@pytest.mark.parametrize("quality", ["balanced", "ensemble"])
def test_a_controlnet(demo, demo_head, quality):
    expected = stock(controlled(demo), EMPTY)
    assert not torch.allclose(expected["samples"], stock(demo, EMPTY)["samples"], atol=0.01)
    latent, uncertainty, _ = ours(controlled(demo), demo_head, EMPTY, quality=quality)
    assert torch.equal(latent["samples"], expected["samples"])
    plain = ours(demo, demo_head, EMPTY, quality=quality)[1].variance
    assert (uncertainty.variance > 0).all() and not torch.allclose(uncertainty.variance, plain, rtol=0.05)


def hooked(demo):
    """The demo model with a LoRA that a prompt brings along and that is on from half of the way."""
    import comfy.hooks

    model, positive, negative, vae = demo
    weight = model.model.state_dict()["diffusion_model.out.2.weight"]
    hooks = comfy.hooks.create_hook_lora(
        {"diffusion_model.out.2.diff": torch.full_like(weight, 0.01)}, strength_model=1.0, strength_clip=0.0
    )
    keyframes = comfy.hooks.HookKeyframeGroup()
    keyframes.add(comfy.hooks.HookKeyframe(strength=0.0, start_percent=0.0))
    keyframes.add(comfy.hooks.HookKeyframe(strength=1.0, start_percent=0.5))
    hooks.set_keyframes_on_hooks(hook_kf=keyframes)
    return model, comfy.hooks.set_hooks_for_conditioning(positive, hooks), negative, vae


@pytest.mark.parametrize("quality", ["balanced", "ensemble"])
def test_a_lora_that_a_prompt_brings_along(demo, demo_head, quality):
    expected = stock(hooked(demo), EMPTY)
    assert not torch.allclose(expected["samples"], stock(demo, EMPTY)["samples"], atol=0.01)
    latent, uncertainty, _ = ours(hooked(demo), demo_head, EMPTY, quality=quality)
    assert torch.equal(latent["samples"], expected["samples"])
    assert (uncertainty.variance > 0).all()
    assert torch.equal(stock(hooked(demo), EMPTY)["samples"], expected["samples"])
    # Members see the LoRA where the run saw it: what is left without a posterior is nothing.
    none = ours(hooked(demo), scaled(demo_head, 1e-30), EMPTY, quality=quality)[1].variance
    assert none.max() < 1e-6 * uncertainty.variance.mean()


def test_prompts_evaluated_apart_give_the_same_map(demo, demo_head, monkeypatch):
    """Where memory is short the host calls the network for each prompt alone."""
    together = ours(demo, demo_head, EMPTY)[1].variance
    monkeypatch.setattr(demo[0].model, "memory_usage_factor", 1e12)
    expected = stock(demo, EMPTY)
    latent, apart, _ = ours(demo, demo_head, EMPTY)
    assert torch.equal(latent["samples"], expected["samples"])
    assert torch.allclose(apart.variance, together, rtol=0.02)


def with_cache(demo, node):
    """The demo model with one of the host's caches of steps."""
    model, *rest = demo
    return node.execute(model, reuse_threshold=0.1, start_percent=0.15, end_percent=0.95, verbose=False)[0], *rest


@pytest.mark.parametrize("node", [EasyCacheNode, LazyCacheNode])
def test_a_cache_of_steps_is_the_runs_alone(demo, demo_head, node):
    """The stock sampler's latent under the cache; no trace of the cache in the uncertainty, nor of us in the cache."""
    cached = with_cache(demo, node)
    settings = dict(latent=EMPTY, steps=12, sampler="dpmpp_2m")
    calls = []
    with find_last_layer(demo[0]).watched(calls.append):
        expected = stock(cached, **settings)["samples"]
    assert 5 <= len(calls) <= 10, "the cache skips some of the steps"
    latent, uncertainty, _ = ours(cached, demo_head, quality="balanced", **settings)
    assert torch.equal(latent["samples"], expected)
    assert torch.equal(ours(cached, demo_head, quality="ensemble", **settings)[0]["samples"], expected)
    assert torch.equal(stock(cached, **settings)["samples"], expected)
    none = ours(cached, scaled(demo_head, 1e-30), quality="balanced", **settings)[1]
    assert none.variance.max() < 1e-6 * uncertainty.variance.mean()
    plain = ours(demo, demo_head, quality="balanced", **settings)[1]
    assert 0.5 < uncertainty.variance.mean() / plain.variance.mean() < 2
    assert spearman(uncertainty.std_map(), plain.std_map()) > 0.8


def test_tangents_refuse_a_cache_of_steps(demo, demo_head):
    with pytest.raises(ValueError, match="a model that skips none"):
        ours(with_cache(demo, EasyCacheNode), demo_head, EMPTY, steps=12, options=options(Tangents(1)))


def test_progress_never_goes_back_under_a_cache(demo, demo_head, monkeypatch):
    seen = []
    monkeypatch.setattr(comfy.utils, "PROGRESS_BAR_HOOK", lambda value, total, *_, **__: seen.append((value, total)))
    ours(with_cache(demo, EasyCacheNode), demo_head, EMPTY, steps=12, quality="balanced")
    values, totals = zip(*seen)
    assert list(values) == sorted(values) and values[-1] == totals[-1]

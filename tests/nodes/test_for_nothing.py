"""Uncertainty for nothing: without a head and instant, exactly the calls of the stock sampler, and what they say."""

from __future__ import annotations

import dataclasses
import logging

import comfy.samplers
import pytest
import torch
from bayesdiff.bayesdiff_core.estimators.instant import Instant
from bayesdiff.bayesdiff_core.estimators.tangents import Tangents
from bayesdiff.host.last_layer import find_last_layer
from bayesdiff.host.run.recorder import Recorder
from bayesdiff.nodes.best_of_n import KSamplerBestOfN
from bayesdiff.nodes.inputs import read_out
from bayesdiff.nodes.mask import UncertaintyToMask
from bayesdiff.nodes.renoise import UncertaintyWithoutHead
from bayesdiff.nodes.repair import Repair
from bayesdiff.nodes.resample import Resample
from bayesdiff.nodes.sampler import KSamplerBayesDiff, SamplerCustomBayesDiff
from bayesdiff.nodes.score import UncertaintyScore
from comfy_execution.graph_utils import ExecutionBlocker
from comfy_extras.nodes_custom_sampler import BasicGuider, CFGGuider, DualCFGGuider, RandomNoise
from comfy_extras.nodes_perpneg import PerpNegGuider
from factory import sampler_inputs
from in_process import traces
from measure import count_calls, spearman
from running import EMPTY, options, ours, scaled, stock

FREE = ["no head", "instant"]
GUIDERS = {
    "CFGGuider": lambda model, a, b: CFGGuider.execute(model, a, b, 3.0),
    "BasicGuider": lambda model, a, b: BasicGuider.execute(model, a),
    "DualCFGGuider": lambda model, a, b: DualCFGGuider.execute(model, a, b, b, 3.0, 2.0, "regular"),
    "PerpNegGuider": lambda model, a, b: PerpNegGuider.execute(model, a, b, b, 3.0, 1.0),
}


pytestmark = pytest.mark.usefixtures("inference_mode")


def sample(demo, head, kind: str, latent=EMPTY, **changes):
    return ours(demo, None if kind == "no head" else head, latent, quality="instant", **changes)


@pytest.mark.parametrize("kind", FREE)
@pytest.mark.parametrize("sampler", comfy.samplers.KSampler.SAMPLERS)
def test_every_sampler_makes_the_stock_samplers_calls_and_no_more(demo, demo_head, sampler, kind):
    layer, model = find_last_layer(demo[0]), demo[0]
    calls, expected = count_calls(layer, lambda: stock(demo, EMPTY, sampler_name=sampler))
    before, state = traces(model), torch.get_rng_state()
    made, (latent, uncertainty, scores) = count_calls(
        layer, lambda: sample(demo, demo_head, kind, sampler_name=sampler)
    )
    assert made == calls and uncertainty.cost == 1 and uncertainty.members == 0
    assert torch.equal(latent["samples"], expected["samples"])
    assert torch.equal(torch.get_rng_state(), state) and traces(model) == before
    assert torch.isfinite(uncertainty.variance).all() and (uncertainty.variance > 0).all()
    assert scores == pytest.approx(uncertainty.variance.sqrt().mean((1, 2, 3)).tolist())


@dataclasses.dataclass(frozen=True)
class KeepsAll(Instant):
    """Instant, of a run that is kept whole."""

    reads_evidence_alone = False


@pytest.mark.parametrize("sampler", ["euler", "heun", "dpm_2_ancestral", "dpmpp_sde", "uni_pc", "dpm_adaptive"])
def test_what_is_kept_of_a_run_does_not_grow_with_its_steps(demo, demo_head, sampler, monkeypatch):
    latent, kept = {"samples": torch.zeros(1, 4, 8, 8)}, []
    after = Recorder.after

    def counting(recorder, *seen):
        after(recorder, *seen)
        kept.append(sum(now.x.numel() + now.denoised.numel() for now in recorder.seen) / 256)

    monkeypatch.setattr(Recorder, "after", counting)
    found, most = {}, {}
    for kind in (Instant, KeepsAll):
        kept.clear()
        _, found[kind], _ = ours(demo, demo_head, latent, options=options(kind()), steps=30, sampler_name=sampler)
        most[kind] = max(kept)
    assert most[Instant] <= 45 < most[KeepsAll]
    assert torch.equal(found[Instant].variance, found[KeepsAll].variance)
    for own, whole in zip(found[Instant].trajectory, found[KeepsAll].trajectory, strict=True):
        assert own.sigma == whole.sigma
        assert torch.equal(own.latent, whole.latent) and torch.equal(own.variance, whole.variance)


@pytest.mark.parametrize("kind", FREE)
@pytest.mark.parametrize("name", GUIDERS)
def test_any_guider(demo, demo_head, name, kind):
    model, positive, negative, _ = demo
    sampling = model.get_model_object("model_sampling")
    latent, _, uncertainty, *_ = SamplerCustomBayesDiff.execute(
        noise=RandomNoise.execute(5)[0],
        guider=GUIDERS[name](model, positive, negative)[0],
        sampler=comfy.samplers.sampler_object("euler"),
        sigmas=comfy.samplers.calculate_sigmas(sampling, "karras", 7),
        latent_image=EMPTY,
        quality="instant",
        members=2,
        head=None if kind == "no head" else demo_head,
    ).args
    assert uncertainty.cost == 1 and (uncertainty.variance > 0).all()
    assert uncertainty.variance.shape == latent["samples"].shape


@pytest.mark.parametrize("kind", FREE)
@pytest.mark.parametrize("kept", [0.0, 0.5])
def test_a_mask_limits_it(demo, demo_head, kind, kept):
    """Exactly zero where the mask keeps the image; a soft mask lets a share of the deviation through."""
    start = stock(demo, EMPTY)
    mask = torch.full((1, 16, 16), kept)
    mask[:, :, :8] = 1
    latent, uncertainty, _ = sample(demo, demo_head, kind, start | {"noise_mask": mask}, denoise=0.7)
    std = uncertainty.std_map()
    assert torch.isfinite(std).all() and (std[..., :8] > 0).all()
    assert (std[..., 8:] == 0).all() if kept == 0 else (std[..., 8:].mean() < std[..., :8].mean())
    if kept == 0:
        inside = torch.zeros_like(mask)
        inside[:, :, :8] = 1
        whole = sample(demo, demo_head, kind, start, denoise=0.7)[1]
        assert 0.3 < std[..., :8].mean() / whole.std_map()[..., :8].mean() < 3


@pytest.mark.parametrize("kind", FREE)
def test_an_image_has_the_same_map_in_any_batch(demo, demo_head, kind):
    both = sample(demo, demo_head, kind)[1]
    one = {"samples": torch.zeros(1, 4, 16, 16), "batch_index": [1]}
    alone = sample(demo, demo_head, kind, one)[1]
    assert torch.allclose(alone.variance[0], both.variance[1], rtol=0.02)


def test_instant_scales_with_the_posterior_and_no_head_does_not_know_it(demo, demo_head):
    plain, wide = (sample(demo, head, "instant")[1].variance for head in (demo_head, scaled(demo_head, 4.0)))
    assert torch.allclose(wide, 4 * plain, rtol=1e-3)


def test_instant_finds_the_map_and_the_size_of_the_ensemble(demo, demo_head):
    settings = dict(steps=8, cfg=3.0)
    truth = ours(demo, demo_head, EMPTY, "ensemble", members=16, **settings)[1]
    instant = sample(demo, demo_head, "instant", **settings)[1]
    free = sample(demo, demo_head, "no head", **settings)[1]
    assert spearman(instant.std_map(), truth.std_map()) > 0.75
    assert spearman(free.std_map(), truth.std_map()) > 0.6
    assert 0.4 < instant.std_map().mean() / truth.std_map().mean() < 2.5
    for moment, same in zip(instant.trajectory, truth.trajectory, strict=True):
        assert moment.sigma == same.sigma and torch.equal(moment.latent, same.latent)
        assert 0.2 < (moment.variance.mean() / same.variance.mean()).sqrt() < 5


def test_one_step_without_a_head_is_unknown_and_says_why(demo, caplog):
    latent, uncertainty, scores = sample(demo, None, "no head", steps=1)
    assert torch.equal(latent["samples"], stock(demo, EMPTY, steps=1)["samples"])
    assert "at least two predictions" in uncertainty.unknown and uncertainty.unknown in caplog.text
    assert all(score != score for score in scores)
    # The graph goes on where nothing is read, and says why where something is.
    blocked, *_ = UncertaintyToMask.execute(uncertainty, 0.2, 0, 0.0).args
    assert blocked.message == uncertainty.unknown
    blocked, table = UncertaintyScore.execute(uncertainty, "sum").args[:2]
    assert blocked.message == table == uncertainty.unknown


def test_one_step_with_a_head_is_exact(demo, demo_head):
    """The image is the only prediction: members, of which each is a draw of it, spread as far."""
    latent, uncertainty, _ = sample(demo, demo_head, "instant", steps=1)
    assert torch.equal(latent["samples"], stock(demo, EMPTY, steps=1)["samples"])
    truth = ours(demo, demo_head, EMPTY, "ensemble", members=64, steps=1)[1]
    assert uncertainty.cost == 1 and not uncertainty.unknown
    # An estimate of 64 members is off by 18 % in each element, and by far less over all.
    assert torch.allclose(uncertainty.variance.mean(), truth.variance.mean(), rtol=0.05)
    assert spearman(uncertainty.std_map(), truth.std_map()) > 0.9


def test_one_unknown_image_of_a_batch_stops_no_graph_and_goes_with_its_image(demo, demo_head):
    uncertainty = ours(demo, demo_head, EMPTY, "instant")[1]
    variance = uncertainty.variance.clone()
    variance[1] = torch.nan
    partly = dataclasses.replace(uncertainty, variance=variance, unknown="Expected it, got nothing; take the other.")
    which = f"{partly.unknown} This holds for 1 of 2 images: 1 (counted from 0)."
    assert UncertaintyToMask.execute(partly, 0.2, 0, 0.0).args[0].message == which
    assert UncertaintyScore.execute(partly, "sum").args[1] == which
    _, scores, percentiles = read_out(partly)
    assert scores[0] == uncertainty.scores()[0] and scores[1] != scores[1] and len(percentiles) == 2
    assert partly.select(torch.tensor([0])).unknown == "" and partly.select(torch.tensor([1])).unknown == partly.unknown


def test_without_a_head_the_log_says_so_once_and_members_are_refused(demo, caplog):
    with caplog.at_level(logging.INFO):
        uncertainty = ours(demo, None, EMPTY, "balanced")[1]
    assert caplog.text.count("no Laplace head is connected") == 1
    assert uncertainty.estimator == "no head" and uncertainty.measures != "standard deviation"
    with pytest.raises(ValueError, match="Expected a Laplace head for the estimator 'tangents', got none; connect"):
        ours(demo, None, EMPTY, options=options(Tangents(members=1)))


def test_scores_have_percentiles_where_the_head_knows_its_models_images(demo, demo_head):
    def percentiles(head, quality="instant", **more):
        return KSamplerBayesDiff.execute(
            **sampler_inputs(demo, steps=8), latent_image=EMPTY, head=head, quality=quality, members=2, **more
        ).args[3]

    for quality in ("instant", "draft", "ensemble"):
        found = percentiles(demo_head, quality)
        assert len(found) == 2 and all(0 <= value <= 100 for value in found)
    untaught = dataclasses.replace(demo_head, calibration=None)
    unknown = [percentiles(None), percentiles(untaught), percentiles(demo_head, options=options(Tangents(members=1)))]
    for blocked in unknown:
        assert isinstance(blocked, ExecutionBlocker) and "Expected an uncertainty that knows" in blocked.message
    uncertainty = sample(demo, demo_head, "instant", steps=8)[1]
    table = UncertaintyScore.execute(uncertainty, "mean std")[1]
    assert "less certain than" in table and table.count("% of this model's images") == 2
    assert "less certain than" not in UncertaintyScore.execute(sample(demo, None, "no head")[1], "mean std")[1]


def test_an_old_head_still_serves(demo, demo_head, caplog):
    untaught = dataclasses.replace(demo_head, calibration=None)
    draft = ours(demo, untaught, EMPTY, "draft")[1]
    assert (draft.variance > 0).all() and draft.measures == "standard deviation"
    first = sample(demo, untaught, "instant")[1]
    assert "fit the head again" in caplog.text and first.measures != "standard deviation"
    assert spearman(first.std_map(), sample(demo, demo_head, "instant")[1].std_map()) > 0.6


# ---------------------------------------------------------------- what is built on it


def test_best_of_n_ranks_for_nothing(demo, demo_head):
    """Without a head and instant, ranking takes what sampling to its step takes."""
    inputs = sampler_inputs(demo, steps=6) | dict(latent_image={"samples": torch.zeros(1, 4, 16, 16)})
    for head in (None, demo_head):
        output = KSamplerBestOfN.execute(
            **inputs, head=head, candidates=4, keep=1, share=0.5, quality="instant", batch_size=1, score_finished=False
        ).args
        latent, early, report = output[0], output[3], output[4]
        assert latent["samples"].shape[0] == 1 and len(early) == 4 and min(early) > 0
        assert "12 to rank and 3 to finish" in report
        few = sampler_inputs(demo, steps=1) | dict(latent_image={"samples": torch.zeros(1, 4, 16, 16)}, head=head)
        with pytest.raises(ValueError, match="Expected at least 2 steps to rank by what changes in the run, got 1"):
            KSamplerBestOfN.execute(
                **few, candidates=2, keep=1, share=0.5, quality="instant", batch_size=1, score_finished=False
            )


def test_repair_without_a_head_judges_by_redrawing(demo):
    model, positive, negative, _ = demo
    start = stock(demo, EMPTY)
    more = dict(model=model, positive=positive, negative=negative, latent_image=start, seed=3, steps=4, cfg=3.0)
    more |= dict(sampler_name="euler", scheduler="normal", denoise=0.6, quality="balanced", rounds=2, area=0.2, grow=8)
    latent, uncertainty, scores, *_ = Repair.execute(**more, method="inpaint").args
    assert uncertainty.estimator == "redraw" and len(scores) == 2
    before = redrawn(demo, start)[1]
    assert all(after <= first + 1e-6 for first, after in zip(redrawn(demo, start, seed=3)[1], scores)), before
    with pytest.raises(ValueError, match="Expected a Laplace head and a quality with members for the method 'rectify'"):
        Repair.execute(**more, method="rectify")


def test_resample_draws_from_instant_and_refuses_what_is_unknown(demo, demo_head):
    model, positive, negative, _ = demo
    run = dict(model=model, positive=positive, negative=negative, seed=3, steps=4, cfg=3.0, sampler_name="euler")
    run |= dict(scheduler="normal", denoise=1.0, start_at=0.5, variations=2, strength=1.0, include_original=False)
    latent, uncertainty, _ = sample(demo, demo_head, "instant")
    found = Resample.execute(**run, latent_image=latent, uncertainty=uncertainty).args[0]["samples"]
    assert len(found) == 4 and not torch.equal(found[0], found[1])
    latent, uncertainty, _ = sample(demo, demo_head, "no head")
    with pytest.raises(ValueError, match="keeps its trajectory, got one of 'no head' that has none"):
        Resample.execute(**run, latent_image=latent, uncertainty=uncertainty)


# ---------------------------------------------------------------- redraw


def redrawn(demo, latent, seed=0, **more):
    model, positive, negative, _ = demo
    settings = dict(cfg=3.0, draws=4, levels=1, highest=0.5, lowest=0.5, seed=seed, method="redraw")
    return UncertaintyWithoutHead.execute(
        model=model, positive=positive, negative=negative, latent=latent, **(settings | more)
    ).args


def test_redraw_takes_its_steps_and_leaves_nothing(demo):
    finished, state, before = stock(demo, EMPTY, steps=8), torch.get_rng_state(), traces(demo[0])
    layer = find_last_layer(demo[0])
    for steps in (1, 2, 4):
        calls, (uncertainty, scores) = count_calls(
            layer, lambda steps=steps: redrawn(demo, finished, redraw_steps=steps)
        )
        assert calls == steps == uncertainty.cost and uncertainty.estimator == "redraw"
        assert torch.equal(uncertainty.latent, finished["samples"]) and all(score > 0 for score in scores)
    assert torch.equal(torch.get_rng_state(), state) and traces(demo[0]) == before
    again = redrawn(demo, finished, redraw_steps=4)[0]
    assert torch.equal(again.variance, uncertainty.variance)


def test_redraw_finds_what_is_not_the_models(demo):
    """Images with a square of another image in them change more, and there."""
    finished = stock(demo, {"samples": torch.zeros(6, 4, 16, 16)}, steps=12)["samples"]
    planted = finished.clone()
    planted[:, :, 4:9, 4:9] = finished.roll(1, 0)[:, :, 8:13, 8:13].flip(-1)
    scores = [torch.tensor(redrawn(demo, {"samples": latent})[1]) for latent in (finished, planted)]
    assert (scores[1] > scores[0]).float().mean() >= 0.8
    std = redrawn(demo, {"samples": planted})[0].std_map()
    assert std[:, 4:9, 4:9].mean() > 1.2 * std.mean()


def test_further_back_changes_more(demo):
    finished = stock(demo, EMPTY, steps=8)
    scores = [redrawn(demo, finished, redraw_from=level)[1] for level in (0.3, 1.0, 4.0)]
    assert all(low < middle < high for low, middle, high in zip(*scores))


def test_the_estimator_of_instant_is_the_default():
    quality = next(item for item in KSamplerBayesDiff.define_schema().inputs if item.id == "quality")
    assert quality.default == Instant.name

"""Images sampled in stages: the uncertainty of the last stage is that of the whole."""

from __future__ import annotations

import logging

import comfy.model_management
import nodes
import pytest
import torch
from bayesdiff.bayesdiff_core.estimators.moments import Moments
from bayesdiff.bayesdiff_core.estimators.tangents import Tangents
from bayesdiff.host.settings import Guidance
from bayesdiff.nodes.best_of_n import KSamplerBestOfN
from bayesdiff.nodes.filter import FilterByUncertainty
from bayesdiff.nodes.head import FitLaplaceHead
from bayesdiff.nodes.sampler import KSamplerAdvancedBayesDiff, KSamplerBayesDiff
from bayesdiff.nodes.stages import LatentsToUncertainty, UncertaintyToLatents
from factory import fit_own_head
from families import FAMILIES, set_up
from fashion_model import load_fashion_model
from running import breaking, options

EMPTY = {"samples": torch.zeros(2, 4, 8, 8)}
STEPS = 8

pytestmark = pytest.mark.usefixtures("inference_mode")


def cut(demo, latent, first, last, head=None, before=None, **changes):
    """Steps ``first`` to ``last`` by KSampler Advanced (BayesDiff), and by the stock one: they must agree."""
    inputs = dict(
        model=demo[0], add_noise="enable" if first == 0 else "disable", noise_seed=3 + first, steps=STEPS, cfg=3.0,
        sampler_name="euler", scheduler="normal", positive=demo[1], negative=demo[2], latent_image=latent,
        start_at_step=first, end_at_step=last, return_with_leftover_noise="disable" if last == STEPS else "enable",
    )  # fmt: skip
    own = dict(quality="instant", members=2, head=head, uncertainty=before) | changes
    stock = nodes.KSamplerAdvanced().sample(**inputs)[0]["samples"]
    found, uncertainty, *_ = KSamplerAdvancedBayesDiff.execute(**inputs, **own).args
    assert torch.equal(found["samples"], stock) and torch.equal(uncertainty.latent, stock)
    return found, uncertainty


def in_stages(demo, cuts, head=None, latent=EMPTY, heads=None, demos=None, **changes):
    """All stages, each with the uncertainty of the one before."""
    uncertainty = None
    for number, (first, last) in enumerate(zip((0, *cuts), (*cuts, STEPS))):
        of = demo if demos is None else demos[number]
        own = head if heads is None else heads[number]
        latent, uncertainty = cut(of, latent, first, last, own, uncertainty, **changes)
    return uncertainty


@pytest.fixture(scope="module")
def again(demo):
    """KSampler (BayesDiff) on a finished latent, at denoise 0.5."""

    def sample(latent, before=None, head=None, quality="instant", **changes):
        inputs = dict(
            model=demo[0], seed=11, steps=4, cfg=3.0, sampler_name="euler", scheduler="normal", positive=demo[1],
            negative=demo[2], latent_image=latent, denoise=0.5,
        )  # fmt: skip
        stock = nodes.KSampler().sample(**inputs)[0]["samples"]
        found = KSamplerBayesDiff.execute(
            **inputs, quality=quality, members=2, head=head, uncertainty=before, **changes
        ).args
        assert torch.equal(found[0]["samples"], stock)
        return found[1]

    return sample


@pytest.mark.parametrize("cuts", [(2,), (6,), (2, 5)])
@pytest.mark.parametrize("with_head", [True, False], ids=["instant", "no head"])
def test_a_cut_schedule_shows_what_the_whole_one_does(demo, demo_head, cuts, with_head):
    head = demo_head if with_head else None
    whole, parts = in_stages(demo, (), head), in_stages(demo, cuts, head)
    assert torch.allclose(parts.variance, whole.variance, rtol=1e-3) and parts.cost == 1.0
    assert parts.scores() == pytest.approx(whole.scores(), rel=1e-3)


@pytest.mark.parametrize("cuts", [(3,), (2, 5)])
def test_an_ensemble_goes_on_under_the_same_weights(demo, demo_head, cuts):
    """Seeds differ between the stages: the draws are those of the first."""
    whole, parts = (in_stages(demo, each, demo_head, quality="ensemble", members=3) for each in ((), cuts))
    assert torch.allclose(parts.variance, whole.variance, rtol=1e-2, atol=1e-6)
    assert torch.allclose(parts.deviations, whole.deviations, atol=1e-3)


@pytest.mark.parametrize("quality", ["draft", "balanced", "precise"])
def test_members_cost_no_call_beyond_those_of_the_quality(demo, demo_head, quality):
    whole = in_stages(demo, (), demo_head, quality=quality)
    first, middle = cut(demo, EMPTY, 0, 4, demo_head, quality=quality)
    with breaking(demo[0], 10**6, Exception) as count:
        _, carried = cut(demo, first, 4, STEPS, demo_head, middle, quality=quality)
    calls = count.calls - 4  # the stock node's own run
    assert calls == round(4 * carried.cost), "what is told is what was asked"
    assert middle.cost + carried.cost <= 2 * whole.cost + 0.5
    alone = cut(demo, first, 4, STEPS, demo_head, quality=quality)[1]
    assert float(carried.scores().mean()) > float(alone.scores().mean()), "the first stage is in it"


@pytest.mark.parametrize("estimator", [Tangents(members=2), Moments(every=2, draws=1)], ids=lambda e: e.name)
def test_every_estimator_goes_on(demo, demo_head, estimator):
    of = dict(options=options(estimator))
    carried = in_stages(demo, (4,), demo_head, **of)
    first, _ = cut(demo, EMPTY, 0, 4, demo_head, **of)
    alone = cut(demo, first, 4, STEPS, demo_head, **of)[1]
    assert carried.variance.isfinite().all() and carried.variance.mean() > alone.variance.mean()


@pytest.mark.parametrize("family", ["SD1", "SDXL", "Wan"])
@pytest.mark.parametrize("shared", [True, False], ids=["one model", "two models"])
def test_stages_of_other_families(family, shared):
    setups = [set_up(family)] * 2 if shared else [set_up(family), set_up(family)]
    if not shared:
        with torch.no_grad():
            for parameter in setups[1].model.model.diffusion_model.parameters():
                parameter.mul_(1.01)
    shape = FAMILIES[family].latent[1:]
    heads = [fit_own_head(each.model, each.guidance, shape, 2, 3, 2) for each in setups]
    demos = [(each.model, each.positive, each.negative) for each in setups]
    for quality in ("instant", "draft", "ensemble"):
        found = in_stages(None, (4,), latent=setups[0].latent, heads=heads, demos=demos, quality=quality)
        assert found.variance.shape == found.latent.shape
        assert found.unknown or found.variance.isfinite().all()


def test_stages_of_garments():
    model, positive, negative, _ = load_fashion_model("bag")
    head = fit_own_head(model, Guidance(positive, negative, 1.0), (3, 32, 32), 4, 4, 4)
    of, latent = (model, positive, negative), {"samples": torch.zeros(1, 3, 32, 32)}
    for quality in ("instant", "draft"):
        whole, parts = (in_stages(of, cuts, head, latent, quality=quality) for cuts in ((), (4,)))
        if quality == "instant":
            assert torch.allclose(parts.variance, whole.variance, rtol=1e-3)
        assert 0.3 < float(parts.scores().mean() / whole.scores().mean()) < 3


def test_an_image_is_sampled_again(demo, demo_head, again):
    latent, first = cut(demo, EMPTY, 0, STEPS, demo_head)
    alone, carried = again(latent, None, demo_head), again(latent, first, demo_head)
    assert (carried.variance > alone.variance).all() and carried.cost == 1.0
    mask = torch.zeros(1, 8, 8)
    mask[..., 4:] = 1
    kept = again(latent | {"noise_mask": mask}, first, demo_head).variance
    assert torch.allclose(kept[..., :4], first.variance[..., :4]), "what a mask keeps is as uncertain as it came in"
    followed = cut(demo, EMPTY, 0, STEPS, demo_head, quality="draft")[1]
    kept = again(latent | {"noise_mask": mask}, followed, demo_head, quality="draft")
    assert torch.allclose(kept.deviations[0][..., :4], followed.deviations[0][..., :4], atol=1e-4)
    ensemble = in_stages(demo, (), demo_head, quality="ensemble")
    members = again(latent | {"noise_mask": mask}, ensemble, demo_head, quality="ensemble").deviations
    assert torch.allclose(members[..., :4], ensemble.deviations[..., :4], atol=1e-4)


@pytest.mark.parametrize("quality", ["instant", "draft", "ensemble"])
def test_an_enlarged_latent_takes_its_uncertainty_along(demo, demo_head, again, quality):
    latent, first = cut(demo, EMPTY, 0, STEPS, demo_head, quality=quality)
    large = nodes.LatentUpscaleBy().upscale(latent, "bislerp", 1.5)[0]
    found = again(large, first, demo_head, quality)
    assert found.variance.shape == large["samples"].shape
    assert found.variance.mean() > again(large, None, demo_head, quality).variance.mean()


def test_through_the_stock_nodes(demo, demo_head, again):
    """Image and members are decoded, enlarged and encoded alike, then sampled again."""
    vae = demo[3]
    _, first = cut(demo, EMPTY, 0, STEPS, demo_head, quality="balanced")
    (batch,) = UncertaintyToLatents.execute(first, 2).args
    count = 1 + min(2, len(first.deviations))
    assert batch["samples"].shape[0] == 2 * count
    (pixels,) = nodes.VAEDecode().decode(vae, batch)
    pixels = nodes.ImageScaleBy().upscale(pixels, "lanczos", 2.0)[0]
    (encoded,) = nodes.VAEEncode().encode(vae, pixels)
    latent, middle = LatentsToUncertainty.execute(encoded, first).args
    assert torch.equal(latent["samples"], encoded["samples"][:2]) and middle.members == count - 1
    found = again(latent, middle, demo_head, "balanced")
    assert found.variance.shape == (2, 4, 16, 16) and not found.unknown


def test_what_does_not_belong_is_refused_before_any_work(demo, demo_head, again):
    latent, first = cut(demo, EMPTY, 0, STEPS, demo_head)
    three = {"samples": latent["samples"].repeat(2, 1, 1, 1)[:3]}
    cropped = {"samples": latent["samples"][..., :4]}
    other = {"samples": latent["samples"].flip(0)}
    with breaking(demo[0], 10**6, Exception) as count:
        for wrong in (three, cropped):
            with pytest.raises(ValueError, match=r"Expected the uncertainty of the latent .*Uncertainty to Latents"):
                KSamplerBayesDiff.execute(**inputs(demo, wrong), head=demo_head, uncertainty=first)
        for wrong in (other, {"samples": torch.randn(2, 4, 8, 8)}):
            with pytest.raises(ValueError, match="got that of other images or in another order"):
                KSamplerBayesDiff.execute(**inputs(demo, wrong), head=demo_head, uncertainty=first)
        with pytest.raises(ValueError, match="connect a Laplace head to both stages, or to none"):
            KSamplerBayesDiff.execute(**inputs(demo, latent), uncertainty=first)
        with pytest.raises(ValueError, match="Expected an uncertainty with members for the quality 'ensemble'"):
            KSamplerBayesDiff.execute(
                **inputs(demo, latent) | {"quality": "ensemble"}, head=demo_head, uncertainty=first
            )
        with pytest.raises(ValueError, match="Expected an uncertainty with members, got one by 'instant'"):
            UncertaintyToLatents.execute(first, 0)
    assert count.calls == 0


def test_a_frame_that_was_replaced_is_given():
    """A second stage may begin with a picture of its own: of what stands there the first stage knows nothing."""
    setup = set_up("Wan")
    demo, clip = (setup.model, setup.positive, setup.negative), {"samples": torch.zeros(1, 16, 4, 8, 8)}
    head = fit_own_head(setup.model, setup.guidance, (16, 4, 8, 8), 2, 3, 2)
    latent, first = cut(demo, clip, 0, STEPS, head)
    replaced, kept = latent["samples"].clone(), torch.ones(1, 1, 4, 8, 8)
    replaced[:, :, 0] = torch.randn(replaced[:, :, 0].shape, generator=torch.manual_seed(0))
    kept[:, :, 0] = 0
    start = {"samples": replaced, "noise_mask": kept}
    given = inputs(demo, start) | dict(head=head)
    carried, alone = (KSamplerBayesDiff.execute(**given, uncertainty=each).args[1] for each in (first, None))
    assert not carried.unknown and torch.equal(carried.latent, alone.latent)
    assert (carried.variance[:, :, 1:] > alone.variance[:, :, 1:]).all()
    assert carried.variance[:, :, 0].max() < 1e-6 * carried.variance.max()
    other = {"samples": torch.randn(replaced.shape, generator=torch.manual_seed(0))}
    with pytest.raises(ValueError, match="got that of other images or in another order"):
        KSamplerBayesDiff.execute(**given | {"latent_image": other}, uncertainty=first)


def inputs(demo, latent) -> dict:
    return dict(
        model=demo[0], seed=1, steps=2, cfg=3.0, sampler_name="euler", scheduler="normal", positive=demo[1],
        negative=demo[2], latent_image=latent, denoise=0.5, quality="instant", members=2,
    )  # fmt: skip


def test_filtered_images_go_on(demo, demo_head, again):
    latent, first = cut(demo, EMPTY, 0, STEPS, demo_head, quality="draft")
    kept = FilterByUncertainty.execute(
        rule=["keep the best"], keep=[1], fraction=[0.5], deviations=[1.0], threshold=[0.0], order=["best first"],
        uncertainty=[first], latent=[latent],
    ).args  # fmt: skip
    latents, uncertainties = [each for each in kept if isinstance(each, dict)], [e for e in kept if hasattr(e, "grid")]
    found = again(latents[0], uncertainties[0], demo_head, "draft")
    assert len(found) == 1


def test_a_first_stage_that_is_unknown(demo, demo_head, again):
    latent, first = cut(demo, EMPTY, 0, STEPS, demo_head)
    unknown = type(first)(**{**vars(first), "variance": first.variance * torch.nan, "unknown": "It cannot be told."})
    with breaking(demo[0], 10**6, Exception) as count:
        found = again(latent, unknown, demo_head, "draft")
    assert found.unknown.endswith("is unknown: It cannot be told.") and found.variance.isnan().all()
    assert count.calls == 2 * 4, "no call for what cannot be told"


def test_a_first_stage_that_was_cancelled(demo, demo_head):
    with breaking(demo[0], 2, comfy.model_management.InterruptProcessingException):
        with pytest.raises(comfy.model_management.InterruptProcessingException):
            cut(demo, EMPTY, 0, 4, demo_head)
    whole, parts = in_stages(demo, (), demo_head), in_stages(demo, (4,), demo_head)
    assert torch.allclose(parts.variance, whole.variance, rtol=1e-3)


def test_a_later_stage_says_what_it_measures(demo, demo_head, again, caplog):
    caplog.set_level(logging.INFO)
    latent, first = cut(demo, EMPTY, 0, STEPS, demo_head)
    assert "measures what it decides itself" not in caplog.text
    again(latent, first, demo_head)
    assert "measures what it decides itself" not in caplog.text
    again(latent, None, demo_head)
    assert caplog.text.count("measures what it decides itself") == 1


def test_best_of_n_of_images_that_are_sampled_again(demo, demo_head):
    latent, first = cut(demo, EMPTY, 0, STEPS, demo_head)
    given = {key: value for key, value in inputs(demo, latent).items() if key not in ("members", "quality")}
    of = given | dict(steps=4, candidates=4, keep=2, share=0.5, quality="instant", batch_size=2, score_finished=True)
    alone, carried = (
        KSamplerBestOfN.execute(**of, head=demo_head, uncertainty=before).args[3] for before in (None, first)
    )
    assert all(b > a for a, b in zip(alone, carried))


# ---------------------------------------------------------------- a head for a part of the schedule


def fit(demo, latent, **changes):
    given = dict(
        model=demo[0], positive=demo[1], negative=demo[2], latent=latent, fit_on="latents", samples=2, steps=STEPS,
        cfg=3.0, noise_levels=2, structure="low-rank", explained_variance=0.99, seed=0, folder="input", own_images=2,
    )  # fmt: skip
    return FitLaplaceHead.execute(**given | changes).args[0]


def test_heads_for_two_parts_of_the_schedule(demo, demo_head, caplog):
    latent, _ = cut(demo, EMPTY, 0, STEPS, demo_head)
    high, low = fit(demo, latent, to_share=0.5), fit(demo, latent, from_share=0.5)
    assert (high.about["part"], low.about["part"]) == ("0 to 0.5", "0.5 to 1")
    assert high.calibration is not None and low.calibration is not None
    found = in_stages(demo, (4,), heads=[high, low])
    assert found.variance.isfinite().all() and "lie outside" not in caplog.text
    cut(demo, EMPTY, 0, STEPS, low)
    assert "fitted for the part 0.5 to 1 of the schedule, and" in caplog.text


def test_parts_of_the_schedule_that_cannot_be_fitted(demo):
    with pytest.raises(ValueError, match="Expected from_share below to_share, got 0.5 and 0.5"):
        fit(demo, EMPTY, from_share=0.5, to_share=0.5)
    with pytest.raises(ValueError, match="Expected images to fit on for a part of the schedule that begins at 0.5"):
        fit(demo, EMPTY, from_share=0.5, fit_on="own samples")

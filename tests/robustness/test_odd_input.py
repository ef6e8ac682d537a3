"""Input as nobody means to give it, no numbers or sizes of every kind: a right result or one sentence."""

from __future__ import annotations

import dataclasses
import math

import hypothesis
import hypothesis.strategies as st
import nodes
import pytest
import torch
from bayesdiff.bayesdiff_core.estimators.moments import Moments
from bayesdiff.bayesdiff_core.estimators.paper import Paper
from bayesdiff.bayesdiff_core.estimators.tangents import Tangents
from bayesdiff.bayesdiff_core.reading.scores import SCORES
from bayesdiff.bayesdiff_core.reading.uncertainty import Uncertainty
from bayesdiff.host.demo_model import load_demo_model
from bayesdiff.nodes.best_of_n import KSamplerBestOfN
from bayesdiff.nodes.filter import BEST_FIRST, KEEP_BEST, FilterByUncertainty
from bayesdiff.nodes.head import FitLaplaceHead
from bayesdiff.nodes.map import UncertaintyMap
from bayesdiff.nodes.mask import UncertaintyToMask
from bayesdiff.nodes.plot import HISTOGRAM, OVER_SIGMA, UncertaintyPlot
from bayesdiff.nodes.renoise import UncertaintyWithoutHead
from bayesdiff.nodes.repair import Repair
from bayesdiff.nodes.resample import Resample
from bayesdiff.nodes.sampler import KSamplerBayesDiff
from bayesdiff.nodes.score import UncertaintyScore
from comfy_execution.graph_utils import ExecutionBlocker
from in_process import traces
from running import options

RUN = dict(steps=2, cfg=3.0, sampler_name="euler", scheduler="normal")
SIDE = 8
BAD = pytest.mark.parametrize("value", [math.nan, math.inf])


pytestmark = pytest.mark.usefixtures("inference_mode")


def prompts(demo) -> dict:
    return dict(model=demo[0], positive=demo[1], negative=demo[2])


def empty(batch: int = 1, height: int = SIDE, width: int = SIDE) -> dict:
    return {"samples": torch.zeros(batch, 4, height, width)}


def stock(demo, latent: dict, denoise: float = 1.0) -> torch.Tensor:
    model, positive, negative, _ = demo
    return nodes.common_ksampler(
        model, 3, RUN["steps"], RUN["cfg"], "euler", "normal", positive, negative, latent, denoise=denoise
    )[0]["samples"]


def sample(demo, head, latent: dict, denoise: float = 1.0, quality="draft", estimator=None, preview=False):
    return KSamplerBayesDiff.execute(
        **prompts(demo), **RUN, seed=3, latent_image=latent, denoise=denoise, head=head, quality=quality, members=2,
        options=options(estimator, map_preview=preview),
    ).args[:3]  # fmt: skip


def fit(demo, latent: dict, fit_on: str = "latents"):
    return FitLaplaceHead.execute(
        **prompts(demo), latent=latent, fit_on=fit_on, samples=1, steps=2, cfg=3.0, noise_levels=2,
        structure="low-rank", explained_variance=0.99, seed=0, folder="input",
    ).args[0]  # fmt: skip


def resample(demo, latent: dict, uncertainty: Uncertainty, mask=None):
    return Resample.execute(
        **prompts(demo), **RUN, seed=3, denoise=1.0, latent_image=latent, uncertainty=uncertainty, start_at=0.4,
        variations=2, strength=1.0, include_original=True, mask=mask,
    ).args[0]  # fmt: skip


def repair(demo, head, latent: dict, method="inpaint", rounds=1):
    return Repair.execute(
        **prompts(demo), **RUN, seed=3, latent_image=latent, denoise=0.6, head=head, quality="draft", rounds=rounds,
        area=0.2, grow=4, method=method,
    ).args  # fmt: skip


def equal_with_nan(first: torch.Tensor, second: torch.Tensor) -> bool:
    return torch.equal(first.isnan(), second.isnan()) and torch.equal(first.nan_to_num(7.0), second.nan_to_num(7.0))


# ---------------------------------------------------------------- what is no number


@pytest.fixture(scope="module", params=["in the middle", "in the last layer"])
def blind(request):
    """A demo model of its own, one of whose weights is NaN."""
    demo = load_demo_model("owl")
    network = demo[0].model.diffusion_model
    layer = network.middle_block[0].in_layers[2] if request.param == "in the middle" else network.out[2]
    with torch.no_grad():
        layer.weight[0, 0, 0, 0] = math.nan
    return demo


ESTIMATORS = {
    "draft": ("draft", None),
    "ensemble": ("ensemble", None),
    "tangents": ("draft", Tangents(members=1)),
    "moments": ("draft", Moments(every=1, draws=1)),
    "paper": ("draft", Paper(every=1, draws=1)),
}


@pytest.mark.parametrize("name", ESTIMATORS)
def test_a_model_of_nan_is_sampled_as_the_stock_one_and_its_scores_say_so(blind, demo_head, name):
    quality, estimator = ESTIMATORS[name]
    latent, uncertainty, scores = sample(blind, demo_head, empty(2), 1.0, quality, estimator, preview=True)
    assert equal_with_nan(latent["samples"], stock(blind, empty(2))) and latent["samples"].isnan().any()
    assert all(math.isnan(score) for score in scores)
    assert "got NaN or infinity in 2 of 2 images" in uncertainty.unknown
    # The rest of the graph goes on: an error would stop it before the images are saved.
    for blocked in (
        UncertaintyMap.execute(uncertainty, blind[3], "each image", 0.85).args[0],
        UncertaintyToMask.execute(uncertainty, 0.2, 0, 0.0).args[0],
        UncertaintyScore.execute(uncertainty, "median").args[0],
        UncertaintyPlot.execute(uncertainty, HISTOGRAM, "median", 256, 192).args[0],
        UncertaintyPlot.execute(uncertainty, OVER_SIGMA, "median", 256, 192).args[0],
        resample(blind, latent, uncertainty),
    ):
        assert blocked.message == uncertainty.unknown


def test_nothing_is_fitted_on_or_repaired_by_a_model_of_nan(blind, demo_head):
    image = {"samples": torch.randn(1, 4, SIDE, SIDE, generator=torch.Generator().manual_seed(0))}
    for data, fit_on in ((image, "latents"), (empty(), "own samples")):
        with pytest.raises(ValueError, match="Expected finite (features|predictions).* got NaN or infinity; sample a"):
            fit(blind, data, fit_on)
    for rounds in (0, 1):
        kept, uncertainty, *_, report = repair(blind, demo_head, image, rounds=rounds)
        assert torch.allclose(kept["samples"], image["samples"], atol=1e-5)
        assert "got NaN or infinity in 1 of 1 images" in uncertainty.unknown
        assert report == f"Nothing was repaired. {uncertainty.unknown}"
    found = KSamplerBestOfN.execute(
        **prompts(blind), **RUN, seed=3, latent_image=empty(), denoise=1.0, head=demo_head, candidates=3, keep=2,
        share=0.5, quality="quick", batch_size=1, score_finished=False,
    ).args  # fmt: skip
    assert found[0]["batch_index"] == [0, 1] and all(math.isnan(score) for score in found[3])
    _, scores = UncertaintyWithoutHead.execute(
        **prompts(blind), latent=image, cfg=3.0, draws=2, levels=1, highest=0.5, lowest=0.5, seed=0
    ).args
    assert math.isnan(scores[0])


@BAD
def test_a_latent_that_is_no_number(demo, demo_head, value):
    latent = {"samples": torch.randn(2, 4, SIDE, SIDE, generator=torch.Generator().manual_seed(0))}
    latent["samples"][0, 0, 2, 2] = value
    for quality in ("draft", "ensemble"):
        found, _, scores = sample(demo, demo_head, latent, 0.7, quality)
        assert equal_with_nan(found["samples"], stock(demo, latent, 0.7))
        assert math.isnan(scores[0]) and scores[1] > 0, "its neighbour is not touched"
    with pytest.raises(ValueError, match="Expected finite features at the last layer, got NaN"):
        fit(demo, latent)
    kept, uncertainty, *_, report = repair(demo, demo_head, latent)
    assert torch.allclose(kept["samples"], latent["samples"], atol=1e-5, equal_nan=True)
    assert "got NaN or infinity in 1 of 2 images" in uncertainty.unknown
    assert report == f"Nothing was repaired. {uncertainty.unknown} This holds for 1 of 2 images: 0 (counted from 0)."


@pytest.fixture(scope="module")
def images(demo, demo_head):
    with torch.inference_mode():
        return sample(demo, demo_head, empty(2))[:2]


@BAD
def test_a_mask_that_is_no_number(demo, demo_head, images, value):
    latent, uncertainty = images
    mask = torch.ones(1, 16, 16)
    mask[0, 3, 3] = value
    for score in SCORES:
        with pytest.raises(ValueError, match="Expected a mask of finite values, got NaN or infinity in it"):
            UncertaintyScore.execute(uncertainty, score, mask)
    for masked, given in ((latent, mask), (latent | {"noise_mask": mask}, None)):
        with pytest.raises(ValueError, match="Expected a mask of finite values, got NaN or infinity in it"):
            resample(demo, masked, uncertainty, given)
    with pytest.raises(ValueError, match="Expected a mask of finite values, got NaN or infinity in it"):
        repair(demo, demo_head, latent | {"noise_mask": mask})
    masked = latent | {"noise_mask": mask}
    assert equal_with_nan(sample(demo, demo_head, masked, 0.7)[0]["samples"], stock(demo, masked, 0.7))


@BAD
def test_scores_images_and_members_that_are_no_number(demo, images, value):
    pixels = torch.rand(2, 16, 16, 3)
    pixels[0, 3, 3] = value
    kept, sheet = FilterByUncertainty.execute(
        [KEEP_BEST], [1], [0.5], [1.0], [1.0], [BEST_FIRST], scores=[value, 2.0], images=[pixels]
    ).args[1::13][:2]
    assert torch.equal(kept, pixels[1:]) and sheet.isfinite().all()
    members = images[1].deviations.repeat(4, 1, 1, 1, 1) * value
    heat_map = UncertaintyMap.execute(
        dataclasses.replace(images[1], deviations=members), demo[3], "each image", 0.85, resolution="pixels"
    ).args[0]
    assert heat_map.isfinite().all()


# ---------------------------------------------------------------- choices that nobody offers


@pytest.mark.parametrize("name", ["sampler_name", "scheduler", "quality"])
def test_a_choice_that_a_link_brings_is_checked_before_any_work(demo, demo_head, name):
    """The host checks what a widget holds alone."""
    calls, wrong = [], dict(quality="quick") | RUN | {name: "nothing like it"}
    given = prompts(demo) | dict(seed=3, latent_image=empty(), denoise=1.0, head=demo_head)
    best_of = dict(candidates=2, keep=1, share=0.5, batch_size=1, score_finished=False)
    handle = demo[0].model.diffusion_model.register_forward_pre_hook(lambda *_: calls.append(1))
    try:
        for node, more in ((KSamplerBayesDiff, dict(members=2)), (KSamplerBestOfN, best_of)):
            quality = {} if node is KSamplerBestOfN or name == "quality" else dict(quality="draft")
            with pytest.raises(ValueError, match=f"^Expected one of what {name} offers .* got 'nothing like it'; "):
                node.execute(**given | wrong | quality | more)
    finally:
        handle.remove()
    assert not calls


# ---------------------------------------------------------------- sizes of every kind

sides = st.integers(1, 13)


@hypothesis.settings(max_examples=16)
@hypothesis.given(
    batch=st.integers(1, 5), height=sides, width=sides, quality=st.sampled_from(["draft", "precise", "ensemble"]),
    mask=st.none() | st.tuples(st.integers(1, 5), st.integers(1, 40), st.integers(1, 40)),
    filled=st.sampled_from([0.0, 0.5, 1.0]),
)  # fmt: skip
def test_any_size_of_latent_batch_and_mask(demo, demo_head, batch, height, width, quality, mask, filled):
    """The stock latent, an uncertainty of its shape, and maps and masks of the image's own size."""
    with torch.inference_mode():
        latent, denoise = empty(batch, height, width), 1.0
        if mask is not None:
            latent["samples"] = torch.linspace(-1, 1, latent["samples"].numel()).reshape(latent["samples"].shape)
            latent["noise_mask"], denoise = torch.full(mask, filled), 0.7
        before = traces(demo[0])
        found, uncertainty, scores = sample(demo, demo_head, latent, denoise, quality)
        assert torch.equal(found["samples"], stock(demo, latent, denoise)) and traces(demo[0]) == before
        assert uncertainty.variance.shape == found["samples"].shape and len(scores) == batch
        assert all(math.isfinite(score) and score >= 0 for score in scores)
        assert mask is None or filled or max(scores) < 1e-4, "nothing is denoised, nothing is uncertain"
        size = (batch, 8 * height, 8 * width)
        assert UncertaintyToMask.execute(uncertainty, 0.3, 2, 1.0).args[0].shape == size
        heat_map, *_, sheet = UncertaintyMap.execute(
            uncertainty, demo[3], "whole batch", 0.85, resolution="pixels" if height < 5 else "latent", colour_bar=True
        ).args
        assert heat_map.shape[:2] == size[:2] and len(sheet) == 1 and heat_map.isfinite().all()
        for score in SCORES:
            assert len(UncertaintyScore.execute(uncertainty, score, torch.ones(1, 5, 7)).args[0]) == batch


@hypothesis.settings(max_examples=8)
@hypothesis.given(
    batch=st.integers(1, 4), height=st.integers(3, 9), width=st.integers(3, 9), masks=st.integers(0, 3),
    method=st.sampled_from(["inpaint", "rectify"]),
)  # fmt: skip
def test_repair_and_variations_of_any_size(demo, demo_head, batch, height, width, masks, method):
    """Also with fewer or more noise masks than images, which the host repeats or cuts off."""
    with torch.inference_mode():
        latent, uncertainty, _ = sample(demo, demo_head, empty(batch, height, width))
        if masks:
            latent = latent | {"noise_mask": torch.ones(masks, 8 * height, 8 * width)}
        best, _, scores, candidates, tried, _ = repair(demo, demo_head, latent, method)
        assert best["samples"].shape == latent["samples"].shape and len(scores) == batch
        assert len(candidates["samples"]) == len(tried) == 2 * batch and best["samples"].isfinite().all()
        varied = resample(demo, latent, uncertainty)["samples"]
        assert torch.equal(varied[::3], latent["samples"]) and len(varied) == 3 * batch and varied.isfinite().all()


@hypothesis.settings(max_examples=8)
@hypothesis.given(
    candidates=st.integers(1, 5), keep=st.integers(1, 9), batch_size=st.integers(1, 9), given=st.integers(1, 3),
    share=st.sampled_from([0.01, 0.5, 1.0]), score_finished=st.booleans(),
)  # fmt: skip
def test_best_of_any_n(demo, demo_head, candidates, keep, batch_size, given, share, score_finished):
    with torch.inference_mode():
        latent, uncertainty, scores, early, report = KSamplerBestOfN.execute(
            **prompts(demo), **RUN, seed=3, latent_image=empty(given), denoise=1.0, head=demo_head, share=share,
            candidates=candidates, keep=keep, quality="quick", batch_size=batch_size, score_finished=score_finished,
        ).args  # fmt: skip
    numbers = latent["batch_index"]
    assert len(numbers) == len(set(numbers)) == len(latent["samples"]) == len(scores) == min(keep, candidates)
    assert len(early) == candidates and [early[i] for i in numbers] == sorted(early)[: len(numbers)]
    assert isinstance(uncertainty, ExecutionBlocker) != score_finished
    assert report.startswith(f"Kept {len(numbers)} of {candidates}, ")

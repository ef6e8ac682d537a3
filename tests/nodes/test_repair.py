"""The repair loop on the demo model: stock inpainting, judged alike, and the better kept."""

from __future__ import annotations

from contextlib import nullcontext

import comfy.model_management
import comfy.utils
import nodes
import pytest
import torch
from bayesdiff.bayesdiff_core.estimators.registry import JUDGES
from bayesdiff.host.last_layer import find_last_layer
from bayesdiff.host.posterior import Posterior
from bayesdiff.host.settings import Guidance
from bayesdiff.host.uses.finished import uncertainty_of_finished
from bayesdiff.nodes.mask import UncertaintyToMask
from bayesdiff.nodes.repair import Repair
from bayesdiff.nodes.sampler import KSamplerBayesDiff
from measure import count_calls, spearman
from running import breaking

RUN = dict(steps=4, cfg=3.0, sampler_name="euler", scheduler="normal")
SEED = 3


pytestmark = pytest.mark.usefixtures("inference_mode")


@pytest.fixture(scope="module")
def images(demo, demo_head):
    model, positive, negative, _ = demo
    with torch.inference_mode():
        return KSamplerBayesDiff.execute(
            model=model, seed=SEED, positive=positive, negative=negative, head=demo_head, quality="balanced",
            latent_image={"samples": torch.zeros(2, 4, 16, 16)}, members=2, denoise=1.0, **(RUN | dict(steps=8)),
        ).args[:2]  # fmt: skip


def repaired(demo, head, latent, uncertainty=None, **changes):
    model, positive, negative, _ = demo
    settings = dict(denoise=0.6, quality="draft", rounds=2, area=0.15, grow=8, method="inpaint", seed=SEED) | RUN
    return Repair.execute(
        model=model, positive=positive, negative=negative, latent_image=latent, head=head, uncertainty=uncertainty,
        **(settings | changes),
    ).args  # fmt: skip


def score(demo, head, samples):
    model, positive, negative, _ = demo
    posterior = Posterior.bind(head, model, SEED)
    return uncertainty_of_finished(samples, posterior, JUDGES["draft"], Guidance(positive, negative, 3.0))


@pytest.mark.parametrize("method", ["inpaint", "rectify"])
def test_the_better_of_each_image_is_kept(demo, demo_head, images, method):
    start = images[0] | {"note": "kept"}
    latent, uncertainty, scores, candidates, tried, report = repaired(demo, demo_head, start, method=method)
    assert latent["note"] == candidates["note"] == "kept" and candidates["batch_index"] == [0, 0, 0, 1, 1, 1]
    versions, masks = candidates["samples"].unflatten(0, (2, 3)), tried.unflatten(0, (2, 3))
    assert torch.equal(versions[:, 0], start["samples"]), "the original is always among them"
    assert not masks[:, 0].any() and (masks[:, 1:].mean((2, 3)) > 0.15).all()
    # Scored one by one from outside, the lowest of each image is what came out.
    judged = torch.stack([score(demo, demo_head, versions[:, i]).scores() for i in range(3)], dim=1)
    if method == "inpaint":  # rectify looks at one noise level more
        assert torch.allclose(torch.tensor(scores), judged.amin(1), rtol=1e-4)
        assert torch.equal(latent["samples"], versions[torch.arange(2), judged.argmin(1)])
    assert torch.equal(uncertainty.latent, latent["samples"]) and uncertainty.scores().tolist() == scores
    lines = report.splitlines()
    assert len(lines) == 5 and sum("kept" in line or "dropped" in line for line in lines) == 4
    assert all(f"image {image}: " in line for image, line in zip((0, 1, 0, 1), lines))
    # What is not masked stays, from the round's start to its end.
    outside = torch.nn.functional.max_pool2d(masks[:, 1], 8) == 0
    change = (versions[:, 1] - versions[:, 0]).abs().amax(1)
    assert change[outside].max() < 1e-3 and change[~outside].mean() > 0.01


def test_a_round_is_the_stock_samplers_inpainting(demo, demo_head, images):
    model, positive, negative, _ = demo
    start, uncertainty = images
    *_, candidates, _, _ = repaired(demo, demo_head, start, uncertainty, rounds=1)
    mask = UncertaintyToMask.execute(uncertainty, 0.15, 8, 0.0).args[0]
    expected = nodes.common_ksampler(
        model, SEED + 1, 4, 3.0, "euler", "normal", positive, negative, start | {"noise_mask": mask}, denoise=0.6
    )[0]["samples"]
    assert torch.equal(candidates["samples"].unflatten(0, (2, 2))[:, 1], expected)


def test_no_rounds_and_a_single_image(demo, demo_head, images):
    one = {"samples": images[0]["samples"][:1]}
    calls, found = count_calls(find_last_layer(demo[0]), lambda: repaired(demo, demo_head, one, rounds=0))
    latent, uncertainty, scores, candidates, tried, report = found
    assert torch.equal(latent["samples"], one["samples"]) and torch.equal(candidates["samples"], one["samples"])
    assert len(scores) == 1 and tried.shape == (1, 128, 128) and not tried.any()
    words = f"Scores at the end: {scores[0]:.4g}. Lower is more certain; images are numbered from 0."
    assert report.splitlines() == [words]
    # Five noise levels, and one draw at each.
    assert calls == 10 and uncertainty.latent.shape == (1, 4, 16, 16)


def test_a_noise_mask_of_the_latent_bounds_the_repair(demo, demo_head, images):
    mask = torch.zeros(1, 16, 16)
    mask[:, 4:10, 4:10] = 1
    start = images[0] | {"noise_mask": mask}
    latent, *_, candidates, tried, _ = repaired(demo, demo_head, start, rounds=1, area=0.05)
    change = (candidates["samples"][1::2] - candidates["samples"][::2]).abs()
    assert change[..., mask[0] == 0].max() < 1e-3 and change[..., mask[0] == 1].mean() > 0.01
    assert torch.equal(latent["noise_mask"], mask)


def test_the_score_of_a_finished_image(demo, demo_head, images):
    """Repeatable, blind to how the image came about, and near to the uncertainty of the run that made it."""
    samples, state = images[0]["samples"], torch.get_rng_state()
    first, again = score(demo, demo_head, samples), score(demo, demo_head, samples.clone())
    assert torch.equal(first.variance, again.variance) and torch.equal(torch.get_rng_state(), state)
    assert torch.equal(first.latent, samples)
    assert spearman(first.std_map(), images[1].std_map()) > 0.5
    other = score(demo, demo_head, samples.flip(0))
    assert not torch.equal(other.variance, first.variance)


def test_the_bar_goes_from_start_to_end_once(demo, demo_head, images, monkeypatch):
    seen = []
    monkeypatch.setattr(comfy.utils, "PROGRESS_BAR_HOOK", lambda value, total, *_, **__: seen.append(value / total))
    repaired(demo, demo_head, images[0])
    assert seen == sorted(seen) and seen[-1] == 1 and len(set(seen)) > 20


class Broken(RuntimeError):
    pass


@pytest.mark.parametrize("call", [7, 12, 20])
@pytest.mark.parametrize("error", [Broken, comfy.model_management.InterruptProcessingException])
def test_nothing_survives_an_error_at_any_stage(demo, demo_head, images, error, call):
    """In a draw of the first score, in the repair, and in the score of the repaired."""
    model = demo[0]
    before = repr(model.wrappers) + repr(sorted(model.model_options))
    expected = score(demo, demo_head, images[0]["samples"]).variance

    in_repair = call == 12  # the stock sampler's own call: its error is the host's
    lost = in_repair or error is not Broken
    with breaking(model, call, error), pytest.raises(error) if lost else nullcontext():
        latent, *_, report = repaired(demo, demo_head, images[0], rounds=1)
        assert torch.equal(latent["samples"], images[0]["samples"])
        assert call > 12 or report.startswith("Nothing was repaired. Expected")
    assert repr(model.wrappers) + repr(sorted(model.model_options)) == before
    assert not [m for m in model.model.diffusion_model.modules() if m._forward_hooks or m._forward_pre_hooks]
    assert torch.equal(score(demo, demo_head, images[0]["samples"]).variance, expected)


def test_wrong_input_is_one_sentence(demo, demo_head, images):
    with pytest.raises(ValueError, match="Expected finished latents to repair, got an empty latent"):
        repaired(demo, demo_head, {"samples": torch.zeros(1, 4, 16, 16)})
    with pytest.raises(ValueError, match="Expected the latent that the uncertainty belongs to"):
        repaired(demo, demo_head, {"samples": images[0]["samples"][:1]}, images[1])

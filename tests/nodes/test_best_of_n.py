"""Best of N: the finished images are the stock KSampler's, and the calls are counted as they were."""

from __future__ import annotations

import logging
import re

import nodes
import pytest
import torch
from bayesdiff.host.last_layer import find_last_layer
from bayesdiff.nodes.best_of_n import KSamplerBestOfN
from comfy_execution.graph_utils import ExecutionBlocker
from comfy_extras.nodes_apg import APG
from measure import count_calls

SETTINGS = dict(seed=5, steps=6, cfg=3.0, scheduler="normal", denoise=1.0)
EMPTY = {"samples": torch.zeros(1, 4, 16, 16)}


pytestmark = pytest.mark.usefixtures("inference_mode")


def best(demo, head, sampler="euler", model=None, latent=EMPTY, keep=2, candidates=6, share=0.5, batch_size=2,
         score_finished=False, positive=None, **settings):  # fmt: skip
    demo_model, demo_positive, negative, _ = demo
    output = KSamplerBestOfN.execute(
        model=model or demo_model, sampler_name=sampler, positive=positive or demo_positive, negative=negative,
        latent_image=latent, head=head, candidates=candidates, keep=keep, share=share, quality="quick",
        batch_size=batch_size, score_finished=score_finished, **(SETTINGS | settings),
    )  # fmt: skip
    return output.args


def stock(demo, numbers, sampler="euler", model=None, latent=EMPTY, **settings):
    """What the stock KSampler gives for these candidates alone."""
    demo_model, positive, negative, _ = demo
    seed, steps, cfg, scheduler, denoise = (SETTINGS | settings).values()
    latent = latent | {"samples": latent["samples"][:1].repeat(len(numbers), 1, 1, 1), "batch_index": numbers}
    return nodes.common_ksampler(
        model or demo_model, seed, steps, cfg, sampler, scheduler, positive, negative, latent, denoise=denoise
    )[0]


def calls_of(report: str) -> tuple[int, int, int, int]:
    """Calls of ranking, of finishing, used again, and of sampling everything."""
    pattern = r"calls: (\d+) to rank and (\d+) to finish \((\d+) of the ranking reused\), .* takes (\d+), "
    return tuple(int(number) for number in re.search(pattern, report).groups())


@pytest.mark.parametrize(
    ("sampler", "replayed"),
    [("euler", 6), ("dpmpp_2m", 6), ("heun", 10), ("lms", 6), ("ddim", 6), ("euler_ancestral", 6), ("dpmpp_2m_sde", 2),
     ("euler_cfg_pp", 0)],
)  # fmt: skip
def test_the_finished_are_the_stock_samplers_and_repeat_no_call_they_need_not(demo, demo_head, sampler, replayed):
    layer = find_last_layer(demo[0])
    passes, (latent, uncertainty, scores, early, report) = count_calls(
        layer, lambda: best(demo, demo_head, sampler=sampler, batch_size=1)
    )
    for number, samples in zip(latent["batch_index"], latent["samples"]):
        assert torch.equal(samples, stock(demo, [number], sampler=sampler)["samples"][0])
    assert len(early) == 6 and scores == sorted(early)[:2] and [early[i] for i in latent["batch_index"]] == scores
    assert isinstance(uncertainty, ExecutionBlocker)
    ranking, finishing, again, whole = calls_of(report)
    assert ranking + finishing == passes and again == replayed
    each, _ = count_calls(layer, lambda: stock(demo, [0], sampler=sampler))
    assert whole == 6 * each and finishing == 2 * each - replayed


@pytest.mark.parametrize(("keep", "batch_size"), [(3, 2), (5, 4), (1, 4), (9, 3)])
def test_batches_of_any_size(demo, demo_head, keep, batch_size):
    latent, _, scores, early, _ = best(demo, demo_head, keep=keep, batch_size=batch_size)
    numbers = latent["batch_index"]
    assert len(numbers) == len(set(numbers)) == len(scores) == min(keep, 6)
    for start in range(0, len(numbers), batch_size):
        part = slice(start, start + batch_size)
        assert torch.equal(latent["samples"][part], stock(demo, numbers[part])["samples"])


def test_latents_with_masks_and_the_uncertainty_of_the_finished(demo, demo_head):
    mask = torch.zeros(1, 16, 16)
    mask[:, 4:12, 4:12] = 1
    start = stock(demo, [7]) | {"noise_mask": mask, "note": "kept"}
    latent, uncertainty, scores, _, _ = best(
        demo, demo_head, latent=start, denoise=0.6, keep=3, batch_size=2, score_finished=True
    )
    assert latent["note"] == "kept" and len(latent["noise_mask"]) == 1
    numbers = latent["batch_index"]
    for part in (slice(0, 2), slice(2, 3)):
        expected = stock(demo, numbers[part], latent=start, denoise=0.6)
        assert torch.equal(latent["samples"][part], expected["samples"])
    assert torch.equal(uncertainty.latent, latent["samples"]) and uncertainty.scores().tolist() == scores
    std = uncertainty.std_map()
    assert std[:, ~mask[0].bool()].max() < 1e-4 * std[:, mask[0].bool()].mean()


def test_prompts_of_a_batch_go_with_their_candidates(demo, demo_head):
    """Six prompts, each again that of its number when the kept are finished."""
    positive, negative = demo[1], demo[2]
    many = positive[0][0] * torch.linspace(0.5, 1.5, 6)[:, None, None]
    latent = best(demo, demo_head, positive=[[many, {}]])[0]
    numbers = latent["batch_index"]
    chosen = (demo[0], [[many[numbers], {}]], negative, None)
    assert torch.equal(latent["samples"], stock(chosen, numbers)["samples"])


def test_guidance_with_a_memory_gets_all_its_calls(demo, demo_head):
    """Momentum adds up over the calls that it sees; so none is spared, and the images stay the stock sampler's."""
    model = APG.execute(demo[0], 1.0, 5.0, -0.5).args[0]
    latent, *_, report = best(demo, demo_head, model=model)
    assert torch.equal(latent["samples"], stock(demo, latent["batch_index"], model=model)["samples"])
    assert calls_of(report)[2] == 0


def test_nothing_survives_a_run(demo, demo_head):
    model = demo[0]
    before = repr(model.wrappers) + repr(sorted(model.model_options))
    first = stock(demo, [0, 1])["samples"]
    best(demo, demo_head)
    assert repr(model.wrappers) + repr(sorted(model.model_options)) == before
    assert torch.equal(stock(demo, [0, 1])["samples"], first)
    hooks = [m for m in model.model.diffusion_model.modules() if m._forward_hooks or m._forward_pre_hooks]
    assert not hooks


def test_what_holds_for_the_whole_run_is_said_once(demo, demo_head, caplog):
    caplog.set_level(logging.INFO)
    noisy = {"samples": torch.ones(1, 4, 16, 16)}
    best(demo, demo_head, latent=noisy, denoise=0.5, steps=4, candidates=3, keep=1, batch_size=1)
    assert caplog.text.count("this run begins below full noise") == 1

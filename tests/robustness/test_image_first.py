"""Whatever fails of ours beside a run, at any place, the stock sampler's latent is returned, to the bit."""

from __future__ import annotations

import math
import sys
from pathlib import Path

import bayesdiff
import comfy.model_management
import pytest
import torch
from bayesdiff.bayesdiff_core.estimators.moments import Moments
from bayesdiff.bayesdiff_core.estimators.tangents import Tangents
from bayesdiff.nodes.sampler import KSamplerAdvancedBayesDiff, KSamplerBayesDiff, SamplerCustomBayesDiff
from comfy_extras.nodes_custom_sampler import BasicScheduler, CFGGuider, KSamplerSelect, RandomNoise
from in_process import traces
from running import options, stock

EMPTY = {"samples": torch.zeros(1, 4, 8, 8)}
RUN = dict(steps=3, cfg=3.0, sampler_name="euler", scheduler="normal")
PACK = Path(bayesdiff.__file__).parent
OURS = tuple(f"{PACK / folder}/" for folder in ("host", "nodes", "bayesdiff_core"))
# What stands in the host's own road, or is the net itself: here nothing can be caught below.
ROAD = {
    "run", "__call__", "sample", "outer_sample", "sampler_sample", "predict_noise", "apply_model", "step", "kept",
    "sample_stock", "sample_with_uncertainty", "guarded", "problem_of", "unknown", "whole_or_first", "nothing",
    "uncertainty_of", "latent_grid", "about", "calibration", "execute", "read_out", "is_known", "__len__", "once",
    "scaling",
    "nothing_to_read", "see", "arrive", "is_out_of_memory",
}  # fmt: skip


class Thrown(RuntimeError):
    pass


class Thrower:
    """Sees every call of a function of the pack from the first network call on, and throws at the first of one.

    Args:
        at: the function to throw at, by file and name; None to throw nowhere.
    """

    def __init__(self, network: torch.nn.Module, at: tuple[str, str] | None = None):
        self.network, self.at, self.seen, self.thrown = network, at, {}, False

    def watch(self, frame, event, argument) -> None:
        code = frame.f_code
        if (
            event != "call"
            or code.co_filename.endswith("beside.py")
            or not code.co_filename.startswith(OURS)
            or code.co_name in ROAD
        ):
            return
        place = str(Path(code.co_filename).relative_to(PACK)), code.co_name
        self.seen.setdefault(place)
        if place == self.at and not self.thrown:
            self.thrown = True
            raise Thrown(f"at {place}")

    def begin(self, *_) -> None:
        self.handle.remove()
        sys.setprofile(self.watch)

    def run(self, function):
        self.handle = self.network.register_forward_pre_hook(self.begin)
        try:
            return function()
        finally:
            self.handle.remove()
            sys.setprofile(None)


pytestmark = pytest.mark.usefixtures("inference_mode")


def ksampler(demo, head, **how):
    model, positive, negative, _ = demo
    return KSamplerBayesDiff.execute(
        model=model, positive=positive, negative=negative, **RUN, seed=3, latent_image=EMPTY, denoise=1.0,
        head=head, **dict(quality="draft", members=2) | how,
    ).args  # fmt: skip


def advanced(demo, head):
    model, positive, negative, _ = demo
    return KSamplerAdvancedBayesDiff.execute(
        model=model, positive=positive, negative=negative, **RUN, noise_seed=3, latent_image=EMPTY, head=head,
        quality="draft", members=2, add_noise="enable", start_at_step=0, end_at_step=100,
        return_with_leftover_noise="disable",
    ).args  # fmt: skip


def custom(demo, head):
    model, positive, negative, _ = demo
    (guider,) = CFGGuider.execute(model, positive, negative, 3.0).args
    (sampler,) = KSamplerSelect.execute("euler").args
    (sigmas,) = BasicScheduler.execute(model, "normal", 3, 1.0).args
    (noise,) = RandomNoise.execute(3).args
    latent, _, *rest = SamplerCustomBayesDiff.execute(
        noise=noise, guider=guider, sampler=sampler, sigmas=sigmas, latent_image=EMPTY, quality="draft", members=2,
        head=head,
    ).args  # fmt: skip
    return latent, *rest


RUNS = {
    "no head": lambda demo, head: ksampler(demo, None),
    "instant": lambda demo, head: ksampler(demo, head, quality="instant"),
    "draft": ksampler,
    "ensemble": lambda demo, head: ksampler(demo, head, quality="ensemble"),
    "tangents": lambda demo, head: ksampler(demo, head, options=options(Tangents(members=1), map_preview=True)),
    "moments": lambda demo, head: ksampler(demo, head, options=options(Moments(every=1, draws=1))),
    "advanced": advanced,
    "custom": custom,
}


@pytest.mark.parametrize("run", RUNS)
def test_thrown_at_any_place_the_latent_is_the_stock_samplers(demo, demo_head, run):
    """At the first call of every function of the pack that runs from the first network call to the end."""
    model = demo[0]
    network, expected = model.model.diffusion_model, stock(demo, EMPTY, seed=3, **RUN)["samples"]
    before, first, unknown = traces(model), Thrower(network), 0
    first.run(lambda: RUNS[run](demo, demo_head))
    state = torch.get_rng_state()
    assert len(first.seen) > 20
    lost = []
    for place in first.seen:
        thrower = Thrower(network, place)
        try:
            latent, uncertainty, scores, *_ = thrower.run(lambda thrower=thrower: RUNS[run](demo, demo_head))
        except Thrown:
            lost.append(place)
            continue
        assert thrower.thrown and torch.equal(latent["samples"], expected), place
        assert traces(model) == before and torch.equal(torch.get_rng_state(), state), place
        if uncertainty.unknown:
            unknown += 1
            assert uncertainty.unknown.startswith("Expected ") and "; " in uncertainty.unknown, place
            assert uncertainty.variance.isnan().all() and all(math.isnan(score) for score in scores), place
    assert unknown > 0 and not lost


def test_a_cancelled_estimate_is_cancelled(demo, demo_head):
    """An interruption is the one thing that goes through."""
    model, calls = demo[0].model.diffusion_model, 0

    def cancel(*_):
        nonlocal calls
        calls += 1
        if calls == RUN["steps"] + 1:
            raise comfy.model_management.InterruptProcessingException()

    handle = model.register_forward_pre_hook(cancel)
    try:
        with pytest.raises(comfy.model_management.InterruptProcessingException):
            ksampler(demo, demo_head)
    finally:
        handle.remove()

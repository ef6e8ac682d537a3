"""Images sampled in stages, on a model whose answer is known on paper: what one leaves open the next goes on with."""

import dataclasses
import math

import pytest
import torch
from gaussian import (
    NOMINAL,
    SIGMA_MAX,
    SPREAD,
    GaussianRun,
    expected_variance,
    gaussian_network,
    karras,
    sample_euler,
    sample_euler_ancestral,
    uncertain_mean,
)

from bayesdiff_core.estimators.change import Change
from bayesdiff_core.estimators.deviations import HIGH, LOW, Deviations, share_of_walk
from bayesdiff_core.estimators.evidence import LEVELS
from bayesdiff_core.estimators.instant import Instant
from bayesdiff_core.estimators.moments import Moments
from bayesdiff_core.estimators.past import HALF_KEPT, Handover, left_of_past
from bayesdiff_core.estimators.tangents import Tangents
from bayesdiff_core.estimators.trajectory import Past
from bayesdiff_core.estimators.trend import Slopes, Trend
from bayesdiff_core.reading.grid import LatentGrid
from bayesdiff_core.reading.members import as_batch, from_batch
from bayesdiff_core.reading.uncertainty import Uncertainty

SIGMAS, CUT, AGAIN = karras(40), 20, 2.0
# Each member of the second stage goes on from one of the first. Relative error of a variance from 100 draws: 14 %.
ESTIMATORS = [
    Deviations(states=20, members=100),
    Deviations(states=20, members=100, moderated=False),
    Tangents(members=100),
]
TOLERANCE = 0.35
FIRST, SECOND = SIGMAS[: CUT + 1], SIGMAS[CUT:]
FROM_AGAIN = torch.cat([torch.tensor([AGAIN]), SIGMAS[SIGMAS < AGAIN]])


def kept(sigma: float) -> float:
    """How much of a deviation of x at this sigma is left of it at the end of the run."""
    return SPREAD / math.sqrt(SPREAD**2 + sigma**2)


def after(run: GaussianRun, estimate, joined: bool = False) -> Past:
    states = Handover.of(run.trajectory, 1).states if joined else ()
    return Past(estimate.variance, estimate.deviations, states)


def with_noise(run: GaussianRun) -> torch.Tensor:
    return run.image + AGAIN * torch.randn(run.shape, generator=torch.Generator().manual_seed(5))


@pytest.mark.parametrize("estimator", ESTIMATORS, ids=str)
def test_members_go_on_where_a_schedule_was_cut(estimator):
    """Under one W both halves find what the whole run has."""
    first = GaussianRun(sample_euler, FIRST, uncertain_mean())
    past = after(first, estimator.estimate(first, along=[]))
    second = GaussianRun(sample_euler, SECOND, uncertain_mean(), start=first.image, past=past)
    estimate = estimator.estimate(second, along=[0])
    assert estimate.variance.mean() == pytest.approx(expected_variance(), rel=TOLERANCE)
    assert estimate.along[0].mean() == pytest.approx(float(past.variance.mean()), rel=0.05)
    alone = estimator.estimate(GaussianRun(sample_euler, SECOND, uncertain_mean(), start=first.image), along=[])
    assert alone.variance.mean() < 0.6 * expected_variance(), "a stage that knows itself alone knows a part"


@pytest.mark.parametrize("estimator", ESTIMATORS, ids=str)
@pytest.mark.parametrize("same", [True, False], ids=["one W", "another head"])
def test_members_go_on_through_new_noise(estimator, same):
    """x - mu shrinks by r in the second run, so a deviation is (1 - r) of its own mean's and r of what came in."""
    first, head = GaussianRun(sample_euler, SIGMAS, uncertain_mean()), uncertain_mean()
    past = after(first, estimator.estimate(first, along=[]))
    if not same:  # draws that are independent of those of the first stage
        past = dataclasses.replace(past, deviations=past.deviations.flip(0))
    second = GaussianRun(sample_euler, FROM_AGAIN, head, start=with_noise(first), past=past)
    estimate = estimator.estimate(second, along=[])
    members = range(len(past.deviations))
    own = torch.stack([head.draw(1, number)[1, 0] for number in members])
    came = past.deviations.flatten(1).mean(1)
    expected = ((1 - kept(AGAIN)) * own + kept(AGAIN) * came).square().mean()
    assert estimate.variance.mean() == pytest.approx(float(expected), rel=0.25)


def test_what_a_past_without_members_leaves():
    """Half at one level, little from pure noise; where a mask keeps the image, all."""
    shape = (1, 4, 16, 16)
    first = GaussianRun(sample_euler, SIGMAS, uncertain_mean(), shape)
    past = Past(torch.full(shape, 0.01), torch.empty(0, *shape))
    second = GaussianRun(sample_euler, FROM_AGAIN, uncertain_mean(), shape, start=with_noise(first), past=past)
    left = left_of_past(second.trajectory)
    assert left.mean() == pytest.approx(0.01 / (1 + (AGAIN / HALF_KEPT) ** 2))
    share = torch.zeros(1, 16, 16)
    share[..., 8:] = 1
    masked = left_of_past(dataclasses.replace(second.trajectory, share_denoised=share))
    assert torch.equal(masked[..., :8], past.variance[..., :8]) and torch.allclose(masked[..., 8:], left[..., 8:])
    assert left_of_past(dataclasses.replace(second.trajectory, past=None)) is None
    # Members of the own stage know nothing of it: it is added.
    estimator = Deviations(states=8, members=8, moderated=False)
    certain = Past(torch.zeros(shape), torch.empty(0, *shape))
    alone = GaussianRun(sample_euler, FROM_AGAIN, uncertain_mean(), shape, start=with_noise(first), past=certain)
    found, own = estimator.estimate(second, along=[]), estimator.estimate(alone, along=[])
    assert torch.allclose(found.variance, own.variance + left)


@pytest.mark.parametrize("every", [1, 5])
def test_moments_go_on_as_if_the_run_had_not_been_cut(every):
    estimator = Moments(every=every, draws=1)
    whole = GaussianRun(sample_euler, SIGMAS, uncertain_mean())
    first = GaussianRun(sample_euler, FIRST, uncertain_mean())
    past = after(first, estimator.estimate(first, along=[]))
    second = GaussianRun(sample_euler, SECOND, uncertain_mean(), start=first.image, past=past)
    expected, found = estimator.estimate(whole, along=[]).variance, estimator.estimate(second, along=[]).variance
    assert torch.allclose(found, expected, rtol=1e-3)


def trend() -> Trend:
    """Any trend: what is asked is whether both runs show it the same."""
    generator, p = torch.Generator().manual_seed(3), len(LEVELS) + 2
    full = Slopes(0.1 * torch.randn(p + len(LEVELS), generator=generator), 0.3)
    return Trend(full, Slopes(full.where[:p], 0.3), torch.linspace(-2, 0, len(LEVELS)), 0.5, 6)


@pytest.mark.parametrize("sampler", [sample_euler, sample_euler_ancestral])
@pytest.mark.parametrize("cuts", [(10,), (30,), (8, 9, 20)])
@pytest.mark.parametrize("estimator", [Instant(), Change()], ids=["instant", "no head"])
def test_a_run_that_was_cut_shows_what_the_whole_one_does(estimator, cuts, sampler):
    shape = (2, 4, 8, 8)

    def run(sigmas, start=None, past=None):
        found = GaussianRun(sampler, sigmas, uncertain_mean(), shape, start=start, past=past)
        found.trend = trend()
        return found

    parts = [SIGMAS[a : b + 1] for a, b in zip((0, *cuts), (*cuts, len(SIGMAS) - 1))]
    whole = run(SIGMAS)
    states, seen = whole.trajectory.states, 0
    past, before = None, None
    for sigmas in parts:
        now = run(sigmas, None if before is None else before.image, past)
        # Samplers that add noise draw other numbers in a part: the parts are of the whole run.
        own = states[seen : seen + len(sigmas) - 1]
        seen += len(own)
        now.trajectory = dataclasses.replace(now.trajectory, states=own)
        estimate = estimator.estimate(now, along=[])
        assert now.calls == 0
        past, before = after(now, estimate, joined=True), now
    expected = estimator.estimate(whole, along=[]).variance
    assert torch.allclose(estimate.variance, expected, rtol=1e-4) and expected.std() > 0


def test_a_handover_is_small_and_follows_the_images():
    run = GaussianRun(sample_euler, FIRST, uncertain_mean(), (3, 4, 4, 4))
    handover = Handover.of(run.trajectory, seed=7)
    assert handover.seed == 7 and handover.noise_over_signal == pytest.approx(float(FIRST[-1]))
    assert 0 < len(handover.states) <= 2 * len(LEVELS) < len(run.trajectory.states)
    assert all(not state.x.numel() and state.variance.shape[1] == 1 for state in handover.states)
    one = handover.select(torch.tensor([2]))
    assert torch.equal(one.states[0].denoised, handover.states[0].denoised[2:])
    both = Handover.join([one, handover.select(torch.tensor([0, 1]))])
    assert torch.equal(both.states[1].denoised, handover.states[1].denoised[[2, 0, 1]])
    other = dataclasses.replace(one, states=tuple(dataclasses.replace(s, sigma=s.sigma + 1) for s in one.states))
    assert Handover.join([one, other]).states == ()
    finished = GaussianRun(sample_euler, SIGMAS, uncertain_mean())
    assert Handover.of(finished.trajectory, 0).states == (), "nothing is cut where nothing is left to do"


def test_a_part_of_the_walk_takes_its_part_of_the_states():
    assert share_of_walk(SIGMA_MAX * 10, 0.0) == 1.0
    middle = ((HIGH ** (1 / 7) + LOW ** (1 / 7)) / 2) ** 7
    assert share_of_walk(HIGH, middle) == pytest.approx(0.5) == share_of_walk(middle, 0.0)
    run = GaussianRun(sample_euler, FIRST, uncertain_mean())
    whole = GaussianRun(sample_euler, SIGMAS, uncertain_mean())
    estimator = Deviations(states=8, share=1.0)
    states, members = estimator.plan(run.trajectory)
    assert len(states) < 8 and len(states) * members <= len(run.trajectory.states)
    assert members > 1 and len(estimator.plan(whole.trajectory)[0]) == 8
    # Of fewer members than could be paid for, each is followed more closely.
    past = Past(torch.zeros(run.shape), torch.zeros(1, *run.shape))
    second = GaussianRun(sample_euler, SECOND, uncertain_mean(), start=run.image, past=past)
    states, members = estimator.plan(second.trajectory)
    assert members == 1 and len(states) == 8


# ---------------------------------------------------------------- through other nodes


def uncertainty(members: int = 3, shape: tuple[int, ...] = (2, 4, 8, 8)) -> Uncertainty:
    generator = torch.Generator().manual_seed(0)
    latent, deviations = torch.randn(shape, generator=generator), torch.randn(members, *shape, generator=generator)
    deviations[..., 4:] *= 3
    variance = deviations.square().mean(0) if members else torch.ones(shape)
    return Uncertainty(variance, latent, LatentGrid(), "deviations", members, {}, 1.5, deviations)


def test_members_stand_in_one_batch_and_come_back():
    before = uncertainty()
    batch = as_batch(before)
    assert batch.shape == (8, 4, 8, 8) and torch.equal(batch[:2], before.latent)
    assert torch.equal(batch[2:4], before.latent + before.deviations[0])
    back = from_batch(batch, before)
    assert torch.allclose(back.deviations, before.deviations, atol=1e-6) and torch.equal(back.latent, before.latent)
    assert back.members == 3 and len(as_batch(before, members=1)) == 4
    stds = [each.variance.mean(1).sqrt().flatten(1).mean(1) for each in (before, back)]
    assert torch.allclose(*stds, rtol=0.1), "the size is that from before"


@pytest.mark.parametrize("turn", [lambda x: x.flip(-1), lambda x: x[..., 2:6, :], lambda x: x.repeat_interleave(2, -1)])
def test_whatever_is_done_to_the_batch_is_done_to_the_variance(turn):
    before = uncertainty(members=8)
    back = from_batch(turn(as_batch(before)), before)
    expected, found = turn(before.variance.mean(1)), back.variance.mean(1)
    assert found.shape == expected.shape
    assert torch.corrcoef(torch.stack([found.log().flatten(), expected.log().flatten()]))[0, 1] > 0.7


def test_batches_that_cannot_be_turned_back():
    before = uncertainty()
    batch = as_batch(before)
    for wrong in (batch[:7], batch[:2], torch.cat([batch, batch])):
        with pytest.raises(ValueError, match="Expected the batch that Uncertainty to Latents made, 2 images"):
            from_batch(wrong, before)
    with pytest.raises(ValueError, match="Expected finite latents, got NaN"):
        from_batch(batch * torch.nan, before)
    with pytest.raises(ValueError, match="Expected an uncertainty with members, got one by 'deviations'"):
        as_batch(uncertainty(members=0))
    with pytest.raises(ValueError, match="no size"):
        as_batch(dataclasses.replace(before, unknown="It has no size."))


def test_the_network_of_the_tests_is_the_one_that_is_sampled():
    run = GaussianRun(sample_euler, FIRST, uncertain_mean())
    again = sample_euler(gaussian_network(NOMINAL), run.image, SECOND)
    whole = GaussianRun(sample_euler, SIGMAS, uncertain_mean())
    assert torch.allclose(again, whole.image, atol=1e-5)

"""What a head learns of its model's images, on images whose variance is known because they were drawn."""

import dataclasses
import math

import pytest
import torch
from measure import spearman

from bayesdiff_core.estimators.base import Shown
from bayesdiff_core.estimators.evidence import LEVELS, Evidence
from bayesdiff_core.estimators.instant import Instant
from bayesdiff_core.estimators.moderation import level_factor, moderate
from bayesdiff_core.estimators.trajectory import Scales, State, Trajectory
from bayesdiff_core.estimators.trend import Seen, fit_trend
from bayesdiff_core.reading.scale import ScoreScale, student_cdf

SHAPE = (16, 16)


def smooth(*shape: int, generator: torch.Generator) -> torch.Tensor:
    """Noise that varies slowly over the image, of about unit variance."""
    coarse = torch.randn(*shape, 5, 5, generator=generator)
    flat = coarse.reshape(-1, 1, 5, 5)
    return torch.nn.functional.interpolate(flat, SHAPE, mode="bicubic").reshape(*shape, *SHAPE)


def drawn(images: int, seed: int, share: torch.Tensor | None = None, members: int = 1):
    """Images whose log variance follows gamma² and the change, and what is seen of them."""
    generator = torch.Generator().manual_seed(seed)
    change, gradient, variance = (smooth(count, images, generator=generator) for count in (8, 2, 8))
    level = torch.randn(images, 1, 1, generator=generator)
    variance = variance + level
    evidence = Evidence(change, gradient, variance, share)
    log_truth = 0.7 * (variance[-1] - level) + level + 0.4 * change[3] + 3.0
    truth = log_truth.exp()
    draws = torch.randn(members, images, 4, *SHAPE, generator=generator) * truth[:, None].sqrt()
    return truth, Seen(evidence, draws, {2.0: 1.5, 0.5: 1.2})


def test_the_trend_is_found_and_holds_on_other_images():
    trend = fit_trend([drawn(1, seed)[1] for seed in range(6)])
    truth, other = drawn(8, 99)
    found = trend.full.log_variance(other.evidence).exp()
    assert spearman(found, truth) > 0.95
    blind = dataclasses.replace(other.evidence, variance=None)
    assert 0.3 < spearman(trend.slopes(blind).log_variance(blind).exp(), truth) < 0.9
    # The size follows gamma² from image to image, and is right in the mean.
    sizes = [of.sqrt().mean((1, 2)) for of in (found, truth)]
    assert float((sizes[0] / sizes[1]).log().mean()) == pytest.approx(0, abs=0.5)
    assert float(torch.corrcoef(torch.stack([size.log() for size in sizes]))[0, 1]) > 0.8
    assert trend.images == 6 and 0.5 <= trend.level_spread <= 1.5


def test_a_draw_that_led_elsewhere_bends_little():
    seen = [drawn(1, seed)[1] for seed in range(6)]
    wild = seen[2].deviations + 30 * torch.randn(seen[2].deviations.shape, generator=torch.Generator().manual_seed(0))
    trend = fit_trend([*seen[:2], seen[2]._replace(deviations=wild), *seen[3:]])
    truth, other = drawn(8, 99)
    assert spearman(trend.full.log_variance(other.evidence), truth) > 0.9


def test_where_nothing_is_denoised_nothing_is_learned_or_said():
    share = torch.ones(1, *SHAPE)
    share[..., 8:] = 0
    seen = [drawn(1, seed, share)[1] for seed in range(6)]
    bent = [each._replace(deviations=each.deviations * (1 + 50 * (share == 0))) for each in seen]
    assert torch.allclose(fit_trend(seen).full.where, fit_trend(bent).full.where, atol=1e-6)


def run_of(evidence_seed: int, factor: float = 1.0, images: int = 2) -> Trajectory:
    """A run at the levels of the grid."""
    generator = torch.Generator().manual_seed(evidence_seed)
    image = torch.randn(images, 4, *SHAPE, generator=generator)
    states = []
    for level in (*LEVELS, 0.02):
        denoised = image + level * smooth(images, 4, generator=generator)
        variance = factor * level * smooth(images, 1, generator=generator).exp().expand(image.shape)
        states.append(State(level, Scales(level, 1.0), denoised, denoised, 0.9, variance))
    return Trajectory(tuple(states), Scales(0.0, 1.0))


@dataclasses.dataclass
class Run:
    """A run that is over, for an estimator that asks nothing of the network."""

    trajectory: Trajectory
    trend: object

    @property
    def shown(self) -> list[Shown]:
        return [Shown(part, self.trend) for part in self.trajectory.parts]

    def show(self, variance):
        self.preview = variance


def test_instant_scales_with_the_posterior_and_not_with_the_batch():
    trend = fit_trend([drawn(1, seed)[1] for seed in range(6)])
    run, doubled = (Run(run_of(7, factor), trend) for factor in (1.0, 2.0))
    once, twice = (Instant().estimate(each, [2]) for each in (run, doubled))
    assert torch.allclose(twice.variance, 2 * once.variance, rtol=1e-3)
    assert torch.equal(run.preview, once.variance) and len(once.deviations) == 0
    alone = Trajectory(
        tuple(
            dataclasses.replace(s, x=s.x[1:], denoised=s.denoised[1:], variance=s.variance[1:])
            for s in run.trajectory.states
        ),
        run.trajectory.end,
    )
    assert torch.allclose(Instant().estimate(Run(alone, trend), []).variance, once.variance[1:], rtol=1e-4)
    # On the way members are as far away as they were at the fit: between 1.5 and 1.2 times.
    assert torch.allclose(once.along[2], once.variance * 1.5**2, rtol=1e-3)


def test_instant_is_zero_where_a_mask_keeps_the_image():
    trend = fit_trend([drawn(1, seed)[1] for seed in range(6)])
    share = torch.ones(2, *SHAPE)
    share[:, :8], share[:, 8:10] = 0, 0.5
    run = Run(dataclasses.replace(run_of(7), share_denoised=share), trend)
    found = Instant().estimate(run, []).variance
    assert not found[:, :, :8].any() and (found[:, :, 8:] > 0).all()


def test_a_head_that_learned_nothing_says_so(caplog):
    found = Instant().estimate(Run(run_of(7), None), [3])
    assert "fit the head again" in caplog.text and found.measures and found.along == {}
    assert (found.variance > 0).all()


@pytest.mark.parametrize("members", [1, 4])
def test_a_learned_trend_strengthens_few_members(members):
    trend = fit_trend([drawn(1, seed)[1] for seed in range(6)])
    truth, other = drawn(6, 99, members=members)
    squares, covariates = other.deviations.square().mean(0), other.evidence.covariates
    found = [
        moderate(squares, 4 * members, covariates, learned) for learned in (None, trend.full.within(other.evidence))
    ]
    worse, better = (float((of.mean(1).log() - truth.log()).square().mean()) for of in found)
    assert better < worse


def test_the_size_lies_between_members_and_trend():
    variance, inside = torch.full((2, 4, 8, 8), 4.0), torch.ones(2, 8, 8, dtype=torch.bool)
    learned = torch.tensor([math.log(2), math.log(8)])
    few, many = (level_factor(variance, members, learned, 0.3, inside) for members in (1, 16))
    assert few.tolist() == pytest.approx([1, 2])  # half-way, in the logarithm
    assert float(many[0]) == pytest.approx(1) and 1 < float(many[1]) < 1.1
    assert level_factor(torch.zeros_like(variance), 1, learned, 0.3, inside).tolist() == [1, 1]


def test_percentiles_are_those_of_one_more_image():
    generator = torch.Generator().manual_seed(0)
    inside = []
    for _ in range(3000):
        logs = torch.randn(7, generator=generator) * 0.4 - 2
        scale = ScoreScale.of({"mean std": logs[:6].exp()})
        inside.append(float(scale.percentiles("mean std", logs[6:].exp())))
    found = torch.tensor(inside).sort().values
    assert (found - torch.linspace(0, 100, 3000)).abs().max() < 4, "percentiles of new images are spread evenly"
    assert scale.percentiles("median", torch.ones(1)) is None
    ends = scale.percentiles("mean std", torch.tensor([0.0, torch.inf, torch.nan]))
    assert ends[:2].tolist() == pytest.approx([0, 100], abs=1e-3) and ends[2].isnan()
    assert ScoreScale.of({"mean std": torch.ones(1)}) is None
    assert ScoreScale.of({"sum": torch.tensor([1.0, -1.0])}) is None


@pytest.mark.parametrize("degrees", [1, 2, 5, 30])
def test_students_t(degrees):
    stats = pytest.importorskip("scipy.stats")
    t = torch.tensor([-8.0, -1.0, 0.0, 0.3, 2.0, 20.0], dtype=torch.float64)
    assert student_cdf(t, degrees).tolist() == pytest.approx(stats.t.cdf(t.numpy(), degrees).tolist(), abs=1e-4)

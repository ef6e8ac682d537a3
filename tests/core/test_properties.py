"""What holds for every input: sizes, batches, values from nothing to huge."""

from __future__ import annotations

import dataclasses
import math

import hypothesis
import hypothesis.strategies as st
import pytest
import torch

from bayesdiff_core.drawing.plots import plot_over_sigma, plot_scores
from bayesdiff_core.drawing.sheets import contact_sheet, sheet, with_colour_bars
from bayesdiff_core.estimators.degrees import effective_channels
from bayesdiff_core.estimators.evidence import read_evidence
from bayesdiff_core.estimators.moderation import moderate
from bayesdiff_core.estimators.renoising import Renoising, disagreement
from bayesdiff_core.estimators.trajectory import Scales, State, Step, Trajectory, contraction
from bayesdiff_core.posterior.features import LayerGeometry
from bayesdiff_core.posterior.fit import GaussNewton
from bayesdiff_core.reading import maps, masks, rank
from bayesdiff_core.reading.grid import LatentGrid
from bayesdiff_core.reading.scores import SCORES, SEMANTIC_SCORES, inside_cells
from bayesdiff_core.reading.uncertainty import Moment, Uncertainty
from bayesdiff_core.resampling import draw_latent

SCALES = [0.0, 1e-30, 1e-6, 1.0, 1e6, 1e15]


@st.composite
def batches(draw, most: int = 4, largest: int = 20) -> torch.Tensor:
    """Maps ``(n, h, w)`` of uneven values, not negative; of all magnitudes, with cells of zero, at times nothing."""
    shape = draw(st.integers(1, most)), draw(st.integers(1, largest)), draw(st.integers(1, largest))
    values = torch.rand(shape, generator=torch.Generator().manual_seed(draw(st.integers(0, 99))))
    return (values - draw(st.sampled_from([0.0, 0.5]))).clamp(min=0) * draw(st.sampled_from(SCALES))


@st.composite
def uncertainties(draw) -> Uncertainty:
    """Of images of 1 to 4 channels, with up to 3 members and up to 2 kept points."""
    values, channels = draw(batches()), draw(st.integers(1, 4))
    variance = values[:, None].repeat(1, channels, 1, 1)
    deviations = variance.sqrt()[None].repeat(draw(st.integers(0, 3)), 1, 1, 1, 1)
    latent = torch.linspace(-1, 1, variance.numel()).reshape(variance.shape)
    points = tuple(Moment(2.0 - i, latent + i, variance) for i in range(draw(st.integers(0, 2))))
    return Uncertainty(variance, latent, LatentGrid(8), "deviations", 3, {}, 2.0, deviations, points)


def within(part: torch.Tensor, whole: torch.Tensor) -> bool:
    return bool((part <= whole).all())


# ---------------------------------------------------------------- masks


@hypothesis.given(values=batches(), area=st.floats(0.01, 1.0))
def test_a_share_of_any_map(values, area):
    mask, cells = masks.most_uncertain_area(values, area), values[0].numel()
    wanted, there = math.ceil(area * cells), (values > 0).flatten(1).sum(1)
    assert mask.flatten(1).sum(1).tolist() == there.clamp(max=wanted).tolist()
    for image, marked in zip(values, mask.bool()):
        assert marked.all() or not marked.any() or image[marked].min() >= image[~marked].max()
    together = masks.most_uncertain_of_batch(values, area)
    assert together.sum() == min(math.ceil(area * values.numel()), int(there.sum()))


@hypothesis.given(values=batches(), smallest=st.integers(0, 30), pixels=st.integers(0, 30), sigma=st.floats(0.1, 9.0))
def test_what_is_done_to_any_mask(values, smallest, pixels, sigma):
    mask = masks.otsu(values)
    filled, dropped, box = masks.fill_holes(mask), masks.drop_islands(mask, smallest), masks.bounding_box(mask)
    grown, soft = masks.grow(mask, pixels), masks.blur(mask, sigma)
    for changed in (mask, filled, dropped, box, grown):
        assert changed.shape == values.shape and set(changed.unique().tolist()) <= {0.0, 1.0}
    assert within(dropped, mask) and within(mask, filled) and within(filled, box) and within(mask, grown)
    assert torch.equal(masks.fill_holes(filled), filled) and torch.equal(masks.bounding_box(box), box)
    assert torch.equal(masks.drop_islands(dropped, smallest), dropped)
    assert soft.shape == values.shape and soft.min() >= 0 and soft.max() <= 1 + 1e-5
    assert torch.equal(mask.flatten(1).any(1), grown.flatten(1).any(1)), (
        "an empty mask stays empty, no other becomes so"
    )


@hypothesis.given(values=batches(), height=st.integers(1, 40), width=st.integers(1, 40))
def test_any_map_and_mask_at_any_size(values, height, width):
    resized = maps.resize_map(values, height, width)
    assert resized.shape == (len(values), height, width)
    assert resized.min() >= values.min() and resized.max() <= values.max() * (1 + 1e-5)
    hard = (values > 0).float()
    for given in (hard, hard[:, None], hard[0]):  # as nodes give masks, as latents do, and one alone
        mask = masks.resize_mask(given, height, width)
        assert mask.shape == (given[..., 0, 0].numel(), height, width)
        assert set(mask.unique().tolist()) <= set(hard.unique().tolist())
    same = masks.resize_mask(hard, *hard.shape[1:])
    assert torch.equal(same, hard)


# ---------------------------------------------------------------- maps and drawings


@hypothesis.given(values=batches(), per_image=st.booleans(), colours=st.sampled_from(list(maps.COLOUR_MAPS)))
def test_any_map_becomes_colours(values, per_image, colours):
    scaled, image = maps.normalise_map(values, per_image), torch.rand(*values.shape, 3)
    assert scaled.min() >= 0 and scaled.max() <= 1
    for found in (maps.colour_map(scaled, colours), maps.overlay_map(image, scaled, 0.7, colours)):
        assert found.shape == image.shape and found.min() >= 0 and found.max() <= 1 + 1e-6
    order = values[0].flatten().argsort()
    assert (scaled[0].flatten()[order].diff() >= 0).all(), "what is less certain is never darker"


def test_no_number_is_dark_and_the_infinite_bright():
    found = maps.colour_map(torch.tensor([[[math.nan, 0.0, math.inf, 1.0, -math.inf]]]))
    assert torch.equal(found[0, 0, 0], found[0, 0, 1]) and torch.equal(found[0, 0, 2], found[0, 0, 3])
    assert torch.equal(found[0, 0, 4], found[0, 0, 1])


@hypothesis.settings(max_examples=30)
@hypothesis.given(values=batches(), scores=st.lists(st.floats(-1e9, 1e9), min_size=1, max_size=40))
def test_any_batch_is_drawn(values, scores):
    tops, heat = maps.map_tops(values, True), maps.colour_map(maps.normalise_map(values, True))
    barred = with_colour_bars(heat, tops, "grey")
    assert torch.equal(barred[:, :, : values.shape[2]], heat) and barred.shape[2] > values.shape[2]
    captions = [f"{score:.4g}" for score in scores][: len(values)]
    rows = sheet([heat[: len(captions)], barred[: len(captions)]], captions)
    assert rows.ndim == 4 and rows.shape[1] > len(captions) * values.shape[1]
    assert plot_scores(scores, "median", 300, 200).shape == (1, 200, 300, 3)
    stds = values.flatten(1).mean(1)[None].repeat(3, 1)
    assert plot_over_sigma([9.0, 1.0, 0.1], stds, 300, 200).std() > 0.01
    labels, good = [str(score) for score in scores], [score > 0 for score in scores]
    thumbnails = heat[[i % len(heat) for i in range(len(scores))]]
    assert contact_sheet(thumbnails, labels, good).std() > 0 or not thumbnails.any()


# ---------------------------------------------------------------- scores and ranks


@hypothesis.settings(max_examples=50)
@hypothesis.given(found=uncertainties(), score=st.sampled_from(list(SCORES)))
def test_any_score_of_any_batch(found, score):
    scores = found.scores(score)
    assert scores.shape == (len(found.variance),) and scores.isfinite().all() and (scores >= 0).all()
    assert found.variance.any() or not scores.any(), "no uncertainty is a score of nothing"
    everywhere = torch.ones(1, 3, 5)
    assert torch.allclose(found.scores(score, everywhere), scores, rtol=1e-4)
    for i in range(len(scores)):
        alone = found.select(torch.tensor([i]))
        assert torch.allclose(alone.scores(score)[0], scores[i], rtol=1e-4), "a score does not depend on its batch"
    with pytest.raises(ValueError, match="Expected a mask that marks some part"):
        found.scores(score, torch.zeros(1, 4, 4))
    with pytest.raises(ValueError, match="Expected one mask, or one for each"):
        found.scores(score, torch.ones(len(scores) + 1 if len(scores) > 1 else 3, 4, 4))
    with pytest.raises(ValueError, match="Expected a mask of finite values"):
        found.scores(score, torch.tensor([[[1.0, math.nan]]]))


@hypothesis.given(
    mask=batches(largest=40), height=st.integers(1, 20), width=st.integers(1, 20), images=st.integers(1, 4)
)
def test_any_mask_with_something_in_it_has_an_inside(mask, height, width, images):
    mask = mask[:1] + (mask[:1].amax((1, 2), keepdim=True) == 0)
    inside = inside_cells(mask, images, height, width)
    assert inside.shape == (images, height, width) and inside.flatten(1).any(1).all()
    assert inside_cells(torch.ones_like(mask), images, height, width).all()


@hypothesis.given(members=st.integers(1, 5), images=st.integers(1, 4), width=st.integers(1, 9), seed=st.integers(0, 9))
def test_semantic_scores_know_agreement(members, images, width, seed):
    features = torch.randn(members + 1, images, width, generator=torch.Generator().manual_seed(seed))
    agreeing = features[:1].expand_as(features)
    for score in SEMANTIC_SCORES.values():
        assert score(features).shape == (images,) and (score(features) >= score(agreeing) - 1e-6).all()


numbers = st.lists(st.floats(allow_nan=True, allow_infinity=True, width=32), max_size=12)


@hypothesis.given(scores=numbers, count=st.integers(0, 20), fraction=st.floats(0, 1), deviations=st.floats(0, 5))
def test_any_scores_are_ranked_and_parted(scores, count, fraction, deviations):
    scores = torch.tensor(scores, dtype=torch.float64)
    order = rank.rank(scores)
    assert sorted(order.tolist()) == list(range(len(scores)))
    known = scores[order].isfinite().int()
    assert (known.diff() <= 0).all() and (scores[order][known.bool()].diff() >= 0).all()
    assert rank.keep_best(scores, count).sum() == min(count, len(scores))
    kept = rank.drop_fraction(scores, fraction)
    assert abs(len(scores) - int(kept.sum()) - fraction * len(scores)) <= 0.5 + 1e-9
    near = rank.drop_outliers(scores, deviations)
    assert not (near & ~scores.isfinite()).any() and near.any() == scores.isfinite().any()


@hypothesis.given(found=uncertainties(), data=st.data())
def test_parts_of_a_batch_joined_again_are_the_batch(found, data):
    count = len(found.variance)
    cut = data.draw(st.integers(1, count))
    parts = [torch.arange(0, cut), torch.arange(cut, count)]
    joined = Uncertainty.join([found.select(index) for index in parts if len(index)])
    for field in ("variance", "latent", "deviations"):
        assert torch.equal(getattr(joined, field), getattr(found, field))
    assert len(joined.trajectory) == len(found.trajectory)
    for again, moment in zip(joined.trajectory, found.trajectory):
        assert again.sigma == moment.sigma and torch.equal(again.latent, moment.latent)
        assert torch.equal(again.variance, moment.variance)
    order = data.draw(st.permutations(range(count)))
    assert torch.equal(found.select(torch.tensor(order)).variance, found.variance[list(order)])


# ---------------------------------------------------------------- the uncertainty itself


@hypothesis.settings(max_examples=40)
@hypothesis.given(found=uncertainties())
def test_map_and_curve_of_any_uncertainty(found):
    std = found.std_map()
    assert torch.allclose(std, found.variance[:, 0].sqrt(), rtol=1e-4)
    frame = dataclasses.replace(found, variance=found.variance[:, :, None])
    assert torch.equal(frame.std_map(), std), "a single frame is an image"
    bad = dataclasses.replace(found, variance=found.variance.index_fill(0, torch.tensor([0]), math.nan))
    with pytest.raises(
        ValueError, match=f"NaN or infinity in 1 of {len(std)} images .the first is number 0, numbered from 0.; check"
    ):
        bad.std_map()
    levels = [moment for moment in found.trajectory if moment.sigma > 0]
    if not levels:
        with pytest.raises(ValueError, match="Expected an uncertainty that keeps its trajectory"):
            found.std_over_sigma()
        return
    sigmas, curve = found.std_over_sigma()
    assert sigmas == [moment.sigma for moment in levels] and curve.shape == (len(levels), len(std))
    assert torch.allclose(curve[0], levels[0].variance.sqrt().flatten(1).mean(1))
    broken = dataclasses.replace(levels[0], variance=levels[0].variance * math.nan)
    with pytest.raises(ValueError, match="Expected finite variances"):
        dataclasses.replace(found, trajectory=(broken,)).std_over_sigma()


@hypothesis.given(found=uncertainties(), strength=st.floats(0, 100), seed=st.integers(0, 9))
def test_draws_from_any_point_stay_where_nothing_is_open(found, strength, seed):
    point = Moment(1.0, found.latent, found.variance)
    drawn = draw_latent(point, strength, torch.Generator().manual_seed(seed))
    assert drawn.shape == point.latent.shape and torch.equal(
        drawn[point.variance == 0], point.latent[point.variance == 0]
    )
    empty = torch.zeros(1, 1, *point.latent.shape[2:])
    assert torch.equal(draw_latent(point, strength, torch.Generator().manual_seed(seed), empty), point.latent)
    for broken in (Moment(1.0, point.latent, point.variance * math.nan), Moment(1.0, point.latent / 0, point.variance)):
        with pytest.raises(
            ValueError, match="Expected a finite trajectory to draw from, got NaN or infinity at sigma 1;"
        ):
            draw_latent(broken, 1.0, torch.Generator())


@hypothesis.given(
    levels=st.integers(1, 4), draws=st.integers(2, 5), highest=st.floats(0.01, 0.99), lowest=st.floats(0.01, 0.99),
    seed=st.integers(0, 9),
)  # fmt: skip
def test_disagreement_of_any_draws_is_their_variance(levels, draws, highest, lowest, seed):
    shares = [1 - share for share in Renoising(highest, lowest, levels, draws).shares]
    assert (
        len(shares) == levels
        and min(highest, lowest) - 1e-9 <= min(shares) <= max(shares) <= max(highest, lowest) + 1e-9
    )
    assert levels == 1 or shares[0] == pytest.approx(highest) and shares[-1] == pytest.approx(lowest)
    predictions = torch.randn(levels, draws, 2, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    deviations = disagreement(predictions)
    assert deviations.shape == (levels * draws, 2, 3)
    assert torch.allclose(deviations.square().mean(0), predictions.var(1).mean(0))
    assert torch.allclose(disagreement(predictions + 7), deviations)


# ---------------------------------------------------------------- moderation and the run


def states(values: torch.Tensor, looked: int) -> list[State]:
    """A run of three states over maps, whose variance was looked at in some."""
    x = values[:, None].repeat(1, 4, 1, 1)
    return [
        State(3.0 - i, Scales(3.0 - i, 1.0), x + i, x * (i + 1), 0.5, x + i if i < looked else None) for i in range(3)
    ]


@hypothesis.given(values=batches(), looked=st.integers(0, 3), members=st.integers(1, 3), seed=st.integers(0, 9))
def test_any_image_is_moderated(values, looked, members, seed):
    """Also one of a single cell, of nothing, of values near the ends of float32."""
    deviations = values[:, None].sqrt() * torch.randn(
        members, len(values), 4, *values.shape[1:], generator=torch.Generator().manual_seed(seed)
    )
    squares = deviations.square().mean(0)
    trend_of = read_evidence(Trajectory(tuple(states(values, looked)), Scales(0.0, 1.0))).covariates
    channels = effective_channels(deviations)
    assert 1 <= channels <= 4 + 1e-6
    found = moderate(squares, members * channels, trend_of)
    assert found.shape == squares.shape and found.isfinite().all() and (found >= 0).all()
    assert not found[squares.mean(1, keepdim=True).expand_as(found) == 0].any(), "what no member touched stays zero"
    for i in range(len(values)):
        alone = moderate(squares[i : i + 1], members * channels, trend_of[:, i : i + 1])
        assert torch.allclose(alone[0], found[i], rtol=1e-3)


def test_a_broken_image_says_nothing_of_its_neighbours():
    generator = torch.Generator().manual_seed(0)
    deviations, x = torch.randn(2, 3, 4, 5, 5, generator=generator), torch.randn(3, 4, 5, 5, generator=generator)

    def left(x: torch.Tensor) -> float:
        return contraction(Step(x, 1.0, 0.3 * x, 0.8 * x, 1.0))

    expected = effective_channels(deviations[:, 1:])
    ratio = left(x[1:])
    for value in (math.nan, math.inf):
        deviations[:, 0, 0, 0, 0], x[0, 0, 0, 0] = value, value
        assert effective_channels(deviations) == pytest.approx(expected)
        assert left(x) == pytest.approx(ratio)
    assert effective_channels(deviations * math.nan) == 4 and left(x * math.nan) == 1


# ---------------------------------------------------------------- features and their sums


@hypothesis.given(
    kind=st.sampled_from(["linear", "conv2d"]), channels=st.integers(1, 4), kernel=st.integers(1, 3),
    images=st.integers(1, 3), height=st.integers(3, 6), width=st.integers(3, 6), bias=st.booleans(), data=st.data(),
)  # fmt: skip
def test_rows_of_any_layer_are_what_the_layer_sees(kind, channels, kernel, images, height, width, bias, data):
    generator = torch.Generator().manual_seed(0)
    if kind == "linear":
        layer, shape = torch.nn.Linear(channels, 3, bias=bias), (images, height * width, channels)
    else:
        padding = data.draw(st.integers(0, kernel - 1))
        layer = torch.nn.Conv2d(channels, 3, kernel, padding=padding, bias=bias)
        shape = (images, channels, height, width)
    geometry, features = LayerGeometry.of(layer), torch.randn(shape, generator=generator)
    with torch.no_grad():
        weights, out = geometry.weights_of(layer, features), layer(features)
    assert weights.shape == (geometry.width, 3) and LayerGeometry.from_json(geometry.to_json()) == geometry
    rows = geometry.rows(features)
    assert len(rows) == images * geometry.positions(features)
    expected = out.movedim(geometry.channel_dim, -1).reshape(-1, 3)
    assert torch.allclose(rows @ weights, expected, atol=1e-4) and torch.allclose(
        geometry.apply(features, weights), out, atol=1e-4
    )
    assert torch.allclose(geometry.square_norm(features).flatten(), rows.square().sum(1), rtol=1e-4)
    among = torch.tensor(sorted(data.draw(st.sets(st.integers(0, geometry.positions(features) - 1), min_size=1))))
    some = geometry.rows(features, among=among).unflatten(0, (images, -1))
    assert torch.equal(some, rows.unflatten(0, (images, -1))[:, among])
    few = geometry.rows(features, limit=2, generator=generator)
    assert len(few) == images * min(2, geometry.positions(features))


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_no_sum_is_made_of_what_is_no_number(value):
    summed = GaussNewton(LayerGeometry.of(torch.nn.Linear(2, 1)), torch.Generator())
    with pytest.raises(ValueError, match="Expected finite features at the last layer"):
        summed.add_features(torch.tensor([[1.0, value]]))
    summed.add_features(torch.tensor([[1.0, 2.0]]))
    with pytest.raises(ValueError, match="Expected finite predictions of the model"):
        summed.add_residual(torch.tensor([value]))
    summed.add_residual(torch.tensor([2.0]))
    summed.end_level()
    expected = torch.tensor([[1.0, 2.0, 1.0], [2.0, 4.0, 2.0], [1.0, 2.0, 1.0]], dtype=torch.float64) / 4
    assert torch.allclose(summed.matrix(1), expected) and summed.noise_std == [2.0]

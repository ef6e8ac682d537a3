"""The formulas by which the bench of usefulness judges, against what they are on paper."""

from __future__ import annotations

import math

import pytest
import torch
from figures_of_merit import (
    Manifold,
    auroc,
    bootstrap_error,
    frechet_distance,
    precision_and_recall,
    ranks_within,
    worst_share,
)
from scipy.linalg import sqrtm


@pytest.fixture
def generator():
    return torch.Generator().manual_seed(0)


def test_frechet_distance_is_that_of_gaussians(generator):
    """By scipy's root of the product of covariances, and with fewer images than features."""
    a = torch.randn(300, 6, generator=generator).double() @ torch.randn(6, 6, generator=generator).double()
    b = torch.randn(200, 6, generator=generator).double() + 1
    root = torch.from_numpy(sqrtm((a.T.cov() @ b.T.cov()).numpy()).real)
    expected = (a.mean(0) - b.mean(0)).square().sum() + (a.T.cov() + b.T.cov() - 2 * root).trace()
    assert frechet_distance(a, b) == pytest.approx(float(expected), rel=1e-9)
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-9)
    few = torch.randn(10, 50, generator=generator)
    assert frechet_distance(few, few + 2) == pytest.approx(4 * 50, rel=1e-6)


def test_precision_falls_off_the_manifold_and_recall_with_what_is_missing():
    line = torch.stack([torch.arange(100.0), torch.zeros(100)], 1)
    half = line[:50] + 0.1
    whole = Manifold(line)
    assert precision_and_recall(whole, whole) == (1.0, 1.0)
    assert precision_and_recall(Manifold(half), whole) == (1.0, pytest.approx(0.53, abs=0.02))
    strayed = torch.cat([half[:40], half[40:] + 1000])
    assert precision_and_recall(Manifold(strayed), whole)[0] == pytest.approx(0.8)


def test_auroc_counts_pairs(generator):
    scores, bad = torch.randint(0, 9, (40,), generator=generator).double(), torch.arange(40) % 3 == 0
    pairs = [1.0 if b > g else 0.5 if b == g else 0.0 for b in scores[bad] for g in scores[~bad]]
    assert auroc(scores, bad) == pytest.approx(sum(pairs) / len(pairs))
    assert auroc(bad.double(), bad) == 1.0 and auroc(-bad.double(), bad) == 0.0


def test_bootstrap_error_of_a_mean(generator):
    values = torch.randn(400, generator=generator)
    found = bootstrap_error(lambda index: float(values[index].mean()), 400, draws=400)
    assert found == pytest.approx(float(values.std()) / math.sqrt(400), rel=0.15)


def test_ranks_forget_the_group():
    values, groups = torch.tensor([5.0, 7.0, 6.0, 50.0, 10.0, 10.0]), torch.tensor([0, 0, 0, 1, 1, 1])
    assert ranks_within(values, groups).tolist() == pytest.approx([1 / 6, 5 / 6, 1 / 2, 5 / 6, 1 / 3, 1 / 3])
    assert worst_share(values, 1 / 3).tolist() == [True, False, True, False, False, False]

"""Disagreement of repeated predictions, and the shares of the schedule at which they are made."""

import pytest
import torch

from bayesdiff_core.estimators.renoising import Renoising, disagreement


def test_variance_is_that_of_the_predictions_unbiased():
    predictions = torch.randn(3, 5, 2, 4, 6, 6, generator=torch.Generator().manual_seed(0)).double()
    predictions[1] += 100  # levels differ in their mean, which is no disagreement
    deviations = disagreement(predictions)
    assert deviations.shape == (15, 2, 4, 6, 6)
    assert torch.allclose(deviations.square().mean(0), predictions.var(dim=1).mean(0))


def test_shares_of_the_schedule():
    """The nodes speak of shares of noise, the host of shares of the schedule."""
    assert Renoising(0.8, 0.2, 3, 5).shares == pytest.approx([0.2, 0.5, 0.8])
    assert Renoising(0.8, 0.2, 1, 5).shares == [0.5]
    assert Renoising(levels=3, draws=4).calls == 12

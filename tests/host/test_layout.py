"""Where the outputs of a last layer end up, told by the numbers that arrive."""

from __future__ import annotations

import torch
from bayesdiff.bayesdiff_core.posterior.features import LayerGeometry
from bayesdiff.host.layout import match_positions

GEOMETRY = LayerGeometry("linear", 4, 3, bias=True)
# Of six tokens with three outputs each, a latent of three channels, two rows and three columns.
OUTPUTS = torch.arange(1.0, 19.0).reshape(6, 3)


def latent_of(outputs: torch.Tensor) -> torch.Tensor:
    return -outputs.T.reshape(3, 2, 3)


def test_each_element_comes_from_its_token():
    found = match_positions(GEOMETRY, [(OUTPUTS, latent_of(OUTPUTS))])
    assert torch.equal(found, torch.arange(6).reshape(1, 2, 3).expand(3, 2, 3))


def test_of_outputs_that_are_alike_the_other_channels_tell():
    alike = OUTPUTS.clone()
    alike[4, 1] = alike[0, 2]
    found = match_positions(GEOMETRY, [(alike, latent_of(alike))])
    assert torch.equal(found, torch.arange(6).reshape(1, 2, 3).expand(3, 2, 3))


def test_where_no_channel_tells_or_they_disagree_nothing_is_told():
    same = OUTPUTS.clone()
    same[4] = same[0]
    assert match_positions(GEOMETRY, [(same, latent_of(same))]) is None
    alike = OUTPUTS.clone()
    alike[4, 1] = alike[0, 2]
    mixed = latent_of(alike).clone()
    mixed[0] = mixed[0].flip(0)  # a channel of its own order
    assert match_positions(GEOMETRY, [(alike, mixed)]) is None

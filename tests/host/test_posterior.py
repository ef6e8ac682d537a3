"""A head, bound to the model that it belongs to."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from bayesdiff.host.latents import check_latent
from bayesdiff.host.posterior import Posterior
from bayesdiff.host.run.progress import Progress
from bayesdiff.host.run.stock import sample_stock
from running import EMPTY, stock

pytestmark = pytest.mark.usefixtures("inference_mode")


def test_perturbing_is_changing_the_weights(demo, demo_head):
    """The hook's output equals that of a network whose weights really are W* + δW."""
    model, *_ = demo
    posterior = Posterior.bind(demo_head, model, seed=4)
    layer, delta = posterior.layer, posterior.draw(4)

    def run(model, latent):
        return stock((model, *demo[1:]), latent, steps=3)

    hooked = sample_stock(run, model, EMPTY, Progress(model), lambda: posterior.perturbed(4))[0]["samples"]
    weight, bias = layer.module.weight, layer.module.bias
    kept = weight.clone(), bias.clone()
    weight.data += delta[:-1].T.reshape(weight.shape)
    bias.data += delta[-1]
    try:
        changed = stock(demo, EMPTY, steps=3)["samples"]
    finally:
        weight.data, bias.data = kept
    assert torch.allclose(hooked, changed, atol=1e-4 * float(changed.abs().max()))
    plain = stock(demo, EMPTY, steps=3)["samples"]
    assert (hooked - plain).abs().max() > 100 * (hooked - changed).abs().max()


def test_heads_and_latents_of_other_models_are_refused(demo, demo_head):
    model, *_ = demo
    assert Posterior.bind(demo_head, model).layer.path == "out.2"
    other = dataclasses.replace(demo_head, about=demo_head.about | {"network": "Flux"})
    with pytest.raises(ValueError, match=r"network: UNetModel\), got one fitted on another \(network: Flux\)"):
        Posterior.bind(other, model)
    wide = dataclasses.replace(demo_head, geometry=dataclasses.replace(demo_head.geometry, in_features=320))
    with pytest.raises(ValueError, match="last layer of 64 to 4 channels, got one for 320 to 4"):
        Posterior.bind(wide, model)
    check_latent(model, {"samples": torch.zeros(1, 16, 8, 8)})
    with pytest.raises(ValueError, match=r"Expected a latent of 4 channels for this model \(SD15\), got 16"):
        check_latent(model, {"samples": torch.ones(1, 16, 8, 8)})


def test_another_checkpoint_of_the_family_is_a_warning(demo, demo_head, caplog):
    Posterior.bind(dataclasses.replace(demo_head, about=demo_head.about | {"weights": "other"}), demo[0])
    assert "fitted on another checkpoint or precision than this model's: other against" in caplog.text


def test_a_draw_has_a_number_of_its_own(demo, demo_head):
    posterior = Posterior.bind(demo_head, demo[0], seed=7)
    third = posterior.draw(3)
    for number in range(5):
        assert torch.equal(posterior.draw(number), third) == (number == 3)
    assert torch.equal(Posterior.bind(demo_head, demo[0].clone(), seed=7).draw(3), third)
    assert not torch.equal(Posterior.bind(demo_head, demo[0], seed=8).draw(3), third)

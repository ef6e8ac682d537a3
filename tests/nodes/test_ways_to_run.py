"""Other ways to run a model: compiled, in regions, under ControlNet, LoRAs of prompts, and caches of steps."""

from __future__ import annotations

import comfy.controlnet
import comfy.samplers
import comfy.utils
import nodes
import pytest
import torch
from bayesdiff.bayesdiff_core.estimators.tangents import Tangents
from bayesdiff.host.last_layer import find_last_layer
from comfy_extras.nodes_easycache import EasyCacheNode, LazyCacheNode
from measure import spearman
from running import EMPTY, options, ours, scaled, stock

pytestmark = pytest.mark.usefixtures("inference_mode")


def test_a_compiled_model_is_sampled_as_it_is_and_its_uncertainty_found(demo, demo_head):
    """A compiled network does not see hooks that come after its compilation; its members run uncompiled."""
    from comfy_api.torch_helpers import set_torch_compile_wrapper

    compiled = demo[0].clone()
    set_torch_compile_wrapper(compiled, backend="eager")
    compiled_demo = (compiled, *demo[1:])
    expected = stock(compiled_demo, EMPTY)
    latent, uncertainty, _ = ours(compiled_demo, demo_head, EMPTY)
    assert torch.equal(latent["samples"], expected["samples"])
    assert torch.allclose(uncertainty.variance, ours(demo, demo_head, EMPTY)[1].variance, rtol=0.05)
    assert torch.equal(stock(compiled_demo, EMPTY)["samples"], expected["samples"])


def regional(demo):
    """A second positive prompt for the right half alone, by the stock nodes."""
    model, positive, negative, vae = demo
    right = nodes.ConditioningSetAreaPercentage().append(negative, 0.5, 1.0, 0.5, 0.0, 1.0)[0]
    return model, positive + right, negative, vae


def test_regional_prompts(demo, demo_head):
    """Each prompt's call is perturbed by the same draw, wherever in the image it counts."""
    expected = stock(regional(demo), EMPTY)
    latent, uncertainty, _ = ours(regional(demo), demo_head, EMPTY)
    assert torch.equal(latent["samples"], expected["samples"])
    assert not torch.equal(latent["samples"], stock(demo, EMPTY)["samples"])
    plain = ours(demo, demo_head, EMPTY)[1]
    ratio = uncertainty.std_map() / plain.std_map()
    left, right = ratio[:, :, :6].log().abs().mean(), ratio[:, :, 10:].log().abs().mean()
    assert left < right


def controlled(demo):
    """The demo model under a small ControlNet of the host's own class, with random weights, by the stock node."""
    import comfy.cldm.cldm
    import comfy.ops

    model, positive, negative, vae = demo
    options = {k: v for k, v in model.model.model_config.unet_config.items()
               if k not in ("out_channels", "transformer_depth_output", "dtype", "device")}  # fmt: skip
    network = comfy.cldm.cldm.ControlNet(
        **options, hint_channels=3, dtype=torch.float32, operations=comfy.ops.disable_weight_init
    )
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for _, parameter in sorted(network.named_parameters()):
            parameter.copy_(0.05 * torch.randn(parameter.shape, generator=generator))
    control = comfy.controlnet.ControlNet(network, load_device=model.load_device, manual_cast_dtype=None)
    image = torch.rand(1, 128, 128, 3, generator=generator)
    positive, negative = nodes.ControlNetApplyAdvanced().apply_controlnet(
        positive, negative, control, image, 1.0, 0.0, 1.0
    )
    return model, positive, negative, vae


@pytest.mark.parametrize("quality", ["balanced", "ensemble"])
def test_a_controlnet(demo, demo_head, quality):
    expected = stock(controlled(demo), EMPTY)
    assert not torch.allclose(expected["samples"], stock(demo, EMPTY)["samples"], atol=0.01)
    latent, uncertainty, _ = ours(controlled(demo), demo_head, EMPTY, quality=quality)
    assert torch.equal(latent["samples"], expected["samples"])
    plain = ours(demo, demo_head, EMPTY, quality=quality)[1].variance
    assert (uncertainty.variance > 0).all() and not torch.allclose(uncertainty.variance, plain, rtol=0.05)


class Walking(comfy.controlnet.ControlNet):
    """Its strength goes by keyframes, from one to the next and never back, as that of some packs does."""

    KEYFRAMES = ((0.0, 1.0), (0.3, 20.0), (0.7, 1.0))

    def pre_run(self, model, percent_to_timestep_function):
        super().pre_run(model, percent_to_timestep_function)
        self.starts = [float(percent_to_timestep_function(share)) for share, _ in self.KEYFRAMES]

    def get_control(self, x_noisy, t, *more):
        while len(self.starts) > 1 and float(t[0]) <= self.starts[1]:
            del self.starts[0]
        self.strength = self.KEYFRAMES[-len(self.starts)][1]
        return super().get_control(x_noisy, t, *more)


def test_a_control_of_another_pack_that_walks_through_the_sigmas(demo, demo_head):
    """It begins anew for every member. At the first and the last state it is the same without."""
    walking = controlled(demo)
    for conditioning in walking[1:3]:
        for _, options_of in conditioning:
            options_of["control"].__class__ = Walking
    settings = dict(latent={"samples": torch.zeros(1, 4, 16, 16)}, steps=8)
    expected = stock(walking, **settings)["samples"]
    assert not torch.allclose(expected, stock(controlled(demo), **settings)["samples"], atol=0.1)
    latent, uncertainty, _ = ours(walking, demo_head, quality="draft", **settings)
    assert torch.equal(latent["samples"], expected) and not uncertainty.unknown
    none = ours(walking, scaled(demo_head, 1e-30), quality="draft", **settings)[1].variance
    assert none.max() < 1e-6 * uncertainty.variance.mean()
    assert torch.equal(stock(walking, **settings)["samples"], expected)


def test_a_patch_that_walks_through_the_sigmas_is_unknown(demo, demo_head):
    """Only in the middle of the states it answers otherwise than it did."""
    reached = []

    def walks(q, k, v, extra):
        reached.append(min([float(extra["sigmas"][0]), *reached[-1:]]))
        return q * (4.0 if 1.0 < reached[-1] < 5.0 else 1.0), k, v

    model = demo[0].clone()
    model.set_model_attn1_patch(walks)
    expected = stock((model, *demo[1:]), EMPTY, steps=8)["samples"]
    reached.clear()
    latent, uncertainty, _ = ours((model, *demo[1:]), demo_head, EMPTY, steps=8, quality="draft")
    assert torch.equal(latent["samples"], expected)
    assert "answers the same when it is asked again" in uncertainty.unknown


def hooked(demo):
    """The demo model with a LoRA that comes with a prompt and is on from half of the way."""
    import comfy.hooks

    model, positive, negative, vae = demo
    weight = model.model.state_dict()["diffusion_model.out.2.weight"]
    hooks = comfy.hooks.create_hook_lora(
        {"diffusion_model.out.2.diff": torch.full_like(weight, 0.01)}, strength_model=1.0, strength_clip=0.0
    )
    keyframes = comfy.hooks.HookKeyframeGroup()
    keyframes.add(comfy.hooks.HookKeyframe(strength=0.0, start_percent=0.0))
    keyframes.add(comfy.hooks.HookKeyframe(strength=1.0, start_percent=0.5))
    hooks.set_keyframes_on_hooks(hook_kf=keyframes)
    return model, comfy.hooks.set_hooks_for_conditioning(positive, hooks), negative, vae


@pytest.mark.parametrize("quality", ["balanced", "ensemble"])
def test_a_lora_that_comes_with_a_prompt(demo, demo_head, quality):
    expected = stock(hooked(demo), EMPTY)
    assert not torch.allclose(expected["samples"], stock(demo, EMPTY)["samples"], atol=0.01)
    latent, uncertainty, _ = ours(hooked(demo), demo_head, EMPTY, quality=quality)
    assert torch.equal(latent["samples"], expected["samples"])
    assert (uncertainty.variance > 0).all()
    assert torch.equal(stock(hooked(demo), EMPTY)["samples"], expected["samples"])
    # Members see the LoRA where the run saw it: what is left without a posterior is nothing.
    none = ours(hooked(demo), scaled(demo_head, 1e-30), EMPTY, quality=quality)[1].variance
    assert none.max() < 1e-6 * uncertainty.variance.mean()


def test_prompts_evaluated_apart_give_the_same_map(demo, demo_head, monkeypatch):
    """Where memory is short the host calls the network for each prompt alone."""
    together = ours(demo, demo_head, EMPTY)[1].variance
    monkeypatch.setattr(demo[0].model, "memory_usage_factor", 1e12)
    expected = stock(demo, EMPTY)
    latent, apart, _ = ours(demo, demo_head, EMPTY)
    assert torch.equal(latent["samples"], expected["samples"])
    assert torch.allclose(apart.variance, together, rtol=0.02)


def with_cache(demo, node):
    """The demo model with one of the host's caches of steps."""
    model, *rest = demo
    return node.execute(model, reuse_threshold=0.1, start_percent=0.15, end_percent=0.95, verbose=False)[0], *rest


@pytest.mark.parametrize("node", [EasyCacheNode, LazyCacheNode])
def test_a_cache_of_steps_is_the_runs_alone(demo, demo_head, node):
    """The stock sampler's latent under the cache; no trace of the cache in the uncertainty, nor of us in the cache."""
    cached = with_cache(demo, node)
    settings = dict(latent=EMPTY, steps=12, sampler_name="dpmpp_2m")
    calls = []
    with find_last_layer(demo[0]).watched(calls.append):
        expected = stock(cached, **settings)["samples"]
    assert 5 <= len(calls) <= 10, "the cache skips some of the steps"
    latent, uncertainty, _ = ours(cached, demo_head, quality="balanced", **settings)
    assert torch.equal(latent["samples"], expected)
    assert torch.equal(ours(cached, demo_head, quality="ensemble", **settings)[0]["samples"], expected)
    assert torch.equal(stock(cached, **settings)["samples"], expected)
    none = ours(cached, scaled(demo_head, 1e-30), quality="balanced", **settings)[1]
    assert none.variance.max() < 1e-6 * uncertainty.variance.mean()
    plain = ours(demo, demo_head, quality="balanced", **settings)[1]
    assert 0.5 < uncertainty.variance.mean() / plain.variance.mean() < 2
    assert spearman(uncertainty.std_map(), plain.std_map()) > 0.8


def test_tangents_refuse_a_cache_of_steps(demo, demo_head):
    cached = with_cache(demo, EasyCacheNode)
    latent, uncertainty, _ = ours(cached, demo_head, EMPTY, steps=12, options=options(Tangents(members=1)))
    assert "a model that skips none" in uncertainty.unknown and uncertainty.variance.isnan().all()
    assert torch.equal(latent["samples"], stock(with_cache(demo, EasyCacheNode), EMPTY, steps=12)["samples"])


def test_progress_never_goes_back_under_a_cache(demo, demo_head, monkeypatch):
    seen = []
    monkeypatch.setattr(comfy.utils, "PROGRESS_BAR_HOOK", lambda value, total, *_, **__: seen.append((value, total)))
    ours(with_cache(demo, EasyCacheNode), demo_head, EMPTY, steps=12, quality="balanced")
    values, totals = zip(*seen)
    assert list(values) == sorted(values) and values[-1] == totals[-1]

"""The host's own patches of a model, and boxes of GLIGEN: what they do is neither lost nor counted as uncertainty."""

from __future__ import annotations

import importlib

import pytest
import torch
from bayesdiff.host.settings import Guidance
from comfy.gligen import GatedSelfAttentionDense, Gligen, PositionNet
from comfy.ldm.modules.attention import BasicTransformerBlock
from comfy.model_patcher import ModelPatcher
from comfy_extras.nodes_tomesd import TomePatchModel
from factory import fit_own_head
from family import Family
from image_families import UNET
from running import ours, scaled, stock

# Node and numbers; the file of comfy_extras that has it.
PATCHES = {
    "FreeU": ("freelunch", 1.1, 1.2, 0.9, 0.2),
    "FreeU_V2": ("freelunch", 1.3, 1.4, 0.9, 0.2),
    "PerturbedAttentionGuidance": ("pag", 3.0),
    "RescaleCFG": ("model_advanced", 0.7),
    "CFGZeroStar": ("cfg",),
    "CFGNorm": ("cfg", 1.0),
    "TCFG": ("tcfg",),
    "Mahiro": ("mahiro",),
    "FreSca": ("fresca", 1.0, 1.25, 3),
    "EpsilonScaling": ("eps", 1.02),
    "APG": ("apg", 1.0, 5.0, -0.5),
    "PatchModelAddDownscale": ("model_downscale", 3, 2.0, 0.0, 0.5, True, "bicubic", "bicubic"),
}
RUN = dict(steps=4, seed=3)
LATENT = {"samples": torch.zeros(1, 4, 16, 16)}

pytestmark = pytest.mark.usefixtures("inference_mode")


def patched(demo, *names: str):
    """The demo model under these nodes, one after the other."""
    model = demo[0]
    for name in names:
        file, *numbers = PATCHES[name]
        node = getattr(importlib.import_module(f"comfy_extras.nodes_{file}"), name)
        if hasattr(node, "execute"):
            (model,) = node.execute(model, *numbers).args
        else:
            (model,) = getattr(node(), node.FUNCTION)(model, *numbers)
    return model, *demo[1:]


def check(model, demo, head) -> None:
    expected = stock(model, LATENT, **RUN)["samples"]
    assert not torch.equal(expected, stock(demo, LATENT, **RUN)["samples"]), "it does something"
    for quality in ("no head", "instant", "draft", "ensemble"):
        given, named = (None, "instant") if quality == "no head" else (head, quality)
        found, uncertainty, _ = ours(model, given, LATENT, named, **RUN)
        assert torch.equal(found["samples"], expected) and not uncertainty.unknown, quality
        assert (uncertainty.variance > 0).all() and uncertainty.variance.isfinite().all(), quality
        if quality == "draft":
            # Draws of next to nothing leave next to nothing: members see the patch as the run did.
            tiny = ours(model, scaled(head, 1e-12), LATENT, named, **RUN)[1]
            assert tiny.variance.mean() < 1e-6 * uncertainty.variance.mean()
    assert torch.equal(stock(model, LATENT, **RUN)["samples"], expected)


@pytest.mark.parametrize("name", sorted(PATCHES.keys() - {"APG"}))
def test_a_patch_of_the_host(demo, demo_head, name):
    check(patched(demo, name), demo, demo_head)


def test_guidance_that_remembers_its_calls(demo, demo_head):
    """The run itself tells of it; members are called out of turn, and would be counted with what it remembers."""
    model = patched(demo, "APG")
    expected = stock(model, LATENT, **RUN)["samples"]
    for head, quality in ((None, "instant"), (demo_head, "instant"), (demo_head, "draft")):
        found, uncertainty, _ = ours(model, head, LATENT, quality, **RUN)
        assert torch.equal(found["samples"], expected)
        assert ("answers the same when it is asked again" in uncertainty.unknown) == (quality == "draft")


def test_tokens_that_are_merged_at_random():
    """ToMe acts at full resolution, where the demo model has no attention; it draws random numbers in every call."""
    options = UNET | dict(transformer_depth=[1, 1], transformer_depth_output=[1, 1, 1, 1])
    family = Family("SD15", options, "out.2", LATENT["samples"].shape, (7, 16))
    model, positive, negative = family.build(), family.conditioning(1), family.conditioning(2)
    for parameter in model.model.diffusion_model.out[2].parameters():
        parameter.mul_(0.02)  # predictions of ordinary size
    head = fit_own_head(model, Guidance(positive, negative, 3.0), (4, 16, 16), 3, 2, 2)
    merged = TomePatchModel.execute(model, 0.5).args[0]
    check((merged, positive, negative, None), (model, positive, negative, None), head)


def test_patches_together(demo, demo_head):
    check(patched(demo, "FreeU_V2", "PerturbedAttentionGuidance", "RescaleCFG"), demo, demo_head)


def with_boxes(demo):
    """The demo model with two things placed in boxes, by a small GLIGEN of the host's own classes."""
    model, positive, negative, vae = demo
    width = positive[0][0].shape[-1]
    blocks = [m for m in model.model.diffusion_model.modules() if isinstance(m, BasicTransformerBlock)]
    gates = [GatedSelfAttentionDense(block.attn1.to_q.in_features, width, 2, 16) for block in blocks]
    gligen = Gligen(gates, PositionNet(width, width), width)
    generator = torch.Generator().manual_seed(0)
    for _, parameter in sorted(gligen.named_parameters()):
        parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
    patcher = ModelPatcher(gligen, load_device=model.load_device, offload_device=model.offload_device)
    # What GLIGEN Textbox Apply adds: of each text its pooled embedding, then height, width and place in latent cells.
    boxes = [(torch.randn(1, width, generator=generator), 8, 8, at, at) for at in (0, 8)]
    return (
        model,
        [[tokens, options | {"gligen": ("position", patcher, boxes)}] for tokens, options in positive],
        negative,
        vae,
    )


def test_boxes_of_gligen(demo, demo_head):
    check(with_boxes(demo), demo, demo_head)

"""What ties a head to a model: its last layer, its merges and LoRAs, its sampling; and what is said of a difference."""

from __future__ import annotations

import hashlib
import inspect
import json
import logging

import comfy.lora
import comfy.ops
import comfy.quant_ops
import pytest
import torch
from bayesdiff.bayesdiff_core.posterior.laplace_head import LaplaceHead
from bayesdiff.host.identity import (
    describe_model,
    describe_patches,
    describe_sampling,
    described_once,
    fingerprint,
    plain_tensors,
)
from bayesdiff.host.last_layer import find_last_layer
from bayesdiff.host.posterior import check_identity
from comfy_extras import nodes_model_advanced as advanced
from comfy_extras import nodes_model_merging as merging
from comfy_extras import nodes_model_merging_model_specific as specific
from comfy_extras.nodes_model_merging import ModelAdd, ModelMergeBlocks, ModelMergeSimple, ModelSubtract
from families import FAMILIES

QUANTISES = hasattr(comfy.ops, "mixed_precision_ops") and hasattr(comfy.quant_ops, "QuantizedTensor")


pytestmark = pytest.mark.usefixtures("inference_mode")


def build(name: str = "SD1", change: float = 0.0):
    """A small model of a family, or another checkpoint of it, all of whose weights are changed a little."""
    with torch.inference_mode(False), torch.no_grad():
        model = FAMILIES[name].build()
        for parameter in model.model.parameters():
            parameter.mul_(1 + change)
        return model


@pytest.fixture(scope="module")
def models():
    """A model, and two others of its family."""
    return build(), build(change=0.001), build(change=-0.002)


class Head:
    """As much of a head as its identity looks at: what its file says."""

    def __init__(self, about: dict[str, str]):
        self.about = about


def warnings_of(about, model, caplog) -> list[str]:
    """What is said of a head with this metadata on this model."""
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        head: LaplaceHead = Head(about if isinstance(about, dict) else describe(about))
        check_identity(head, model, find_last_layer(model))
    return [record.message for record in caplog.records if record.message.startswith("BayesDiff")]


def describe(model) -> dict[str, str]:
    return describe_model(model, find_last_layer(model))


# ---------------------------------------------------------------- merges and LoRAs

MERGES = {
    "simple": lambda model, other: ModelMergeSimple().merge(model, other, 0.3),
    "blocks": lambda model, other: ModelMergeBlocks().merge(model, other, input=0.2, middle=0.5, out=0.9),
    "add": lambda model, other: ModelAdd().merge(model, other),
    "subtract": lambda model, other: ModelSubtract().merge(model, other, 0.5),
    "add difference": lambda model, other: ModelAdd().merge(model, ModelSubtract().merge(other, model, 1.0)[0]),
    "by the model's blocks": lambda model, other: specific.ModelMergeSD1().merge(
        model, other, **{"time_embed.": 0.1, "input_blocks.1.": 0.2, "middle_block.0.": 0.3, "out.": 0.4}
    ),
}


@pytest.mark.parametrize("merge", MERGES)
def test_a_merge_with_another_partner_is_told_in_one_sentence(models, merge, caplog):
    model, *partners = models
    first, second = (MERGES[merge](model, partner)[0] for partner in partners)
    assert described_once(first) == described_once(second), "once both were described alike"
    assert describe_patches(first) != describe_patches(second)
    (said,) = warnings_of(first, second, caplog)
    assert "was fitted on another merge or LoRA than this model's" in said and "\n" not in said
    assert not warnings_of(first, MERGES[merge](model, partners[0])[0], caplog)
    (said,) = warnings_of(first, model, caplog)
    assert said.endswith("against none; fit a head on this model for exact figures.")


def test_every_stock_node_that_merges_models_is_among_them():
    """All are one of these four, or ask for the blocks of a family and merge as ModelMergeBlocks does."""
    nodes = {**merging.NODE_CLASS_MAPPINGS, **specific.NODE_CLASS_MAPPINGS}.values()
    merges = {node.merge for node in nodes if hasattr(node, "merge") and "model1" in node.INPUT_TYPES()["required"]}
    assert merges == {node.merge for node in (ModelMergeSimple, ModelMergeBlocks, ModelAdd, ModelSubtract)}


def test_a_merges_ratio_and_its_partners_own_patches_are_told(models):
    model, partner, _ = models
    merged = ModelMergeSimple().merge(model, partner, 0.3)[0]
    assert describe_patches(merged).endswith("), 0.3 of it and 0.7 of another model")
    assert describe_patches(merged) != describe_patches(ModelMergeSimple().merge(model, partner, 0.4)[0])
    for strength in (0.5, 1.0):
        patched = ModelMergeSimple().merge(model, lora_on(partner, strength), 0.3)[0]
        assert describe_patches(patched) != describe_patches(merged)
    ratios = {"input_blocks.1.": 0.1, "input_blocks.2.": 0.2, "middle_block.0.": 0.3, "out.": 1.0}
    many = specific.ModelMergeSD1().merge(model, partner, **ratios)[0]
    assert describe_patches(many).endswith(", others")


def lora_on(model, strength: float, seed: int = 0):
    """The model with a LoRA file on it, read as the host reads it: ranks, and a difference of a bias."""
    generator = torch.Generator().manual_seed(seed)
    keys = comfy.lora.model_lora_keys_unet(model.model, {})
    name, key = next((name, key) for name, key in keys.items() if key.endswith("input_blocks.0.0.weight"))
    shape = model.model.state_dict()[key].shape
    file = {
        f"{name}.lora_up.weight": torch.randn(shape[0], 2, generator=generator),
        f"{name}.lora_down.weight": torch.randn(2, shape[1:].numel(), generator=generator),
        f"{name}.alpha": torch.tensor(2.0),
        f"{name}.diff_b": torch.randn(shape[0], generator=generator),
    }
    clone = model.clone()
    assert len(clone.add_patches(comfy.lora.load_lora(file, keys), strength)) == 2
    return clone


def test_a_loras_strength_and_numbers_are_told(models, caplog):
    model = models[0]
    lora = lora_on(model, 0.5)
    assert describe_patches(lora).startswith("2 patched weights (") and describe_patches(lora).endswith("strength 0.5")
    assert not warnings_of(lora, lora_on(model, 0.5), caplog)
    (said,) = warnings_of(lora, lora_on(model, 1.0), caplog)
    assert "strength 0.5 against 2 patched weights" in said and "strength 1; fit" in said
    assert len(warnings_of(lora, lora_on(model, 0.5, seed=1), caplog)) == 1
    assert len(warnings_of(lora, lora_on(lora, 0.5, seed=1), caplog)) == 1
    assert len(warnings_of(model, lora, caplog)) == 1


def test_a_difference_of_a_bias_alone_is_told(models):
    model = models[0]
    key = "diffusion_model.out.2.bias"
    bias = model.model.state_dict()[key]

    def shifted(by: float):
        clone = model.clone()
        clone.add_patches({key: ("diff", (torch.full_like(bias, by),))}, 1.0)
        return describe_patches(clone)

    assert shifted(0.1) == shifted(0.1) != shifted(0.2)


def test_a_description_is_the_same_in_any_layout_and_on_any_number_of_threads(models):
    """A sum would be rounded otherwise."""
    model, threads = models[0], torch.get_num_threads()
    key = "diffusion_model.time_embed.0.weight"
    patch = torch.randn(model.model.state_dict()[key].shape, generator=torch.Generator().manual_seed(0))
    texts = set()
    try:
        for count, same in ((1, patch), (2, patch), (1, patch.T.contiguous().T)):
            torch.set_num_threads(count)
            clone = model.clone()
            clone.add_patches({key: (same,)}, 1.0)
            texts.add(describe_patches(clone))
    finally:
        torch.set_num_threads(threads)
    assert len(texts) == 1


def test_a_patch_costs_a_sample_of_each_tensor(models, monkeypatch):
    """A merge holds another whole model: of each tensor only a few numbers are read."""
    import bayesdiff.host.identity as identity

    read, plain_bytes = [], identity.bytes_of
    monkeypatch.setattr(identity, "bytes_of", lambda tensor: read.append(tensor.numel()) or plain_bytes(tensor))
    model, partner, _ = models
    describe_patches(ModelMergeSimple().merge(model, partner, 0.3)[0])
    assert len(read) > 100 and max(read) < 2 * identity.SAMPLE


# ---------------------------------------------------------------- heads of older versions


def older(model) -> dict[str, str]:
    """What a head of an older version says of the model."""
    about = describe(model) | {"lora": described_once(model) if model.patches else "none"}
    del about["sampling"]
    return about


def test_an_older_head_of_the_same_model_is_not_warned_about(models, caplog):
    model, partner, _ = models
    for same in (model, lora_on(model, 0.5), ModelMergeSimple().merge(model, partner, 0.3)[0]):
        assert not warnings_of(older(same), same, caplog)
    shifted = advanced.ModelSamplingSD3().patch(build("SD3"), 8.0)[0]
    assert not warnings_of(older(build("SD3")), shifted, caplog)
    (said,) = warnings_of(older(lora_on(model, 0.5)), lora_on(model, 1.0), caplog)
    assert "another merge or LoRA" in said


def test_the_hash_of_plain_weights_is_that_of_older_heads(models):
    layer = find_last_layer(models[0])
    stored = [part.detach().numpy().tobytes() for part in (layer.module.bias, layer.module.weight)]
    assert fingerprint(models[0], layer) == hashlib.sha256(b"".join(stored)).hexdigest()[:16]


# ---------------------------------------------------------------- samplings


def of(patched):
    """The model that a node of either kind returns."""
    return patched[0]


def flux(model, max_shift: float, side: int = 1024):
    return advanced.ModelSamplingFlux().patch(model, max_shift, 0.5, side, side)


SHIFTS = {
    "SD3": (advanced.ModelSamplingSD3().patch, 3.0, 8.0, "shift 3 against 8"),
    "AuraFlow": (advanced.ModelSamplingAuraFlow().patch_aura, 1.73, 5.0, "shift 1.73 against 5"),
    "Flux": (flux, 1.15, 3.0, "shift 1.15 against 3"),
}


@pytest.mark.parametrize("family", SHIFTS)
def test_another_shift_is_told_in_one_sentence(family, caplog):
    patch, ours, others, difference = SHIFTS[family]
    model = build(family)
    first, second = of(patch(model, ours)), of(patch(model, others))
    assert not warnings_of(first, of(patch(model, ours)), caplog)
    (said,) = warnings_of(first, second, caplog)
    assert said == (
        f"BayesDiff: this Laplace head was fitted with another sampling than this model's: {difference}; fit a head "
        "on this model for exact figures."
    )


def test_a_shift_that_hardly_moves_the_schedule_is_no_warning(caplog):
    """Flux is shifted by the image's size, and a head is fitted once for all sizes."""
    model = build("Flux")
    large = of(flux(model, 1.15))
    assert describe_sampling(of(flux(model, 1.15, 512))) != describe_sampling(large)
    for side in (256, 512, 768):
        assert not warnings_of(large, of(flux(model, 1.15, side)), caplog)
    patch, model = advanced.ModelSamplingSD3().patch, build("SD3")
    assert not warnings_of(of(patch(model, 3.0)), of(patch(model, 5.0)), caplog)
    assert len(warnings_of(of(patch(model, 3.0)), of(patch(model, 1.0)), caplog)) == 1
    (said,) = warnings_of(of(patch(model, 3.0)), of(patch(model, 3.0, 1.0)), caplog)
    assert "multiplier 1000 against 1;" in said


def test_a_schedule_patched_on_is_told_by_its_name_and_numbers(models, caplog):
    model = models[0]
    discrete, continuous = advanced.ModelSamplingDiscrete().patch, advanced.ModelSamplingContinuousEDM().patch
    assert describe_sampling(model).startswith("ModelSamplingDiscrete, sigma_min 0.02917, sigma_max 14.61")
    assert not warnings_of(model, of(discrete(model, "eps", False)), caplog), "the same schedule, patched on"
    (said,) = warnings_of(model, of(discrete(model, "eps", True)), caplog)
    assert "another sampling than this model's: sigma_max 14.61 against 4519; fit" in said
    edm = of(continuous(model, "eps", 120.0, 0.002))
    (said,) = warnings_of(model, edm, caplog)
    assert "ModelSamplingDiscrete against ModelSamplingContinuousEDM, sigma_min 0.02917 against 0.002, sigma_m" in said
    (said,) = warnings_of(of(continuous(model, "eps", 80.0, 0.002)), edm, caplog)
    assert "another sampling than this model's: sigma_max 80 against 120; fit" in said
    assert not warnings_of(model, of(advanced.RescaleCFG().patch(model, 0.7)), caplog), "guidance is no sampling"
    with pytest.raises(ValueError, match="prediction: LCM"):
        warnings_of(model, of(discrete(model, "lcm", False)), caplog)


def test_whatever_a_file_says_of_the_sampling_is_one_sentence(models, caplog):
    for text in (
        "",
        ",",
        "shift",
        "shift a, shift b",
        "x" * 10**5,
        " against , ",
        "shift -1",
        "ModelSamplingDiscrete, shift 3",
    ):
        (said,) = warnings_of(describe(models[0]) | {"sampling": text}, models[0], caplog)
        assert "another sampling than this model's" in said and len(said) < 1000


# ---------------------------------------------------------------- weights of any storage


def test_another_checkpoint_is_told_in_one_sentence(models, caplog):
    (said,) = warnings_of(models[0], models[1], caplog)
    assert "fitted on another checkpoint or precision than this model's: " in said


def test_a_patched_model_that_is_loaded_is_described_as_before(models):
    """While a model is loaded its weights are the patched ones, and those of before are kept aside."""
    model = lora_on(build(), 0.5)
    key = "diffusion_model.out.2.weight"
    model.add_patches({key: ("diff", (torch.ones_like(model.model.state_dict()[key]),))}, 1.0)
    before = describe(model)
    model.patch_model()
    try:
        assert key in model.backup and describe(model) == before
    finally:
        model.unpatch_model()
    assert describe(model) == before


class Stored(torch.Tensor):
    """A tensor that stores other numbers than it stands for, and says the shape of those, as those of a GGUF file."""

    @property
    def shape(self):
        return torch.Size((4, 32, 3, 3))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float8_e4m3fn])
def test_weights_of_half_precision_have_a_hash(models, dtype):
    model = build()
    layer = find_last_layer(model)
    plain = fingerprint(model, layer)
    layer.module.to(dtype)
    assert fingerprint(model, layer) not in (plain, None)


def test_weights_that_a_subclass_stores_in_its_own_way_have_a_hash():
    model = build()
    layer = find_last_layer(model)

    def with_weight(*numbers: int):
        stored = torch.tensor(numbers, dtype=torch.uint8).as_subclass(Stored)
        layer.module.weight = torch.nn.Parameter(stored, requires_grad=False)
        return fingerprint(model, layer)

    assert with_weight(1, 2, 3) == with_weight(1, 2, 3) != with_weight(1, 2, 4)


def test_a_layer_that_is_not_in_memory_is_not_compared(models, caplog):
    model = build()
    find_last_layer(model).module.to("meta")
    assert "weights" not in describe(model)
    assert not warnings_of(models[0], model, caplog) and not warnings_of(model, models[0], caplog)


@torch.inference_mode(False)
def quantised(change: float = 0.0, scaled: float = 1.0):
    """A small Flux, whose last layer is stored in eight bits as the host's loader does it."""
    model = build("Flux", change)
    final = model.model.diffusion_model.final_layer
    weight, bias = final.linear.weight.data, final.linear.bias.data
    scale, form = weight.abs().max() / 448, {"format": "float8_e4m3fn"}
    state = {"weight": (weight / scale).to(torch.float8_e4m3fn), "weight_scale": scale * scaled, "bias": bias}
    if "layer_quant_config" in inspect.signature(comfy.ops.mixed_precision_ops).parameters:  # hosts of 2025
        operations = comfy.ops.mixed_precision_ops({"": form}, torch.float32)
    else:
        operations = comfy.ops.mixed_precision_ops({}, torch.float32)
        state["comfy_quant"] = torch.tensor(list(json.dumps(form).encode()), dtype=torch.uint8)
    final.linear = operations.Linear(weight.shape[1], weight.shape[0], dtype=torch.float32)
    final.linear.load_state_dict(state, strict=False)
    assert isinstance(final.linear.weight, comfy.quant_ops.QuantizedTensor)
    return model


@pytest.mark.skipif(not QUANTISES, reason="this host has no quantised layers")
def test_a_quantised_last_layer_is_told_by_its_numbers_and_its_scale(caplog):
    model = quantised()
    assert len(plain_tensors(find_last_layer(model).module.weight)) == 2
    assert not warnings_of(model, quantised(), caplog)
    (said,) = warnings_of(model, quantised(scaled=1.001), caplog)
    assert "another checkpoint or precision" in said
    assert len(warnings_of(model, build("Flux"), caplog)) == 1


@pytest.mark.skipif(not QUANTISES, reason="this host has no quantised layers")
def test_a_merge_with_a_quantised_weight_is_told():
    """As the merge nodes pass it on, where the host can."""
    key = "diffusion_model.final_layer.linear.weight"
    model, texts = build("Flux"), set()
    for partner in (quantised(), quantised(), quantised(scaled=2.0)):
        weight = partner.model.diffusion_model.final_layer.linear.weight
        merged = model.clone()
        merged.add_patches({key: [(weight, lambda weight, **options: weight)]}, 0.5, 0.5)
        texts.add(describe_patches(merged))
    assert len(texts) == 2

"""What ties a Laplace head to a model: its family, its last layer, its weights, what patches them, its sampling."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator

import torch
from comfy.model_patcher import ModelPatcher

from .last_layer import LastLayer

# Numbers read of each tensor of a patch: a merge holds another whole model, most of it on the disk or the card.
SAMPLE = 64
# Strengths named of a model's patches. A merge by blocks may have one for every block.
NAMED = 3
# A schedule that is shifted by less than this factor, in noise over signal, still visits much the same levels. On the
# demo model a head fitted on a schedule shifted 1.35-fold says 6 % less, 1.9-fold 11 % (and the same places: Spearman
# 0.99), 2.7-fold 15 %, and shifted down 8-fold 73 % more (0.87). So images of another size, for which Flux is shifted
# by up to 1.9, are not worth a warning.
SAME_SHIFT = 2.0


def prediction_type(model: ModelPatcher) -> str:
    """The host's name of how the network's output becomes ``denoised``: EPS, V_PREDICTION, CONST, ..."""
    sampling = model.get_model_object("model_sampling")
    return next(c.__name__ for c in type(sampling).__mro__ if "calculate_denoised" in vars(c))


def plain_tensors(tensor: torch.Tensor) -> list[torch.Tensor]:
    """The ordinary tensors behind a tensor of any storage: itself, or a quantised one's numbers and scales."""
    flatten = getattr(tensor, "__tensor_flatten__", None)  # torch's own way into a tensor made of others
    if flatten is not None:
        return [plain for name in flatten()[0] for plain in plain_tensors(getattr(tensor, name))]
    # As a plain tensor, since subclasses such as a GGUF file's say a shape that is not that of what they store.
    return [tensor.detach().as_subclass(torch.Tensor)]


def bytes_of(tensor: torch.Tensor) -> bytes:
    """What an ordinary tensor of any type stores."""
    return tensor.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def fingerprint(model: ModelPatcher, layer: LastLayer) -> str | None:
    """Hash of the last layer's weights as they were loaded, before any patch; None where they are not in memory.

    The layer is asked itself: the host's ``get_key_patches`` fails on a quantised layer.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted([*layer.module.named_parameters(), *layer.module.named_buffers()]):
        key = f"diffusion_model.{layer.path}.{name}"
        if key in model.hook_backup:
            tensor = model.hook_backup[key][0]
        elif key in model.backup:
            tensor = model.backup[key].weight
        for plain in plain_tensors(tensor):
            if plain.is_meta:
                return None
            digest.update(bytes_of(plain))
    return digest.hexdigest()[:16]


def contents(value) -> Iterator[bytes]:
    """What a patch holds, at any depth: a sample of each tensor, and what else is a number or a word.

    Samples are of exact numbers, which no device or count of threads rounds otherwise.
    """
    if isinstance(value, torch.Tensor):
        for plain in plain_tensors(value):
            yield repr(tuple(plain.shape)).encode()
            if not plain.is_meta:
                sample = plain.reshape(-1)[:: max(1, plain.numel() // SAMPLE)]
                yield bytes_of(sample.float() if sample.is_floating_point() else sample)
    elif isinstance(value, (str, int, float)):
        yield repr(value).encode()
    elif isinstance(value, dict):
        for key in sorted(value, key=str):
            yield str(key).encode()
            yield from contents(value[key])
    elif isinstance(value, (tuple, list)):
        for part in value:
            yield from contents(part)
    elif hasattr(value, "weights"):  # the host's adapters of LoRA, LoKr, OFT, ...
        yield type(value).__name__.encode()
        yield from contents(value.weights)
    # What is left, such as the host's functions, says nothing that would be the same the next day.


def describe_patches(model: ModelPatcher) -> str:
    """What LoRAs and merges do to the model's weights: how many they patch, a hash of it, and how strongly."""
    if not model.patches:
        return "none"
    digest, strengths = hashlib.sha256(), {}
    for key in sorted(model.patches, key=str):
        for strength, value, strength_model, *where in model.patches[key]:
            for part in contents([str(key), strength, strength_model, where, value]):
                digest.update(part)
            # A list is another model's weight, with what patches that.
            merged = isinstance(value, list) or strength_model != 1
            own, other = f"{strength_model:g}", f"{strength:g}"
            strengths[f"{own} of it and {other} of another model" if merged else f"strength {other}"] = None
    named = [*strengths][:NAMED] + ["others"] * (len(strengths) > NAMED)
    return f"{len(model.patches)} patched weights ({digest.hexdigest()[:8]}), {', '.join(named)}"


def described_once(model: ModelPatcher) -> str:
    """:func:`describe_patches` as older heads have it, by which they still know their LoRA.

    It sees no tensor deeper inside a patch, and so tells no merge's partner.
    """
    digest = hashlib.sha256()
    for key in sorted(model.patches, key=str):
        for strength, value, strength_model, *_ in model.patches[key]:
            digest.update(repr((key, strength, strength_model)).encode())
            parts = getattr(value, "weights", value)
            for part in parts if isinstance(parts, (tuple, list)) else [parts]:
                if isinstance(part, torch.Tensor):
                    digest.update(f"{float(part.float().sum()):.5g}".encode())
    return f"{len(model.patches)} patched weights ({digest.hexdigest()[:8]})"


def describe_sampling(model: ModelPatcher) -> str:
    """The noise schedule of the model as patched: the host's class of it, and its numbers, ``", "`` between them."""
    sampling = model.get_model_object("model_sampling")
    kind = next((c.__name__ for c in type(sampling).__mro__ if "sigma" in vars(c)), type(sampling).__name__)
    # The ends of a shifted schedule follow from the shift, and the user knows that alone.
    names = ["shift", "multiplier"] if hasattr(sampling, "shift") else ["sigma_min", "sigma_max"]
    numbers = {name: getattr(sampling, name, None) for name in [*names, "sigma_data"]}
    return ", ".join([kind, *(f"{name} {float(value):.4g}" for name, value in numbers.items() if value is not None)])


def said_numbers(text: str) -> dict[str, str]:
    """The numbers of a description of a sampling by their names, and its class by no name."""
    parts = (part.rpartition(" ") for part in text.split(", "))
    return {name: number for name, _, number in parts}


def log_shift(numbers: dict[str, str]) -> float:
    """Logarithm of the factor by which a schedule is shifted in noise over signal; nan where none is said."""
    try:
        shift = float(numbers["shift"])
        return shift if numbers[""] == "ModelSamplingFlux" else math.log(shift)
    except (KeyError, ValueError):  # a file may say anything
        return math.nan


def differing(wanted: str, got: str) -> str:
    """What differs between two descriptions of a sampling, ``"shift 3 against 8"``; empty where it does not matter."""
    theirs, ours = said_numbers(wanted), said_numbers(got)
    names = [name for name in {**theirs, **ours} if theirs.get(name) != ours.get(name)]
    if names == ["shift"] and abs(log_shift(theirs) - log_shift(ours)) < math.log(SAME_SHIFT):
        return ""
    return ", ".join(f"{name} {theirs.get(name, 'none')} against {ours.get(name, 'none')}".strip() for name in names)


def describe_model(model: ModelPatcher, layer: LastLayer) -> dict[str, str]:
    """What ties a head to a model, as text, without what cannot be told. All must match but for WARN_ONLY."""
    items = {
        "family": type(model.model.model_config).__name__,
        "network": type(model.model.diffusion_model).__name__,
        "layer": layer.path,
        "prediction": prediction_type(model),
        "latent_format": type(model.model.latent_format).__name__,
        "weights": fingerprint(model, layer),
        "lora": describe_patches(model),
        "sampling": describe_sampling(model),
    }
    return {key: value for key, value in items.items() if value is not None}


# What may differ, in the user's words. The layer that a head is of is its weights as loaded and what patches them.
WARN_ONLY = {
    "weights": "on another checkpoint or precision",
    "lora": "on another merge or LoRA",
    "sampling": "with another sampling",
}

"""Habits of the host that a second look at a run has to know."""

from __future__ import annotations

import dataclasses
import math
import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import comfy.controlnet
import comfy.model_management
import comfy.samplers
import numpy as np
import torch
from comfy.model_patcher import ModelPatcher


def restart(guider) -> None:
    """Let what prompts carry begin its walk through the sigmas again, as before a run: it only goes forward."""
    for conds in guider.conds.values():
        # The host's own controls do not walk, and some of them load weights here.
        walking = [cond for cond in conds or [] if any(map(is_foreign, controls_of(cond)))]
        comfy.samplers.pre_run_control(guider.inner_model, walking)
    hooks = [
        hook
        for conds in guider.conds.values()
        for cond in conds or []
        if cond.get("hooks") is not None
        for hook in cond["hooks"].hooks
    ]
    if hooks:
        guider.model_patcher.clean_hooks()
    for hook in hooks:
        hook.initialize_timesteps(guider.inner_model)


def controls_of(cond: dict) -> list:
    """The control of a prompt, and those before it."""
    found, control = [], cond.get("control")
    while control is not None:
        found.append(control)
        control = getattr(control, "previous_controlnet", None)
    return found


def is_foreign(control) -> bool:
    """Whether another pack made the class of a control."""
    return type(control).__module__ != comfy.controlnet.__name__


def step_cache(model_options: dict):
    """What the host's EasyCache or LazyCache remembers of this run; None without one."""
    return model_options.get("transformer_options", {}).get("easycache")


def without_cache(options: dict) -> dict:
    """Sampler options whose calls all reach the network.

    A cache that is past its end neither skips a call nor remembers it. What it knows belongs to the run: it expects
    calls in the order of the steps, and fails where a call goes back to an earlier one.
    """
    cache = step_cache(options["model_options"])
    if cache is None:
        return options
    past = cache.clone()
    past.end_t = math.inf
    transformer_options = options["model_options"]["transformer_options"] | {"easycache": past}
    return options | {"model_options": options["model_options"] | {"transformer_options": transformer_options}}


def has_memory(model_options: dict | None) -> bool:
    """Whether something on the model may depend on every single call: a cache, a momentum, CFG++'s own hook."""
    model_options = model_options or {}
    wrappers = model_options.get("transformer_options", {}).get("wrappers", {})
    foreign = any(
        found and not str(key).startswith("bayesdiff") for kind in wrappers.values() for key, found in kind.items()
    )
    return foreign or any(name.startswith(("sampler_", "model_function")) for name in model_options)


def is_compiled(guider, model_options: dict) -> bool:
    """Whether torch.compile was put on the network or its blocks: then hooks are seen at some calls only."""
    wrappers = model_options.get("transformer_options", {}).get("wrappers", {})
    network = guider.inner_model.diffusion_model
    return hasattr(network, "_orig_mod") or any("torch.compile" in found for found in wrappers.values())


def is_patched(model_options: dict) -> bool:
    """Whether something is put between the layers of the network."""
    return any(model_options.get("transformer_options", {}).get(kind) for kind in ("patches", "patches_replace"))


def may_remember(model: ModelPatcher, parts: Sequence[Any]) -> bool:
    """Whether a run may depend on those before it: by a patch on the model, or by a part of it that another pack made.

    Args:
        parts: of the run: its guider, its sampler, ...
    """
    wrapped = any(found for kind in model.wrappers.values() for found in kind.values())
    replaced = model.object_patches.keys() - {"model_sampling"}
    modules = [getattr(part, "__module__", "") for part in parts]
    foreign = any(not module.startswith("comfy.") and "comfy_extras" not in module for module in modules)
    options = model.model_options
    return bool(wrapped or replaced or foreign) or is_patched(options) or has_memory(options)


def has_company(guider, model_options: dict) -> bool:
    """Whether anything but the network and its prompts has a say in a prediction: patches, wrappers, controls."""
    controlled = any(
        cond.get("control") is not None or cond.get("hooks") is not None
        for conds in guider.conds.values()
        for cond in conds or []
    )
    return controlled or is_patched(model_options) or has_memory(model_options)


def is_out_of_memory(error: Exception) -> bool:
    """Whether the host takes an error for that; newer ones know more kinds."""
    tell, kind = getattr(comfy.model_management, "is_oom", None), comfy.model_management.OOM_EXCEPTION
    return tell(error) if tell else kind is not Exception and isinstance(error, kind)


@dataclasses.dataclass(frozen=True)
class Generators:
    """Where the global random generators stand, which patches of a network may draw from at every call."""

    torch_cpu: torch.Tensor
    torch_device: torch.Tensor | None
    python: tuple
    numpy: dict

    @classmethod
    def now(cls, device: torch.device) -> Generators:
        on_device = torch.cuda.get_rng_state(device) if device.type == "cuda" else None
        return cls(torch.get_rng_state(), on_device, random.getstate(), np.random.get_state(legacy=False))  # noqa: NPY002

    def stood_still(self, later: Generators) -> bool:
        """Whether nobody drew from them in between."""
        tensors = [(self.torch_cpu, later.torch_cpu), (self.torch_device, later.torch_device)]
        return (
            all(torch.equal(mine, its) for mine, its in tensors if mine is not None and its is not None)
            and self.python == later.python
            and str(self.numpy) == str(later.numpy)
        )

    def restore(self, device: torch.device) -> None:
        torch.set_rng_state(self.torch_cpu)
        if self.torch_device is not None:
            torch.cuda.set_rng_state(self.torch_device, device)
        random.setstate(self.python)
        np.random.set_state(self.numpy)  # noqa: NPY002


@contextmanager
def kept_generators(device: torch.device) -> Iterator[None]:
    """Afterwards the global random generators stand where they stood."""
    kept = Generators.now(device)
    try:
        yield
    finally:
        kept.restore(device)

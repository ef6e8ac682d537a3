"""Habits of the host that a second look at a run has to know."""

from __future__ import annotations

import dataclasses
import math
import random
from collections.abc import Iterator
from contextlib import contextmanager

import comfy.controlnet
import comfy.model_management
import comfy.samplers
import numpy as np
import torch


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


def has_company(guider, model_options: dict) -> bool:
    """Whether anything but the network and its prompts has a say in a prediction: patches, wrappers, controls."""
    patched = any(model_options.get("transformer_options", {}).get(kind) for kind in ("patches", "patches_replace"))
    controlled = any(
        cond.get("control") is not None or cond.get("hooks") is not None
        for conds in guider.conds.values()
        for cond in conds or []
    )
    return patched or controlled or has_memory(model_options)


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

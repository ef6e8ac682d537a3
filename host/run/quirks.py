"""Habits of the host that a second look at a run has to know."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

import comfy.model_management
import torch


def restart_hooks(guider) -> None:
    """Let the hooks that prompts carry begin their walk through the sigmas again: it only goes forward."""
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


def generator_devices(device: torch.device) -> list[torch.device]:
    """Devices whose global generator work on ``device`` may use, for :func:`torch.random.fork_rng`."""
    return [device] if device.type == "cuda" else []


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


def is_out_of_memory(error: Exception) -> bool:
    """Whether the host takes an error for that; newer ones know more kinds."""
    tell, kind = getattr(comfy.model_management, "is_oom", None), comfy.model_management.OOM_EXCEPTION
    return tell(error) if tell else kind is not Exception and isinstance(error, kind)


@contextmanager
def estimating() -> Iterator[None]:
    """Where memory runs out in the estimate, and not in the sampling before it, the host's error says so too."""
    try:
        yield
    except Exception as error:
        if is_out_of_memory(error):
            error.args = (
                f"{error}; memory ran out in estimating the uncertainty, after the sampling: sample fewer images at "
                "once, or use the stock sampler.",
            )
        raise

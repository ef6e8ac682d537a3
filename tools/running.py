"""Runs of the demo model by the stock KSampler and by ours, side by side."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Iterator
from contextlib import contextmanager

import comfy.model_management
import nodes
import torch
from bayesdiff.bayesdiff_core.estimators.trajectory import SaveAt
from bayesdiff.host.last_layer import find_last_layer
from bayesdiff.nodes.options import UncertaintyOptions
from bayesdiff.nodes.sampler import KSamplerBayesDiff
from comfy_extras.nodes_context_windows import ContextWindowsManualNode
from factory import sampler_inputs

EMPTY = {"samples": torch.zeros(2, 4, 16, 16)}
MEMBERS = 2


def stock(demo, latent: dict, **changes) -> dict:
    """The stock KSampler's latent, with the inputs of :func:`~factory.sampler_inputs`."""
    inputs = sampler_inputs(demo, **changes)
    order = ("model", "seed", "steps", "cfg", "sampler_name", "scheduler", "positive", "negative")
    return nodes.common_ksampler(*(inputs[key] for key in order), latent, denoise=inputs["denoise"])[0]


def ours(demo, head, latent: dict, quality="ensemble", members=MEMBERS, options=None, **changes) -> tuple:
    """Latent, uncertainty and scores of KSampler (BayesDiff), with the same inputs."""
    return KSamplerBayesDiff.execute(
        **sampler_inputs(demo, **changes),
        latent_image=latent,
        head=head,
        quality=quality,
        members=members,
        options=options,
    ).args[:3]


def options(estimator, sigmas: tuple[float, ...] = (), map_preview: bool = False) -> UncertaintyOptions:
    return UncertaintyOptions(estimator, SaveAt(sigmas), map_preview)


class Breaking:
    """How many calls of the network there were before and at the error, see :func:`breaking`."""

    def __init__(self):
        self.calls = 0


@contextmanager
def breaking(model, after: int, error: type[BaseException]) -> Iterator[Breaking]:
    """Inside, the network of a model fails with ``error`` once it was called ``after`` times."""
    count = Breaking()

    def fail(module, args):
        count.calls += 1
        if count.calls > after:
            raise error("broken on purpose")

    handle = find_last_layer(model).module.register_forward_pre_hook(fail)
    try:
        yield count
    finally:
        handle.remove()


@contextmanager
def little_memory(monkeypatch, state: str) -> Iterator[None]:
    """Inside, the host does what it does under ``--lowvram`` (``LOW_VRAM``) or ``--novram`` (``NO_VRAM``).

    By its own code: it is told that this CPU is a device of a MiB of memory. It then also calls the network for each
    prompt alone.
    """
    management, free = comfy.model_management, 2**20

    def get_free_memory(device=None, torch_free_too=False):
        return (free, free) if torch_free_too else free

    with monkeypatch.context() as patched:
        patched.setattr(management, "is_device_cpu", lambda device: False)
        patched.setattr(management, "vram_state", management.VRAMState[state])
        patched.setattr(management, "get_free_memory", get_free_memory)
        yield


def scaled(head, factor: float):
    """The head with ``factor`` times its posterior covariance."""
    precision = head.precision
    precision = dataclasses.replace(precision, values=precision.values / factor, rest=precision.rest / factor)
    return dataclasses.replace(head, precision=precision)


def in_windows(model, length: int, dim: int = 0):
    """A model that samples in windows of so many images of a batch (or frames: dimension 2), by the stock node."""
    windows = dict(context_length=length, context_overlap=1, context_schedule="standard_static", context_stride=1)
    windows |= dict(closed_loop=False, fuse_method="pyramid", dim=dim)
    if "freenoise" in inspect.signature(ContextWindowsManualNode.execute).parameters:  # of newer hosts
        windows["freenoise"] = False
    return ContextWindowsManualNode.execute(model, **windows).args[0]

"""The exact posterior variance of one prediction of ``denoised``, read while the prediction is made."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import WrappersMP

from ...bayesdiff_core.posterior.features import guided_features
from ..posterior import Posterior

WRAPPER_KEY = "bayesdiff_look"
COND, UNCOND = 0, 1
# Calls that show where the outputs of the last layer end up: with three, even half precision has no two alike.
ARRIVALS = 3


class Look:
    """Sees the last layer's features while a guided prediction is made; the prediction is not touched.

    Args:
        independent: take the two halves of a guided prediction as independent, as the published code does.
    """

    def __init__(self, posterior: Posterior, independent: bool = False):
        self.layer, self.head, self.independent = posterior.layer, posterior.head, independent
        self.network = posterior.model.model.diffusion_model
        self.looking = False
        # Of the first calls: the outputs of the last layer and what the network returned, of one image.
        self.arrivals: list[tuple[torch.Tensor, torch.Tensor]] = []
        # What one prediction read: the number of the prompt in the host's list, and the features.
        self.parts: list[tuple[int, torch.Tensor]] = []

    def add_to(self, model: ModelPatcher) -> None:
        model.add_wrapper_with_key(WrappersMP.APPLY_MODEL, WRAPPER_KEY, self.apply_model)

    def apply_model(self, executor, *args, **kwargs):
        """APPLY_MODEL wrapper."""
        if not self.looking:
            return executor(*args, **kwargs)
        seen: list[torch.Tensor] = []
        left: list[torch.Tensor] = []
        arrived: list[torch.Tensor] = []

        def see(module, inputs, output):
            seen.append(inputs[0])
            left.append(output)

        # A compiled network keeps no hook that comes after its compilation: then nothing is seen, and nothing changed.
        handles = [
            self.layer.module.register_forward_hook(see),
            self.network.register_forward_hook(lambda module, inputs, output: arrived.append(output)),
        ]
        try:
            out = executor(*args, **kwargs)
        finally:
            for handle in handles:
                handle.remove()
        if len(left) == len(arrived) == 1 and len(self.arrivals) < ARRIVALS and torch.is_tensor(arrived[0]):
            self.arrivals.append((left[0][0].to("cpu", copy=True), arrived[0][0].to("cpu", copy=True)))
        options = kwargs.get("transformer_options") or args[5]
        order = options["cond_or_uncond"]
        for features in seen:
            self.parts += zip(order, features.chunk(len(order)))
        return out

    @contextmanager
    def once(self) -> Iterator[None]:
        """Look at the one prediction that is made inside."""
        self.looking, self.parts = True, []
        try:
            yield
        finally:
            self.looking = False

    def is_guided_pair(self) -> bool:
        """Whether one positive and at most one negative prompt were read, each for the whole image."""
        numbers = [number for number, _ in self.parts]
        return sorted(numbers) in ([COND], [COND, UNCOND])

    def gamma_squared(self, cfg: float | None) -> torch.Tensor | None:
        """gamma² of the network's guided output at every output position, ``(n, ...)``, float32.

        One W serves both halves of a guidance, so ``F = W[(1 - w) phi_u + w phi_c]`` and gamma² is that of the mixed
        features. Where more than two predictions were mixed (regions, other guiders) it is their mean: right in shape,
        not in size.

        Args:
            cfg: the guidance, None where the guider has no such number.

        Returns:
            on the CPU; None where nothing was seen. What was seen is forgotten.
        """
        is_pair, seen, self.parts = self.is_guided_pair(), self.parts, []
        if not seen:
            return None
        if cfg is None or not is_pair:
            whole = max(features.numel() for _, features in seen)
            parts = [self.head.variance(features) for _, features in seen if features.numel() == whole]
            return torch.stack(parts).mean(0).cpu()
        parts = {number: features.float() for number, features in seen}
        if UNCOND not in parts:
            return self.head.variance(parts[COND]).cpu()
        if self.independent:
            cond, uncond = (self.head.variance(parts[number]) for number in (COND, UNCOND))
            return (cfg**2 * cond + (1 - cfg) ** 2 * uncond).cpu()
        return self.head.variance(guided_features(parts[COND], parts[UNCOND], cfg)).cpu()

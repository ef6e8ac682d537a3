"""The exact posterior variance of one prediction of ``denoised``, read while the prediction is made."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager

import torch
from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import WrappersMP

from ...bayesdiff_core.posterior.features import guided_features
from ..layout import by_image, end_of_image, part_of, with_batch
from ..posterior import Posterior
from .beside import Beside

WRAPPER_KEY = "bayesdiff_look"
COND, UNCOND = 0, 1
# Calls that show where the outputs of the last layer end up: with three, even half precision has no two alike.
ARRIVALS = 3


# Values of an answer of the last layer that are kept, to know it again.
OUTLINE = 4096


def outline(output: torch.Tensor) -> torch.Tensor:
    """Some values of an output, at even distances, ``(m,)``, float32 on the CPU."""
    flat = output.detach().flatten()
    return flat[:: max(1, len(flat) // OUTLINE)].float().cpu()


class Answers:
    """Outlines of what the last layer returns while one prediction is made, in the order of its calls."""

    def __init__(self):
        self.outlines: list[torch.Tensor] = []

    def see(self, module, inputs, output) -> None:
        """A forward hook."""
        self.outlines.append(outline(output))

    @property
    def whole(self) -> torch.Tensor:
        """All in one, ``(m,)``."""
        return torch.cat([*self.outlines, torch.empty(0)])


class Look:
    """Sees the last layer's features while a guided prediction is made; the prediction is not touched.

    Args:
        independent: take the two halves of a guided prediction as independent, as the published code does.
    """

    def __init__(self, posterior: Posterior, independent: bool = False):
        self.layer, self.head, self.independent = posterior.layer, posterior.head, independent
        self.network = posterior.model.model.diffusion_model
        self.beside = Beside()
        self.looking = self.reading = False
        # Of the first calls: the outputs of the last layer and what the network returned, of one image.
        self.arrivals: list[tuple[torch.Tensor, torch.Tensor]] = []
        # Where the tokens of the image are, if prompts of unlike length go through the last layer with it.
        self.end: slice | None = None
        # What one prediction read: the number of the prompt in the host's list, and the features.
        self.parts: list[tuple[int, torch.Tensor]] = []
        self.answers = Answers()

    def add_to(self, model: ModelPatcher) -> None:
        model.add_wrapper_with_key(WrappersMP.APPLY_MODEL, WRAPPER_KEY, self.apply_model)

    def begin(self, beside: Beside) -> None:
        """A run begins.

        Args:
            beside: guards what is done here.
        """
        self.beside, self.end = beside, None
        self.arrivals.clear()

    def apply_model(self, executor, *args, **kwargs):
        """APPLY_MODEL wrapper."""
        if not self.looking:
            return executor(*args, **kwargs)
        seen: list[torch.Tensor] = []
        left: list[torch.Tensor] = []
        arrived: list[torch.Tensor] = []

        def see(module, inputs, output):
            with self.beside.guarded("reading the last layer"):
                self.answers.see(module, inputs, output)
                left.append(output.detach())
                if self.reading:
                    seen.append(inputs[0].detach())

        def arrive(module, inputs, output):
            with self.beside.guarded("reading the network"):
                arrived.append(output)

        # A compiled network keeps no hook that comes after its compilation: then nothing is seen, and nothing changed.
        handles = []
        with self.beside.guarded("reading the last layer"):
            handles = [
                self.layer.module.register_forward_hook(see),
                self.network.register_forward_hook(arrive),
            ]
        try:
            out = executor(*args, **kwargs)
        finally:
            for handle in handles:
                handle.remove()
        with self.beside.guarded("reading the last layer"):
            if len(left) == len(arrived) == 1 and len(self.arrivals) < ARRIVALS:
                returned = part_of(arrived[0], self.layer.part)
                if returned is not None:
                    output = by_image(left[0], len(returned))
                    self.arrivals.append((output[0].to("cpu", copy=True), returned[0].detach().to("cpu", copy=True)))
            options = kwargs.get("transformer_options") or args[5]
            order = options["cond_or_uncond"]
            for features in seen:
                self.parts += zip(order, with_batch(features).chunk(len(order)))
        return out

    def at(self, reading: bool) -> AbstractContextManager[None]:
        """Look at the one prediction that is made inside.

        Args:
            reading: keep the features, for :meth:`gamma_squared`.
        """
        self.reading, self.parts, self.answers = reading, [], Answers()
        return self.once()

    @contextmanager
    def once(self) -> Iterator[None]:
        self.looking = True
        try:
            yield
        finally:
            self.looking = False

    def is_guided_pair(self) -> bool:
        """Whether one positive and at most one negative prompt were read, each for the whole image."""
        numbers = [number for number, _ in self.parts]
        return sorted(numbers) in ([COND], [COND, UNCOND])

    def of_one_length(self, parts: list[tuple[int, torch.Tensor]]) -> list[tuple[int, torch.Tensor]]:
        """The two halves of a guidance, cut to as many tokens where the text of one prompt is longer.

        Some families send the tokens of text or of reference images through the last layer too, before or after those
        of the image.
        """
        lengths = {features.shape[1] for _, features in parts}
        if self.layer.geometry.kind != "linear" or len(lengths) == 1:
            return parts
        count = min(lengths)
        longer = next((arrival for arrival in self.arrivals if len(arrival[0]) > count), None)
        if longer is not None:
            self.end = end_of_image(*longer, count)
        end = self.end
        if end is None:
            return parts
        self.arrivals = [(output[end], returned) for output, returned in self.arrivals]
        return [(number, features[:, end]) for number, features in parts]

    def gamma_squared(self, cfg: float | None, images: int) -> tuple[torch.Tensor | None, bool]:
        """gamma² of the network's guided output at every output position, ``(n, ...)``, float32 on the CPU.

        One W serves both halves of a guidance, so ``F = W[(1 - w) phi_u + w phi_c]`` and gamma² is that of the mixed
        features. Where more than two predictions were mixed (regions, other guiders) it is their mean: right in shape,
        not in size.

        Args:
            cfg: the guidance, None where the guider has no such number.
            images: how many there are.

        Returns:
            gamma², and whether its size is right; None where nothing was seen of whole images. What was seen is
            forgotten.
        """
        is_pair, self.parts, seen = self.is_guided_pair(), [], self.parts
        seen = [(number, by_image(features, images)) for number, features in seen]
        if is_pair:
            seen = self.of_one_length(seen)
            is_pair = len({features.shape for _, features in seen}) == 1
        # Windows over a batch show the network a part of it at a time.
        if not seen or any(len(features) != images for _, features in seen):
            return None, False
        if cfg is None or not is_pair:
            whole = max(features.numel() for _, features in seen)
            parts = [self.head.variance(features) for _, features in seen if features.numel() == whole]
            return torch.stack(parts).mean(0).cpu(), False
        parts = {number: features.float() for number, features in seen}
        if UNCOND not in parts:
            return self.head.variance(parts[COND]).cpu(), True
        if self.independent:
            cond, uncond = (self.head.variance(parts[number]) for number in (COND, UNCOND))
            return (cfg**2 * cond + (1 - cfg) ** 2 * uncond).cpu(), True
        return self.head.variance(guided_features(parts[COND], parts[UNCOND], cfg)).cpu(), True

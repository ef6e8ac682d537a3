"""Where the outputs of a last layer end up in the latent, read off the model itself.

After its last layer a network only reorders (unpatchify, crop, drop the learned sigma, slice the image's tokens,
negate). The outputs are replaced by their own numbers, and what arrives tells where each went. So no family needs code
of its own.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from contextlib import contextmanager

import torch
from comfy.model_patcher import ModelPatcher

from ..bayesdiff_core.posterior.features import LayerGeometry
from .last_layer import LastLayer, eager
from .nested import by_part, parts_of
from .settings import Guidance
from .states import NoisedState, visit_state

# Small enough to pass through bfloat16 unharmed.
DIGIT = 128
# How far from a whole number a digit may arrive.
WHOLE_NUMBER = 0.01


@dataclasses.dataclass(frozen=True)
class Layout:
    """Where the outputs of a last layer end up.

    Attributes:
        geometry: of the last layer.
        index: ``latent.shape[1:]``, the number of the output (of one image, flattened in the layer's own layout)
            that each latent element is.
    """

    geometry: LayerGeometry
    index: torch.Tensor

    def positions(self, count: int) -> torch.Tensor:
        """``latent.shape[1:]``, the output position, of ``count``, that each latent element comes from."""
        return self.index % count if self.geometry.kind == "conv2d" else self.index // self.geometry.out_features

    def place(self, variance: torch.Tensor) -> torch.Tensor:
        """Variance of every latent element, from gamma² ``(n, ...)`` of every output position."""
        flat = variance.flatten(1)
        return flat[:, self.positions(flat.shape[1]).to(flat.device)]


@contextmanager
def replaced(module: torch.nn.Module, make_output):
    """Put ``make_output(output)``, unless it is None, in the place of what ``module`` returns."""
    handle = module.register_forward_hook(lambda module, args, output: make_output(output))
    try:
        with eager():
            yield
    finally:
        handle.remove()


def layout_at(model: ModelPatcher, layer: LastLayer, denoise: Callable[[], object], latent: torch.Size) -> Layout:
    """Find where the outputs of ``layer`` end up while a state is visited, see :data:`~.states.Visit`.

    Takes a few network calls.

    Args:
        denoise: calls the network.
        latent: shape of the latents, or of the layer's part of nested ones, ``(n, ...)``.

    Raises:
        ValueError: what follows the layer is more than a reordering, so this is not the last layer.
    """
    outputs = 0

    def arriving(make_values) -> torch.Tensor:
        """What the network returns, where the outputs of the layer are ``make_values(their numbers)``."""
        seen = []

        def make_output(output):
            nonlocal outputs
            shape, output = output.shape, with_batch(output) if layer.geometry.kind == "linear" else output
            # See by_image.
            rows = max(1, len(output) // latent[0]) if layer.geometry.kind == "linear" else 1
            outputs = rows * output[0].numel()
            numbers = torch.arange(outputs, device=output.device).reshape(rows, *output.shape[1:])
            values = make_values(numbers).to(output.dtype)
            return values.repeat(len(output) // rows, *[1] * (output.ndim - 1)).reshape(shape)

        with replaced(layer.module, make_output), replaced(model.model.diffusion_model, seen.append):
            denoise()
        arrived = part_of(seen[0], layer.part) if seen else None
        if not outputs or arrived is None or arrived.shape[1:] != latent[1:]:
            raise ValueError(
                f"Expected {layer.path} to make outputs that become a latent, but it does not; choose another model."
            )
        return arrived[0].double()

    offset = arriving(torch.zeros_like)
    sign = arriving(torch.ones_like) - offset
    if not torch.all(sign.abs() == 1):
        raise ValueError(
            f"Expected the outputs of {layer.path} to be reordered only, but the network goes on computing with them; "
            "choose another model."
        )
    index, power = torch.zeros_like(sign), 1
    while power < outputs:
        digit = (arriving(lambda numbers, power=power: numbers // power % DIGIT) - offset) * sign
        index += digit.round() * power
        power *= DIGIT
    return Layout(layer.geometry, index.long().cpu())


def match_positions(geometry: LayerGeometry, arrivals: list[tuple[torch.Tensor, torch.Tensor]]) -> torch.Tensor | None:
    """The output position that each latent element comes from, told by the numbers that arrived there.

    Args:
        arrivals: of some calls of the network and of one image, the outputs of the last layer and what the network
            returned, ``(c, ...)``.

    Returns:
        ``(c, ...)``; None where what follows the layer does more than reorder, or where outputs are too much alike.
    """
    if not arrivals:
        return None

    def names(tensors: Iterable[torch.Tensor]) -> torch.Tensor:
        """One number for each element: all of its values in one, but for their signs."""
        found = torch.zeros((), dtype=torch.long)
        for tensor in tensors:
            bits = tensor.float().abs().contiguous().flatten().view(torch.int32).long()
            found = found * 0x9E3779B1 + bits
        return found

    outputs, latents = zip(*arrivals)
    shape = latents[0].shape
    if len({each.shape for each in outputs}) > 1 or len({each.shape for each in latents}) > 1:
        return None
    left, arrived = names(outputs), names(latents)
    number = torch.arange(len(left))
    conv = geometry.kind == "conv2d"
    position = number % (len(left) // geometry.out_features) if conv else number // geometry.out_features
    unique, which = left.unique(return_inverse=True)
    lowest = torch.zeros_like(unique).scatter_reduce(0, which, position, "amin", include_self=False)
    highest = torch.zeros_like(unique).scatter_reduce(0, which, position, "amax", include_self=False)
    at = torch.searchsorted(unique, arrived).clamp(max=len(unique) - 1)
    if not torch.equal(unique[at], arrived):
        return None
    found, sure = lowest[at].reshape(shape), (lowest[at] == highest[at]).reshape(shape)
    if sure.all():
        return found
    # Of outputs that are alike by chance, as among those of a single call, the other channels of the cell tell.
    of_cell = found.masked_fill(~sure, -1).amax(0)
    agreed = torch.equal(of_cell, found.masked_fill(~sure, len(left)).amin(0))
    return of_cell.expand(shape) if agreed else None


def part_of(returned, part: int) -> torch.Tensor | None:
    """One part of what a network returned, which of a nested latent is a list of them; None of anything else."""
    if isinstance(returned, (list, tuple)):
        returned = returned[part] if part < len(returned) else None
    return returned if torch.is_tensor(returned) else None


def with_batch(rows: torch.Tensor) -> torch.Tensor:
    """Rows of a linear layer with a dimension for the batch, which networks that take one sample may leave out."""
    return rows[None] if rows.ndim == 2 else rows


def by_image(rows: torch.Tensor, images: int) -> torch.Tensor:
    """Tokens of images, ``(images, tokens, width)``, of a linear layer's rows that stand beside each other.

    Cosmos has the frames of a clip beside each other, as if they were a batch, and SeedVR 2 all tokens:
    ``(images * frames, tokens, width)`` or ``(images * tokens, width)``. Any other tensor stays as it is.
    """
    flat = rows.ndim == 2 and len(rows) % images == 0
    rows = rows.reshape(images, -1, rows.shape[-1]) if flat else with_batch(rows)
    if rows.ndim != 3 or len(rows) <= images or len(rows) % images:
        return rows
    return rows.reshape(images, -1, rows.shape[-1])


def end_of_image(output: torch.Tensor, returned: torch.Tensor, count: int) -> slice | None:
    """Which end of a last layer's tokens becomes the image, told by the numbers that the network returned.

    Args:
        output: of the last layer and of one image, ``(tokens, out_features)``.
        returned: what the network made of it, ``(c, ...)``.
        count: of tokens at that end.

    Returns:
        the first or the last ``count`` tokens; None where both or neither could be it.
    """
    ends = [slice(None, count), slice(-count, None)]
    could = [end for end in ends if holds(output[end], returned)]
    return could[0] if len(could) == 1 else None


def holds(tensor: torch.Tensor, values: torch.Tensor) -> bool:
    """Whether a tensor holds each of the values, but for signs, at least as often."""
    both = [each.float().abs().flatten() for each in (tensor, values)]
    unique, which = torch.cat(both).unique(return_inverse=True)
    there, wanted = (part.bincount(minlength=len(unique)) for part in which.split([len(each) for each in both]))
    return bool((there >= wanted).all())


def read_positions(
    model: ModelPatcher, layer: LastLayer, denoise: Callable[[], object], latent: torch.Size, count: int
) -> torch.Tensor | None:
    """The output position, of ``count``, that each element of a latent comes from, by a few network calls.

    For a layer that is known to be the last one; a sign that follows it does not matter here. Where the network goes on
    computing with its outputs, as MiniMax H3 does with the sound's, they arrive as no whole numbers, and nothing is
    told.

    Args:
        denoise: calls the network.
        latent: shape of one image, or of the layer's part of a nested latent.

    Returns:
        of that shape; None where the network never returns a whole latent (a prompt for an area), or another one.
    """
    conv, positions, power = layer.geometry.kind == "conv2d", torch.zeros(latent, dtype=torch.long), 1
    while power == 1 or power < count:
        seen: list[torch.Tensor] = []

        def make_output(output: torch.Tensor, power: int = power) -> torch.Tensor | None:
            shape = output.shape[2:] if conv else with_batch(output).shape[1:-1]
            if shape.numel() != count:  # a window, or an area
                return None
            digits = torch.arange(count, device=output.device) // power % DIGIT
            return digits.reshape(shape if conv else (*shape, 1)).to(output.dtype).expand_as(output)

        # One digit of the position at a time: the network may take no other batch than the run's.
        with replaced(layer.module, make_output), replaced(model.model.diffusion_model, seen.append):
            denoise()
        arrived = part_of(seen[0], layer.part) if seen else None
        if arrived is None or arrived.shape[1:] != latent:
            return None
        digits = arrived[0].abs().float()
        if (digits - digits.round()).abs().max() > WHOLE_NUMBER:
            return None
        positions += power * digits.round().long().cpu()
        power *= DIGIT
    return positions.clamp(max=count - 1)


def read_layout(model: ModelPatcher, layer: LastLayer, positive, latent: torch.Tensor) -> Layout:
    """Find where the outputs of ``layer`` end up, for a latent ``(1, ...)`` of the size that is asked about.

    Raises:
        ValueError: see :func:`layout_at`.
    """
    found: list[Layout] = []
    shapes = [part.shape for part in parts_of(latent)]

    def visit(denoise, x, sigma, x0):
        found.append(layout_at(model, layer, lambda: denoise(x), shapes[layer.part]))

    visit_once(model, positive, latent, visit)
    return found[0]


def visit_once(model: ModelPatcher, positive, latent: torch.Tensor, visit) -> None:
    """Visit a state in the middle of the schedule, without guidance."""
    state = NoisedState(latent, 0.5, by_part(torch.zeros_like, latent))
    visit_state(model, state, Guidance(positive, positive, 1.0), visit)


def discover_last_layer(model: ModelPatcher, positive, latent: torch.Tensor, part: int = 0) -> LastLayer:
    """The last layer of a network that the table does not know: the latest called one whose outputs are the latent.

    Args:
        part: of a nested latent, that the outputs are.

    Raises:
        ValueError: no layer of the network is one.
    """
    network, called = model.model.diffusion_model, []
    handles = [
        module.register_forward_hook(lambda module, args, output, name=name: called.append((name, module)))
        for name, module in network.named_modules()
    ]
    try:
        with eager():
            visit_once(model, positive, latent, lambda denoise, x, sigma, x0: denoise(x))
    finally:
        for handle in handles:
            handle.remove()
    for name, module in reversed(called):
        try:
            layer = LastLayer(name, module, LayerGeometry.of(module), part)
            read_layout(model, layer, positive, latent)
            return layer
        except ValueError:
            continue
    raise ValueError(
        f"Expected a model that ends in a linear layer or a convolution, got {type(network).__name__}, which does not; "
        "choose another model."
    )

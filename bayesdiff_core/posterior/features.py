"""A network's last layer seen as a linear map of feature rows, ``F = rows @ W``, and features under guidance."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F


@dataclasses.dataclass(frozen=True)
class LayerGeometry:
    """Shape of a last layer, convolution or linear, and how its features become rows.

    A row phi holds the ``in_features * kh * kw`` inputs of one output position (an unfolded patch for a
    convolution, a token for a linear layer), followed by a one where the layer has a bias. The layer's output
    at that position is ``phi^T W`` with ``W`` of shape ``(width, out_features)``.
    """

    kind: str
    in_features: int
    out_features: int
    bias: bool
    kernel_size: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)

    @classmethod
    def of(cls, layer: torch.nn.Module) -> LayerGeometry:
        """Geometry of a convolution or linear layer, also of one that only looks like torch's own.

        Raises:
            ValueError: the layer is of another kind, or a convolution with groups, strides or other extras.
        """
        bias = getattr(layer, "bias", None) is not None
        if isinstance(layer, torch.nn.Conv2d):
            (height, width), padding = layer.kernel_size, layer.padding
            plain = layer.groups == 1 and layer.padding_mode == "zeros"
            plain = plain and tuple(layer.stride) == (1, 1) and tuple(layer.dilation) == (1, 1)
            if isinstance(padding, str) or not plain:
                raise ValueError(
                    f"Expected a plain convolution (no groups, stride 1) as the last layer, got {layer}; choose "
                    "another model."
                )
            around = padding[0], padding[1]
            return cls("conv2d", layer.in_channels, layer.out_channels, bias, (height, width), around)
        inputs, outputs = getattr(layer, "in_features", None), getattr(layer, "out_features", None)
        if inputs is not None and outputs is not None:
            return cls("linear", inputs, outputs, bias)
        raise ValueError(f"Expected a Conv2d or Linear last layer, got {type(layer).__name__}; choose another model.")

    @property
    def width(self) -> int:
        """Length of a row, bias column included."""
        return self.in_features * self.kernel_size[0] * self.kernel_size[1] + int(self.bias)

    @property
    def channel_dim(self) -> int:
        """Dimension of the output that holds the ``out_features``."""
        return 1 if self.kind == "conv2d" else -1

    def positions(self, features: torch.Tensor) -> int:
        """How many output positions each batch item has, see :meth:`rows`."""
        if self.kind == "conv2d":
            sides = zip(features.shape[2:], self.kernel_size, self.padding)
            return math.prod(side + 2 * padding - kernel + 1 for side, kernel, padding in sides)
        return features[0].numel() // self.in_features

    def rows(
        self,
        features: torch.Tensor,
        limit: int | None = None,
        generator: torch.Generator | None = None,
        among: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Rows phi of the output positions, float32.

        Args:
            features: ``(n, in_features, h, w)`` for a convolution, ``(n, ..., in_features)`` for a linear layer.
            limit: keep a random choice of so many positions of each batch item; no more than these are unfolded.
            generator: source of that choice.
            among: ``(m,)`` numbers of the positions to look at, all by default.

        Returns:
            ``(positions, width)``, batch-major.
        """
        if self.kind == "conv2d":
            kh, kw = self.kernel_size
            ph, pw = self.padding
            # A view: (n, in_features, h', w', kh, kw) without a copy of any patch.
            patches = F.pad(features, (pw, pw, ph, ph)).unfold(2, kh, 1).unfold(3, kw, 1)
            patches = patches.permute(0, 2, 3, 1, 4, 5)
            places = torch.cartesian_prod(*(torch.arange(side) for side in patches.shape[1:3]))
        else:
            patches = features.reshape(len(features), -1, self.in_features)
            places = torch.arange(patches.shape[1])[:, None]
        if among is not None:
            places = places[among]
        rows = []
        for item in patches:
            chosen = places
            if limit is not None and limit < len(places):
                chosen = places[torch.randperm(len(places), generator=generator)[:limit]]
            index = tuple(axis.to(features.device) for axis in chosen.T)
            rows.append(item[index].flatten(1).float())
        rows = torch.cat(rows)
        return torch.cat([rows, rows.new_ones(len(rows), 1)], dim=1) if self.bias else rows

    def apply(self, features: torch.Tensor, matrix: torch.Tensor) -> torch.Tensor:
        """``phi^T matrix`` at every position, in the layer's own output layout, without unfolding.

        Args:
            features: as in :meth:`rows`.
            matrix: ``(width, columns)``; ``columns`` need not be ``out_features``.

        Returns:
            float32, ``(n, columns, h', w')`` for a convolution, ``(n, ..., columns)`` for a linear layer.
        """
        features = features.float()
        matrix = matrix.to(features.device, torch.float32)
        weight = (matrix[:-1] if self.bias else matrix).T
        bias = matrix[-1] if self.bias else None
        if self.kind == "conv2d":
            return F.conv2d(features, weight.reshape(-1, self.in_features, *self.kernel_size), bias, 1, self.padding)
        return F.linear(features, weight, bias)

    def square_norm(self, features: torch.Tensor) -> torch.Tensor:
        """``|phi|²`` at every position, in the layer's output layout without the dimension of channels."""
        features = features.float().square()
        if self.kind == "conv2d":
            ones = features.new_ones(1, 1, *self.kernel_size)
            norm = F.conv2d(features.sum(1, keepdim=True), ones, None, 1, self.padding)[:, 0]
        else:
            norm = features.sum(-1)
        return norm + int(self.bias)

    def weights_of(self, layer: Callable[[torch.Tensor], torch.Tensor], like: torch.Tensor) -> torch.Tensor:
        """``W`` of shape ``(width, out_features)``, float32 on the CPU, found by calling ``layer``.

        So it is right also where the stored weights are quantised, offloaded or patched while the layer runs.

        Args:
            like: an input of the layer; its dtype and device are used.
        """
        inputs = self.in_features * self.kernel_size[0] * self.kernel_size[1]
        shape = (self.in_features, *self.kernel_size) if self.kind == "conv2d" else (self.in_features,)

        def call(rows: torch.Tensor) -> torch.Tensor:
            out = layer(rows.reshape(-1, *shape).to(like))
            # The one position whose patch is the whole of an image of the kernel's size.
            out = out[:, :, self.padding[0], self.padding[1]] if self.kind == "conv2d" else out
            return out.float().cpu()

        zero = call(torch.zeros(1, inputs))
        weights = torch.cat([call(rows) - zero for rows in torch.eye(inputs).split(512)])
        return torch.cat([weights, zero]) if self.bias else weights

    def to_json(self) -> str:
        """The fields as one JSON object, for the metadata of a file."""
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def from_json(cls, text: str) -> LayerGeometry:
        """The inverse of :meth:`to_json`.

        Raises:
            ValueError, TypeError, AttributeError, RecursionError: the text is not that of a geometry.
        """
        fields: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in json.loads(text).items()}
        found = cls(**fields)
        sides = (*found.kernel_size, *found.padding)
        sizes = (found.in_features, found.out_features, *sides)
        whole = len(sides) == 4 and type(found.bias) is bool and all(type(size) is int for size in sizes)
        if found.kind not in ("conv2d", "linear") or not whole or min(sizes[:4]) < 1 or min(sizes[4:]) < 0:
            raise ValueError(f"not the shape of a last layer: {text}")
        return found


def guided_features(cond: torch.Tensor, uncond: torch.Tensor, cfg: float) -> torch.Tensor:
    """Features under classifier-free guidance, ``(1 - w) phi_u + w phi_c``.

    One draw of the last layer's weights serves both halves of a guided prediction, so guidance of the outputs is
    guidance of the features: ``F_cfg = W[(1 - w) phi_u + w phi_c]``. (The published code treats them as independent.)
    """
    return uncond + cfg * (cond - uncond)

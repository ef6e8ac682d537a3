"""A network's last layer seen as a linear map of feature rows, ``F = rows @ W``."""

from __future__ import annotations

import dataclasses
import json

import torch
import torch.nn.functional as F


@dataclasses.dataclass(frozen=True)
class LayerGeometry:
    """Shape of a last layer, convolution or linear, and how its features become rows.

    A row φ̃ holds the ``in_features * kh * kw`` inputs of one output position (an unfolded patch for a
    convolution, a token for a linear layer), followed by a one where the layer has a bias. The layer's output
    at that position is ``φ̃ᵀ W`` with ``W`` of shape ``(width, out_features)``.
    """

    kind: str
    in_features: int
    out_features: int
    bias: bool
    kernel_size: tuple[int, int] = (1, 1)
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)
    dilation: tuple[int, int] = (1, 1)

    @classmethod
    def of(cls, layer: torch.nn.Module) -> LayerGeometry:
        """Geometry of a ``Conv2d`` or ``Linear`` module.

        Raises:
            ValueError: the layer is of another kind, or a convolution with groups or non-zero padding mode.
        """
        bias = layer.bias is not None if hasattr(layer, "bias") else False
        if isinstance(layer, torch.nn.Conv2d):
            if layer.groups != 1 or layer.padding_mode != "zeros" or isinstance(layer.padding, str):
                raise ValueError(f"Expected a plain convolution as the last layer, got {layer}.")
            return cls(
                "conv2d", layer.in_channels, layer.out_channels, bias,
                tuple(layer.kernel_size), tuple(layer.stride), tuple(layer.padding), tuple(layer.dilation),
            )  # fmt: skip
        if isinstance(layer, torch.nn.Linear):
            return cls("linear", layer.in_features, layer.out_features, bias)
        raise ValueError(f"Expected a Conv2d or Linear last layer, got {type(layer).__name__}.")

    @property
    def width(self) -> int:
        """Length of a row, bias column included."""
        return self.in_features * self.kernel_size[0] * self.kernel_size[1] + int(self.bias)

    def rows(self, features: torch.Tensor) -> torch.Tensor:
        """Rows φ̃ of all output positions, float32.

        Args:
            features: ``(n, in_features, h, w)`` for a convolution, ``(..., in_features)`` for a linear layer.

        Returns:
            ``(positions, width)``, batch-major.
        """
        features = features.float()
        if self.kind == "conv2d":
            patches = F.unfold(features, self.kernel_size, self.dilation, self.padding, self.stride)
            rows = patches.transpose(1, 2).reshape(-1, patches.shape[1])
        else:
            rows = features.reshape(-1, self.in_features)
        if self.bias:
            rows = torch.cat([rows, rows.new_ones(len(rows), 1)], dim=1)
        return rows

    def apply(self, features: torch.Tensor, matrix: torch.Tensor) -> torch.Tensor:
        """``φ̃ᵀ matrix`` at every position, in the layer's own output layout, without unfolding.

        Args:
            features: as in :meth:`rows`.
            matrix: ``(width, columns)``; ``columns`` need not be ``out_features``.

        Returns:
            float32, ``(n, columns, h', w')`` for a convolution, ``(..., columns)`` for a linear layer.
        """
        features = features.float()
        matrix = matrix.to(features.device, torch.float32)
        weight = (matrix[:-1] if self.bias else matrix).T
        bias = matrix[-1] if self.bias else None
        if self.kind == "conv2d":
            weight = weight.reshape(-1, self.in_features, *self.kernel_size)
            return F.conv2d(features, weight, bias, self.stride, self.padding, self.dilation)
        return F.linear(features, weight, bias)

    def matrix(self, layer: torch.nn.Module) -> torch.Tensor:
        """The layer's weights as ``W`` of shape ``(width, out_features)``, float32 on the CPU."""
        weight = layer.weight.detach().float().cpu().reshape(self.out_features, -1)
        if self.bias:
            weight = torch.cat([weight, layer.bias.detach().float().cpu()[:, None]], dim=1)
        return weight.T.contiguous()

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def from_json(cls, text: str) -> LayerGeometry:
        fields = {k: tuple(v) if isinstance(v, list) else v for k, v in json.loads(text).items()}
        return cls(**fields)

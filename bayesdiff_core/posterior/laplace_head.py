"""Last-layer Laplace approximation (Kou et al. 2024, section 3.1): ``W | data ~ MN(W*, A^-1, I)``.

For a linear layer under a Gaussian likelihood the generalised Gauss-Newton matrix is exact and Kronecker
factored, ``kron(H, I)`` with ``H = sum phi phi^T / sigma_n²``, so the posterior precision of every output column is
``A = H + lambda I``. The mean W* stays inside the network; a head holds the covariance alone, in one of three shapes:

============  ==============================================================================================
``full``      A as it is
``low-rank``  the leading spectrum of A as it is, and one precision for all directions that are left
``diag``      the diagonal of A, as in the paper; correlations between features are lost
============  ==============================================================================================
"""

from __future__ import annotations

import dataclasses

import torch

from .calibration import Calibration
from .draws import normal_draw
from .features import LayerGeometry

STRUCTURES = ("low-rank", "full", "diag")


@dataclasses.dataclass(frozen=True)
class SpectralPrecision:
    """``A = U diag(values) U^T + rest (I - U U^T)``: exact with all p eigenvectors, low-rank with fewer.

    Attributes:
        basis: ``(p, r)``, orthonormal columns U.
        values: ``(r,)``, positive.
        rest: precision of what is orthogonal to U; of no effect where r is p.
    """

    basis: torch.Tensor
    values: torch.Tensor
    rest: float

    @property
    def structure(self) -> str:
        """Its name among :data:`STRUCTURES`."""
        return "full" if self.basis.shape[0] == self.basis.shape[1] else "low-rank"

    @property
    def width(self) -> int:
        """p, the length of a feature row."""
        return self.basis.shape[0]

    def is_sound(self) -> bool:
        """Whether shapes fit together and all numbers are finite and positive where they must be."""
        return (
            self.basis.ndim == 2
            and self.basis.shape[0] >= self.basis.shape[1] == self.values.numel() > 0
            and self.values.ndim == 1
            and bool(torch.isfinite(self.basis).all() and torch.isfinite(self.values).all())
            and bool((self.values > 0).all())
            and 0 < self.rest < float("inf")
        )

    def variance(self, geometry: LayerGeometry, features: torch.Tensor, chunk: int) -> torch.Tensor:
        """``phi^T A^-1 phi`` at every position, see :meth:`LaplaceHead.variance`.

        With fewer eigenvectors: ``sum (u_i^T phi)² / values_i + (|phi|² - sum (u_i^T phi)²) / rest``.
        """
        within, energy = torch.zeros(()), torch.zeros(())
        for basis, values in zip(self.basis.split(chunk, dim=1), self.values.split(chunk)):
            square = geometry.apply(features, basis).square().movedim(geometry.channel_dim, -1)
            within = within + square @ values.to(square).reciprocal()
            energy = energy + square.sum(-1)
        if self.structure == "full":
            return within
        return within + (geometry.square_norm(features) - energy).clamp(min=0) / self.rest

    def draw(self, noise: torch.Tensor) -> torch.Tensor:
        """``A^-1/2 noise``, of standard normal ``noise`` ``(p, out_features)``; of the same shape."""
        basis = self.basis.to(noise.device)
        coefficients = basis.T @ noise
        inside = basis @ (coefficients * self.values.to(noise.device).rsqrt()[:, None])
        if self.structure == "full":
            return inside
        return inside + (noise - basis @ coefficients) * self.rest**-0.5


@dataclasses.dataclass(frozen=True)
class DiagonalPrecision:
    """``A = diag(values)``, values ``(p,)`` and positive: the paper's choice."""

    values: torch.Tensor
    structure = "diag"

    @property
    def width(self) -> int:
        """p, the length of a feature row."""
        return self.values.shape[0]

    def is_sound(self) -> bool:
        """Whether it is one row of finite, positive numbers."""
        return self.values.ndim == 1 and bool(torch.isfinite(self.values).all() and (self.values > 0).all())

    def variance(self, geometry: LayerGeometry, features: torch.Tensor, chunk: int) -> torch.Tensor:
        """``sum phi_i² / values_i`` at every position, see :meth:`LaplaceHead.variance`."""
        # The bias column is a one, so it is its own square.
        column = self.values.reciprocal()[:, None]
        return geometry.apply(features.float().square(), column).squeeze(geometry.channel_dim)

    def draw(self, noise: torch.Tensor) -> torch.Tensor:
        """``A^-1/2 noise``, of standard normal ``noise`` ``(p, out_features)``; of the same shape."""
        return noise * self.values.to(noise.device).rsqrt()[:, None]


@dataclasses.dataclass(frozen=True)
class LaplaceHead:
    """Posterior of one last layer.

    Attributes:
        geometry: shape of the layer.
        precision: the posterior precision A of every output column.
        prior_precision: lambda, one positive number.
        about: text metadata: the model the head belongs to and how it was fitted.
        calibration: what it learned from the model's own images; None of a head that learned nothing.
        others: heads of the last layers of the other parts of a nested latent, such as sound, in their order.
    """

    geometry: LayerGeometry
    precision: SpectralPrecision | DiagonalPrecision
    prior_precision: float
    about: dict[str, str]
    calibration: Calibration | None = None
    others: tuple[LaplaceHead, ...] = ()

    def variance(self, features: torch.Tensor, chunk: int = 512) -> torch.Tensor:
        """Predictive variance ``gamma² = phi^T A^-1 phi`` of the layer's output, the same for every output channel.

        Under guidance, pass :func:`~.features.guided_features`.

        Args:
            features: the layer's input, see :meth:`LayerGeometry.rows`.
            chunk: eigenvectors evaluated at once.

        Returns:
            ``(n, h', w')`` for a convolution, ``(n, ...)`` for a linear layer, in squared units of the output.
        """
        return self.precision.variance(self.geometry, features, chunk)

    def draw(self, seed: int, number: int) -> torch.Tensor:
        """Posterior draw ``number`` of ``seed`` of ``dW = W - W*``, ``(width, out_features)``, float32 on the CPU.

        The same numbers give the same draw on every machine, see :mod:`.draws`.
        """
        return self.precision.draw(normal_draw((self.geometry.width, self.geometry.out_features), seed, number))

"""Last-layer Laplace approximation (Kou et al. 2024, section 3.1): ``W | data ~ MN(W*, A⁻¹, I)``.

For a linear layer under a Gaussian likelihood the generalised Gauss-Newton matrix is exact and Kronecker
factored, ``H ⊗ I`` with ``H = Σ φ̃φ̃ᵀ / σ_n²``, so the posterior precision of every output column is
``A = H + λI``. The mean W* stays inside the network; a head holds the covariance alone.
"""

from __future__ import annotations

import dataclasses

import torch

from .features import LayerGeometry


@dataclasses.dataclass(frozen=True)
class LaplaceHead:
    """Posterior of one last layer.

    Attributes:
        geometry: shape of the layer.
        eigenvalues: ``(width,)`` eigenvalues of H, not negative.
        eigenvectors: ``(width, width)`` eigenvectors of H, in columns.
        prior_precision: λ, one positive number.
        about: text metadata: the model the head belongs to and how it was fitted.
    """

    geometry: LayerGeometry
    eigenvalues: torch.Tensor
    eigenvectors: torch.Tensor
    prior_precision: float
    about: dict[str, str]

    def covariance_root(self) -> torch.Tensor:
        """``R`` of shape ``(width, width)`` with ``R Rᵀ = A⁻¹``."""
        return self.eigenvectors * (self.eigenvalues + self.prior_precision).rsqrt()

    def variance(self, features: torch.Tensor, chunk: int = 256) -> torch.Tensor:
        """Predictive variance ``γ² = φ̃ᵀ A⁻¹ φ̃`` of the layer's output, the same for every output channel.

        Args:
            features: the layer's input, see :meth:`LayerGeometry.rows`.
            chunk: columns of the covariance root evaluated at once.

        Returns:
            ``(n, h', w')`` for a convolution, ``(...)`` for a linear layer, in squared units of the output.
        """
        channel = 1 if self.geometry.kind == "conv2d" else -1
        total = None
        for columns in self.covariance_root().split(chunk, dim=1):
            part = self.geometry.apply(features, columns).square().sum(channel)
            total = part if total is None else total + part
        return total

    def draw(self, generator: torch.Generator) -> torch.Tensor:
        """One posterior draw of ``δW = W - W*``, of shape ``(width, out_features)``, float32 on the CPU."""
        noise = torch.randn(self.geometry.width, self.geometry.out_features, generator=generator)
        return self.covariance_root().cpu() @ noise

"""Fitting a :class:`LaplaceHead` with laplace-torch.

Rows of features are the data set of a linear last layer. laplace-torch drops the block between weight and
bias, so the bias rides along as a column of ones; the noise level of each row is folded into the row itself.
Targets play no part in the Gauss-Newton matrix, and shift the marginal likelihood by a constant only.
"""

from __future__ import annotations

import importlib.util
import math

import torch

from .features import LayerGeometry
from .laplace_head import LaplaceHead


class FeatureRows:
    """A bounded random sample of feature rows, taken as the features come.

    Args:
        geometry: shape of the layer.
        per_call: rows kept of each call of the network.
        generator: source of the random choice.

    Attributes:
        seen: rows that came, kept or not.
        rows, sigmas: the rows kept, ``(k, width)`` each, and the noise level of every one, ``(k,)``.
    """

    def __init__(self, geometry: LayerGeometry, per_call: int, generator: torch.Generator):
        self.geometry, self.per_call, self.generator = geometry, per_call, generator
        self.seen = 0
        self.rows: list[torch.Tensor] = []
        self.sigmas: list[torch.Tensor] = []

    def add(self, features: torch.Tensor, sigma: float) -> None:
        """Keep up to ``per_call`` rows of ``features`` taken at noise level ``sigma``."""
        rows = self.geometry.rows(features)
        self.seen += len(rows)
        keep = torch.randperm(len(rows), generator=self.generator)[: self.per_call]
        self.rows.append(rows[keep.to(rows.device)].cpu())
        self.sigmas.append(torch.full((len(keep),), sigma))


class ResidualNoise:
    """σ_n by noise level: root mean square residual of the network's output in bins of log sigma."""

    def __init__(self, sigma_min: float, sigma_max: float, bins: int = 10):
        # Inner edges only: levels beyond the ends fall into the first and the last bin.
        edges = torch.linspace(math.log(sigma_min), math.log(sigma_max), bins + 1)[1:-1]
        self.edges = edges
        self.sums, self.counts = torch.zeros(bins, dtype=torch.float64), torch.zeros(bins, dtype=torch.float64)

    def _bin(self, sigmas: torch.Tensor) -> torch.Tensor:
        return torch.bucketize(sigmas.log(), self.edges)

    def add(self, residual: torch.Tensor, sigma: float) -> None:
        """Record the residual ``F - target`` of one call at noise level ``sigma``, in units of the output."""
        index = self._bin(torch.tensor(sigma))
        self.sums[index] += residual.double().square().sum().cpu()
        self.counts[index] += residual.numel()

    def std(self) -> torch.Tensor:
        """σ_n of each bin; a bin without data takes the overall value."""
        overall = self.sums.sum() / self.counts.sum()
        per_bin = torch.where(self.counts > 0, self.sums / self.counts.clamp(min=1), overall)
        return per_bin.clamp(min=1e-6 * overall).sqrt().float()

    def of(self, sigmas: torch.Tensor) -> torch.Tensor:
        """σ_n at each of ``sigmas``, same shape."""
        return self.std()[self._bin(sigmas)]


def require_laplace_torch() -> None:
    """Make sure that a fit can run, before work is put into it.

    Raises:
        ModuleNotFoundError: laplace-torch is not installed.
    """
    if importlib.util.find_spec("laplace") is None:
        raise ModuleNotFoundError(
            "Fitting a Laplace head needs the package laplace-torch, which is not installed; install it into ComfyUI's "
            "Python with: python -m pip install laplace-torch"
        )


def fit_laplace_head(
    geometry: LayerGeometry,
    matrix: torch.Tensor,
    rows: torch.Tensor,
    noise_std: torch.Tensor,
    data_rows: int,
    about: dict[str, str],
) -> LaplaceHead:
    """Exact Kronecker posterior of a last layer; λ maximises the marginal likelihood.

    Args:
        geometry: shape of the layer.
        matrix: ``(width, out_features)``, the layer's weights W*, wanted by the marginal likelihood.
        rows: ``(n, width)`` feature rows.
        noise_std: ``(n,)`` residual σ_n of each row.
        data_rows: how many positions the data set has; ``rows`` are a sample of them and count in proportion.
        about: metadata to keep with the head.

    Raises:
        ValueError: the features hold NaN or infinity.
    """
    # Importing laplace-torch takes seconds and loads every curvature backend; only fitting needs it.
    from laplace import KronLLLaplace
    from laplace.curvature import CurvlinopsGGN

    if not (torch.isfinite(rows).all() and torch.isfinite(noise_std).all()):
        raise ValueError(
            "Expected finite features at the last layer, got NaN or infinity; sample a picture with this model "
            "first, and if it is black or noisy load the model in a wider dtype."
        )
    # Nodes run in inference mode, in which laplace-torch's gradients cannot be taken.
    with torch.inference_mode(False), torch.enable_grad():
        scaled = rows.clone() * (math.sqrt(data_rows / len(rows)) / noise_std.clone())[:, None]
        layer = torch.nn.Linear(geometry.width, geometry.out_features, bias=False)
        layer.weight.data.copy_(matrix.clone().T)
        targets = scaled @ layer.weight.detach().T
        data = torch.utils.data.TensorDataset(scaled, targets)
        laplace = KronLLLaplace(
            torch.nn.Sequential(torch.nn.Identity(), layer), "regression", last_layer_name="1", backend=CurvlinopsGGN
        )
        laplace.fit(torch.utils.data.DataLoader(data, batch_size=4096))
        laplace.optimize_prior_precision(method="marglik")
        # The output factor of the exact GGN is a multiple of the identity.
        (output_values, input_values), (_, vectors) = laplace.H.eigenvalues[0], laplace.H.eigenvectors[0]
        return LaplaceHead(
            geometry=geometry,
            eigenvalues=(output_values.mean() * input_values).detach().clamp(min=0).contiguous(),
            eigenvectors=vectors.detach().contiguous(),
            prior_precision=float(laplace.prior_precision),
            about=about,
        )

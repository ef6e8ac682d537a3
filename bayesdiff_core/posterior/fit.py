"""Fitting a :class:`LaplaceHead` with laplace-torch.

The Gauss-Newton matrix ``H = sum phi phi^T / sigma_n²`` is summed up noise level by noise level. That takes the memory
of two matrices for any number of images. laplace-torch then gets a root of it, ``R^T R = H``, whose p rows are a data
set with the very same Gauss-Newton matrix. It makes the posterior and chooses lambda by the marginal likelihood. It
drops the block between weight and bias, so the bias becomes a feature that is always one. Targets play no part in H,
and only shift the marginal likelihood by a constant.
"""

from __future__ import annotations

import importlib.util
import sys
from typing import Any

import torch
from torch.nn import Identity, Linear, Sequential

from .features import LayerGeometry
from .laplace_head import STRUCTURES, DiagonalPrecision, LaplaceHead, SpectralPrecision

# Rows of features taken of each image in each call; a random choice where there are more.
POSITIONS = 1024


class GaussNewton:
    """``H = sum phi phi^T / sigma_n²`` of a last layer, streamed.

    Every output position of every image counts once, in however many noise levels, prompts and calls it was seen. Each
    noise level has the same weight, and its own residual noise sigma_n.

    Args:
        geometry: shape of the layer.
        generator: source of the random choice of positions.

    Attributes:
        noise_std: residual sigma_n of each finished level.
        positions: output positions of one image, those of all its parts counted, as of the last finished level.
    """

    def __init__(self, geometry: LayerGeometry, generator: torch.Generator):
        self.geometry, self.generator = geometry, generator
        self.noise_std: list[float] = []
        self.positions = 0
        self.sum = torch.zeros(geometry.width, geometry.width, dtype=torch.float64)
        self._start_level()

    def _start_level(self) -> None:
        self.gram: torch.Tensor | None = None
        self.kept = self.seen = self.images = 0
        self.square, self.count = 0.0, 0

    def add_features(self, features: torch.Tensor, among: torch.Tensor | None = None) -> None:
        """Count the layer's input in one call of the network.

        Args:
            features, among: see :meth:`LayerGeometry.rows`.

        Raises:
            ValueError: NaN or infinity among the features.
        """
        rows = self.geometry.rows(features, POSITIONS, self.generator, among)
        if not torch.isfinite(rows).all():
            raise ValueError(
                "Expected finite features at the last layer, got NaN or infinity; sample an image with this model "
                "first, and if it is black or noisy load the model in a wider dtype."
            )
        if self.gram is None:
            self.gram = torch.zeros(self.geometry.width, self.geometry.width, device=rows.device)
        self.gram.addmm_(rows.T, rows)
        self.kept += len(rows)
        self.seen += len(features) * (self.geometry.positions(features) if among is None else len(among))
        self.images += len(features)

    def add_residual(self, residual: torch.Tensor) -> None:
        """Record the residual ``F - target`` of a prediction, in units of the output.

        Raises:
            ValueError: NaN or infinity in it.
        """
        if not torch.isfinite(residual).all():
            raise ValueError(
                "Expected finite predictions of the model, got NaN or infinity; sample an image with this model "
                "first, and if it is black or noisy load the model in a wider dtype."
            )
        self.square += float(residual.float().square().sum())
        self.count += residual.numel()

    def end_level(self) -> None:
        """Close a noise level: what was added since the last one shares the residual noise found there."""
        variance = max(self.square / self.count, 1e-12)
        self.noise_std.append(variance**0.5)
        # Mean over positions, times the positions of one image.
        self.positions = round(self.seen / self.images)
        assert self.gram is not None, "a level ends after features of it were added"
        self.sum += self.gram.cpu().double() * (self.seen / self.images / self.kept / variance)
        self._start_level()

    def matrix(self, images: int) -> torch.Tensor:
        """H of a data set of ``images``, ``(width, width)``, float64 on the CPU."""
        return self.sum * (images / len(self.noise_std))


def require_laplace_torch() -> None:
    """Make sure that a fit can run, before work is put into it.

    Raises:
        ModuleNotFoundError: laplace-torch is not installed.
    """
    if importlib.util.find_spec("laplace") is None:
        raise ModuleNotFoundError(
            "Fitting a Laplace head needs the package laplace-torch, which is not installed; install it into ComfyUI's "
            f'Python and restart: "{sys.executable}" -m pip install laplace-torch'
        )


def fit_laplace_head(
    geometry: LayerGeometry,
    weights: torch.Tensor,
    hessian: torch.Tensor,
    structure: str,
    explained_variance: float,
    about: dict[str, str],
) -> LaplaceHead:
    """Posterior of a last layer; lambda maximises the marginal likelihood of the structure that is asked for.

    Args:
        geometry: shape of the layer.
        weights: ``(width, out_features)``, the layer's weights W*, wanted by the marginal likelihood.
        hessian: ``(width, width)``, H of :class:`GaussNewton`.
        structure: one of ``STRUCTURES``.
        explained_variance: for ``low-rank``, the share of H's trace that the leading spectrum has to hold.
        about: metadata to keep with the head.

    Raises:
        ValueError: no such structure.
    """
    # Importing laplace-torch takes seconds and loads every curvature backend; only fitting needs it.
    from laplace import DiagLLLaplace, KronLLLaplace
    from laplace.curvature import CurvlinopsGGN

    if structure not in STRUCTURES:
        raise ValueError(
            f"Expected one of {', '.join(STRUCTURES)} as the structure of the posterior, got {structure}; choose one "
            "of these."
        )
    width = rank = geometry.width
    # Nodes run in inference mode, in which laplace-torch's gradients cannot be taken.
    with torch.inference_mode(False), torch.enable_grad():
        hessian, weights = hessian.detach().double().clone(), weights.detach().double().clone()
        # Normalised features span less than all dimensions, so H is often singular and has no Cholesky root.
        values, vectors = torch.linalg.eigh(hessian)
        rows = values.clamp(min=0).sqrt()[:, None] * vectors.T
        # Output columns share H and lambda and differ in the norm of their weights alone, which enters the marginal
        # likelihood summed: one column of the root mean square has the same optimum.
        column = weights.square().mean(1).sqrt()
        layer = Linear(width, 1, bias=False, dtype=torch.float64)
        layer.weight.data.copy_(column)
        data = torch.utils.data.TensorDataset(rows, rows @ column[:, None])
        kind = DiagLLLaplace if structure == "diag" else KronLLLaplace
        laplace: Any = kind(  # annotated there for every kind of curvature at once
            Sequential(Identity(), layer), "regression", last_layer_name="1", backend=CurvlinopsGGN
        )
        laplace.fit(torch.utils.data.DataLoader(data, batch_size=512))
        start = 1 / max(float(column.square().mean()), 1e-12)
        laplace.optimize_prior_precision(method="marglik", init_prior_prec=start, n_steps=300, lr=0.05)
        prior_precision = float(laplace.prior_precision)
        if structure == "diag":
            precision = DiagonalPrecision(laplace.posterior_precision.detach().float().contiguous())
        else:
            # The output factor of one column is a number.
            (output_value, input_values), (_, basis) = laplace.H.eigenvalues[0], laplace.H.eigenvectors[0]
            spectrum = (output_value * input_values).detach().clamp(min=0)
            if structure == "low-rank":
                rank = leading_rank(spectrum, explained_variance)
            precision = leading_spectrum(spectrum, basis.detach(), prior_precision, rank)
    about = about | {"structure": precision.structure}
    if precision.structure == "low-rank":
        about |= {"rank": str(rank), "explained_variance": f"{explained_variance:g}"}
    return LaplaceHead(geometry, precision, prior_precision, about)


def leading_rank(spectrum: torch.Tensor, explained_variance: float) -> int:
    """Number of leading eigenvalues that hold a share ``explained_variance`` of their sum."""
    share = spectrum.sort(descending=True).values.cumsum(0) / spectrum.sum()
    return min(len(spectrum), int((share < explained_variance).sum()) + 1)


def leading_spectrum(
    spectrum: torch.Tensor, basis: torch.Tensor, prior_precision: float, rank: int
) -> SpectralPrecision:
    """The posterior precision of H's ``rank`` leading eigenvectors, and one for the rest.

    The rest gets the precision with which its gamma², averaged over the data, is that of the full posterior; directions
    of the data count in proportion to their energy there.

    Args:
        spectrum: ``(p,)`` eigenvalues of H.
        basis: ``(p, p)`` its eigenvectors, in columns.
        prior_precision: lambda.
    """
    order = spectrum.argsort(descending=True)
    lead, rest = spectrum[order[:rank]], spectrum[order[rank:]]
    rest_precision = prior_precision
    if float(rest.sum()) > 0:
        rest_precision = float(rest.sum() / (rest / (rest + prior_precision)).sum())
    values = (lead + prior_precision).float().contiguous()
    return SpectralPrecision(basis[:, order[:rank]].float().contiguous(), values, rest_precision)

"""A Laplace head as one safetensors file with its metadata."""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path

import safetensors
import safetensors.torch
import torch

from .features import LayerGeometry
from .laplace_head import LaplaceHead

FORMAT = "bayesdiff-laplace-head"
FORMAT_VERSION = "1"


class HeadFileError(ValueError):
    """A file that holds no Laplace head this version can read."""


def save_head(head: LaplaceHead, path: Path) -> None:
    """Write ``head`` to ``path``, whole or not at all.

    Raises:
        OSError: the folder is not writable or the disk is full; no partial file is left.
    """
    metadata = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "geometry": head.geometry.to_json(),
        "prior_precision": repr(head.prior_precision),
        "about": json.dumps(head.about),
    }
    tensors = {"eigenvalues": head.eigenvalues.cpu(), "eigenvectors": head.eigenvectors.cpu().contiguous()}
    content = safetensors.torch.save(tensors, metadata)
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=path.stem, suffix=".tmp")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


def load_head(path: Path) -> LaplaceHead:
    """Read a head written by :func:`save_head`.

    Raises:
        HeadFileError: not safetensors, cut short, of another kind, or with tensors that do not fit together.
    """
    name = Path(path).name
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {key: file.get_tensor(key) for key in file.keys()}
    except (safetensors.SafetensorError, OSError) as error:
        raise HeadFileError(
            f"Expected a Laplace head in safetensors format, but {name} is cut short or is another kind of file "
            f"({error}); fit and save the head again, or copy the file again."
        ) from error
    if metadata.get("format") != FORMAT:
        raise HeadFileError(
            f"Expected a Laplace head, but {name} is a safetensors file of something else; choose a file that "
            "Save Laplace Head has written."
        )
    if metadata.get("format_version") != FORMAT_VERSION:
        raise HeadFileError(
            f"Expected a Laplace head of format version {FORMAT_VERSION}, but {name} has version "
            f"{metadata.get('format_version')}; update BayesDiff or fit the head again."
        )
    try:
        head = LaplaceHead(
            geometry=LayerGeometry.from_json(metadata["geometry"]),
            eigenvalues=tensors["eigenvalues"].float(),
            eigenvectors=tensors["eigenvectors"].float(),
            prior_precision=float(metadata["prior_precision"]),
            about={str(k): str(v) for k, v in json.loads(metadata["about"]).items()},
        )
        width = head.geometry.width
        sound = (
            head.eigenvalues.shape == (width,)
            and head.eigenvectors.shape == (width, width)
            and bool(torch.isfinite(head.covariance_root()).all())
            and head.prior_precision > 0
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise HeadFileError(
            f"Expected a complete Laplace head, but {name} lacks or garbles a part of it ({error!r}); fit and save "
            "the head again."
        ) from error
    if not sound:
        raise HeadFileError(
            f"Expected a Laplace head of width {width} with finite values, but the tensors of {name} do not fit; "
            "fit and save the head again."
        )
    return head

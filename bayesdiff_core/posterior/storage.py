"""A Laplace head as one safetensors file with its metadata."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import math
import os
from pathlib import Path

import safetensors
import safetensors.torch
import torch

from .. import VERSION
from .calibration import Calibration
from .features import LayerGeometry
from .laplace_head import DiagonalPrecision, LaplaceHead, SpectralPrecision

FORMAT = "bayesdiff-laplace-head"
# Version 1 knew no calibration. Version 3 holds heads of several layers; a head of one is still written as version 2.
FORMAT_VERSION, OF_SEVERAL, READABLE = "2", "3", ("1", "2", "3")
DIGEST, CALIBRATION, PARTS = "sha256", "calibration", "parts"
# More layers than any nested latent has parts.
MOST_PARTS = 16
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


# Of what a file says, in letters of a sentence about it.
LONGEST = 200


class HeadFileError(ValueError):
    """A file that holds no Laplace head this version can read."""


def save_head(head: LaplaceHead, path: Path, dtype: torch.dtype = torch.float32) -> None:
    """Write ``head`` to ``path``, whole or not at all.

    Args:
        dtype: of the stored eigenvectors; all else is small and stays float32.

    Raises:
        OSError: the folder is not writable or the disk is full, in one sentence; an older file of that name stays
            as it was, and no partial file is left.
    """
    heads = [head, *head.others]
    metadata = {
        "format": FORMAT,
        "format_version": OF_SEVERAL if head.others else FORMAT_VERSION,
        "pack_version": VERSION,
    }
    if head.others:
        metadata[PARTS] = str(len(heads))
    tensors: dict[str, torch.Tensor] = {}
    for number, each in enumerate(heads):
        own_tensors, own_metadata = contents(each, dtype)
        tensors |= {prefix(number) + name: value for name, value in own_tensors.items()}
        metadata |= {prefix(number) + name: value for name, value in own_metadata.items()}
    metadata[DIGEST] = digest(tensors, metadata)
    content = safetensors.torch.save(tensors, metadata)
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_bytes(content)
        os.replace(temporary, path)
    except BaseException as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise OSError(
                f"Expected a folder with room for the head {path.name} ({len(content) / 1e6:.3g} MB), got "
                f"'{error.strerror or error}'; free some space there or make it writable, and save again."
            ) from error
        raise


def prefix(part: int) -> str:
    """Of the names of what belongs to the head of one part of a nested latent; the first needs none."""
    return f"{part}." if part else ""


def contents(head: LaplaceHead, dtype: torch.dtype) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """Tensors and metadata of one head, without the others."""
    precision = head.precision
    metadata = {
        "geometry": head.geometry.to_json(),
        "prior_precision": repr(head.prior_precision),
        "about": json.dumps(head.about),
    }
    tensors = {"precision": precision.values.float().cpu().contiguous()}
    if isinstance(precision, SpectralPrecision):
        tensors["basis"] = precision.basis.to(dtype).cpu().contiguous()
        metadata["rest_precision"] = repr(precision.rest)
    if head.calibration is not None:
        tensors |= head.calibration.tensors()
        metadata[CALIBRATION] = head.calibration.to_json()
    return tensors, metadata


def digest(tensors: dict[str, torch.Tensor], metadata: dict[str, str]) -> str:
    """Hash of all that a head file holds except the hash itself, so that any damage shows."""
    found = hashlib.sha256(json.dumps(sorted(item for item in metadata.items() if item[0] != DIGEST)).encode())
    for name, tensor in sorted(tensors.items()):
        found.update(repr((name, tensor.dtype, tuple(tensor.shape))).encode())
        found.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


def load_head(path: Path) -> LaplaceHead:
    """Read a head written by :func:`save_head`.

    Raises:
        HeadFileError: not safetensors, cut short, of another kind, damaged, or with tensors that do not fit together.
    """
    name = Path(path).name
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            # Copies: what is read is the file itself in memory, and would change or crash with it.
            tensors = {key: file.get_tensor(key).clone() for key in file.keys()}
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
    if metadata.get("format_version") not in READABLE:
        raise HeadFileError(
            f"Expected a Laplace head of format version {', '.join(READABLE[:-1])} or {READABLE[-1]}, but {name} has "
            f"version {str(metadata.get('format_version'))[:LONGEST]}; update BayesDiff or fit the head again."
        )
    try:
        count = int(metadata.get(PARTS, "1"))
        if not 1 <= count <= MOST_PARTS:
            raise ValueError(f"heads of {count} layers")
        first, *others = (read_head(tensors, metadata, prefix(number)) for number in range(count))
        head = dataclasses.replace(first, others=tuple(others))
        unsound = next((each for each in (first, *others) if not is_sound(each)), None)
        whole = DIGEST not in metadata or metadata[DIGEST] == digest(tensors, metadata)
    # RuntimeError: of torch, and of text that is nested too deep.
    except (KeyError, IndexError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        raise HeadFileError(
            f"Expected a complete Laplace head, but {name} lacks or garbles a part of it ({repr(error)[:LONGEST]}); "
            "fit and save the head again."
        ) from error
    if unsound is not None:
        raise HeadFileError(
            f"Expected a Laplace head of width {unsound.geometry.width} with finite, positive precision, but the "
            f"tensors of {name} do not fit; fit and save the head again."
        )
    if not whole:
        raise HeadFileError(
            f"Expected a Laplace head as it was saved, but {name} has been damaged or changed since; copy the file "
            "again, or fit and save the head again."
        )
    return head


def read_head(tensors: dict[str, torch.Tensor], metadata: dict[str, str], before: str) -> LaplaceHead:
    """One head of a file, without the others.

    Args:
        before: what the names of its own begin with, see :func:`prefix`.
    """
    tensors = {name.removeprefix(before): value for name, value in tensors.items() if name.startswith(before)}
    metadata = {name.removeprefix(before): value for name, value in metadata.items() if name.startswith(before)}
    return LaplaceHead(
        geometry=LayerGeometry.from_json(metadata["geometry"]),
        precision=read_precision(tensors, metadata),
        prior_precision=float(metadata["prior_precision"]),
        about={str(k): str(v) for k, v in json.loads(metadata["about"]).items()},
        calibration=Calibration.read(tensors, metadata[CALIBRATION]) if CALIBRATION in metadata else None,
    )


def is_sound(head: LaplaceHead) -> bool:
    """Whether the precision fits the layer, and lambda is finite and positive."""
    return (
        head.precision.is_sound()
        and head.precision.width == head.geometry.width
        and 0 < head.prior_precision < math.inf
    )


def read_precision(tensors: dict[str, torch.Tensor], metadata: dict[str, str]) -> SpectralPrecision | DiagonalPrecision:
    """The precision that the tensors of one head hold, in float32.

    Raises:
        KeyError, ValueError: a part is missing, or is no number.
    """
    values = tensors["precision"].float()
    if "basis" not in tensors:
        return DiagonalPrecision(values)
    basis = tensors["basis"].float()
    if tensors["basis"].dtype != torch.float32 and basis.shape[1] < basis.shape[0] and torch.isfinite(basis).all():
        # A rounded basis is no longer orthonormal, and what it leaves over would be off by as much.
        basis = torch.linalg.qr(basis)[0]
    return SpectralPrecision(basis, values, float(metadata["rest_precision"]))

"""One number per image or clip: which of a batch the model is least sure of.

Every function of :data:`SCORES` takes variance and latent ``(n, c, ..., h, w)`` and a mask that restricts it to a part
of each image, or None: ``(n or 1, height, width)`` or, for ``t`` latent frames, ``(n or 1, 1 or t, height, width)``.
It returns ``(n,)``; higher is less certain. A latent cell is inside a mask if the mask covers at least half as much of
it as of the cell of its image or clip that it covers most, so that a mask finer than a cell still has an inside.

Which of them finds bad images is a question for measurements; :data:`DEFAULT` is what the samplers return.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from .masks import require_finite_mask
from .rank import rank

# ``score(variance, latent, mask)`` of a batch.
Score = Callable[[Tensor, Tensor, Tensor | None], Tensor]


def inside_cells(mask: Tensor | None, images: int, *size: int) -> Tensor:
    """Which latent cells of each image or clip a mask selects, ``(images, *size)``, all without a mask.

    Args:
        size: ``h, w`` or, of clips, ``t, h, w``.

    Raises:
        ValueError: the mask is empty in an image or holds NaN or infinity, or there are neither one nor as many masks
            as images.
    """
    if mask is None:
        return torch.ones(images, *size, dtype=torch.bool)
    frames = mask.shape[1] if mask.ndim == 4 and size[:-2] else 1
    mask = mask.reshape(-1, frames, *mask.shape[-2:]).float().cpu()
    if len(mask) not in (1, images):
        raise ValueError(
            f"Expected one mask, or one for each of the {images} images, got {len(mask)}; give as many masks as "
            "there are images."
        )
    require_finite_mask(mask)
    covered = F.adaptive_avg_pool2d(mask, (size[-2], size[-1]))
    most = covered.amax((1, 2, 3), keepdim=True)
    if empty := [str(i) for i in (most <= 0).flatten().nonzero().flatten().tolist()]:
        raise ValueError(
            f"Expected a mask that marks some part of every image, got an empty one (number {', '.join(empty)}, "
            "numbered from 0); mark a part, or disconnect the mask to score whole images."
        )
    inside = covered >= most / 2
    return (inside if len(size) > 2 else inside[:, 0]).expand(images, *size)


SCORES: dict[str, Score] = {}
DEFAULT = "mean std"


def score(name: str) -> Callable[[Callable[[Tensor, Tensor, Tensor], Tensor]], Score]:
    """Make a score of an image one of a batch, and name it in :data:`SCORES`, which the nodes list.

    The decorated function takes variance and latent of one image, ``(channels, ..., height, width)``, and its inside,
    ``(..., height, width)``.
    """

    def named(of_image: Callable[[Tensor, Tensor, Tensor], Tensor]) -> Score:
        @functools.wraps(of_image)
        def of_batch(variance: Tensor, latent: Tensor, mask: Tensor | None = None) -> Tensor:
            variance, latent = variance.float().cpu(), latent.float().cpu()
            inside = inside_cells(mask, len(variance), *variance.shape[2:])
            return torch.stack([of_image(*image) for image in zip(variance, latent, inside)])

        SCORES[name] = of_batch
        return of_batch

    return named


def cell_std(variance: Tensor) -> Tensor:
    """Standard deviation of each cell, its channels averaged; a negative variance counts as none."""
    return variance.mean(0).clamp(min=0).sqrt()


@score("sum")
def summed_variance(variance: Tensor, latent: Tensor, inside: Tensor) -> Tensor:
    """Sum of all variances as they are, the paper's score (Kou et al. 2024, section 4.3)."""
    return variance[..., inside].sum()


@score("mean std")
def mean_std(variance: Tensor, latent: Tensor, inside: Tensor) -> Tensor:
    """Mean of all standard deviations, less ruled by a few cells than a sum of variances."""
    return variance.clamp(min=0).sqrt()[..., inside].mean()


@score("root mean square")
def root_mean_square(variance: Tensor, latent: Tensor, inside: Tensor) -> Tensor:
    """Root of the mean variance, ruled more by what stands out."""
    return variance.clamp(min=0)[..., inside].mean().sqrt()


@score("median")
def median_std(variance: Tensor, latent: Tensor, inside: Tensor) -> Tensor:
    """Median of the map: how unsure the model is of the image as a whole; a few cells do not change it."""
    return cell_std(variance)[..., inside].quantile(0.5)


@score("upper quantile")
def upper_quantile(variance: Tensor, latent: Tensor, inside: Tensor) -> Tensor:
    """The map's 95 % quantile: how unsure the model is of the worst twentieth."""
    return cell_std(variance)[..., inside].quantile(0.95)


@score("patch maximum")
def patch_maximum(variance: Tensor, latent: Tensor, inside: Tensor) -> Tensor:
    """The worst patch: the largest mean of the map over squares of an eighth of the shorter side.

    Squares that reach outside count by their inside, if that is at least half as large as the largest found.
    """
    inside, size = inside.reshape(-1, 1, *inside.shape[-2:]), max(1, min(inside.shape[-2:]) // 8)
    std, share = cell_std(variance).reshape(inside.shape), F.avg_pool2d(inside.float(), size, stride=1)
    means = F.avg_pool2d(std * inside, size, stride=1) / share
    return means[share >= share.max() / 2].max()


@score("content-normalised")
def content_normalised(variance: Tensor, latent: Tensor, inside: Tensor) -> Tensor:
    """Median over cells of std / (std + gradient): uncertainty beyond what texture and edges alone cause.

    The gradient is the root of the local gradient energy of the latent, averaged over 3 by 3 cells. It ranks images
    as the median of std / gradient does, and needs no floor where the image is flat.
    """
    latent = latent.reshape(len(latent), -1, *inside.shape[-2:])
    padded = F.pad(latent, (0, 1, 0, 1), mode="replicate")
    right, down = padded[..., :-1, 1:] - latent, padded[..., 1:, :-1] - latent
    energy = (right.square() + down.square()).mean(0)[:, None]
    gradient = F.avg_pool2d(energy, 3, stride=1, padding=1, count_include_pad=False).sqrt()
    std = cell_std(variance).reshape_as(gradient)
    share = std / (std + gradient).clamp(min=torch.finfo(std.dtype).tiny)
    return share.reshape(inside.shape)[inside].quantile(0.5)


def score_frames(name: str, variance: Tensor, latent: Tensor, mask: Tensor | None = None) -> Tensor:
    """One score per latent frame of clips, ``(n, t)``; NaN for frames of which the mask selects nothing.

    Args:
        variance, latent: ``(n, c, t, h, w)``.
        mask: ``(n or 1, 1 or t, height, width)``.
    """
    inside = inside_cells(mask, len(variance), *variance.shape[2:])
    found = torch.full((len(variance), variance.shape[2]), math.nan)
    for frame, cells in enumerate(inside.unbind(1)):
        some = cells.flatten(1).any(1)
        if some.any():
            found[some, frame] = SCORES[name](variance[some, :, frame], latent[some, :, frame], cells[some])
    return found


def feature_disagreement(features: Tensor) -> Tensor:
    """Mean squared distance of normalised features from their mean, ``(n,)``, in [0, 1].

    Args:
        features: ``(k + 1, n, d)``, of the decoded sample and of its k members.
    """
    features = F.normalize(features.float(), dim=-1)
    return (features - features.mean(0)).square().sum(-1).mean(0)


def feature_entropy(features: Tensor, noise: float = 1e-3) -> Tensor:
    """Entropy in nats of a Gaussian over an image's features, ``(n,)`` (Jazbec et al. 2025, semantic likelihood).

    Its covariance is diagonal, the spread of the features in each dimension plus ``noise``. That is theirs, in the
    units of CLIP's projected features; an encoder with features of another scale shifts what counts as small.

    Args:
        features: ``(k + 1, n, d)``, as the encoder gives them.
    """
    spread = features.float().var(0, correction=0)
    return 0.5 * ((spread + noise).log() + math.log(2 * math.pi) + 1).sum(-1)


# Of features of decoded members, ``(k + 1, n, d)``.
SEMANTIC_SCORES: dict[str, Callable[[Tensor], Tensor]] = {
    "feature disagreement": feature_disagreement,
    "feature entropy": feature_entropy,
}


def score_table(scores: list[float], name: str, percentiles: Tensor | None = None) -> str:
    """A Markdown table with a row per image: its batch index from 0, score, and rank, 1 for the most certain.

    What is not a number has the last rank, as in the filter.

    Args:
        percentiles: ``(n,)``, of how many in a hundred of the model's images each is less certain.
    """
    order = rank(torch.tensor(scores, dtype=torch.float64)).tolist()
    ranks = {image: place for place, image in enumerate(order, 1)}
    lines = [f"| batch index | {name} | rank |", "|---|---|---|"]
    lines += [f"| {i} | {score:.6g} | {ranks[i]} |" for i, score in enumerate(scores)]
    if percentiles is not None:
        more = ["less certain than", "---", *(f"{p:.0f} % of this model's images" for p in percentiles.tolist())]
        lines = [f"{line} {cell} |" for line, cell in zip(lines, more)]
    return "\n".join(lines)

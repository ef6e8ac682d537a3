"""Image and members as one batch of latents, so that whatever is done to latents is done to all of them alike."""

from __future__ import annotations

import dataclasses

import torch

from ..estimators.degrees import effective_channels
from ..estimators.evidence import log_gradient, log_of
from ..estimators.moderation import moderate
from ..estimators.past import Handover
from .maps import resize_map
from .uncertainty import Uncertainty, std_of


def as_batch(uncertainty: Uncertainty, members: int = 0) -> torch.Tensor:
    """All images, then the first member of each image, then the second, and so on: ``((1 + k) n, ...)``.

    Args:
        members: at most so many of them; 0 for all.

    Raises:
        ValueError: something is unknown, or the estimator has no members.
    """
    if uncertainty.unknown:
        raise ValueError(uncertainty.why_unknown)
    deviations = uncertainty.deviations[: members or None]
    if not len(deviations):
        raise ValueError(
            f"Expected an uncertainty with members, got one by '{uncertainty.estimator}', which has none; choose "
            "draft, balanced, precise or ensemble as the quality, or connect it to the next sampler as it is if the "
            "latent is only enlarged."
        )
    return torch.cat([uncertainty.latent, *(uncertainty.latent + member for member in deviations)])


def from_batch(batch: torch.Tensor, uncertainty: Uncertainty) -> Uncertainty:
    """The uncertainty of what :func:`as_batch` became.

    Args:
        batch: ``((1 + k) n, ...)``, in the order in which it was made.
        uncertainty: what it was made of.

    Raises:
        ValueError: the batch is of another number of images, or holds NaN.
    """
    images = len(uncertainty)
    if len(batch) % images or not 2 * images <= len(batch) <= (1 + len(uncertainty.deviations)) * images:
        raise ValueError(
            f"Expected the batch that Uncertainty to Latents made, {images} images and {images} more for each of up to "
            f"{len(uncertainty.deviations)} members, got {len(batch)} latents; connect the uncertainty that went in "
            "there, and let nothing in between add, drop or reorder images."
        )
    if not batch.isfinite().all():
        raise ValueError("Expected finite latents, got NaN or infinity; check the nodes after Uncertainty to Latents.")
    latent, *members = batch.split(images)
    deviations = torch.stack(members) - latent
    return dataclasses.replace(
        uncertainty,
        latent=latent,
        deviations=deviations,
        members=len(members),
        variance=moderated(deviations, latent, uncertainty),
        trajectory=(),
        handover=Handover(uncertainty.handover.seed),
    )


def moderated(deviations: torch.Tensor, latent: torch.Tensor, before: Uncertainty) -> torch.Tensor:
    """The variance of changed members: their mean square, moderated as far as what was known before tells.

    Its size differs from the members' bare one as it did before.
    """
    squares = deviations.float().square().mean(0)
    covariates, learned = log_gradient(latent), None
    if is_enlarged(before.variance.shape, latent.shape):
        cells = before.variance.mean(1).clamp(min=0)
        learned = log_of(resize_map(cells, *latent.shape[-2:]))
        covariates = torch.cat([covariates, learned[None]])
    found = moderate(squares, len(deviations) * effective_channels(deviations), covariates, learned)
    wanted = mean_std(before.variance) / mean_std(before.deviations[: len(deviations)].float().square().mean(0))
    size = (wanted * mean_std(squares) / mean_std(found)).square().nan_to_num(1.0)
    return found * size.reshape(-1, *[1] * (found.ndim - 1))


def mean_std(variance: torch.Tensor) -> torch.Tensor:
    """Mean standard deviation of each image, ``(n,)``."""
    return std_of(variance).flatten(1).mean(1)


def is_enlarged(old: torch.Size, new: torch.Size) -> bool:
    """Whether a latent grew or shrank alike on both sides, to whole cells."""
    down, across = (after / before for after, before in zip(new[-2:], old[-2:]))
    return old[:-2] == new[:-2] and abs(down / across - 1) < 1.5 / min(new[-2:])

"""What an uncertainty-aware sampler returns beside the latent."""

from __future__ import annotations

import dataclasses

import torch

from .scores import DEFAULT, SCORES


def std_of(variance: torch.Tensor) -> torch.Tensor:
    """Standard deviation of each cell, ``(n, ...)``: root of the variance ``(n, c, ...)`` averaged over channels.

    What is negative (the published recursion knows that) counts as zero.
    """
    return variance.mean(dim=1).clamp(min=0).sqrt()


def check_finite(variance: torch.Tensor) -> None:
    """One sentence where a variance ``(n, ...)`` holds NaN or infinity, and in which pictures.

    Raises:
        ValueError: it does.
    """
    if bad := [i for i, finite in enumerate(variance.isfinite().flatten(1).all(1).tolist()) if not finite]:
        raise ValueError(
            f"Expected finite variances, got NaN or infinity in {len(bad)} of {len(variance)} pictures (the first is "
            f"number {bad[0]}, counted from 0); see whether the pictures themselves are blank, and sample in a wider "
            "number format, for example --force-fp32."
        )


@dataclasses.dataclass(frozen=True)
class Moment:
    """A point of the trajectory: mean and variance of the noisy latent there (Kou et al. 2024, section 3.3).

    Attributes:
        sigma: noise level, as the sampler names it.
        latent: ``(n, ...)``, the run's own latent at that level, noise included, as a stock sampler that is stopped
            there and leaves its noise in would return it.
        variance: of the same shape, in squared units of it.
    """

    sigma: float
    latent: torch.Tensor
    variance: torch.Tensor


@dataclasses.dataclass(frozen=True)
class Uncertainty:
    """Pixel-wise variance of a batch of latents and what is needed to read it later.

    Attributes:
        variance: ``(n, c, h, w)`` or, with a time axis, ``(n, c, t, h, w)``, in squared units of the latent the user
            sees, in its layout.
        latent: of the same shape, the samples that the variance belongs to.
        downscale: pixels of the decoded image per latent cell, along one side.
        estimator: name of what estimated the variance.
        members: how many posterior draws it used.
        head: metadata of the Laplace head.
        cost: network calls of the whole run, relative to plain sampling.
        deviations: ``(k, n, ...)``, how far some of the members ended from ``latent``; k is 0 where the estimator has
            no members.
        trajectory: mean and variance at the levels that were asked for, highest first.
    """

    variance: torch.Tensor
    latent: torch.Tensor
    downscale: int
    estimator: str
    members: int
    head: dict[str, str]
    cost: float
    deviations: torch.Tensor
    trajectory: tuple[Moment, ...] = ()

    def std_map(self) -> torch.Tensor:
        """Standard deviation of each latent cell, ``(n, h, w)``: root of the variance averaged over channels.

        Raises:
            ValueError: the latent is not a batch of images, or a variance is no finite number.
        """
        variance = self.variance
        if variance.ndim == 5 and variance.shape[2] == 1:  # a picture of a family that also makes video
            variance = variance[:, :, 0]
        if variance.ndim != 4:
            raise ValueError(
                "Expected the uncertainty of image latents (batch, channels, height, width), got shape "
                f"{tuple(variance.shape)}; sample a single frame, maps of video are not supported yet."
            )
        check_finite(variance)
        return std_of(variance)

    def scores(self, name: str = DEFAULT, mask: torch.Tensor | None = None) -> torch.Tensor:
        """One score an image, ``(n,)``, one of :data:`~.scores.SCORES`. Higher is less certain."""
        return SCORES[name](self, mask)

    def std_over_sigma(self) -> tuple[list[float], torch.Tensor]:
        """Noise levels above zero, highest first, and the mean standard deviation of each picture there.

        Returns:
            ``m`` levels and ``(m, n)``.

        Raises:
            ValueError: the trajectory was not kept, or a variance of it is no finite number.
        """
        moments = [moment for moment in self.trajectory if moment.sigma > 0]
        if not moments:
            raise ValueError(
                "Expected an uncertainty that keeps its trajectory, got one that does not; connect sigmas to "
                "Uncertainty Options and those to the sampler."
            )
        for moment in moments:
            check_finite(moment.variance)
        return [m.sigma for m in moments], torch.stack(
            [m.variance.clamp(min=0).sqrt().flatten(1).mean(1) for m in moments]
        )

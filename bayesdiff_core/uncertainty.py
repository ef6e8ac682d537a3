"""What an uncertainty-aware sampler returns beside the latent."""

from __future__ import annotations

import dataclasses

import torch


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
    """

    variance: torch.Tensor
    latent: torch.Tensor
    downscale: int
    estimator: str
    members: int
    head: dict[str, str]

    def std_map(self) -> torch.Tensor:
        """Standard deviation of each latent cell, ``(n, h, w)``: root of the variance averaged over channels.

        Raises:
            ValueError: the latent is not a batch of images.
        """
        variance = self.variance
        if variance.ndim == 5 and variance.shape[2] == 1:  # a picture of a family that also makes video
            variance = variance[:, :, 0]
        if variance.ndim != 4:
            raise ValueError(
                "Expected the uncertainty of image latents (batch, channels, height, width), got shape "
                f"{tuple(variance.shape)}; sample a single frame, maps of video are not supported yet."
            )
        return variance.mean(dim=1).sqrt()

    def scores(self) -> torch.Tensor:
        """One score an image, ``(n,)``: the mean standard deviation. Higher is less certain.

        The paper sums variances (section 4.3); a sum of standard deviations is less ruled by a few cells.
        """
        return self.variance.sqrt().flatten(1).mean(dim=1)

"""UNCERTAINTY: what an uncertainty-aware sampler returns with the latent, and the one place that reads it."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

import torch

from ..estimators.parts import Shapes, unpack
from ..estimators.past import Handover
from .clip_masks import frame_masks
from .grid import LatentGrid
from .maps import resize_map
from .scale import ScoreScale
from .scores import DEFAULT, SCORES, score_frames


def std_of(variance: torch.Tensor) -> torch.Tensor:
    """Standard deviation of each cell, ``(n, ...)``: root of the variance ``(n, c, ...)`` averaged over channels.

    A negative variance, which the published recursion can return, counts as zero.
    """
    return variance.mean(dim=1).clamp(min=0).sqrt()


def require_finite(variance: torch.Tensor) -> None:
    """Refuse a variance ``(n, ...)`` that holds NaN or infinity.

    Raises:
        ValueError: it does; the sentence says in which images.
    """
    if bad := [i for i, finite in enumerate(variance.isfinite().flatten(1).all(1).tolist()) if not finite]:
        kind = "clips" if variance.ndim == 5 and variance.shape[2] > 1 else "images"
        raise ValueError(
            f"Expected finite variances, got NaN or infinity in {len(bad)} of {len(variance)} {kind} (the first is "
            f"number {bad[0]}, numbered from 0); check whether the {kind} themselves are blank, and sample in a wider "
            "number format, for example --force-fp32."
        )


def by_time(sound: torch.Tensor, time: int) -> torch.Tensor:
    """Latents of sound ``(n, c, ...)``, whose dimension ``time`` is time, as those of clips ``(n, c, t, 1, ...)``."""
    return sound.movedim(time, 2).flatten(3)[:, :, :, None] if sound.ndim > 3 else sound[..., None, None]


@dataclasses.dataclass(frozen=True)
class Moment:
    """A point of the trajectory: mean and variance of the noisy latent there (Kou et al. 2024, section 3.3).

    Attributes:
        sigma: as the sampler names it.
        latent: ``(n, ...)``, the run's own latent at that sigma, noise included, as a stock sampler that stops there
            and leaves its noise in would return it.
        variance: of the same shape, in squared units of it.
    """

    sigma: float
    latent: torch.Tensor
    variance: torch.Tensor

    def unpack(self, shapes: Shapes) -> list[Moment]:
        """That of each part of a nested latent, see :mod:`..estimators.parts`."""
        both = zip(unpack(self.latent, shapes), unpack(self.variance, shapes))
        return [dataclasses.replace(self, latent=latent, variance=variance) for latent, variance in both]

    def select(self, index: torch.Tensor) -> Moment:
        """That of the images at ``index`` ``(m,)`` alone, in that order."""
        return dataclasses.replace(self, latent=self.latent[index], variance=self.variance[index])


@dataclasses.dataclass(frozen=True)
class Uncertainty:
    """Pixel-wise variance of a batch of latents and what is needed to read it later.

    Attributes:
        variance: ``(n, c, h, w)`` or, with a time axis, ``(n, c, t, h, w)``, in squared units of the latent the user
            sees, in its layout.
        latent: of the same shape, the samples that the variance belongs to.
        grid: pixels and frames of a latent cell.
        estimator: name of what estimated the variance.
        members: how many posterior draws it used.
        head: metadata of the Laplace head.
        cost: network calls of the whole run, relative to plain sampling.
        deviations: ``(k, n, ...)``, how far some of the members ended from ``latent``; k is 0 where the estimator has
            no members.
        trajectory: mean and variance at the sigmas that were asked for, highest first.
        measures: what the root of the variance is.
        score: which score the image is told by, unless another is asked for.
        scale: scores of the model's own images; None where the head knows none, or none of what this measures.
        unknown: why nothing is known of some or all of the images, in a sentence for the user; "" if all is known. The
            variance of those is NaN.
        handover: what a later stage takes from the run.
        others: of the other parts of a nested latent, such as the sound of a clip; all above is of its first part. None
            of them has others.
    """

    variance: torch.Tensor
    latent: torch.Tensor
    grid: LatentGrid
    estimator: str
    members: int
    head: dict[str, str]
    cost: float
    deviations: torch.Tensor
    trajectory: tuple[Moment, ...] = ()
    measures: str = "standard deviation"
    score: str = DEFAULT
    scale: ScoreScale | None = None
    unknown: str = ""
    handover: Handover = Handover()
    others: tuple[Uncertainty, ...] = ()

    def __len__(self) -> int:
        """How many images or clips."""
        return len(self.variance)

    @property
    def parts(self) -> tuple[Uncertainty, ...]:
        """Of each part of a nested latent, the first one too; of any other latent it is the only one."""
        return dataclasses.replace(self, others=()), *self.others

    @staticmethod
    def of_parts(parts: Iterable[Uncertainty]) -> Uncertainty:
        """The inverse of :attr:`parts`."""
        first, *others = parts
        return dataclasses.replace(first, others=tuple(others))

    @property
    def cells_in_time(self) -> int:
        """Latent frames of each clip or sound; 1 of images."""
        if self.grid.time:
            return self.variance.shape[self.grid.time]
        return self.variance.shape[2] if self.variance.ndim == 5 else 1

    @property
    def frames(self) -> int:
        """Frames of each decoded clip; 1 of images."""
        return self.grid.frames_of(self.cells_in_time)

    def by_clip(self, frames: torch.Tensor) -> torch.Tensor:
        """Frames of all clips, clip after clip as a VAE decodes them ``(n * frames, ...)``, as ``(n, frames, ...)``."""
        return frames.unflatten(0, (len(self), -1))

    # ------------------------------------------------------------ what can be read

    @property
    def is_known(self) -> bool:
        """Whether anything is known of any image."""
        return not self.unknown or not bool(self.variance.isnan().all())

    @property
    def why_unknown(self) -> str:
        """:attr:`unknown`, and for which images it holds where others are known; "" if all is known."""
        images = self.variance.isnan().flatten(1).any(1).nonzero().flatten().tolist()
        if not self.unknown or len(images) in (0, len(self)):
            return self.unknown
        numbers = ", ".join(map(str, images))
        return f"{self.unknown} This holds for {len(images)} of {len(self)} images: {numbers} (counted from 0)."

    def require_numbers(self) -> None:
        """Refuse what scores cannot read.

        Raises:
            ValueError: something is unknown, or a variance is no finite number.
        """
        if self.unknown:
            raise ValueError(self.why_unknown)
        require_finite(self.variance)

    def require_images(self) -> None:
        """Refuse what maps and masks cannot read.

        Raises:
            ValueError: see :meth:`require_numbers`, or the latent is no batch of images or clips.
        """
        if self.unknown:
            raise ValueError(self.why_unknown)
        if self.grid.time:
            raise ValueError(
                "Expected the uncertainty of images or clips, got that of sound, which has no map; connect it to "
                "Uncertainty Score, or to Uncertainty Plot over frames."
            )
        shape = tuple(self.variance.shape)
        if len(shape) not in (4, 5):
            raise ValueError(
                "Expected the uncertainty of latents of images (batch, channels, height, width) or of clips (batch, "
                f"channels, frames, height, width), got shape {shape}; connect the uncertainty of an image or video "
                "model."
            )
        self.require_numbers()

    # ------------------------------------------------------------ maps

    def std_map(self) -> torch.Tensor:
        """Standard deviation of each latent cell, ``(n, h, w)``: root of the variance averaged over channels.

        Of clips ``(n, t, h, w)``.

        Raises:
            ValueError: see :meth:`require_images`.
        """
        self.require_images()
        # An image of a family that also makes video has one frame.
        return std_of(self.variance[:, :, 0] if self.variance.ndim == 5 and self.frames == 1 else self.variance)

    def image_size(self) -> tuple[int, int]:
        """Height and width of the decoded images in pixels."""
        return self.grid.pixels_of(self.variance.shape[-2]), self.grid.pixels_of(self.variance.shape[-1])

    def maps(self, size: tuple[int, int] | None = None) -> torch.Tensor:
        """The map of standard deviations at a size in pixels, by default that of the images: ``(n, height, width)``.

        Of clips a map for each frame, that of its latent frame, clip after clip: ``(n * frames, height, width)``.

        Raises:
            ValueError: see :meth:`require_images`.
        """
        std = resize_map(self.std_map(), *(size or self.image_size()))
        return std if std.ndim == 3 else std[:, self.grid.cells_of(self.frames)].flatten(0, 1)

    # ------------------------------------------------------------ numbers

    def scores(self, name: str = "", mask: torch.Tensor | None = None) -> torch.Tensor:
        """One score per image or clip, ``(n,)``, by default :attr:`score`. Higher is less certain.

        Args:
            name: one of :data:`~.scores.SCORES`.
            mask: see :func:`~.clip_masks.frame_masks`.
        """
        return SCORES[name or self.score](self.variance, self.latent, self.mask_of_cells(mask))

    def frame_scores(self, name: str = "", mask: torch.Tensor | None = None) -> torch.Tensor:
        """One score per frame, ``(n, frames)``, the same for frames of one latent frame. Images have one frame.

        Of sound one per latent frame. NaN for frames of which the mask selects nothing.
        """
        if self.grid.time:
            variance, latent = (by_time(values, self.grid.time) for values in (self.variance, self.latent))
            return score_frames(name or self.score, variance, latent)
        if self.frames == 1:
            return self.scores(name, mask)[:, None]
        scores = score_frames(name or self.score, self.variance, self.latent, self.mask_of_cells(mask))
        return scores[:, self.grid.cells_of(self.frames)]

    def mask_of_cells(self, mask: torch.Tensor | None) -> torch.Tensor | None:
        """How much of each latent frame a mask covers, ``(1 or n, 1 or t, height, width)``; of images the mask."""
        if mask is None or self.frames == 1:
            return mask
        frames = frame_masks(mask, len(self), self.cells_in_time, self.grid)
        return frames if frames.shape[1] == 1 else self.grid.by_cell(frames).mean(2)

    def percentiles(self, name: str = "") -> torch.Tensor | None:
        """How many in a hundred of the model's own images each image is less certain than, ``(n,)``.

        Returns:
            None where nothing tells.
        """
        return None if self.scale is None else self.scale.percentiles(name or self.score, self.scores(name))

    def captions(self) -> list[str]:
        """The score of each image in words, with its percentile where that is known."""
        percentiles = self.percentiles()
        places = [""] * len(self) if percentiles is None else [f", above {p:.0f} %" for p in percentiles.tolist()]
        return [f"score {score:.4g}{place}" for score, place in zip(self.scores().tolist(), places)]

    def std_over_sigma(self) -> tuple[list[float], torch.Tensor]:
        """Sigmas above zero, highest first, and the mean standard deviation of each image there.

        Returns:
            ``m`` sigmas and ``(m, n)``.

        Raises:
            ValueError: the trajectory was not kept, or a variance of it is no finite number.
        """
        moments = [moment for moment in self.trajectory if moment.sigma > 0]
        if not moments:
            raise ValueError(
                f"Expected an uncertainty that keeps its trajectory, got one of '{self.estimator}' that has none; take "
                "it from a sampler (BayesDiff) with a Laplace head."
            )
        for moment in moments:
            require_finite(moment.variance)
        return [moment.sigma for moment in moments], torch.stack(
            [moment.variance.clamp(min=0).sqrt().flatten(1).mean(1) for moment in moments]
        )

    # ------------------------------------------------------------ some of the images, and more of them

    def select(self, index: torch.Tensor) -> Uncertainty:
        """The uncertainty of the images at ``index`` ``(m,)`` alone, in that order."""
        variance = self.variance[index]
        return dataclasses.replace(
            self,
            variance=variance,
            unknown=self.unknown if variance.isnan().any() else "",
            latent=self.latent[index],
            deviations=self.deviations[:, index],
            trajectory=tuple(moment.select(index) for moment in self.trajectory),
            handover=self.handover.select(index),
            others=tuple(other.select(index) for other in self.others),
        )

    @staticmethod
    def join(parts: list[Uncertainty]) -> Uncertainty:
        """One uncertainty of all images of the parts, in their order; one estimator made all of them."""
        members = min(len(part.deviations) for part in parts)  # none where a part is unknown
        moments = tuple(
            dataclasses.replace(
                same[0],
                latent=torch.cat([moment.latent for moment in same]),
                variance=torch.cat([moment.variance for moment in same]),
            )
            for same in zip(*(part.trajectory for part in parts))
        )
        return dataclasses.replace(
            parts[0],
            variance=torch.cat([part.variance for part in parts]),
            latent=torch.cat([part.latent for part in parts]),
            deviations=torch.cat([part.deviations[:members] for part in parts], dim=1),
            trajectory=moments,
            handover=Handover.join([part.handover for part in parts]),
            unknown=" ".join(dict.fromkeys(part.unknown for part in parts if part.unknown)),
            others=tuple(Uncertainty.join(list(same)) for same in zip(*(part.others for part in parts))),
        )

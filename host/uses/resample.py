"""Go on sampling from a point of a trajectory that is over: for variations of an image, or to repair a part of it."""

from __future__ import annotations

import dataclasses
import math
from typing import NamedTuple

import torch
from comfy.model_patcher import ModelPatcher
from comfy.sampler_helpers import prepare_mask

from ...bayesdiff_core.reading.uncertainty import Moment, Uncertainty
from ...bayesdiff_core.resampling import draw_latent, nearest_moment
from ..latents import host_mask
from ..nested import by_part, latent_of, packed, parts_of, unpacked, whole
from ..run.progress import Progress
from ..run.space import scales
from ..run.stock import sample_stock
from ..settings import RunSettings, Start, step_after

# Mixed into the seed of the draws: with the bare seed they would repeat the numbers of the initial noise.
RESAMPLING = 0x2E5A3B1E7C94D600


class Point(NamedTuple):
    """A point of a trajectory, and the step of the run that starts there.

    Attributes:
        moments: of each part of a nested latent; of any other latent one.
    """

    moments: list[Moment]
    step: int

    @property
    def sigma(self) -> float:
        return self.moments[0].sigma

    @property
    def latent(self) -> torch.Tensor:
        """The noisy latent."""
        return whole([moment.latent for moment in self.moments])


@dataclasses.dataclass(frozen=True)
class Variations:
    """What variations to make.

    Attributes:
        share: of the steps after which to draw; the nearest point that the uncertainty keeps is taken.
        count: how many of every image; each is one run of the whole batch.
        strength: see :func:`~...bayesdiff_core.resampling.draw_latent`.
        seed: of the draws, and of the noise that samplers add.
    """

    share: float
    count: int
    strength: float
    seed: int


def finish(
    model: ModelPatcher,
    settings: RunSettings,
    noisy: Point,
    image: torch.Tensor,
    seed: int,
    mask: torch.Tensor | None,
) -> torch.Tensor:
    """Finish from a noisy latent at a step, as KSampler Advanced does with add_noise disabled.

    A deterministic one-step sampler goes on as if it had never stopped. One that remembers earlier steps starts
    without that memory, and one that adds noise adds that of ``seed``.

    Args:
        noisy: its latent is one that a stock sampler that stops there could return.
        image: ``(n, ...)``, what the run without a change ended in; it stays outside the mask.
        mask: a noise mask of the host's.
    """
    if mask is None:
        nothing = by_part(lambda part: torch.zeros(part.shape), noisy.latent)
        return settings.sample_from(model, Start(noisy.latent, nothing, noisy.step), seed, None)
    # Outside the mask the host shows the network the image, noised anew at every step. So the noise is the one that
    # leads from the image to the noisy latent: then what surrounds the mask is seen as the run itself saw it.
    at = scales(model.get_model_object("model_sampling"), noisy.sigma)
    change = model.model.process_latent_in(packed(noisy.latent)) - model.model.process_latent_in(packed(image))
    noise = unpacked(change * (at.signal / at.noise), image)
    return settings.sample_from(model, Start(image, noise, noisy.step), seed, mask)


def find_point(model: ModelPatcher, settings: RunSettings, uncertainty: Uncertainty, share: float) -> Point:
    """The kept point of the trajectory nearest to ``share`` of the steps.

    Raises:
        ValueError: nothing was kept, or these settings have no step at that sigma.
    """
    sigmas = settings.sigmas(model)
    if len(sigmas) < 3:
        raise ValueError(
            f"Expected at least 2 steps to start between, got {max(len(sigmas) - 1, 0)}; give the sampler more steps."
        )
    moments = [nearest_moment(part, float(sigmas[step_after(sigmas, share)])) for part in uncertainty.parts]
    moment = moments[0]
    step = min(range(len(sigmas) - 1), key=lambda j: abs(float(sigmas[j]) - moment.sigma))
    if not math.isclose(float(sigmas[step]), moment.sigma, rel_tol=1e-3):
        raise ValueError(
            f"Expected the settings that the image was sampled with, got some that have no step at its sigma "
            f"{moment.sigma:.4g}; set steps, sampler_name, scheduler and denoise as they were."
        )
    return Point(moments, step)


def redraw(point: Point, strength: float, generator: torch.Generator, mask: torch.Tensor | None) -> Point:
    """The point with its latent drawn anew from the estimated distribution.

    Args:
        mask: a noise mask of the host's; outside it nothing changes.
    """
    drawn, masks = [], [None] * len(point.moments) if mask is None else parts_of(mask)
    for moment, inside in zip(point.moments, masks):
        inside = None if inside is None else prepare_mask(inside, moment.latent.shape, "cpu")
        drawn.append(dataclasses.replace(moment, latent=draw_latent(moment, strength, generator, inside)))
    return point._replace(moments=drawn)


def resample(
    model: ModelPatcher,
    settings: RunSettings,
    uncertainty: Uncertainty,
    variations: Variations,
    mask: torch.Tensor | None,
) -> list[torch.Tensor]:
    """Variations of images: each is drawn from the estimated distribution at a point of its trajectory.

    Args:
        mask: of images or frames, see :func:`~..latents.host_mask`. Outside it they stay as they are.

    Returns:
        ``variations.count`` latents of the batch's shape.
    """
    image = latent_of(uncertainty)
    mask = None if mask is None else host_mask(mask, image, uncertainty.grid)
    point = find_point(model, settings, uncertainty, variations.share)
    generator = torch.Generator().manual_seed(variations.seed ^ RESAMPLING)
    progress, found = Progress(model), []
    progress.runs = variations.count
    for number in range(variations.count):
        noisy = redraw(point, variations.strength, generator, mask)
        # A seed each: samplers that add noise shall not add the same to every variation.
        seed = (variations.seed + number) % 2**64

        def run(model: ModelPatcher, latent: dict, noisy: Point = noisy, seed: int = seed) -> dict:
            return {"samples": finish(model, settings, noisy, latent["samples"], seed, mask)}

        sampled, _ = sample_stock(run, model, {"samples": image}, progress)
        found.append(sampled["samples"])
    return found

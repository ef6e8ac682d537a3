"""A run that goes on from the latent of another one: what is known of that latent."""

from __future__ import annotations

import dataclasses
import logging

import torch

from ...bayesdiff_core.estimators.instant import NO_UNIT
from ...bayesdiff_core.estimators.parts import pack
from ...bayesdiff_core.estimators.trajectory import Past, State, root_mean_square
from ...bayesdiff_core.reading.maps import resize_map
from ...bayesdiff_core.reading.members import is_enlarged
from ...bayesdiff_core.reading.uncertainty import Uncertainty
from ..nested import parts_of
from ..said import say
from .context import RunContext
from .space import latent_slope

# Of two latents of one image: an enlarged one agrees with it far better than this.
LEAST_AGREEMENT = 0.5
# Of a cut run: how far its parts may be from each other, in the latent and in noise over signal.
SAME_LATENT, SAME_NOISE = 0.02, 0.05
CONNECT = "connect the latent and the uncertainty of one node, or put whatever changes the latent between "
THROUGH = CONNECT + "Uncertainty to Latents and Latents to Uncertainty (BayesDiff)."


def uncertainty_of_latent(uncertainty: Uncertainty, latent: dict, measures: str) -> Uncertainty:
    """What is known of a LATENT, brought to its size where that was only enlarged.

    Args:
        measures: what the stage to come measures, see :attr:`.Uncertainty.measures`.

    Raises:
        ValueError: it is the uncertainty of something else.
    """
    samples, parts = parts_of(latent["samples"]), uncertainty.parts
    if len(samples) != len(parts):
        raise ValueError(
            f"Expected the uncertainty of the latent that comes in, with as many parts (video, sound): {len(samples)}, "
            f"got one with {len(parts)}; connect the latent and the uncertainty of one node."
        )
    return Uncertainty.of_parts(uncertainty_of_part(part, own, measures) for own, part in zip(samples, parts))


def uncertainty_of_part(uncertainty: Uncertainty, samples: torch.Tensor, measures: str) -> Uncertainty:
    """:func:`uncertainty_of_latent` of one part of a nested latent, or of all of any other."""
    own = uncertainty.latent
    if len(samples) != len(own) or samples.shape[1] != own.shape[1] or samples.ndim != own.ndim:
        raise ValueError(
            f"Expected the uncertainty of the latent that comes in, of shape {tuple(samples.shape)}, got that of "
            f"another, of shape {tuple(own.shape)}; {THROUGH}"
        )
    if uncertainty.is_known and not uncertainty.measures.startswith((measures, NO_UNIT)):
        raise ValueError(
            f"Expected an uncertainty that measures the same as this stage ({measures}), got one of the "
            f"{uncertainty.measures}; connect a Laplace head to both stages, or to none."
        )
    if samples.shape != own.shape:
        uncertainty = enlarged(uncertainty, samples.shape)
    agree = agreement(samples, uncertainty.latent) >= LEAST_AGREEMENT
    if agree.float().mean(1).min() < 0.5 or are_reordered(samples, uncertainty.latent):
        raise ValueError(
            f"Expected the uncertainty of the latent that comes in, got that of other images or in another order; "
            f"{THROUGH}"
        )
    return uncertainty if agree.all() else with_given_frames(uncertainty, samples, ~agree)


def with_given_frames(uncertainty: Uncertainty, samples: torch.Tensor, given: torch.Tensor) -> Uncertainty:
    """The uncertainty of a clip of which some frames ``(n, t)`` were replaced, as by a picture to begin with.

    Of what was replaced the stage before knows nothing: there it is certain, as a latent without an uncertainty is.
    """
    say(
        f"{int(given.sum())} of {given.numel()} latent frames were replaced since the stage before; of these this "
        "stage measures what it decides itself."
    )
    mask = given[:, None, :, None, None]
    return dataclasses.replace(
        uncertainty,
        latent=torch.where(mask, samples.to(uncertainty.latent), uncertainty.latent),
        variance=uncertainty.variance.masked_fill(mask, 0.0),
        deviations=uncertainty.deviations.masked_fill(mask, 0.0),
        trajectory=(),
        handover=dataclasses.replace(uncertainty.handover, states=()),
    )


def enlarged(uncertainty: Uncertainty, shape: torch.Size) -> Uncertainty:
    """The uncertainty of a latent that was enlarged to a shape ``(n, ...)``, by linear interpolation.

    Raises:
        ValueError: sides grew differently, so the latent was cropped, turned or stretched.
    """
    own = uncertainty.latent.shape
    if not is_enlarged(own, shape):
        raise ValueError(
            f"Expected the uncertainty of the latent that comes in, or of one that was enlarged to it, of shape "
            f"{tuple(shape)}, got one of shape {tuple(own)}; {THROUGH}"
        )
    say("the latent was enlarged, and its uncertainty is enlarged like it.", logging.INFO)
    return dataclasses.replace(
        uncertainty,
        latent=resized(uncertainty.latent, shape),
        variance=resized(uncertainty.variance, shape),
        deviations=torch.stack([resized(member, shape) for member in uncertainty.deviations] or [torch.empty(shape)])[
            : len(uncertainty.deviations)
        ],
        trajectory=(),
        handover=dataclasses.replace(uncertainty.handover, states=()),
    )


def resized(values: torch.Tensor, shape: torch.Size) -> torch.Tensor:
    """Values ``(n, c, ..., h, w)`` at another height and width."""
    return resize_map(values.float(), *shape[-2:])


def agreement(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """Correlation of two latents ``(n, c, ...)`` of one shape, ``(n, t)`` of each frame, ``(n, 1)`` of what has none.

    Flat ones agree.
    """
    a, b = (by_frame(values.float()).flatten(3) for values in (first, second))
    a, b = ((values - values.mean(3, keepdim=True)).flatten(2) for values in (a, b))
    scale = a.norm(dim=2) * b.norm(dim=2)
    return torch.where(scale > 0, (a * b).sum(2) / scale.clamp(min=1e-12), 1.0)


def by_frame(values: torch.Tensor) -> torch.Tensor:
    """Latents ``(n, t, c, ...)`` of clips ``(n, c, t, h, w)``, ``(n, 1, c, ...)`` of all else."""
    return values.movedim(2, 1) if values.ndim == 5 else values[:, None]


def are_reordered(first: torch.Tensor, second: torch.Tensor) -> bool:
    """Whether an image of the first batch stands at another place of the second."""
    moved = [image for image, same in zip(first, second) if not torch.equal(image, same)]
    return any(torch.equal(image, other) for image in moved for other in second)


def past_of(before: Uncertainty, context: RunContext, first: State) -> Past:
    """What is known of the latent that a run began with, in the sampler's space.

    Args:
        first: the run's first state.
    """
    shapes, parts = context.shapes, before.parts
    slope = latent_slope(context.guider.inner_model, pack([part.latent for part in parts], shapes))
    joined = was_only_cut(before, context, first)
    members = min(len(part.deviations) for part in parts)
    return Past(
        variance=pack([part.variance for part in parts], shapes) / slope.square(),
        deviations=pack([part.deviations[:members] for part in parts], shapes) / slope,
        states=before.handover.states if joined else (),
        sized=before.handover.sized if joined else True,
    )


def was_only_cut(before: Uncertainty, context: RunContext, first: State) -> bool:
    """Whether a run goes on from the very latent that the stage before left, with the noise that was in it."""
    left, noise = before.handover.noise_over_signal, first.noise_over_signal
    if not before.handover.states or abs(left - noise) > SAME_NOISE * noise:
        return False
    latent = pack([part.latent.cpu() for part in before.parts], context.shapes)
    change = root_mean_square(context.to_latent(first).cpu() - latent)
    return change < SAME_LATENT * root_mean_square(latent)

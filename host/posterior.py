"""A Laplace head, bound to the model that it belongs to."""

from __future__ import annotations

import dataclasses
import logging
from contextlib import AbstractContextManager
from typing import ClassVar

import torch
from comfy.model_patcher import ModelPatcher

from ..bayesdiff_core.posterior.calibration import Calibration
from ..bayesdiff_core.posterior.laplace_head import LaplaceHead
from .identity import WARN_ONLY, describe_model, described_once, differing
from .last_layer import LastLayer, find_last_layer
from .settings import Part

# Of what a head's file says, in letters of a sentence about it.
LONGEST = 200
# By which factor a sigma may lie outside the part that a head is for: schedules of few steps are coarse.
OUTSIDE = 1.2


@dataclasses.dataclass(frozen=True, eq=False)
class NoPosterior:
    """A model without a Laplace head: its runs are watched, and that is all.

    Attributes:
        seed: of a run.
    """

    model: ModelPatcher
    seed: int = 0
    about: ClassVar[dict[str, str]] = {}
    calibration: ClassVar[None] = None

    def on(self, model: ModelPatcher) -> NoPosterior:
        """The same of a clone of the model."""
        return dataclasses.replace(self, model=model)


@dataclasses.dataclass(frozen=True, eq=False)
class Posterior:
    """The posterior of one model's last layer, with the seed of its draws.

    Draw number k is always the same change of weights: of one head and seed, in any run, on any machine.

    Attributes:
        model: the model.
        layer: its last layer.
        head: the Laplace head.
        seed: of the draws.
    """

    model: ModelPatcher
    layer: LastLayer
    head: LaplaceHead
    seed: int = 0

    @classmethod
    def bind(cls, head: LaplaceHead, model: ModelPatcher, seed: int = 0) -> Posterior:
        """The posterior of ``model``, after making sure that ``head`` belongs to it.

        Raises:
            ValueError: the head was fitted on a model of another kind.
        """
        try:
            layer = find_last_layer(model, head.about.get("layer"))
        except ValueError:
            layer = find_last_layer(model)
        check_identity(head, model, layer)
        if head.geometry != layer.geometry:
            raise ValueError(
                f"Expected a Laplace head for a last layer of {layer.geometry.in_features} to "
                f"{layer.geometry.out_features} channels, got one for {head.geometry.in_features} to "
                f"{head.geometry.out_features}; load the head of this model or connect Fit Laplace Head."
            )
        return cls(model, layer, head, seed)

    def on(self, model: ModelPatcher) -> Posterior:
        """The same posterior of a clone of the model, which shares its network."""
        return dataclasses.replace(self, model=model)

    @property
    def about(self) -> dict[str, str]:
        """Metadata of the head."""
        return self.head.about

    @property
    def calibration(self) -> Calibration | None:
        """What the head learned of the model."""
        return self.head.calibration

    def draw(self, number: int) -> torch.Tensor:
        """Draw ``number``, from 0, of ``dW = W - W*``, ``(width, out_features)``, float32 on the CPU."""
        return self.head.draw(self.seed, number)

    def warn_of_other_part(self, sampling, sigmas: torch.Tensor) -> None:
        """Warn of a run outside the part of the schedule that the head was fitted for."""
        part = Part.read(self.about.get("part", ""))
        high, low = part.sigmas(sampling)
        steps = sigmas[:-1].tolist()
        outside = [sigma for sigma in steps if not low / OUTSIDE <= sigma <= high * OUTSIDE]
        if outside:
            logging.warning(
                f"BayesDiff: this Laplace head was fitted for the part {part.words} of the schedule, and "
                f"{len(outside)} of {len(steps)} steps lie outside; fit a head for the whole, or sample this part "
                "alone with it."
            )

    def perturbed(self, number: int) -> AbstractContextManager[None]:
        """Weights ``W* + dW`` of draw ``number`` inside the ``with`` block."""
        return self.layer.perturbed(self.draw(number))


def posterior_of(head: LaplaceHead | None, model: ModelPatcher, seed: int = 0) -> Posterior | NoPosterior:
    """:meth:`Posterior.bind`, or no posterior where no head is given."""
    return NoPosterior(model, seed) if head is None else Posterior.bind(head, model, seed)


def check_identity(head: LaplaceHead, model: ModelPatcher, layer: LastLayer) -> None:
    """Warn of a head of another checkpoint, merge, LoRA or sampling, and refuse one of another kind of model.

    Raises:
        ValueError: the head was fitted on a model of another kind.
    """
    for key, got in describe_model(model, layer).items():
        wanted = head.about.get(key)
        if wanted == got:
            continue
        if key not in WARN_ONLY:
            raise ValueError(
                f"Expected a Laplace head fitted on this model ({key}: {got}), got one fitted on another "
                f"({key}: {str(wanted)[:LONGEST]}); load the head of this model or connect Fit Laplace Head."
            )
        if wanted is None or (key == "lora" and wanted == described_once(model)):
            continue  # an older head, which says nothing of it or says it in fewer words
        wanted = wanted[:LONGEST]  # a file may say anything
        difference = differing(wanted, got) if key == "sampling" else f"{wanted} against {got}"
        if difference:
            logging.warning(
                f"BayesDiff: this Laplace head was fitted {WARN_ONLY[key]} than this model's: {difference}; fit a head "
                "on this model for exact figures."
            )

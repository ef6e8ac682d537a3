"""A Laplace head, bound to the model that it belongs to."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import ClassVar

import torch
from comfy.model_patcher import ModelPatcher

from ..bayesdiff_core.estimators.trend import Trend
from ..bayesdiff_core.posterior.calibration import Calibration
from ..bayesdiff_core.posterior.laplace_head import LaplaceHead
from .identity import WARN_ONLY, describe_model, described_once, differing
from .last_layer import LastLayer, find_last_layer
from .said import say
from .settings import Part

# Of what a head's file says, in letters of a sentence about it.
LONGEST = 200
# Between the seeds of the draws of two layers: with the same seed these would not be independent.
OTHER_DRAWS = 0x9E3779B97F4A7C15
NOT_CALLED = (
    "Expected a run that calls the last layer that the Laplace head is of, got one that goes past it, because of a "
    "patch, a cache or a guider with a model of its own; take it off, or disconnect the head for a first look."
)
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
    trends: ClassVar[tuple[()]] = ()
    parts: ClassVar[tuple[()]] = ()

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
        others: posteriors of the last layers of the other parts of a nested latent, such as sound.
    """

    model: ModelPatcher
    layer: LastLayer
    head: LaplaceHead
    seed: int = 0
    others: tuple[Posterior, ...] = ()

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
        others = []
        for number, other in enumerate(head.others, 1):
            at = dataclasses.replace(find_last_layer(model, other.about.get("layer")), part=number)
            others.append(cls.of_layer(other, model, at, seed + number * OTHER_DRAWS))
        return dataclasses.replace(cls.of_layer(head, model, layer, seed), others=tuple(others))

    @classmethod
    def of_layer(cls, head: LaplaceHead, model: ModelPatcher, layer: LastLayer, seed: int) -> Posterior:
        """The posterior of one layer alone.

        Raises:
            ValueError: the head is of another shape.
        """
        if head.geometry != layer.geometry:
            raise ValueError(
                f"Expected a Laplace head for a last layer of {layer.geometry.in_features} to "
                f"{layer.geometry.out_features} channels, got one for {head.geometry.in_features} to "
                f"{head.geometry.out_features}; load the head of this model or connect Fit Laplace Head."
            )
        return cls(model, layer, head, seed)

    def on(self, model: ModelPatcher) -> Posterior:
        """The same posterior of a clone of the model, which shares its network."""
        return dataclasses.replace(self, model=model, others=tuple(other.on(model) for other in self.others))

    @property
    def parts(self) -> tuple[Posterior, ...]:
        """Of each layer: this one, and the others."""
        return self, *self.others

    @property
    def about(self) -> dict[str, str]:
        """Metadata of the head."""
        return self.head.about

    @property
    def calibration(self) -> Calibration | None:
        """What the head learned of the model."""
        return self.head.calibration

    @property
    def trends(self) -> list[Trend | None]:
        """What the head learned of each part."""
        return [part.calibration and part.calibration.trend for part in self.parts]

    def draw(self, number: int) -> torch.Tensor:
        """Draw ``number``, from 0, of ``dW = W - W*``, ``(width, out_features)``, float32 on the CPU."""
        return self.head.draw(self.seed, number)

    def draws(self, number: int) -> list[torch.Tensor]:
        """:meth:`draw` of each of :attr:`parts`."""
        return [part.draw(number) for part in self.parts]

    @contextmanager
    def moved(self, draws: list[torch.Tensor], scale: float = 1.0) -> Iterator[None]:
        """Weights ``W* + scale dW`` of all layers inside the ``with`` block."""
        with ExitStack() as stack:
            for part, change in zip(self.parts, draws):
                stack.enter_context(part.layer.perturbed(scale * change))
            yield

    def warn_of_other_part(self, sampling, sigmas: torch.Tensor) -> None:
        """Warn of a run outside the part of the schedule that the head was fitted for."""
        part = Part.read(self.about.get("part", ""))
        high, low = part.sigmas(sampling)
        steps = sigmas[:-1].tolist()
        outside = [sigma for sigma in steps if not low / OUTSIDE <= sigma <= high * OUTSIDE]
        if outside:
            say(
                f"this Laplace head was fitted for the part {part.words} of the schedule, and "
                f"{len(outside)} of {len(steps)} steps lie outside; fit a head for the whole, or sample this part "
                "alone with it."
            )

    def perturbed(self, number: int) -> AbstractContextManager[None]:
        """Weights ``W* + dW`` of draw ``number`` inside the ``with`` block."""
        return self.moved(self.draws(number))


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
            say(
                f"this Laplace head was fitted {WARN_ONLY[key]} than this model's: {difference}; fit a head "
                "on this model for exact figures."
            )

"""Expert choices beyond the samplers' quality."""

from __future__ import annotations

import dataclasses

from comfy_api.latest import io

from ..bayesdiff_core.estimators.base import Estimator
from ..bayesdiff_core.estimators.registry import ESTIMATORS, Knob, estimator_help, knobs, make_estimator
from ..bayesdiff_core.estimators.trajectory import DEFAULT_POINTS, SaveAt
from ..host.compat import search_words
from .inputs import CATEGORY, UncertaintyOptionsType

AS_QUALITY = "as quality says"
LATENT, UNCERTAINTY = "picture", "uncertainty"
# Numbers that release 0.1 asked for, before the preview.
SAVED = ("members", "states", "every", "draws")


@dataclasses.dataclass(frozen=True)
class UncertaintyOptions:
    """What this node passes to the samplers; without an estimator, their quality chooses one."""

    estimator: Estimator | None = None
    save_at: SaveAt = DEFAULT_POINTS
    map_preview: bool = False


def knob_input(knob: Knob, **more) -> io.Input:
    """A number that estimators take."""
    return io.Int.Input(knob.name, default=knob.shown, min=knob.least, max=knob.most, tooltip=knob.help, **more)


class UncertaintyOptionsNode(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="BayesDiffUncertaintyOptions",
            display_name="Uncertainty Options (BayesDiff)",
            category=CATEGORY,
            **search_words("estimator", "trajectory"),
            description="Expert: choose the estimator, what to record, and the preview.",
            inputs=[
                io.Combo.Input(
                    "estimator", options=[AS_QUALITY, *ESTIMATORS], default=AS_QUALITY, tooltip=estimator_help()
                ),
                *(knob_input(knob) for knob in knobs() if knob.name in SAVED),
                io.Combo.Input(
                    "preview",
                    options=[LATENT, UNCERTAINTY],
                    default=LATENT,
                    tooltip="What the preview shows after the last step, while the uncertainty is estimated: the "
                    "image, or the growing uncertainty over it.",
                ),
                io.Sigmas.Input(
                    "sigmas",
                    optional=True,
                    tooltip="Sigmas at which to keep the mean and variance of the noisy latent, for Resample and "
                    "plots; each at the run's nearest sigma.",
                ),
                # Saved graphs store numbers by position: what came later stands last.
                *(knob_input(knob, optional=True) for knob in knobs() if knob.name not in SAVED),
            ],
            outputs=[
                UncertaintyOptionsType.Output("options", display_name="options", tooltip="For any sampler (BayesDiff).")
            ],
        )

    @classmethod
    def execute(cls, estimator, preview, sigmas=None, **numbers) -> io.NodeOutput:
        chosen = None if estimator == AS_QUALITY else make_estimator(estimator, numbers)
        save_at = SaveAt(() if sigmas is None else tuple(sigma for sigma in sigmas.tolist() if sigma > 0))
        return io.NodeOutput(UncertaintyOptions(chosen, save_at, preview == UNCERTAINTY))

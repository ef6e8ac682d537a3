"""What experts may choose beyond the samplers' quality."""

from __future__ import annotations

import dataclasses

from comfy_api.latest import io

from ..bayesdiff_core.estimators import Estimator
from ..bayesdiff_core.estimators.deviations import Deviations
from ..bayesdiff_core.estimators.moments import Moments
from ..bayesdiff_core.estimators.paper import Paper
from ..bayesdiff_core.estimators.tangents import Tangents
from ..host.sampling import Wishes
from ..host.schema import search_words
from .types import CATEGORY, UncertaintyOptionsType

AS_QUALITY, MODERATED, BARE = "as quality says", "deviations", "deviations, not moderated"
# How each estimator is made of the node's numbers. A new estimator is named here.
ESTIMATORS = {
    MODERATED: lambda members, states, every, draws: Deviations(states, fixed_members=members),
    BARE: lambda members, states, every, draws: Deviations(states, fixed_members=members, moderated=False),
    "tangents": lambda members, states, every, draws: Tangents(members),
    "moments": lambda members, states, every, draws: Moments(every, draws),
    "paper": lambda members, states, every, draws: Paper(every, draws),
}
LATENT, UNCERTAINTY = "picture", "uncertainty"


@dataclasses.dataclass(frozen=True)
class UncertaintyOptions:
    """What flows from this node to the samplers; no estimator means that of their quality."""

    estimator: Estimator | None
    wishes: Wishes


class UncertaintyOptionsNode(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="BayesDiffUncertaintyOptions",
            display_name="Uncertainty Options (BayesDiff)",
            category=CATEGORY,
            **search_words("estimator", "trajectory"),
            description="For experts: how the samplers (BayesDiff) estimate, what they keep of the way, and what they "
            "show meanwhile.",
            inputs=[
                io.Combo.Input(
                    "estimator",
                    options=[AS_QUALITY, *ESTIMATORS],
                    default=AS_QUALITY,
                    tooltip="Deviations is what the qualities use. Tangents: linear, through the sampler's own steps, "
                    "as dear as an ensemble. Moments and paper: the paper's iteration, mended and as published, to "
                    "compare.",
                ),
                io.Int.Input(
                    "members",
                    default=4,
                    min=1,
                    max=256,
                    tooltip="For deviations and tangents: how many draws of the last layer.",
                ),
                io.Int.Input(
                    "states",
                    default=5,
                    min=1,
                    max=1000,
                    tooltip="For deviations: at how many noise levels of the run each draw is followed.",
                ),
                io.Int.Input(
                    "every",
                    default=5,
                    min=1,
                    max=1000,
                    tooltip="For moments and paper: how many steps from one uncertain step to the next (Skip).",
                ),
                io.Int.Input(
                    "draws",
                    default=10,
                    min=1,
                    max=1000,
                    tooltip="For paper: draws at an uncertain step. For moments: pairs of probes; one or two will do.",
                ),
                io.Combo.Input(
                    "preview",
                    options=[LATENT, UNCERTAINTY],
                    default=LATENT,
                    tooltip="What the preview shows once the picture is there and its uncertainty is found: the "
                    "picture, or the growing uncertainty over it.",
                ),
                io.Sigmas.Input(
                    "sigmas",
                    optional=True,
                    tooltip="Noise levels at which the mean and variance of the noisy latent are kept, to resample "
                    "from; each at the nearest level of the run.",
                ),
            ],
            outputs=[
                UncertaintyOptionsType.Output(
                    "options", display_name="options", tooltip="For the options of any sampler (BayesDiff)."
                )
            ],
        )

    @classmethod
    def execute(cls, estimator, members, states, every, draws, preview, sigmas=None) -> io.NodeOutput:
        chosen = None if estimator == AS_QUALITY else ESTIMATORS[estimator](members, states, every, draws)
        levels = () if sigmas is None else tuple(sigma for sigma in sigmas.tolist() if sigma > 0)
        return io.NodeOutput(UncertaintyOptions(chosen, Wishes(levels, preview == UNCERTAINTY)))

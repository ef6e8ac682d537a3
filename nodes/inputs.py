"""Socket types, and the inputs and outputs that several nodes share."""

from __future__ import annotations

import math

from comfy_api.latest import io
from comfy_execution.graph_utils import ExecutionBlocker

from ..bayesdiff_core.estimators.registry import DEFAULT_QUALITY, ENSEMBLE, QUALITIES
from ..bayesdiff_core.reading.uncertainty import Uncertainty
from ..host.run.beside import Beside
from ..host.settings import samplers, schedulers

LaplaceHeadType = io.Custom("LAPLACE_HEAD")
UncertaintyType = io.Custom("UNCERTAINTY")
UncertaintyOptionsType = io.Custom("UNCERTAINTY_OPTIONS")

CATEGORY = "BayesDiff"
# Between lines of text: Preview Any shows Markdown, which would join them.
LINE_BREAK = "  \n"
FEWEST_MEMBERS, MOST_MEMBERS = 2, 256  # of an ensemble


def head_input(without: str) -> io.Input:
    """The Laplace head; the tooltip says what happens without one."""
    return LaplaceHeadType.Input(
        "head", optional=True, tooltip=f"Laplace head of this model, fitted or loaded. Without one: {without}"
    )


def seed_input(name: str = "seed") -> io.Input:
    return io.Int.Input(
        name,
        default=0,
        min=0,
        max=0xFFFFFFFFFFFFFFFF,
        control_after_generate=True,
        tooltip="Seed of the noise and of the last layer's draws.",
    )


def cfg_input(tooltip: str) -> io.Input:
    return io.Float.Input("cfg", default=8.0, min=0.0, max=100.0, step=0.1, round=0.01, tooltip=tooltip)


def schedule_inputs() -> list[io.Input]:
    """The stock KSampler's inputs for steps, guidance and sigmas."""
    return [
        io.Int.Input("steps", default=20, min=1, max=10000, tooltip="Number of denoising steps."),
        cfg_input("Classifier-free guidance: how closely the image follows the prompt."),
        io.Combo.Input("sampler_name", options=samplers(), tooltip="The sampling algorithm."),
        io.Combo.Input("scheduler", options=schedulers(), tooltip="How noise is removed over steps."),
        io.Conditioning.Input("positive", tooltip="What the image should show."),
        io.Conditioning.Input("negative", tooltip="What the image should not show."),
        io.Latent.Input("latent_image", tooltip="The latent to denoise; its noise mask is honoured."),
    ]


def run_inputs() -> list[io.Input]:
    """What the sampler of the image was told, except its latent."""
    return [item for item in schedule_inputs() if item.id != "latent_image"]


def denoise_input() -> io.Input:
    return io.Float.Input(
        "denoise",
        default=1.0,
        min=0.0,
        max=1.0,
        step=0.01,
        tooltip="Amount of denoising; below 1 keeps the structure of the input latent.",
    )


def grow_input(optional: bool = False) -> io.Input:
    return io.Int.Input("grow", default=8, min=0, max=512, optional=optional, tooltip="Pixels to widen the mask by.")


def blur_input(optional: bool = False) -> io.Input:
    return io.Float.Input(
        "blur",
        default=0.0,
        min=0.0,
        max=128.0,
        step=0.5,
        optional=optional,
        tooltip="Soften the mask's edge, in pixels. Use with Differential Diffusion.",
    )


def span_inputs() -> list[io.Input]:
    """A span of frames of clips, and how it fades."""
    return [
        io.Int.Input(
            "first_frame",
            default=0,
            min=-65536,
            max=65535,
            optional=True,
            tooltip="Of clips: the first frame of a span, numbered from 0; outside the span nothing changes. Negative "
            "numbers count from the end.",
        ),
        io.Int.Input(
            "last_frame",
            default=-1,
            min=-65536,
            max=65535,
            optional=True,
            tooltip="Of clips: the last frame of the span; -1 is the last of the clip.",
        ),
        io.Int.Input(
            "fade_frames",
            default=0,
            min=0,
            max=1024,
            optional=True,
            tooltip="Of clips: over how many frames the mask fades, before and after.",
        ),
    ]


def uncertainty_inputs() -> list[io.Input]:
    """The inputs that our samplers add to the stock ones."""
    return [
        head_input("a first look, how much the image was yet to change in the run. Quality has no effect then."),
        io.Combo.Input(
            "quality",
            options=[*QUALITIES, ENSEMBLE],
            default=DEFAULT_QUALITY,
            tooltip="Instant: what the run itself shows, at no network call. Draft, balanced, precise: at most 1.25, 2 "
            "and 4 times the calls of plain sampling at 20 steps; more give truer maps and scores. Ensemble: samples "
            "each member from start to end; the reference.",
        ),
        io.Int.Input(
            "members",
            default=8,
            min=FEWEST_MEMBERS,
            max=MOST_MEMBERS,
            tooltip="For quality 'ensemble' only: number of posterior members. Each samples the image once more.",
        ),
        UncertaintyOptionsType.Input(
            "options", optional=True, tooltip="Expert: the estimator, what to record, and the preview."
        ),
    ]


def before_input() -> io.Input:
    """The uncertainty that an earlier stage left."""
    return UncertaintyType.Input(
        "uncertainty",
        optional=True,
        tooltip="Uncertainty of the latent that comes in, from the stage before. Then the result counts both stages.",
    )


def uncertainty_outputs() -> list[io.Output]:
    return [
        UncertaintyType.Output("uncertainty_out", display_name="uncertainty", tooltip="Variance of each latent cell."),
        io.Float.Output(
            "scores", display_name="scores", is_output_list=True, tooltip="One score per image: higher is less certain."
        ),
    ]


def sampler_outputs() -> list[io.Output]:
    """The outputs that our samplers add to the stock ones."""
    return [
        *uncertainty_outputs(),
        io.Float.Output(
            "percentiles",
            display_name="percentiles",
            is_output_list=True,
            tooltip="For each score: what percentage of the model's own images, sampled at the head's fit, score "
            "lower, so the model is more certain of them. Needs a head.",
        ),
    ]


NO_SCALE = (
    "Expected an uncertainty that knows the scores of the model's own images for the output percentiles, got one that "
    "does not; connect a head that this version fitted, and choose a quality instead of another estimator."
)


def read_out(uncertainty: Uncertainty) -> tuple:
    """The outputs of :func:`sampler_outputs`. Of what is unknown, scores are NaN."""
    beside = Beside()
    if uncertainty.is_known:
        with beside.guarded("scoring the images"):
            percentiles = uncertainty.percentiles()
            known = ExecutionBlocker(NO_SCALE) if percentiles is None else percentiles.tolist()
            return uncertainty, uncertainty.scores().tolist(), known
    return uncertainty, [math.nan] * len(uncertainty), ExecutionBlocker(uncertainty.unknown or beside.problem)


def nothing_to_read(node: type[io.ComfyNode], uncertainty: Uncertainty) -> io.NodeOutput | None:
    """What a node returns of an uncertainty with unknown images: the host shows why, and goes on elsewhere.

    An error would stop the graph before it saves the images. None where all is known.
    """
    if not uncertainty.unknown:
        return None
    # Each output by itself: the host drops a NodeOutput that blocks and has no outputs.
    return io.NodeOutput(*[ExecutionBlocker(uncertainty.why_unknown)] * len(node.define_schema().outputs))

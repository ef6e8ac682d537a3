"""The stock sampler, and beside it the uncertainty of what it samples."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import comfy.utils
import latent_preview
import torch
from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import WrappersMP

from ..bayesdiff_core.ensemble import EnsembleVariance
from ..bayesdiff_core.laplace_head import LaplaceHead
from ..bayesdiff_core.uncertainty import Uncertainty
from .deviations import Deviations, generator_devices
from .last_layer import LastLayer, latent_downscale

WRAPPER_KEY = "bayesdiff"
# Mixed into the seed of the posterior draws: with the bare seed they would repeat the numbers of the initial noise.
DRAWS = 0x5EEDB4A7E5D1FF00
# A run samples one latent dict with the model that it is given, always from the same noise.
Run = Callable[[ModelPatcher], dict]


@dataclasses.dataclass(frozen=True)
class Ensemble:
    """Sample every member from start to end (:mod:`~..bayesdiff_core.ensemble`): the reference, and the dearest."""

    members: int
    name = "ensemble"


@dataclasses.dataclass(frozen=True)
class Thinned:
    """Follow members as deviations from the run (:mod:`~..bayesdiff_core.deviations`).

    Attributes:
        share: calls of the network to spend on members, as a share of those of the run.
        states: at about how many states of the run each member is followed.
    """

    share: float
    states: int
    name = "deviations"


class Progress:
    """One progress bar over all network calls of a node, with the host's own latent preview in the first run.

    A step of a sampling run counts as one call; where it takes more the bar is set right once the run is over.

    Args:
        runs: sampling runs to come.
        share: calls to come after the runs, as a share of those of one.
    """

    def __init__(self, model: ModelPatcher, runs: int, share: float = 0.0):
        self.runs, self.share, self.finished = runs, share, 0
        # What the sampler last predicted in the first run, in model space.
        self.denoised: torch.Tensor | None = None
        self.bar = comfy.utils.ProgressBar(runs)
        self.previewer = latent_preview.get_previewer(model.load_device, model.model.latent_format)

    def step(self, step: int, denoised: torch.Tensor, x: torch.Tensor, total_steps: int) -> None:
        preview = None
        if self.finished == 0:
            self.denoised = denoised
            if self.previewer:
                preview = self.previewer.decode_latent_to_preview_image("JPEG", denoised)
        done = self.finished * total_steps + step + 1
        self.bar.update_absolute(done, round((self.runs + self.share) * total_steps), preview)

    def call(self, done: int, total: int, before: int) -> None:
        """``done`` of ``total`` calls are over, after ``before`` of the sampling run."""
        self.bar.update_absolute(before + done, before + total)


def run_within(
    run: Run,
    model: ModelPatcher,
    progress: Progress,
    context: Callable[[], AbstractContextManager] = nullcontext,
    deviations: Deviations | None = None,
) -> dict:
    """Do one sampling run with a clone of ``model``, inside ``context`` and counted by ``progress``."""

    def outer_sample(
        executor, noise, latent_image, sampler, sigmas, denoise_mask=None, callback=None, disable_pbar=False, seed=None,
        **options,
    ):  # fmt: skip
        with context():
            return executor(
                noise, latent_image, sampler, sigmas, denoise_mask, progress.step, disable_pbar, seed, **options
            )

    clone = model.clone()
    clone.add_wrapper_with_key(WrappersMP.OUTER_SAMPLE, WRAPPER_KEY, outer_sample)
    if deviations is not None:
        deviations.add_to(clone, WRAPPER_KEY)
    latent = run(clone)
    progress.finished += 1
    return latent


def sample_with_uncertainty(
    run: Run, model: ModelPatcher, layer: LastLayer, head: LaplaceHead, estimator: Ensemble | Thinned, seed: int
) -> tuple[dict, dict, Uncertainty]:
    """Sample once with the model's own weights, and see beside it what draws of its last layer change.

    Args:
        run: the sampling run. It is the stock sampler's own, so the latent is the stock sampler's bit for bit.
        layer: last layer of ``model``, from :func:`~.last_layer.check_head`.
        seed: seed of the draws; they come from a generator of their own.

    Returns:
        the latent dict of the run, that of its last prediction of ``denoised``, and the uncertainty of the former.
    """
    generator = torch.Generator().manual_seed(seed ^ DRAWS)
    if isinstance(estimator, Ensemble):
        progress = Progress(model, 1 + estimator.members)
        latent, variance, members = sample_with_ensemble(run, model, progress, layer, head, estimator, generator)
    else:
        progress = Progress(model, 1, estimator.share)
        latent, variance, members = sample_with_deviations(run, model, progress, layer, head, estimator, generator)
    denoised = latent
    if progress.denoised is not None:
        denoised = latent | {"samples": model.model.process_latent_out(progress.denoised.cpu())}
    uncertainty = Uncertainty(
        variance=variance,
        latent=latent["samples"],
        downscale=latent_downscale(model),
        estimator=estimator.name,
        members=members,
        head=head.about,
        cost=1.0,
        deviations=torch.empty(0, *variance.shape),
    )
    return latent, denoised, uncertainty


def sample_with_ensemble(
    run: Run, model: ModelPatcher, progress: Progress, layer: LastLayer, head: LaplaceHead, estimator: Ensemble,
    generator: torch.Generator,
) -> tuple[dict, torch.Tensor, int]:  # fmt: skip
    """The latent dict of the run, the variance of its samples, and the number of members."""
    latent = run_within(run, model, progress)
    found = EnsembleVariance(latent["samples"])
    # Every run reseeds the global generator; afterwards it stands where the stock sampler would have left it.
    with torch.random.fork_rng(generator_devices(model.load_device)):
        for _ in range(estimator.members):
            delta = head.draw(generator)
            member = run_within(run, model, progress, lambda delta=delta: layer.perturbed(delta))
            found.add(member["samples"])
    return latent, found.variance(), found.count


def sample_with_deviations(
    run: Run, model: ModelPatcher, progress: Progress, layer: LastLayer, head: LaplaceHead, estimator: Thinned,
    generator: torch.Generator,
) -> tuple[dict, torch.Tensor, int]:  # fmt: skip
    """The latent dict of the run, the variance of its samples, and the number of members."""
    deviations = Deviations(layer, head, estimator.share, estimator.states, generator, progress.call)
    latent = run_within(run, model, progress, deviations=deviations)
    if deviations.variance is None:  # a run of no steps
        return latent, torch.zeros_like(latent["samples"]), 0
    return latent, deviations.variance, deviations.members

"""The stock sampler, and the posterior ensemble run beside it."""

from __future__ import annotations

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
from .last_layer import LastLayer, latent_downscale

WRAPPER_KEY = "bayesdiff"
# Mixed into the seed of the posterior draws: with the bare seed they would repeat the numbers of the initial noise.
DRAWS = 0x5EEDB4A7E5D1FF00
# A run samples one latent dict with the model that it is given, always from the same noise.
Run = Callable[[ModelPatcher], dict]


class RunsProgress:
    """One progress bar over several sampling runs, with the host's own latent preview during the first."""

    def __init__(self, model: ModelPatcher, runs: int):
        self.runs, self.finished = runs, 0
        self.bar = comfy.utils.ProgressBar(runs)
        self.previewer = latent_preview.get_previewer(model.load_device, model.model.latent_format)

    def callback(self, step: int, denoised: torch.Tensor, x: torch.Tensor, total_steps: int) -> None:
        preview = None
        if self.previewer and self.finished == 0:
            preview = self.previewer.decode_latent_to_preview_image("JPEG", denoised)
        done = self.finished * total_steps + step + 1
        self.bar.update_absolute(done, self.runs * total_steps, preview)


def run_within(
    run: Run, model: ModelPatcher, progress: RunsProgress, context: Callable[[], AbstractContextManager] = nullcontext
) -> dict:
    """Do one sampling run with a clone of ``model``, inside ``context`` and counted by ``progress``."""

    def outer_sample(
        executor, noise, latent_image, sampler, sigmas, denoise_mask=None, callback=None, disable_pbar=False, seed=None,
        **options,
    ):  # fmt: skip
        with context():
            return executor(
                noise, latent_image, sampler, sigmas, denoise_mask, progress.callback, disable_pbar, seed, **options
            )

    clone = model.clone()
    clone.add_wrapper_with_key(WrappersMP.OUTER_SAMPLE, WRAPPER_KEY, outer_sample)
    latent = run(clone)
    progress.finished += 1
    return latent


def sample_with_ensemble(
    run: Run, model: ModelPatcher, layer: LastLayer, head: LaplaceHead, members: int, seed: int
) -> tuple[dict, Uncertainty]:
    """Sample once with the model's own weights, then ``members`` times with draws of its last layer.

    Args:
        run: the sampling run. It is the stock sampler's own, so the latent is the stock sampler's bit for bit.
        layer: last layer of ``model``, from :func:`check_head`.
        members: number of posterior draws, at least 2.
        seed: seed of the draws; they come from a generator of their own.

    Returns:
        the latent dict of the nominal run, and the uncertainty of its samples.
    """
    progress = RunsProgress(model, 1 + members)
    latent = run_within(run, model, progress)
    variance = EnsembleVariance(latent["samples"])
    generator = torch.Generator().manual_seed(seed ^ DRAWS)
    # Every run reseeds the global generator; afterwards it stands where the stock sampler would have left it.
    cuda_devices = [model.load_device] if model.load_device.type == "cuda" else []
    with torch.random.fork_rng(cuda_devices):
        for _ in range(members):
            delta = head.draw(generator)
            member = run_within(run, model, progress, lambda delta=delta: layer.perturbed(delta))
            variance.add(member["samples"])
    uncertainty = Uncertainty(
        variance=variance.variance(),
        latent=latent["samples"],
        downscale=latent_downscale(model),
        estimator="ensemble",
        members=members,
        head=head.about,
    )
    return latent, uncertainty

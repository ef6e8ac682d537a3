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
from PIL import Image

from ..bayesdiff_core.estimators import Estimate, Estimator
from ..bayesdiff_core.estimators.ensemble import Ensemble, EnsembleVariance
from ..bayesdiff_core.laplace_head import LaplaceHead
from ..bayesdiff_core.maps import colour_map, normalise_map, overlay_map, resize_map
from ..bayesdiff_core.nominal import nearest
from ..bayesdiff_core.uncertainty import Moment, Uncertainty, std_of
from .beside import Beside, estimating, generator_devices
from .last_layer import LastLayer, latent_downscale

WRAPPER_KEY = "bayesdiff"
# Mixed into the seed of the posterior draws: with the bare seed they would repeat the numbers of the initial noise.
DRAWS = 0x5EEDB4A7E5D1FF00
# Members whose deviations are kept, to decode or to compare; more would only take memory.
KEPT_MEMBERS = 16
# Shares of the steps after which the trajectory is kept, unless other points of it are asked for.
KEPT_SHARES = (0.2, 0.4, 0.6, 0.8)
# A run samples one latent dict with the model that it is given, always from the same noise.
Run = Callable[[ModelPatcher], dict]


@dataclasses.dataclass(frozen=True)
class Wishes:
    """What a user may ask for beyond an estimate.

    Attributes:
        levels: sigmas at which mean and variance of the noisy latent are kept, each at the nearest of the run. Without
            any they are kept after some shares of the steps, which takes no call of the network: then every picture
            can be resampled.
        map_preview: whether the preview shows the growing uncertainty over the picture once that is there.
    """

    levels: tuple[float, ...] = ()
    map_preview: bool = False

    def levels_of(self, sigmas: torch.Tensor) -> tuple[float, ...]:
        """The sigmas that are kept of a run with these noise levels."""
        last = len(sigmas) - 1
        steps = sorted({round(share * last) for share in KEPT_SHARES} - {0, last})
        return self.levels or tuple(float(sigmas[step]) for step in steps)


class Progress:
    """One progress bar over all network calls of a node, with the host's own latent preview in the first run.

    A step of a sampling run counts as one call; where it takes more the bar is set right once the run is over.

    Args:
        runs: sampling runs to come.
        extra: calls to come after the runs, from the number of those of one.
        map_preview: see :class:`Wishes`.
        stage: which part of how many this is of what the node does, from 0; each has the same share of the bar.
    """

    def __init__(
        self, model: ModelPatcher, runs: int, extra: Callable[[int], int] = lambda count: 0, map_preview: bool = False,
        stage: tuple[int, int] = (0, 1),
    ):  # fmt: skip
        self.runs, self.extra, self.map_preview, self.finished, self.stage = runs, extra, map_preview, 0, stage
        # What the sampler last predicted in the first run, in model space, and the host's preview of it.
        self.denoised: torch.Tensor | None = None
        self.picture: Image.Image | None = None
        self.value = self.total = self.steps = 0
        self.bar = comfy.utils.ProgressBar(runs)
        self.previewer = latent_preview.get_previewer(model.load_device, model.model.latent_format)

    def step(self, step: int, denoised: torch.Tensor, x: torch.Tensor, total_steps: int) -> None:
        preview = None
        if self.finished == 0:
            self.denoised = denoised
            if self.previewer:
                preview = self.previewer.decode_latent_to_preview_image("JPEG", denoised)
                self.picture = preview[1]
        self.steps = total_steps
        done = self.finished * total_steps + step + 1
        self.update(done, self.runs * total_steps + self.extra(total_steps), preview)

    def call(self, done: int, total: int, before: int) -> None:
        """``done`` of ``total`` calls are over, after ``before`` of the sampling run, which a cache makes fewer."""
        before = max(before, self.steps)
        self.update(before + done, before + total)

    def update(self, value: int, total: int, preview=None) -> None:
        before, stages = self.stage
        self.value, self.total = before * total + value, stages * total
        self.bar.update_absolute(self.value, self.total, preview)

    def show(self, variance: torch.Tensor) -> None:
        """Show the uncertainty so far, as the user wished it, over the last preview of the first picture."""
        if not self.map_preview or variance.ndim not in (4, 5):
            return
        values = std_of(variance[:1] if variance.ndim == 4 else variance[:1, :, 0])
        size = latent_preview.MAX_PREVIEW_RESOLUTION
        if self.picture is None:
            scale = size / max(values.shape[1:])
            heat = colour_map(normalise_map(values, True))[0]
            image = to_pil(heat).resize((round(values.shape[2] * scale), round(values.shape[1] * scale)))
        else:
            picture = self.picture.convert("RGB")
            frame = torch.frombuffer(bytearray(picture.tobytes()), dtype=torch.uint8).float() / 255
            frame = frame.reshape(1, picture.height, picture.width, 3)
            values = normalise_map(resize_map(values, picture.height, picture.width), True)
            image = to_pil(overlay_map(frame, values, 0.85)[0])
        self.bar.update_absolute(self.value, self.total, ("JPEG", image, size))


def to_pil(picture: torch.Tensor) -> Image.Image:
    return Image.fromarray((picture * 255).round().byte().numpy())


def nearest_steps(sigmas: torch.Tensor, levels: tuple[float, ...]) -> list[int]:
    """The steps, from 0, that start nearest to the levels, highest level first."""
    starts = sigmas[:-1].tolist()
    return [nearest(starts, level) for level in sorted(levels, reverse=True)] if starts else []


def run_within(
    run: Run,
    model: ModelPatcher,
    progress: Progress,
    context: Callable[[], AbstractContextManager] = nullcontext,
    beside: Beside | None = None,
    levels_of: Callable[[torch.Tensor], tuple[float, ...]] = lambda sigmas: (),
) -> tuple[dict, list[tuple[float, torch.Tensor]]]:
    """Do one sampling run with a clone of ``model``, inside ``context`` and counted by ``progress``.

    Returns:
        what the run returns, and sigma and noisy latent of the steps that start nearest to the levels that
        ``levels_of`` chooses of the run's noise levels, the latter as a stock sampler that stops there would return it.
    """
    passed: list[tuple[float, torch.Tensor]] = []

    def outer_sample(
        executor, noise, latent_image, sampler, sigmas, denoise_mask=None, callback=None, disable_pbar=False, seed=None,
        **options,
    ):  # fmt: skip
        wanted, levels_of_steps = nearest_steps(sigmas, levels_of(sigmas)), sigmas.tolist()

        def step(number, denoised, x, total_steps):
            for _ in range(wanted.count(number)):
                level = torch.full((1,), levels_of_steps[number])
                unscaled = sampling.inverse_noise_scaling(level, x.float().cpu())
                passed.append((levels_of_steps[number], model.model.process_latent_out(unscaled)))
            progress.step(number, denoised, x, total_steps)

        with context():
            return executor(noise, latent_image, sampler, sigmas, denoise_mask, step, disable_pbar, seed, **options)

    clone, sampling = model.clone(), model.get_model_object("model_sampling")
    clone.add_wrapper_with_key(WrappersMP.OUTER_SAMPLE, WRAPPER_KEY, outer_sample)
    if beside is not None:
        beside.add_to(clone, WRAPPER_KEY)
    latent = run(clone)
    progress.finished += 1
    return latent, passed


def sample_with_uncertainty(
    run: Run, model: ModelPatcher, layer: LastLayer, head: LaplaceHead, estimator: Estimator | Ensemble, seed: int,
    wishes: Wishes = Wishes(), stage: tuple[int, int] = (0, 1),
) -> tuple[dict, dict, Uncertainty]:  # fmt: skip
    """Sample once with the model's own weights, and see beside it what draws of its last layer change.

    Args:
        run: the sampling run. It is the stock sampler's own, so the latent is the stock sampler's bit for bit.
        layer: last layer of ``model``, from :func:`~.last_layer.check_head`.
        seed: seed of the draws; they come from a generator of their own.
        stage: see :class:`Progress`.

    Returns:
        the latent dict of the run, that of its last prediction of ``denoised``, and the uncertainty of the former.
    """
    generator = torch.Generator().manual_seed(seed ^ DRAWS)
    if isinstance(estimator, Ensemble):
        latent, denoised, found = sample_with_ensemble(run, model, layer, head, estimator, generator, wishes, stage)
    else:
        latent, denoised, found = sample_beside(run, model, layer, head, estimator, generator, wishes, stage)
    if denoised is None:
        denoised = latent
    else:
        denoised = latent | {"samples": model.model.process_latent_out(denoised.cpu())}
    uncertainty = Uncertainty(
        latent=latent["samples"],
        downscale=latent_downscale(model),
        estimator=estimator.name,
        head=head.about,
        **found,
    )
    return latent, denoised, uncertainty


def sample_with_ensemble(
    run: Run, model: ModelPatcher, layer: LastLayer, head: LaplaceHead, estimator: Ensemble,
    generator: torch.Generator, wishes: Wishes, stage: tuple[int, int],
) -> tuple[dict, torch.Tensor | None, dict]:  # fmt: skip
    """The latent dict of the run, its last ``denoised`` in model space, and fields of its uncertainty."""
    progress = Progress(model, 1 + estimator.members, map_preview=wishes.map_preview, stage=stage)
    latent, passed = run_within(run, model, progress, levels_of=wishes.levels_of)
    found, points = EnsembleVariance(latent["samples"]), [EnsembleVariance(x) for _, x in passed]
    deviations = []
    # Every run reseeds the global generator; afterwards it stands where the stock sampler would have left it.
    with estimating(), torch.random.fork_rng(generator_devices(model.load_device)):
        for _ in range(estimator.members):
            delta = head.draw(generator)
            member, on_the_way = run_within(
                run, model, progress, lambda delta=delta: layer.perturbed(delta), levels_of=wishes.levels_of
            )
            found.add(member["samples"])
            for point, (_, x) in zip(points, on_the_way):
                point.add(x)
            if len(deviations) < KEPT_MEMBERS:
                deviations.append(member["samples"] - latent["samples"])
            progress.show(found.mean_square())
    return (
        latent,
        progress.denoised,
        dict(
            variance=found.variance(),
            members=found.count,
            cost=1.0 + found.count,
            deviations=torch.stack(deviations),
            trajectory=tuple(Moment(sigma, x, point.variance()) for (sigma, x), point in zip(passed, points)),
        ),
    )


def sample_beside(
    run: Run, model: ModelPatcher, layer: LastLayer, head: LaplaceHead, estimator: Estimator,
    generator: torch.Generator, wishes: Wishes, stage: tuple[int, int],
) -> tuple[dict, torch.Tensor | None, dict]:  # fmt: skip
    """The latent dict of the run, its last ``denoised`` in model space, and fields of its uncertainty."""
    progress = Progress(model, 1, estimator.calls, wishes.map_preview, stage)
    beside = Beside(layer, head, estimator, wishes.levels_of, generator, progress.call, progress.show)
    latent, _ = run_within(run, model, progress, beside=beside)
    nothing = torch.zeros_like(latent["samples"])
    # A run of no steps finds none.
    estimate = beside.estimate or Estimate(nothing, torch.empty(0, *nothing.shape), {})
    return (
        latent,
        progress.denoised,
        dict(
            variance=estimate.variance,
            members=len(estimate.deviations),
            cost=1.0 + beside.calls / max(len(beside.states), 1),
            deviations=estimate.deviations[:KEPT_MEMBERS],
            trajectory=tuple(Moment(*point) for point in beside.trajectory),
        ),
    )

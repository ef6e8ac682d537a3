"""A head learns from some of its model's own images how the variance follows what their runs show."""

from __future__ import annotations

import dataclasses
import functools
import logging
import traceback
from typing import NamedTuple

import comfy.model_management
import torch
from comfy.model_patcher import ModelPatcher

from ..bayesdiff_core.estimators.base import Estimate, Estimator, NominalRun
from ..bayesdiff_core.estimators.evidence import Evidence, is_needed, read_evidence
from ..bayesdiff_core.estimators.parts import pack, unpack
from ..bayesdiff_core.estimators.trajectory import SaveAt, Unknown, root_mean_square
from ..bayesdiff_core.estimators.trend import Seen, Trend, fit_trend
from ..bayesdiff_core.posterior.calibration import Calibration
from ..bayesdiff_core.posterior.laplace_head import LaplaceHead
from ..bayesdiff_core.reading.scale import ScoreScale
from ..bayesdiff_core.reading.scores import SCORES
from ..bayesdiff_core.reading.uncertainty import Uncertainty
from .nested import by_part, normal_noise, parts_of, shapes_of
from .posterior import Posterior
from .run.progress import Progress
from .run.sample import sample_with_uncertainty
from .run.space import latent_slope, scales
from .run.stock import sample_stock
from .said import once_each
from .settings import WHOLE, Part, RunSettings, Start, Stretch

# Mixed into the seed: these images shall be others than those that the head was fitted on.
OWN_IMAGES = 0x0CA11B8A7E


class Watch(Estimator):
    """Reads what a run shows, of each part of a nested latent, and estimates nothing."""

    name, help = "watch", ""
    evidence: list[Evidence]

    def wants_variance(self, noise_over_signal: float, schedule: list[float]) -> bool:
        return is_needed(noise_over_signal, schedule)

    def calls(self, levels: list[float]) -> int:
        return 0

    def estimate(self, run: NominalRun, along: list[int]) -> Estimate:
        self.evidence = [read_evidence(part) for part in run.trajectory.parts]
        nothing = torch.zeros(run.trajectory.shape)
        return Estimate(nothing, nothing[None][:0], dict.fromkeys(along, nothing))


@dataclasses.dataclass(frozen=True)
class OwnImage:
    """One of the model's own images, or one part of its nested latent.

    Attributes:
        latent: ``(1, ...)``, as the user sees it.
        slope: of that latent in the model's own.
        seen: what its run showed, and where members ended.
    """

    latent: torch.Tensor
    slope: torch.Tensor
    seen: Seen


class OwnRun(NamedTuple):
    """How one of the model's own images is sampled.

    Attributes:
        settings: of the run.
        latent: ``(1, ...)``, what it starts from where its part of the schedule does not begin at pure noise.
        part: of the schedule.
    """

    settings: RunSettings
    latent: torch.Tensor
    part: Part = WHOLE


@once_each()
def calibrate(head: LaplaceHead, model: ModelPatcher, runs: list[OwnRun], seed: int, members: int = 1) -> LaplaceHead:
    """The head with what it learned.

    Each image takes ``1 + members`` sampling runs.

    Args:
        runs: of each image.
        seed: of noise and draws.

    Returns:
        the head as it was where its model's runs show nothing; the log says why.
    """
    posterior = Posterior.bind(head, model, seed)
    generator = torch.Generator().manual_seed(seed ^ OWN_IMAGES)
    images = []
    try:
        for number, own in enumerate(runs):
            noise = normal_noise(own.latent, 1, generator)
            draws = range(number * members, (number + 1) * members)
            images.append(own_image(posterior, own, noise, draws, (number, len(runs))))
        learned = [calibration_of(list(same)) for same in zip(*images)]
    except comfy.model_management.InterruptProcessingException:
        raise
    except Exception as error:
        # The fit itself is there, and may have taken hours. The trace goes as text: a record would hold the run alive.
        trace = "" if isinstance(error, Unknown) else "\n" + traceback.format_exc()
        logging.warning(
            f"BayesDiff: this Laplace head could not learn from the model's own images ({error}), so 'instant' is a "
            f"first look only with it, and scores have no percentiles.{trace}"
        )
        return head
    first, *others = (
        dataclasses.replace(each, calibration=found) for each, found in zip((head, *head.others), learned)
    )
    return dataclasses.replace(first, others=tuple(others))


def calibration_of(images: list[OwnImage]) -> Calibration:
    trend = fit_trend([image.seen for image in images])
    return Calibration(trend, scale_of(images, trend))


def own_image(
    posterior: Posterior, own: OwnRun, noise: torch.Tensor, draws: range, stage: tuple[int, int]
) -> list[OwnImage]:
    """One image, and the same under draws of the posterior; of nested latents each part."""
    model, (number, images) = posterior.model, stage
    runs, settings, sigmas = 1 + len(draws), own.settings, own.settings.sigmas(model)
    steps = Stretch.of(own.part, sigmas, model.get_model_object("model_sampling"))
    every = SaveAt(tuple(sigmas[steps.first : steps.last].tolist()))
    latent = {"samples": by_part(torch.zeros_like, noise) if steps.first == 0 else own.latent}

    def run(model: ModelPatcher, latent: dict) -> dict:
        start = Start(latent["samples"], noise, steps.first)
        return {"samples": settings.sample_from(model, start, posterior.seed, None, steps.last)}

    def progress(part: int) -> Progress:
        return Progress(model, stage=(number * runs + part, images * runs))

    watch = Watch()
    nominal = sample_with_uncertainty(run, latent, posterior, watch, every, progress(0)).uncertainty
    latents = [part.latent.float() for part in nominal.parts]
    shapes = shapes_of(noise)
    deviations, ways = [], []
    for part, draw in enumerate(draws, 1):
        weights = functools.partial(posterior.perturbed, draw)
        member, passed = sample_stock(run, model, latent, progress(part), weights, save_at=every)
        deviations.append([ended.float() - own for ended, own in zip(parts_of(member["samples"]), latents)])
        ways.append({sigma: unpack(x, shapes) for sigma, x in passed})
    slopes = unpack(latent_slope(model.model, pack(latents, shapes)).float(), shapes)
    found = []
    for number, part in enumerate(nominal.parts):
        moved = torch.stack([member[number] for member in deviations])
        passed = [{sigma: parts[number] for sigma, parts in way.items()} for way in ways]
        way = way_of(model, part, passed, root_mean_square(moved))
        seen = Seen(watch.evidence[number], moved / slopes[number], way)
        found.append(OwnImage(part.latent, slopes[number], seen))
    return found


def way_of(model: ModelPatcher, nominal: Uncertainty, passed: list[dict], end: float) -> dict[float, float]:
    """How far members are from an image on the way, over how far they end from it, see :class:`.Seen`.

    Args:
        passed: of each member, its noisy latent at each sigma.
        end: root mean square of how far they end from it.
    """
    if not end > 0:
        raise Unknown("a draw of the last layer changes nothing")
    sampling, way = model.get_model_object("model_sampling"), {}
    for moment in nominal.trajectory:
        there = [x[moment.sigma] - moment.latent for x in passed if moment.sigma in x]
        moved = root_mean_square(torch.stack(there))
        if moved > 0:
            way[scales(sampling, moment.sigma).noise_over_signal] = moved / end
    return way


def scale_of(images: list[OwnImage], trend: Trend) -> ScoreScale | None:
    """Scores of the images by the trend."""
    scores: dict[str, list[torch.Tensor]] = {}
    for image in images:
        evidence = image.seen.evidence
        cells = trend.slopes(evidence).log_variance(evidence).exp()
        variance = cells[:, None] * image.slope.square()
        for name, score in SCORES.items():
            scores.setdefault(name, []).append(score(variance, image.latent, None))
    return ScoreScale.of({name: torch.cat(found) for name, found in scores.items()})

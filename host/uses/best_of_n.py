"""Sample many images for a share of their steps, and finish only the most certain."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import torch
from comfy.model_base import SVD_img2vid
from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import WrappersMP

from ...bayesdiff_core.estimators.base import Estimator
from ...bayesdiff_core.reading import rank
from ...bayesdiff_core.reading.uncertainty import Uncertainty
from ..nested import count_of
from ..posterior import NoPosterior, Posterior
from ..run.progress import Progress
from ..run.quirks import Generators, has_memory
from ..run.sample import sample_with_uncertainty
from ..run.stock import sample_stock
from ..said import once_each
from ..selection import join_latents, select_latent

COUNT_KEY, RUN_KEY = "bayesdiff_count", "bayesdiff_run"
# ``sample(model, latent, numbers, last_step)`` samples the candidates of these numbers from their LATENT, up to a step
# or, with None, to the end; a number always starts from the same noise.
Sample = Callable[[ModelPatcher, dict, list[int], int | None], dict]


class Counter:
    """Counts what a model predicts: one call per image, guidance and all."""

    def __init__(self):
        self.calls = 0

    def predict_noise(self, executor, x, *args, **options):
        self.calls += len(x)
        return executor(x, *args, **options)

    def count(self, model: ModelPatcher) -> ModelPatcher:
        clone = model.clone()
        clone.add_wrapper_with_key(WrappersMP.PREDICT_NOISE, COUNT_KEY, self.predict_noise)
        return clone


class PredictionCache:
    """What a model predicted for each candidate, so that sampling it again from the start need not ask again.

    A prediction is used again only where sigma and noised latents are the recorded ones to the bit, at the same
    place of a batch of the same size: what a network computes differs by rounding between places and sizes. So a
    sampler goes on as from its own predictions, also one that remembers earlier steps. A prediction for which a patch
    drew random numbers is made again: those of the steps to come follow from it.

    Attributes:
        replayed: predictions that were used again, counted per image.
    """

    def __init__(self):
        # By candidate, in the order of the calls: place and size of its batch, sigma, noised latent, prediction.
        self.seen: dict[int, list[tuple[tuple[int, int], float, torch.Tensor, torch.Tensor]]] = {}
        self.replayed = 0

    def record(self, model: ModelPatcher, numbers: list[int]) -> ModelPatcher:
        """A clone of ``model`` whose next sampling run, of the candidates ``numbers``, is recorded."""
        seen = [self.seen.setdefault(number, []) for number in numbers]
        if any(seen):  # a further run, of an ensemble's member
            return model

        def predict_noise(executor, x, timestep, model_options=None, seed=None):
            generators = Generators.now(x.device)
            denoised = executor(x, timestep, model_options, seed)
            if not has_memory(model_options) and generators.stood_still(Generators.now(x.device)):
                images = zip(seen, timestep.tolist(), x.to("cpu", copy=True), denoised.to("cpu", copy=True))
                for place, (states, *state) in enumerate(images):
                    states.append(((place, len(x)), *state))
            return denoised

        return while_sampling(model, predict_noise)

    def replay(self, model: ModelPatcher, numbers: list[int]) -> ModelPatcher:
        """A clone of ``model`` whose next sampling run, of the candidates ``numbers``, begins with what is recorded."""
        coming = list(zip(*(self.seen[number] for number in numbers)))[::-1]

        def predict_noise(executor, x, timestep, model_options=None, seed=None):
            if coming and not has_memory(model_options):
                places, sigmas, latents, denoised = zip(*coming[-1])
                if (
                    list(places) == [(place, len(x)) for place in range(len(x))]
                    and list(sigmas) == timestep.tolist()
                    and torch.equal(torch.stack(latents), x.cpu())
                ):
                    coming.pop()
                    self.replayed += len(x)
                    return torch.stack(denoised).to(x)
            return executor(x, timestep, model_options, seed)

        return while_sampling(model, predict_noise)


def while_sampling(model: ModelPatcher, predict_noise) -> ModelPatcher:
    """A clone of ``model`` with a PREDICT_NOISE wrapper that is there while the host's own sampler runs, not after."""
    active = False

    def sampler_sample(executor, *args, **options):
        nonlocal active
        active = True
        try:
            return executor(*args, **options)
        finally:
            active = False

    def guarded(executor, *args, **options):
        return predict_noise(executor, *args, **options) if active else executor(*args, **options)

    clone = model.clone()
    clone.add_wrapper_with_key(WrappersMP.SAMPLER_SAMPLE, RUN_KEY, sampler_sample)
    clone.add_wrapper_with_key(WrappersMP.PREDICT_NOISE, RUN_KEY, guarded)
    return clone


@dataclasses.dataclass(frozen=True)
class BestOfN:
    """What :func:`best_of_n` returns. Calls are predictions of one image, guidance and all.

    Attributes:
        latent: LATENT of the kept, finished, best first.
        uncertainty: of the finished images, if it was asked for.
        scores: early scores of all candidates, ``(n,)``.
        kept: numbers of the kept, best first.
        ranking: network calls of the ranking.
        finishing: network calls of finishing.
        replayed: predictions of the ranking that finishing used again.
        whole: network calls of sampling all candidates to the end, without any score.
    """

    latent: dict
    uncertainty: Uncertainty | None
    scores: torch.Tensor
    kept: list[int]
    ranking: int
    finishing: int
    replayed: int
    whole: int

    @property
    def saved(self) -> float:
        """Share of the calls of ``whole`` that were not made; negative where more were."""
        return 1 - (self.ranking + self.finishing) / self.whole if self.whole else 0.0


@dataclasses.dataclass(frozen=True)
class Plan:
    """How to choose.

    Attributes:
        keep: how many to finish.
        steps: after how many steps to rank; the last of them goes down to the image itself.
        batch_size: how many to sample together.
        score_finished: estimate the uncertainty of the finished images too. Then no prediction is used again, as the
            estimator has to see the network at work.
    """

    keep: int
    steps: int
    batch_size: int = 1
    score_finished: bool = False


@once_each()
def best_of_n(
    sample: Sample,
    latent: dict,
    posterior: Posterior | NoPosterior,
    estimator: Estimator,
    plan: Plan,
    before: Uncertainty | None = None,
) -> BestOfN:
    """Rank candidates by the uncertainty of what they would become if they ended early, and finish the best.

    The finished images are the stock sampler's own: they are sampled again from the start, and predictions of the
    ranking take the place of the network's only where it would be asked the very same again.

    Args:
        latent: LATENT of all candidates.
        posterior, estimator: for :func:`~..run.sample.sample_with_uncertainty`.
        before: uncertainty of the latents, if an earlier stage left one.
    """

    def of_these(numbers: list[int]) -> Uncertainty | None:
        return None if before is None else before.select(torch.tensor(numbers))

    cache, ranking, finishing, sampling = PredictionCache(), Counter(), Counter(), Counter()
    model, candidates, found = posterior.model, count_of(latent["samples"]), []
    for numbers in chunks(list(range(candidates)), plan.batch_size):

        def rank_some(model, latent, numbers=numbers):
            return sample(cache.record(model, numbers), latent, numbers, plan.steps)

        start, counted = select_latent(latent, numbers), posterior.on(ranking.count(model))
        sampled = sample_with_uncertainty(rank_some, start, counted, estimator, before=of_these(numbers))
        found.append(sampled.uncertainty.scores())
    scores = torch.cat(found)
    kept = rank.rank(scores)[: plan.keep].tolist()

    latents, uncertainties = [], []
    batches = list(chunks(kept, plan.batch_size))
    progress = Progress(model)
    progress.runs = len(batches)
    for numbers in batches:

        def finish(model, latent, numbers=numbers):
            model = while_sampling(model, sampling.predict_noise)
            model = model if plan.score_finished else cache.replay(model, numbers)
            return sample(model, latent, numbers, None)

        start, counted = select_latent(latent, numbers), finishing.count(model)
        if plan.score_finished:
            sampled = sample_with_uncertainty(finish, start, posterior.on(counted), estimator, before=of_these(numbers))
            uncertainties.append(sampled.uncertainty)
            latents.append(sampled.latent)
        else:
            latents.append(sample_stock(finish, counted, start, progress)[0])
    return BestOfN(
        latent=join_latents(latents),
        uncertainty=Uncertainty.join(uncertainties) if plan.score_finished else None,
        scores=scores,
        kept=kept,
        ranking=ranking.calls,
        finishing=finishing.calls - cache.replayed,
        replayed=cache.replayed,
        whole=round(sampling.calls * candidates / len(kept)),
    )


def require_separate_images(model: ModelPatcher) -> None:
    """Refuse a model that makes one clip of the images of a batch, which come out different alone.

    Raises:
        ValueError: the images of a batch are the frames of a clip.
    """
    handler = model.model_options.get("context_handler")
    if handler is not None and getattr(handler, "dim", None) == 0:
        reason = "context windows that go over the batch (dim 0)"
    elif isinstance(model.model, SVD_img2vid):
        reason = f"one that makes a clip of the whole batch ({type(model.model).__name__})"
    else:
        return
    raise ValueError(
        f"Expected a model that samples each image of a batch by itself, got {reason}, where Best of N would tear the "
        "frames apart; connect the model without it, or use KSampler (BayesDiff)."
    )


def chunks(numbers: list[int], size: int):
    return (numbers[start : start + size] for start in range(0, len(numbers), size))

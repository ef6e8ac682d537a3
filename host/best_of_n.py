"""Sample many pictures for a share of their steps, and only the surest of them to the end."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import torch
from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import WrappersMP

from ..bayesdiff_core import rank
from ..bayesdiff_core.laplace_head import LaplaceHead
from ..bayesdiff_core.uncertainty import Uncertainty
from .last_layer import LastLayer
from .look import WRAPPER_KEY as LOOK_KEY
from .sampling import WRAPPER_KEY, Progress, run_within, sample_with_uncertainty
from .selection import join_latents

COUNT_KEY, RUN_KEY = "bayesdiff_count", "bayesdiff_run"
OURS = {WRAPPER_KEY, LOOK_KEY, COUNT_KEY, RUN_KEY}
# Samples the candidates of these numbers with the model that it is given, up to a step or, with None, to the end;
# always from the same noise a number.
Sample = Callable[[ModelPatcher, list[int], int | None], dict]


class Counter:
    """Counts what a model predicts: one call a picture, guidance and all."""

    def __init__(self):
        self.calls = 0

    def predict_noise(self, executor, x, *args, **options):
        self.calls += len(x)
        return executor(x, *args, **options)

    def count(self, model: ModelPatcher) -> ModelPatcher:
        clone = model.clone()
        clone.add_wrapper_with_key(WrappersMP.PREDICT_NOISE, COUNT_KEY, self.predict_noise)
        return clone


def has_memory(model_options: dict | None) -> bool:
    """Whether something on the model may depend on every single call: a cache, a momentum, CFG++'s own hook."""
    model_options = model_options or {}
    wrappers = model_options.get("transformer_options", {}).get("wrappers", {})
    foreign = any(found and key not in OURS for kind in wrappers.values() for key, found in kind.items())
    return foreign or any(name.startswith(("sampler_", "model_function")) for name in model_options)


class Recording:
    """What a model predicted for each candidate, so that sampling it again from the start need not ask again.

    A prediction is used again only where noise level and noised latents are the recorded ones to the bit, at the same
    place of a batch of the same size: what a network computes differs by rounding from one to another. So whatever a
    sampler does with its history, it goes on as from its own predictions.

    Attributes:
        replayed: predictions that were used again, one a picture.
    """

    def __init__(self):
        # By candidate, in the order of the calls: place and size of its batch, noise level, noised latent, prediction.
        self.seen: dict[int, list[tuple[tuple[int, int], float, torch.Tensor, torch.Tensor]]] = {}
        self.replayed = 0

    def record(self, model: ModelPatcher, numbers: list[int]) -> ModelPatcher:
        """A clone of ``model`` whose next sampling run, of the candidates ``numbers``, is recorded."""
        seen = [self.seen.setdefault(number, []) for number in numbers]
        if any(seen):  # a further run beside the first, of an ensemble's member
            return model

        def predict_noise(executor, x, timestep, model_options=None, seed=None):
            denoised = executor(x, timestep, model_options, seed)
            if not has_memory(model_options):
                pictures = zip(seen, timestep.tolist(), x.to("cpu", copy=True), denoised.to("cpu", copy=True))
                for place, (states, *state) in enumerate(pictures):
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
    """What :func:`best_of_n` returns. Calls are predictions of one picture, guidance and all.

    Attributes:
        latent: LATENT of the kept, finished, best first.
        uncertainty: of the finished pictures, if it was asked for.
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
        return 1 - (self.ranking + self.finishing) / self.whole


def best_of_n(
    sample: Sample, model: ModelPatcher, layer: LastLayer, head: LaplaceHead, estimator, seed: int, candidates: int,
    batch_size: int, keep: int, steps: int, score_finished: bool,
) -> BestOfN:  # fmt: skip
    """Rank candidates by the uncertainty of what they would become if they ended early, and finish the best.

    The finished pictures are the stock sampler's own: they are sampled again from the start, and predictions of the
    ranking take the place of the network's only where it would be asked the very same again.

    Args:
        estimator, seed: for :func:`~.sampling.sample_with_uncertainty`.
        candidates: how many to rank.
        batch_size: how many to sample together.
        keep: how many to finish.
        steps: after how many steps to rank; the last of them goes down to the picture itself.
        score_finished: estimate the uncertainty of the finished pictures too. Then no prediction is used again, as the
            estimator has to see the network at work.
    """
    recording, ranking, finishing, sampling = Recording(), Counter(), Counter(), Counter()
    found = []
    for numbers in chunks(list(range(candidates)), batch_size):

        def rank_some(model, numbers=numbers):
            return sample(recording.record(model, numbers), numbers, steps)

        *_, uncertainty = sample_with_uncertainty(rank_some, ranking.count(model), layer, head, estimator, seed)
        found.append(uncertainty.scores())
    scores = torch.cat(found)
    kept = rank.rank(scores)[:keep].tolist()

    latents, uncertainties = [], []
    batches = list(chunks(kept, batch_size))
    progress = Progress(model, len(batches))
    for numbers in batches:

        def finish(model, numbers=numbers):
            model = while_sampling(model, sampling.predict_noise)
            return sample(model if score_finished else recording.replay(model, numbers), numbers, None)

        counted = finishing.count(model)
        if score_finished:
            latent, _, uncertainty = sample_with_uncertainty(finish, counted, layer, head, estimator, seed)
            uncertainties.append(uncertainty)
        else:
            latent, _ = run_within(finish, counted, progress)
        latents.append(latent)
    return BestOfN(
        latent=join_latents(latents),
        uncertainty=rank.join(uncertainties) if score_finished else None,
        scores=scores,
        kept=kept,
        ranking=ranking.calls,
        finishing=finishing.calls - recording.replayed,
        replayed=recording.replayed,
        whole=round(sampling.calls * candidates / len(kept)),
    )


def chunks(numbers: list[int], size: int):
    return (numbers[start : start + size] for start in range(0, len(numbers), size))

"""Tests of scores: do they find bad images, and does it help to filter by them?"""

from __future__ import annotations

import torch
from figures_of_merit import (
    Manifold,
    auroc,
    bootstrap_error,
    frechet_distance,
    precision_and_recall,
    ranks_within,
    worst_share,
)

from .bench import Bench, costs, is_default

BAD, RANDOM_HALVES = 0.2, 100


def filtering(bench: Bench) -> list[dict]:
    """The half with the lower scores against random halves: Fréchet distance, precision and recall, and the judge's
    mean verdict on single images.

    The standard error is that of one random half. Halves are taken within each prompt, as a user does with a batch, and
    of all images together.
    """
    features, reference = bench.verdict.features, bench.judge.reference
    manifold = Manifold(reference)
    scores, rows, cost = bench.scores(), [], costs(bench)
    together = torch.zeros_like(bench.groups)

    def measures(kept: torch.Tensor) -> dict[str, float]:
        precision, recall = precision_and_recall(Manifold(features[kept]), manifold)
        return {
            "Frechet distance": frechet_distance(features[kept], reference),
            "precision": precision,
            "recall": recall,
            **{name: float(quality[kept].mean()) for name, quality in bench.verdict.qualities.items()},
        }

    for among, groups in (("prompt", bench.groups), ("all", together)):

        def better_half(values, groups=groups):
            return ranks_within(values, groups) <= 0.5

        generator = torch.Generator().manual_seed(4)
        halves = [measures(better_half(torch.rand(len(groups), generator=generator))) for _ in range(RANDOM_HALVES)]
        for (estimator, score), values in scores.items():
            for name, value in measures(better_half(values)).items():
                chance = torch.tensor([half[name] for half in halves], dtype=torch.float64)
                rows.append(
                    bench.row("filtering", score, value, float(chance.mean()), float(chance.std()))
                    | dict(estimator=estimator, cost=cost[estimator], among=among, measure=name)
                    | dict(default=is_default(estimator, score))
                )
    return rows


def bad_samples(bench: Bench) -> list[dict]:
    """AUROC of every score against the judge's verdict; the control is the gradient energy of the latent.

    Bad are the worst fifth by distance from the judge's reference. Where the judge knows kinds, also the fifth that it
    is least convinced by, and every image that it takes for another kind. Within prompts, scores and verdicts are ranks
    among the images of the same prompt, so that hard prompts do not count as bad images.
    """
    scores, rows, cost = bench.scores(), [], costs(bench)
    verdicts = []
    for name, quality in bench.verdict.qualities.items():
        bad = worst_share(quality, BAD)
        if name == "confidence":
            bad |= bench.verdict.wrong
        verdicts += [(name, "all", bad), (name, "prompt", ranks_within(quality, bench.groups) <= BAD)]
    for quality, among, bad in verdicts:
        values = {
            key: ranks_within(value, bench.groups) if among == "prompt" else value.double()
            for key, value in scores.items()
        }
        control = auroc(values["control", "gradient energy"], bad)
        for (estimator, score), value in values.items():

            def of(index, value=value, bad=bad):
                return auroc(value[index], bad[index])

            rows.append(
                bench.row("bad_samples", score, auroc(value, bad), control, bootstrap_error(of, len(bad)))
                | dict(estimator=estimator, cost=cost[estimator], among=among, measure=quality)
                | dict(default=is_default(estimator, score), bad=int(bad.sum()), pictures=len(bad))
            )
    return rows

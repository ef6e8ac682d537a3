"""Tests of acting on the uncertainty: are images better after a repair, and are the best of N better?"""

from __future__ import annotations

import torch
from bayesdiff.bayesdiff_core.estimators.redrawing import Redrawing
from bayesdiff.bayesdiff_core.estimators.registry import JUDGES, NO_HEAD, RANKINGS
from bayesdiff.bayesdiff_core.reading.masks import most_uncertain_area
from bayesdiff.bayesdiff_core.reading.rank import rank
from bayesdiff.bayesdiff_core.reading.scores import DEFAULT
from bayesdiff.host.uses.best_of_n import Plan
from bayesdiff.host.uses.best_of_n import best_of_n as of_n
from bayesdiff.host.uses.finished import uncertainty_of_finished
from bayesdiff.host.uses.redraw import redraw
from figures_of_merit import ranks_within

from .bench import DEFAULT_ESTIMATOR, STEPS, Bench, standard_error

AREA, DENOISE = 0.2, 0.65


def repair(bench: Bench) -> list[dict]:
    """The judge's verdict after inpainting minus its verdict on the image before, mean over images.

    Inpaints the least certain fifth, or the same mask moved to a random place (what leaves at one edge enters at the
    other). A new seed replaces the whole image: one more run, which costs less than the map (1) and the repair (0.65).
    Standard errors are those of the paired differences. Rows are of all images, and of the half of each prompt's batch
    that the default score ranks as less certain.
    """
    prompts, count = range(len(bench.names)), bench.count // 4
    index = torch.tensor([prompt * bench.count + i for prompt in prompts for i in range(count)])
    uncertain = bench.found[DEFAULT_ESTIMATOR].select(index)
    mask = most_uncertain_area(uncertain.std_map(), AREA)
    generator = torch.Generator().manual_seed(5)
    height = mask.shape[1]
    moved = torch.stack(
        [
            part.roll(torch.randint(height // 4, height - height // 4, (2,), generator=generator).tolist(), (0, 1))
            for part in mask
        ]
    )

    def inpaint(masks: torch.Tensor) -> torch.Tensor:
        found = []
        for prompt in prompts:
            mine = slice(prompt * count, (prompt + 1) * count)
            latent = {"samples": uncertain.latent[mine], "noise_mask": masks[mine][:, None]}
            run = bench.run(prompt, bench.seed * 1000 + 700 + prompt, denoise=DENOISE)
            found.append(run(bench.model, latent)["samples"])
        return torch.cat(found)

    runs = [bench.run(prompt, bench.seed * 1000 + 800 + prompt) for prompt in prompts]
    fresh = torch.cat([run(bench.model, bench.empty(count))["samples"] for run in runs])
    latents = {"before": uncertain.latent, "repair": inpaint(mask), "random mask": inpaint(moved), "new seed": fresh}
    pictures = {name: bench.decode(latent) for name, latent in latents.items()}
    bench.repaired = pictures, mask
    asked = bench.kinds[bench.groups[index]]
    judged = {name: bench.judge.judge(picture, asked).qualities for name, picture in pictures.items()}
    rows = kept_by_judges(bench, latents, judged, index)
    scores = bench.found[DEFAULT_ESTIMATOR].scores()
    unsure = ranks_within(scores, bench.groups)[index] > 0.5
    for measure in judged["before"]:
        gain = {name: judged[name][measure] - judged["before"][measure] for name in judged}
        for among, chosen in (("all", torch.ones_like(unsure)), ("less certain half", unsure)):
            for control in ("random mask", "new seed", "before"):
                mine, its = gain["repair"][chosen], gain[control][chosen]
                rows.append(
                    bench.row("repair", DEFAULT, float(mine.mean()), float(its.mean()), standard_error(mine - its))
                    | dict(estimator=DEFAULT_ESTIMATOR, measure=measure, among=among, against=control, default=True)
                    | dict(pictures=len(mine))
                )
    return rows


def kept_by_judges(bench: Bench, latents: dict, judged: dict, index: torch.Tensor) -> list[dict]:
    """As Repair does it: a repair stays only if its score is lower. Against keeping all of them, and none."""
    groups, rows = bench.groups[index], []
    for name, judge in JUDGES.items():

        def scores(samples: torch.Tensor, judge=judge) -> torch.Tensor:
            found = []
            for prompt in range(len(bench.names)):
                mine, guidance = samples[groups == prompt], bench.guidance(prompt)
                if isinstance(judge, Redrawing):
                    found.append(redraw(bench.model, mine, guidance, judge, seed=1).scores())
                else:
                    found.append(uncertainty_of_finished(mine, bench.posterior, judge, guidance).scores())
            return torch.cat(found)

        kept = scores(latents["repair"]) < scores(latents["before"])
        for measure in judged["before"]:
            gain = judged["repair"][measure] - judged["before"][measure]
            for against, control in (("keeping all", gain), ("keeping none", torch.zeros_like(gain))):
                mine = gain * kept
                rows.append(
                    bench.row(
                        "repair", DEFAULT, float(mine.mean()), float(control.mean()), standard_error(mine - control)
                    )
                    | dict(estimator=name, measure=measure, among=f"judged by {name}", against=against, default=False)
                    | dict(pictures=len(mine))
                )
    return rows


def best_of_n(bench: Bench) -> list[dict]:
    """KSampler Best of N: the judge's verdict on the kept quarter minus that on all, and the share of calls saved.

    Controls: a choice by the final default score, and a random choice, which gains nothing.
    """
    keep, scores = max(1, bench.count // 4), bench.found[DEFAULT_ESTIMATOR].scores()
    prompts = range(len(bench.names))
    final = [(p * bench.count + rank(scores[p * bench.count :][: bench.count])[:keep]).tolist() for p in prompts]
    rows = []
    for name, ranking in {**{key: RANKINGS[key] for key in ("quick", "instant")}, NO_HEAD.name: NO_HEAD}.items():
        kept, saved = [], {}
        for prompt in prompts:

            def sample(model, latent, numbers, last_step, prompt=prompt):
                seed = bench.seed * 1000 + prompt
                return bench.run(prompt, seed, last_step=last_step, force_full_denoise=True)(model, latent)

            found = of_n(sample, bench.empty(bench.count), bench.posterior, ranking, Plan(keep, STEPS // 2))
            kept.append([prompt * bench.count + i for i in found.kept])
            # The same images that were judged already.
            assert torch.allclose(found.latent["samples"], bench.latents[kept[-1]], atol=1e-3)
            scoring = {f"scoring all at {key}": bench.found[key].cost for key in ("instant", "draft", "balanced")}
            calls = found.ranking + found.finishing
            # One figure for the model: the same for every prompt.
            saved = {key: 1 - calls / (found.whole * cost) for key, cost in scoring.items()}
        for measure, quality in bench.verdict.qualities.items():
            quality = quality.double()
            mean = quality.reshape(len(bench.names), -1).mean(1)
            early, late = (quality[torch.tensor(chosen)].mean(1) - mean for chosen in (kept, final))
            for against, control in (("final score", late), ("random choice", torch.zeros_like(early))):
                error = standard_error(early - control)
                rows.append(
                    bench.row("best_of_n", DEFAULT, float(early.mean()), float(control.mean()), error)
                    | dict(estimator=name, measure=measure, among=f"ranked by {name}", against=against)
                    | dict(default=name == "quick", saved=saved)
                )
    return rows

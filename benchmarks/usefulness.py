"""Does the uncertainty find bad pictures and bad regions, and does acting on it help? In one run.

    python dev.py bench usefulness [--models demo,fashion] [--prompts 10] [--pictures 8] [--seed 1]
                                   [--tests filtering,bad_samples,bad_regions,repair,best_of_n] [--json PATH] [--docs]

On the demo model and a rectified flow of garments, with judges that know nothing of either, see tools/judges.py.
``--docs`` writes docs/usefulness.md's tables and pictures. Every test is told in its function; what they say together
is in docs/usefulness.md.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import time
from collections.abc import Callable
from pathlib import Path

import in_process

in_process.import_host_and_pack()

import nodes  # noqa: E402
import torch  # noqa: E402
from bayesdiff.bayesdiff_core import rank  # noqa: E402
from bayesdiff.bayesdiff_core.drawing import to_pil  # noqa: E402
from bayesdiff.bayesdiff_core.estimators.ensemble import Ensemble  # noqa: E402
from bayesdiff.bayesdiff_core.estimators.paper import Paper  # noqa: E402
from bayesdiff.bayesdiff_core.maps import colour_map, normalise_map, resize_map  # noqa: E402
from bayesdiff.bayesdiff_core.masks import most_uncertain_area  # noqa: E402
from bayesdiff.bayesdiff_core.scores import DEFAULT, SCORES, SEMANTIC_SCORES  # noqa: E402
from bayesdiff.bayesdiff_core.uncertainty import Uncertainty, std_of  # noqa: E402
from bayesdiff.host.best_of_n import best_of_n as of_n  # noqa: E402
from bayesdiff.host.demo_model import load_demo_model, prompt_names  # noqa: E402
from bayesdiff.host.fitting import as_examples, fit_head, own_samples  # noqa: E402
from bayesdiff.host.last_layer import find_last_layer  # noqa: E402
from bayesdiff.host.renoising import renoise  # noqa: E402
from bayesdiff.host.sampling import sample_with_uncertainty  # noqa: E402
from bayesdiff.nodes.best_of_n import RANKINGS  # noqa: E402
from bayesdiff.nodes.sampler import QUALITIES  # noqa: E402
from fashion_model import kinds, load_fashion_model  # noqa: E402
from figures_of_merit import (  # noqa: E402
    Manifold,
    auroc,
    bootstrap_error,
    frechet_distance,
    precision_and_recall,
    ranks_within,
    worst_share,
)
from frontier import gradient_energy  # noqa: E402
from judges import EmojiJudge, GarmentJudge, MobileNet  # noqa: E402
from PIL import Image, ImageDraw, ImageFont  # noqa: E402

DOCS = in_process.ROOT / "docs"
STEPS, BAD, RANDOM_HALVES = 20, 0.2, 100
TESTS = ("filtering", "bad_samples", "bad_regions", "repair", "best_of_n")
# What an uncertainty could tell at best is told by that of many whole runs, "truth".
ESTIMATORS = {"draft": QUALITIES["draft"], "balanced": QUALITIES["balanced"], "truth": Ensemble(8),
              "published": Paper(5, 10)}  # fmt: skip
# The default score is that of this one.
DEFAULT_ESTIMATOR = "draft"
# One member is too few for a spread of features.
SEMANTIC_ESTIMATOR = "balanced"


@dataclasses.dataclass(frozen=True)
class Setting:
    """A model and how it is sampled.

    Attributes:
        load: of a prompt, see ``load_demo_model``.
        names: its prompts.
        shape: of one latent.
        pictures: how many of each prompt, unless asked otherwise.
    """

    load: Callable
    names: Callable[[], list[str]]
    shape: tuple[int, int, int]
    cfg: float
    sampler: str
    scheduler: str
    judge: type
    pictures: int


SETTINGS = {
    "demo": Setting(
        load_demo_model, lambda: [name for name in prompt_names() if name.startswith("any ")], (4, 16, 16), 3.0,
        "dpmpp_2m", "karras", EmojiJudge, 8,
    ),
    "fashion": Setting(load_fashion_model, kinds, (3, 32, 32), 1.0, "euler", "normal", GarmentJudge, 24),
}  # fmt: skip


def thin(names: list[str], count: int) -> list[str]:
    """At most ``count`` names at even distances."""
    return [names[i * len(names) // count] for i in range(min(count, len(names)))] if count < len(names) else names


class Bench:
    """One model with its head, its judge and all that was sampled."""

    def __init__(self, name: str, arguments):
        self.name, self.setting, self.seed = name, SETTINGS[name], arguments.seed
        self.count = arguments.pictures or self.setting.pictures
        self.judge, self.encoder = self.setting.judge(), MobileNet()
        self.names = thin(self.setting.names(), arguments.prompts)
        self.model, _, self.negative, self.vae = self.setting.load(self.names[0])
        self.conditions = [self.setting.load(prompt)[1] for prompt in self.names]
        # The judge of garments names them by their place among all.
        self.kinds = torch.tensor([self.setting.names().index(prompt) for prompt in self.names])
        self.layer = find_last_layer(self.model)
        cfg, one = self.setting.cfg, {"samples": torch.zeros(1, *self.setting.shape)}
        data = []
        for i, positive in enumerate(self.conditions):
            own = own_samples(self.model, positive, self.negative, one, 2, 12, cfg, seed=1000 + i)
            data += as_examples(own, positive)
        self.head = fit_head(self.model, data, self.negative, cfg, 4, 0)

    def empty(self, count: int) -> dict:
        return {"samples": torch.zeros(count, *self.setting.shape)}

    def run(self, prompt: int, latent: dict, seed: int, **options):
        """A stock sampling run for one of the prompts, as ``sample_with_uncertainty`` takes it."""
        positive = options.pop("positive", self.conditions[prompt])

        def run(model):
            return nodes.common_ksampler(
                model, seed, STEPS, self.setting.cfg, self.setting.sampler, self.setting.scheduler, positive,
                self.negative, latent, **options,
            )[0]  # fmt: skip

        return run

    def uncertain(self, run, estimator: str = "balanced") -> Uncertainty:
        return sample_with_uncertainty(run, self.model, self.layer, self.head, ESTIMATORS[estimator], 1)[2]

    def sample(self, estimators: list[str]) -> None:
        """``count`` pictures of every prompt by every estimator, and the judge's verdict."""
        parts: dict[str, list[Uncertainty]] = {}
        for prompt in range(len(self.names)):
            run = self.run(prompt, self.empty(self.count), self.seed * 1000 + prompt)
            for estimator in estimators:
                parts.setdefault(estimator, []).append(self.uncertain(run, estimator))
            latent = parts[estimators[0]][-1].latent
            parts.setdefault("re-noising", []).append(self.renoised(latent, prompt))
        self.found = {name: rank.join(of_prompts) for name, of_prompts in parts.items()}
        self.latents = self.found[estimators[0]].latent
        self.groups = torch.arange(len(self.names)).repeat_interleave(self.count)
        self.pictures = self.decode(self.latents)
        members = (self.latents + deviation for deviation in self.found[SEMANTIC_ESTIMATOR].deviations)
        seen = [self.pictures, *(self.decode(latents) for latents in members)]
        self.features = torch.stack([self.encoder.features(pictures) for pictures in seen])
        self.verdict = self.judge.judge(self.pictures, self.kinds[self.groups])

    def renoised(self, latent: torch.Tensor, prompt: int) -> Uncertainty:
        """Uncertainty without a head, by the node's own settings."""
        prompts = self.conditions[prompt], self.negative
        return renoise(self.model, latent, *prompts, self.setting.cfg, 0.5, 0.5, 1, 5, seed=0)

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        return self.vae.decode(latents)[..., :3].float().cpu()

    def scores(self) -> dict[tuple[str, str], torch.Tensor]:
        """Of every picture by estimator and score; higher is less certain."""
        table = {}
        for estimator in ("draft", "balanced", "truth"):
            table |= {(estimator, score): self.found[estimator].scores(score) for score in SCORES}
        table |= {(SEMANTIC_ESTIMATOR, name): score(self.features) for name, score in SEMANTIC_SCORES.items()}
        # The sum as published: of variances as they are, negative ones too.
        table["published", "sum"] = self.found["published"].scores("sum")
        table["re-noising", DEFAULT] = self.found["re-noising"].scores()
        table["control", "gradient energy"] = gradient_energy(self.latents).mean((1, 2))
        table["control", "random"] = torch.rand(len(self.latents), generator=torch.Generator().manual_seed(3))
        return table

    def row(self, test: str, score: str, value: float, control: float | None, error: float, **more) -> dict:
        row = {"test": test, "model": self.name, "score": score, "default": False}
        return row | more | {"value": value, "control": control, "standard_error": error}


def is_default(estimator: str, score: str) -> bool:
    return estimator == DEFAULT_ESTIMATOR and score == DEFAULT


def costs(bench: Bench) -> dict[str, float]:
    """Network calls with each estimator, relative to plain sampling."""
    found = {name: uncertainty.cost for name, uncertainty in bench.found.items()}
    return found | {"re-noising": 1 + found["re-noising"] / STEPS, "control": 1.0}


# ---------------------------------------------------------------- the tests


def filtering(bench: Bench) -> list[dict]:
    """The half with the lower scores against random halves: Fréchet distance, precision and recall, and what the judge
    says of single pictures, on average.

    The standard error is that of one random half. Halves are taken within each prompt, as a user does with a batch, and
    of all pictures together.
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

    Bad is the worst fifth by the distance from the judge's reference and, where the judge knows kinds, the fifth that
    it is least convinced by and whatever it takes for another kind. Within each prompt scores and verdicts are places
    among its pictures, so that hard prompts do not count as bad pictures.
    """
    scores, rows, cost = bench.scores(), [], costs(bench)
    verdicts = []
    for name, quality in bench.verdict.qualities.items():
        bad = worst_share(quality, BAD)
        if name == "confidence":
            bad |= bench.verdict.wrong
        verdicts += [(name, "all", bad), (name, "prompt", ranks_within(quality, bench.groups) <= BAD)]
    for quality, among, bad in verdicts:
        values = {key: ranks_within(value, bench.groups) if among == "prompt" else value.double()
                  for key, value in scores.items()}  # fmt: skip
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


@dataclasses.dataclass
class Plant:
    """Pictures of a prompt with a fault of known place ``(n, h, w)``, and what two estimators say of them."""

    prompt: int
    where: torch.Tensor
    found: Uncertainty
    truth: Uncertainty


# After so many of the 20 steps the latent is disturbed.
PLANT_STEP = 10


def squares(count: int, height: int, width: int, generator: torch.Generator) -> torch.Tensor:
    """One square of a third of the side in every ``(height, width)``, within the middle three quarters."""
    side, margin = height // 3, height // 8
    where = torch.zeros(count, height, width)
    for picture in where:
        top, left = (int(torch.randint(margin, size - margin - side + 1, (), generator=generator))
                     for size in (height, width))  # fmt: skip
        picture[top : top + side, left : left + side] = 1
    return where


def plant(bench: Bench, kind: str, prompt: int, count: int) -> Plant:
    """Sample ``count`` pictures of a prompt with a fault in a square.

    ``patch``: half way, the square of the noisy latent is that of the next picture of the batch. ``noise``: half way,
    the square is noise alone, as strong as the noisy latent. ``prompt``: in the square, the stock ConditioningSetMask
    asks for another prompt from the start.
    """
    generator, seed = torch.Generator().manual_seed(100 + prompt), bench.seed * 1000 + 500 + prompt
    where = squares(count, *bench.setting.shape[1:], generator)
    if kind == "prompt":
        other = bench.conditions[(prompt + len(bench.names) // 2) % len(bench.names)]
        mask = where[:1]
        where = mask.expand(count, -1, -1)
        inside = nodes.ConditioningSetMask().append(other, mask, "default", 1.0)[0]
        outside = nodes.ConditioningSetMask().append(bench.conditions[prompt], 1 - mask, "default", 1.0)[0]
        run = bench.run(prompt, bench.empty(count), seed, positive=[*outside, *inside])
        return Plant(prompt, where, bench.uncertain(run), bench.uncertain(run, "truth"))
    half_way = bench.run(prompt, bench.empty(count), seed, last_step=PLANT_STEP)(bench.model)
    x = half_way["samples"]
    if kind == "patch":
        other = x.roll(1, 0)
    else:
        other = x.mean() + x.std() * torch.randn(x.shape, generator=generator)
    disturbed = half_way | {"samples": torch.where(where[:, None] > 0, other, x)}
    run = bench.run(prompt, disturbed, seed, disable_noise=True, start_step=PLANT_STEP)
    return Plant(prompt, where, bench.uncertain(run), bench.uncertain(run, "truth"))


def bad_regions(bench: Bench, prompts: int = 4, count: int = 6) -> list[dict]:
    """AUROC, cell by cell, of maps against the place of a planted fault; mean over pictures.

    Of the map itself, of the members before moderation, of the truth, and of re-noising. The control is the gradient
    energy of the latent; rows of it are there too, with chance as theirs.
    """
    rows, bench.plants = [], {}
    for kind in ("patch", "noise", "prompt"):
        plants = [
            plant(bench, kind, prompt, count) for prompt in range(0, len(bench.names), -(-len(bench.names) // prompts))
        ]
        bench.plants[kind] = plants[0]
        maps = {
            "map": torch.cat([each.found.std_map() for each in plants]),
            "members alone": torch.cat([std_of(each.found.deviations.square().mean(0)) for each in plants]),
            "truth": torch.cat([each.truth.std_map() for each in plants]),
            "re-noising": torch.cat([bench.renoised(each.found.latent, each.prompt).std_map() for each in plants]),
            "gradient energy": torch.cat([gradient_energy(each.found.latent) for each in plants]),
        }
        where = torch.cat([each.where for each in plants]).flatten(1) > 0
        values = {name: torch.tensor([auroc(m.flatten(), inside) for m, inside in zip(found, where)])
                  for name, found in maps.items()}  # fmt: skip
        for name, value in values.items():
            control = 0.5 if name == "gradient energy" else float(values["gradient energy"].mean())
            rows.append(
                bench.row("bad_regions", name, float(value.mean()), control, standard_error(value))
                | dict(estimator="balanced", measure=kind, default=name == "map", pictures=len(value))
            )
    return rows


def standard_error(values: torch.Tensor) -> float:
    return float(values.double().std() / len(values) ** 0.5)


AREA, DENOISE = 0.2, 0.65


def repair(bench: Bench) -> list[dict]:
    """What the judge says after inpainting less what it says of the picture before, mean over pictures.

    Inpainted is the least certain fifth, or the same mask moved to a random place (with what it loses over the edge put
    in at the other side). A new seed takes the place of the picture altogether: one more run, less than the map (1) and
    the repair (0.65) take. Standard errors are of the paired differences. Of all pictures, and of the half of each
    prompt's batch that the default score calls the less certain.
    """
    prompts, count = range(len(bench.names)), bench.count // 4
    index = torch.tensor([prompt * bench.count + i for prompt in prompts for i in range(count)])
    uncertain = rank.select(bench.found["balanced"], index)
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
            run = bench.run(prompt, latent, bench.seed * 1000 + 700 + prompt, denoise=DENOISE)
            found.append(run(bench.model)["samples"])
        return torch.cat(found)

    fresh = torch.cat([bench.run(prompt, bench.empty(count), bench.seed * 1000 + 800 + prompt)(bench.model)["samples"]
                       for prompt in prompts])  # fmt: skip
    latents = {"before": uncertain.latent, "repair": inpaint(mask), "random mask": inpaint(moved), "new seed": fresh}
    pictures = {name: bench.decode(latent) for name, latent in latents.items()}
    bench.repaired = pictures, mask
    asked = bench.kinds[bench.groups[index]]
    judged = {name: bench.judge.judge(picture, asked).qualities for name, picture in pictures.items()}
    scores = bench.found[DEFAULT_ESTIMATOR].scores()
    unsure = ranks_within(scores, bench.groups)[index] > 0.5
    rows = []
    for measure in judged["before"]:
        gain = {name: judged[name][measure] - judged["before"][measure] for name in judged}
        for among, chosen in (("all", torch.ones_like(unsure)), ("the less certain", unsure)):
            for control in ("random mask", "new seed", "before"):
                mine, its = gain["repair"][chosen], gain[control][chosen]
                rows.append(
                    bench.row("repair", DEFAULT, float(mine.mean()), float(its.mean()), standard_error(mine - its))
                    | dict(estimator="balanced", measure=measure, among=among, against=control, default=True)
                    | dict(pictures=len(mine))
                )
    return rows


def best_of_n(bench: Bench) -> list[dict]:
    """KSampler Best of N: the judge's quality of the kept quarter less that of all, and the share of calls saved.

    Controls are keeping by the final default score, and a random choice, which gains nothing.
    """
    keep, kept, final, saved = max(1, bench.count // 4), [], [], {}
    scores = bench.found[DEFAULT_ESTIMATOR].scores()
    for prompt in range(len(bench.names)):

        def sample(model, numbers, last_step, prompt=prompt):
            latent = bench.empty(len(numbers)) | {"batch_index": numbers}
            options = dict(last_step=last_step, force_full_denoise=True)
            return bench.run(prompt, latent, bench.seed * 1000 + prompt, **options)(model)

        found = of_n(sample, bench.model, bench.layer, bench.head, RANKINGS["quick"], 1, bench.count, 1, keep,
                     STEPS // 2, False)  # fmt: skip
        first = prompt * bench.count
        kept.append([first + i for i in found.kept])
        # The very pictures that were judged already.
        assert torch.allclose(found.latent["samples"], bench.latents[kept[-1]], atol=1e-3)
        costs = {"sampling all with no score": 1.0} | {f"scoring all by {name}": bench.found[name].cost
                                                       for name in ("draft", "balanced")}  # fmt: skip
        before = saved
        saved = {name: 1 - (found.ranking + found.finishing) / (found.whole * cost) for name, cost in costs.items()}
        assert before in ({}, saved)  # one figure for the model: the same for every prompt
        final.append((first + rank.rank(scores[first : first + bench.count])[:keep]).tolist())
    rows = []
    for measure, quality in bench.verdict.qualities.items():
        quality = quality.double()
        mean = quality.reshape(len(bench.names), -1).mean(1)
        early, late = (quality[torch.tensor(chosen)].mean(1) - mean for chosen in (kept, final))
        for against, control in (("final score", late), ("random choice", torch.zeros_like(early))):
            error = standard_error(early - control)
            rows.append(
                bench.row("best_of_n", DEFAULT, float(early.mean()), float(control.mean()), error)
                | dict(estimator="quick", measure=measure, among="all", against=against, default=True)
                | dict(saved=saved)
            )
    return rows


# ---------------------------------------------------------------- what is shown


def number(value: float) -> str:
    return f"{value:.3g}" if abs(value) >= 10 else f"{value:.2f}"


def with_error(value: float, error: float) -> str:
    return f"{number(value)} ± {number(error)}"


def name_of(row: dict) -> str:
    words = f"{row['estimator']}, {row['score']}"
    return f"**{words}**" if row["default"] else words


def markdown(columns: list[str], lines: list[list[str]]) -> list[str]:
    return ["| " + " | ".join(cells) + " |" for cells in [columns, ["---"] * len(columns), *lines]]


def wide_tables(rows: list[dict], value_of: Callable[[dict], str]) -> list[str]:
    """A table for each model, of all pictures and within prompts; a line a score, the default one in bold."""
    found = []
    for model, among in dict.fromkeys((row["model"], row["among"]) for row in rows):
        mine = [row for row in rows if (row["model"], row["among"]) == (model, among)]
        measures = list(dict.fromkeys(row["measure"] for row in mine))
        lines: dict[str, list[str]] = {}
        for row in mine:
            lines.setdefault(name_of(row), [number(row["cost"])]).append(value_of(row))
        found += ["", f"{model}, {AMONG[among]}:", ""]
        found += markdown(["score", "calls", *measures], [[name, *cells] for name, cells in lines.items()])
    return found


AMONG = {"prompt": "within prompts", "all": "all pictures together"}


def errors_better(row: dict) -> float:
    """By how many standard errors the kept half is better than a random one; none where all random halves are equal."""
    if row["standard_error"] == 0:
        return 0.0
    sign = -1 if row["measure"] == "Frechet distance" else 1
    return sign * (row["value"] - row["control"]) / row["standard_error"]


def show_filtering(rows: list[dict]) -> list[str]:
    chance = [
        dict(row, estimator="random halves", score="± error of one", default=False, value=row["control"], cost=1.0)
        for row in rows
        if row["score"] == "random"
    ]

    def cell(row: dict) -> str:
        if row["estimator"] == "random halves":
            return with_error(row["value"], row["standard_error"])
        return f"{number(row['value'])} ({errors_better(row):+.1f})"

    return [
        "The kept half; in brackets, by how many standard errors it is better (+) or worse (-) than a random half.",
        *wide_tables(rows + chance, cell),
    ]


def show_bad_samples(rows: list[dict]) -> list[str]:
    return [
        "AUROC ± bootstrap error; 0.5 is chance.",
        *wide_tables(rows, lambda row: with_error(row["value"], row["standard_error"])),
    ]


def show_bad_regions(rows: list[dict]) -> list[str]:
    lines = [[row["model"], row["measure"], row["score"], with_error(row["value"], row["standard_error"]),
              str(row["pictures"])] for row in rows]  # fmt: skip
    return ["AUROC of cells ± error of the mean; 0.5 is chance.", "",
            *markdown(["model", "fault", "by", "AUROC", "pictures"], lines)]  # fmt: skip


def show_paired(rows: list[dict]) -> list[str]:
    keys = ("model", "measure", "among", "against")
    lines = [
        [*(row[key] for key in keys), number(row["value"]), number(row["control"]),
         with_error(row["value"] - row["control"], row["standard_error"])]
        for row in rows
    ]  # fmt: skip
    return markdown(["model", "judged by", "pictures", "against", "gain", "its gain", "difference"], lines)


def show_best_of_n(rows: list[dict]) -> list[str]:
    saved = {row["model"]: row["saved"] for row in rows}
    lines = [[model, *(f"{share:.0%}" for share in shares.values())] for model, shares in saved.items()]
    columns = ["calls saved, against", *next(iter(saved.values()))]
    return [*markdown(columns, lines), "", *show_paired(rows)]


TITLES = {
    "filtering": ("Filtering: keeping the better half", show_filtering),
    "bad_samples": ("Finding bad pictures", show_bad_samples),
    "bad_regions": ("Finding bad regions: planted faults", show_bad_regions),
    "repair": ("Repair: inpainting the least certain fifth", show_paired),
    "best_of_n": ("Best of N", show_best_of_n),
}


def tables(rows: list[dict]) -> list[str]:
    found = []
    for test, (title, show) in TITLES.items():
        if mine := [row for row in rows if row["test"] == test]:
            found += [f"### {title}", "", *show(mine), ""]
    return found


TILE, ENDS = 128, 4


def tile(picture: torch.Tensor) -> Image.Image:
    """A picture ``(h, w, 3)`` or a mask or map's colours at the size that sheets have."""
    return to_pil(picture).resize((TILE, TILE), Image.Resampling.NEAREST)


def heat(values: torch.Tensor) -> torch.Tensor:
    """Colours ``(n, TILE, TILE, 3)`` of maps ``(n, h, w)``, each from its own least to its own largest."""
    return colour_map(normalise_map(resize_map(values, TILE, TILE), True))


def sheet_of(rows: list[list[Image.Image]], titles: list[str], left: int = 116) -> Image.Image:
    """Tiles in rows, each row with a title at its left."""
    gap = 4
    image = Image.new("RGB", (left + len(rows[0]) * (TILE + gap), len(rows) * (TILE + gap)), "white")
    draw, font = ImageDraw.Draw(image), ImageFont.load_default(13)
    for y, (row, title) in enumerate(zip(rows, titles)):
        draw.multiline_text((4, y * (TILE + gap) + TILE / 3), title.replace(" ", "\n"), fill="black", font=font)
        for x, found in enumerate(row):
            image.paste(found, (left + x * (TILE + gap), y * (TILE + gap)))
    return image


def draw_batches(bench: Bench, most: int = 6) -> Image.Image:
    """Batches of some prompts by the default score, the surest at the left; of a large one the ends alone."""
    scores, rows = bench.found[DEFAULT_ESTIMATOR].scores(), []
    prompts = thin(list(range(len(bench.names))), most)
    for prompt in prompts:
        first = prompt * bench.count
        order = scores[first : first + bench.count].argsort().tolist()
        shown = order if len(order) <= ENDS * 2 else order[:ENDS] + order[-ENDS:]
        rows.append([tile(bench.pictures[first + i]) for i in shown])
    return sheet_of(rows, [bench.names[prompt] for prompt in prompts])


def draw_plants(bench: Bench, count: int = 3) -> Image.Image:
    """Pictures with planted faults, each beside its map; the fault is framed in both."""
    rows = []
    for planted in bench.plants.values():
        row = []
        for picture, values, where in zip(
            bench.decode(planted.found.latent[:count]), heat(planted.found.std_map()[:count]), planted.where
        ):
            scale = TILE // where.shape[-1]
            y, x = where.nonzero().T
            frame = [int(v) * scale for v in (x.min(), y.min(), x.max() + 1, y.max() + 1)]
            for shown in (tile(picture), tile(values)):
                ImageDraw.Draw(shown).rectangle(frame, outline="#20c0ff", width=2)
                row.append(shown)
        rows.append(row)
    return sheet_of(rows, list(bench.plants), 60)


def draw_repairs(bench: Bench, most: int = 8) -> Image.Image:
    """Pictures, their masks, and what repair, random masks and new seeds make of them; the least certain come first."""
    pictures, mask = bench.repaired
    per_prompt = len(mask) // len(bench.names)
    index = [prompt * bench.count + i for prompt in range(len(bench.names)) for i in range(per_prompt)]
    chosen = bench.found[DEFAULT_ESTIMATOR].scores()[index].argsort(descending=True)[:most].tolist()
    masks = resize_map(mask, TILE, TILE)[..., None].expand(-1, -1, -1, 3)
    columns = {"before": pictures["before"], "mask": masks} | {
        name: pictures[name] for name in pictures if name != "before"
    }
    return sheet_of([[tile(column[i]) for i in chosen] for column in columns.values()], list(columns))


DRAWINGS = {"batches": draw_batches, "plants": draw_plants, "repairs": draw_repairs}
MARK = "<!-- what follows is written by the command -->"


def write_docs(rows: list[dict], command: str) -> None:
    """Tables below the mark in docs/usefulness.md; what stands above it is written by hand."""
    path = DOCS / "usefulness.md"
    above = path.read_text(encoding="utf-8").split(MARK)[0]
    text = [above + MARK, "", "## Measured", "", f"By `{command}`.", "", *tables(rows)]
    path.write_text("\n".join(text).rstrip() + "\n", encoding="utf-8")


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=lambda text: text.split(","), default=list(SETTINGS))
    parser.add_argument("--tests", type=lambda text: text.split(","), default=list(TESTS))
    parser.add_argument("--prompts", type=int, default=10, help="at most so many of a model's prompts")
    parser.add_argument("--pictures", type=int, help="pictures a prompt; 8 of emoji and 24 of garments")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--rows", type=lambda text: [Path(part) for part in text.split(",")],
                        help="show what earlier runs wrote with --json in place of measuring")  # fmt: skip
    parser.add_argument("--docs", action="store_true", help="write the tables of docs/usefulness.md, and its pictures")
    arguments = parser.parse_args()
    if unknown := {*arguments.models} - {*SETTINGS} | {*arguments.tests} - {*TESTS}:
        parser.error(f"expected of {', '.join([*SETTINGS, *TESTS])}, got {', '.join(sorted(unknown))}")
    tests = {"filtering": filtering, "bad_samples": bad_samples, "bad_regions": bad_regions, "repair": repair,
             "best_of_n": best_of_n}  # fmt: skip
    rows = [row for path in arguments.rows or [] for row in json.loads(path.read_text())]
    names = [] if arguments.rows else arguments.models
    for name in names:
        SETTINGS[name].judge.fetch_data()
        MobileNet.fetch_data()
    for name in names:
        start = time.monotonic()
        bench = Bench(name, arguments)
        print(f"{name}: {len(bench.names)} prompts, judged by {bench.judge.name}", flush=True)
        if accuracy := getattr(bench.judge, "accuracy", None):
            print(f"accuracy of the judge on pictures it has not seen: {accuracy:.3f}")
        bench.sample(list(ESTIMATORS))
        print(f"{len(bench.latents)} pictures sampled and judged after {time.monotonic() - start:.0f} s", flush=True)
        for test in arguments.tests:
            found = tests[test](bench)
            rows += found
            if arguments.json:
                arguments.json.write_text(json.dumps(rows, indent=1))
            print("\n".join(tables(found)), f"\n{test}: {time.monotonic() - start:.0f} s so far", flush=True)
        if arguments.docs:
            for drawing, needs in (("batches", "latents"), ("plants", "plants"), ("repairs", "repaired")):
                if hasattr(bench, needs):
                    path = DOCS / "images" / f"usefulness_{drawing}_{name}.png"
                    DRAWINGS[drawing](bench).quantize(256).save(path, optimize=True)
    if arguments.docs:
        write_docs(rows, "python dev.py bench usefulness --docs")


if __name__ == "__main__":
    main()

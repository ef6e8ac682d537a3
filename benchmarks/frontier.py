"""Fidelity against cost: how close each estimator comes to the posterior ensemble, and what it costs, in one run.

    python dev.py bench frontier [--models demo,fashion,digits] [--samplers dpmpp_2m]
                                 [--steps 4,8,20,50] [--cfg 1,3,7] [--prompts NAME,NAME] [--batch 6]
                                 [--members 8] [--mask 0.5] [--others] [--json PATH] [--docs] [--rows PATH,PATH]

On the demo model (a UNet, eps prediction), on a second one (a transformer, rectified flow, pixels), and on a third one
(a UNet on pixels of one channel) that no choice was made on. Each model's head is fitted and calibrated once, on images
of one other prompt at one setting (euler, simple, 12 steps), and is tested at all.

The truth is the mean square deviation of an ensemble of many members, whole runs. The agreement of its two halves says
how well a perfect map would agree with it: that is the ceiling. Two controls need no posterior: random noise, and the
local gradient energy of the latent. Spearman is of the maps, cell by cell, averaged over images, and of the scores of
all images of a setting. The errors are those of the mean over images, and of a bootstrap over images for scores. *std*
is the median over images of the mean standard deviation over the truth's. Costs are relative to the stock sampler's.
``--mask`` redraws a finished image under a noise mask of that value. ``--others`` adds the estimators that no quality
uses. ``--docs`` writes table and plot to docs/; ``--rows`` shows what earlier runs measured instead of measuring. Of
several samplers the last table has the sizes.
"""

from __future__ import annotations

import collections
import itertools
import json
import math
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import in_process

in_process.import_host_and_pack()

import torch  # noqa: E402
from bayesdiff.bayesdiff_core.estimators.base import STANDARD_DEVIATION  # noqa: E402
from bayesdiff.bayesdiff_core.estimators.deviations import Deviations  # noqa: E402
from bayesdiff.bayesdiff_core.estimators.ensemble import Ensemble, EnsembleVariance  # noqa: E402
from bayesdiff.bayesdiff_core.estimators.moments import Moments  # noqa: E402
from bayesdiff.bayesdiff_core.estimators.paper import Paper  # noqa: E402
from bayesdiff.bayesdiff_core.estimators.registry import NO_HEAD, QUALITIES  # noqa: E402
from bayesdiff.bayesdiff_core.estimators.tangents import Tangents  # noqa: E402
from bayesdiff.host.demo_model import load_demo_model  # noqa: E402
from bayesdiff.host.posterior import Posterior  # noqa: E402
from bayesdiff.host.run.sample import sample_with_uncertainty  # noqa: E402
from bayesdiff.host.settings import Guidance, RunSettings  # noqa: E402
from digits_model import load_digits_model  # noqa: E402
from factory import fit_own_head  # noqa: E402
from fashion_model import load_fashion_model  # noqa: E402
from figures_of_merit import bootstrap_error  # noqa: E402
from measure import gradient_energy, spearman  # noqa: E402
from reporting import list_of, make_parser, write_rows  # noqa: E402

# Of noise and estimators, and of the truth: its members are draws that no estimator has seen.
SEED, TRUTH_SEED = 1, 7
DOCS = in_process.ROOT / "docs"


class Model(NamedTuple):
    """A model of the bench.

    Attributes:
        load: of a prompt, see ``load_demo_model``.
        shape: of one latent.
        cfg: of the fit.
        fitted: the prompt of the fit.
        prompts: those of the tests.
    """

    load: Callable
    shape: tuple[int, int, int]
    cfg: float
    fitted: str
    prompts: tuple[str, ...]


MODELS = {
    "demo": Model(
        load_demo_model,
        (4, 16, 16),
        3.0,
        "any animal bug",
        ("any animal mammal", "any food fruit", "any face smiling", "any heart"),
    ),
    "fashion": Model(load_fashion_model, (3, 32, 32), 1.0, "t-shirt", ("trousers", "dress", "sandal", "bag")),
    "digits": Model(load_digits_model, (1, 16, 16), 2.0, "0", ("1", "4", "5", "8")),
}
ESTIMATORS = {NO_HEAD.name: NO_HEAD, **QUALITIES}
OTHERS = {
    "4 members, not moderated": Deviations(states=5, members=4, moderated=False),
    "2 members": Tangents(members=2),
    "every 2nd step, 1 pair": Moments(every=2, draws=1),
    "Skip 5, S = 10": Paper(every=5, draws=10),
    "4 members": Ensemble(4),
}


def scores_of(maps: torch.Tensor) -> torch.Tensor:
    """Mean standard deviation of each map, ``(n,)``."""
    return maps.clamp(min=0).sqrt().mean((1, 2))


class Truth(NamedTuple):
    """The stock sampler's latent and its mean square deviation over an ensemble, in two halves ``(n, h, w)``."""

    latent: torch.Tensor
    half: torch.Tensor
    other: torch.Tensor

    @property
    def whole(self) -> torch.Tensor:
        return (self.half + self.other) / 2


def sample_truth(posterior: Posterior, settings: RunSettings, empty: dict, members: int) -> Truth:
    def sample() -> torch.Tensor:
        return settings.sample(posterior.model, empty, SEED)["samples"]

    latent = sample()
    halves = [EnsembleVariance(latent), EnsembleVariance(latent)]
    for number in range(members):
        with posterior.perturbed(number):
            halves[number % 2].add(sample())
    return Truth(latent, *(part.mean_square().mean(1) for part in halves))


class Found(NamedTuple):
    """What an estimator found of one prompt's images.

    Attributes:
        maps: ``(n, h, w)``, variances, or anything that ranks as they do.
        calls, wall: relative to the stock sampler's; None where that means nothing.
        has_scale: whether the size of the maps means something.
    """

    maps: torch.Tensor
    calls: float
    wall: float | None = None
    has_scale: bool = True


def masked(model, settings: RunSettings, empty: dict, share: float | None) -> dict:
    """A finished image, of which a noise mask of one value lets this share be redrawn; without one the empty latent."""
    if share is None:
        return empty
    height, width = empty["samples"].shape[-2:]
    image = settings.sample(model, empty, TRUTH_SEED)["samples"]
    return {"samples": image, "noise_mask": torch.full((1, 8 * height, 8 * width), share)}


def measure(head, model, settings: RunSettings, latent: dict, members: int, estimators: dict) -> dict[str, Found]:
    """For one prompt: the maps of the truth's halves, of every estimator and of the controls."""

    def run(model, latent):
        return settings.sample(model, latent, SEED)

    run(model, latent)  # warms up
    start = time.perf_counter()
    run(model, latent)
    plain = time.perf_counter() - start
    truth = sample_truth(Posterior.bind(head, model, TRUTH_SEED), settings, latent, members)
    found = {"half": Found(truth.half, 1.0 + members / 2), "truth": Found(truth.other, 1.0 + members / 2)}
    posterior = Posterior.bind(head, model, SEED)
    for name, estimator in estimators.items():
        start = time.perf_counter()
        uncertainty = sample_with_uncertainty(run, latent, posterior, estimator).uncertainty
        wall = (time.perf_counter() - start) / plain
        has_scale = estimator.measures == STANDARD_DEVIATION
        found[name] = Found(uncertainty.variance.mean(1), uncertainty.cost, wall, has_scale)
    noise = torch.rand(truth.half.shape, generator=torch.Generator().manual_seed(TRUTH_SEED))
    found["random noise"] = Found(noise, 1.0, 1.0, has_scale=False)
    found["gradient energy"] = Found(gradient_energy(truth.latent), 1.0, 1.0, has_scale=False)
    return found


def rank_correlations(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Spearman of each pair of maps ``(n, h, w)``, ``(n,)``."""
    return torch.tensor([spearman(one[None], other[None]) for one, other in zip(a, b)])


def ceiling_of(agreement: float) -> float:
    """Agreement of a perfect map with a truth whose halves agree this well (Spearman and Brown, 1910)."""
    agreement = max(agreement, 0.0)
    return math.sqrt(2 * agreement / (1 + agreement))


def figures(of_prompts: list[dict[str, Found]]) -> dict[str, dict]:
    """Every estimator's agreement with the truth, over the images of all prompts of a setting."""

    def maps(name: str) -> torch.Tensor:
        return torch.cat([found[name].maps for found in of_prompts])

    half, other = maps("half"), maps("truth")
    truth = (half + other) / 2
    rows = {}
    for name, first in of_prompts[0].items():
        if name == "half":
            continue
        against, mine = (half if name == "truth" else truth), maps(name)
        agreement, scores, theirs = rank_correlations(mine, against), scores_of(mine), scores_of(against)

        def ranked(index: torch.Tensor, scores=scores, theirs=theirs) -> float:
            return spearman(scores[index][None], theirs[index][None])

        walls = [found[name].wall for found in of_prompts]
        rows[name] = {
            "calls_ratio": first.calls,
            "wall_ratio": average(walls),
            "map_spearman": float(agreement.mean()),
            "map_error": float(agreement.std() / len(agreement) ** 0.5),
            "score_spearman": ranked(torch.arange(len(scores))),
            "score_error": bootstrap_error(ranked, len(scores)),
            "std_ratio": float((scores / theirs).median()) if first.has_scale else None,
            "mean_score": float(scores.mean()),
        }
    ceiling = ceiling_of(rows["truth"]["map_spearman"])
    rows["ceiling"] = dict.fromkeys(rows["truth"]) | dict(calls_ratio=1.0, map_spearman=ceiling)
    return rows


def kind_of(setting: str) -> str:
    """The kind of estimator that a row's setting belongs to."""
    estimators = ESTIMATORS | OTHERS
    if setting in estimators:
        return estimators[setting].name
    return "truth" if setting in ("truth", "ceiling") else "control"


def average(values: list[float | None], of: Callable = statistics.mean) -> float | None:
    """The mean of figures, or their median; None where a figure is missing."""
    return None if None in values or not values else of(values)


def frontier(name: str, arguments) -> list[dict]:
    """Rows of one model, at every sampler, number of steps and guidance."""
    of = MODELS[name]
    prompts = arguments.prompts or of.prompts
    model, positive, negative, _ = of.load(of.fitted)
    conditions, empty = [of.load(prompt)[1] for prompt in prompts], {"samples": torch.zeros(arguments.batch, *of.shape)}
    head = fit_own_head(model, Guidance(positive, negative, of.cfg), of.shape)
    estimators = ESTIMATORS | (OTHERS if arguments.others else {})
    rows = []
    for sampler, steps, cfg in itertools.product(arguments.samplers, arguments.steps, arguments.cfg):
        settings = [RunSettings(steps, cfg, sampler, "normal", prompt, negative) for prompt in conditions]
        found = figures(
            [
                measure(head, model, each, masked(model, each, empty, arguments.mask), arguments.members, estimators)
                for each in settings
            ]
        )
        setting = {"model": name, "sampler": sampler, "steps": steps, "cfg": cfg, "mask": arguments.mask}
        size = {"images": arguments.batch * len(prompts), "members": arguments.members}
        rows += [setting | {"estimator": kind_of(key), "setting": key} | value | size for key, value in found.items()]
        print("\n".join(table(rows[-len(found) :])), flush=True)
        write_rows(arguments.json, arguments.done + rows)
    return rows


# ---------------------------------------------------------------- what is shown


def cell(value: float | None, digits: int = 2) -> str:
    if value is None:
        return ""
    return f"{value:.{digits}f}" if abs(value) < 100 else f"{value:.2g}"


def label(row: dict) -> str:
    bold = "**" if row["setting"] in ESTIMATORS else ""
    kind = "" if row["estimator"] in (row["setting"], "control") else f"{row['estimator']}, "
    return f"{bold}{kind}{row['setting']}{bold}"


def table(rows: list[dict]) -> list[str]:
    """The rows of one setting, in Markdown."""
    first = rows[0]
    lines = [
        f"\n{first['model']}, {first['sampler']}, {first['steps']} steps, cfg {first['cfg']:g}\n",
        "| estimator | calls | time | map | score | std |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        cells = [cell(row[key]) for key in ("calls_ratio", "wall_ratio")]
        cells += [with_error(row, "map"), with_error(row, "score"), cell(row["std_ratio"])]
        lines.append(f"| {label(row)} | " + " | ".join(cells) + " |")
    return lines


def with_error(row: dict, of: str) -> str:
    error = row[f"{of}_error"]
    return cell(row[f"{of}_spearman"]) + ("" if error is None else f" ± {error:.2f}")


def over_ceiling(row: dict, rows: list[dict]) -> float | None:
    """A row's map over the ceiling of its own setting."""
    keys = ("model", "sampler", "steps", "cfg")
    mine = tuple(row[key] for key in keys)
    ceiling = next(r for r in rows if r["setting"] == "ceiling" and tuple(r[key] for key in keys) == mine)
    return row["map_spearman"] / ceiling["map_spearman"] if ceiling["map_spearman"] else None


def summary(rows: list[dict]) -> list[str]:
    """Means over samplers, steps and guidances, one group of columns per model, in Markdown."""
    models = list(dict.fromkeys(row["model"] for row in rows))
    columns = [f"{model}: {column}" for model in models for column in ("calls", "map/ceiling", "least", "score", "std")]
    lines = ["| estimator | " + " | ".join(columns) + " |", "|---" * (1 + len(columns)) + "|"]
    for setting in dict.fromkeys(row["setting"] for row in rows):
        cells = []
        for model in models:
            mine = [row for row in rows if row["setting"] == setting and row["model"] == model]
            shares = [over_ceiling(row, rows) for row in mine]
            cells += [
                cell(average([row["calls_ratio"] for row in mine])),
                cell(average(shares), 3),
                cell(average(shares, min), 3),
                cell(average([row["score_spearman"] for row in mine])),
                cell(average([row["std_ratio"] for row in mine], statistics.median)),
            ]
        row = next(row for row in rows if row["setting"] == setting)
        lines.append(f"| {label(row)} | " + " | ".join(cells) + " |")
    return lines


def sizes(rows: list[dict]) -> list[str]:
    """*std* by sampler, from the least to the most over steps and guidances, in Markdown."""
    found = collections.defaultdict(list)
    for row in rows:
        if row["setting"] in ESTIMATORS and row["std_ratio"]:
            found[row["sampler"], f"{row['model']}: {row['setting']}"].append(row["std_ratio"])
    samplers, columns = (dict.fromkeys(keys) for keys in zip(*found))
    lines = ["| sampler | " + " | ".join(columns) + " |", "|---" * (1 + len(columns)) + "|"]
    for sampler in samplers:
        ends = [(cell(min(found[sampler, column])), cell(max(found[sampler, column]))) for column in columns]
        lines.append(f"| {sampler} | " + " | ".join(" to ".join(dict.fromkeys(each)) for each in ends) + " |")
    return lines


def plot(rows: list[dict], path: Path) -> None:
    """Fidelity of map and score against network calls, one panel per model; small marks are single settings."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    models = list(dict.fromkeys(row["model"] for row in rows))
    figure, axes = plt.subplots(2, len(models), figsize=(5.5 * len(models), 8), sharex=True, squeeze=False)
    markers = {"no head": "^", "instant": "*", "deviations": "o", "tangents": "v", "moments": "s", "paper": "X"}
    markers |= {"ensemble": "D", "control": "."}
    for column, model in enumerate(models):
        for line, key in enumerate(("map_spearman", "score_spearman")):
            axis = axes[line][column]
            colours = iter(plt.get_cmap("tab20").colors)
            for setting in dict.fromkeys(row["setting"] for row in rows):
                mine = [row for row in rows if row["setting"] == setting and row["model"] == model]
                if mine[0]["estimator"] == "truth":
                    continue
                colour, marker = next(colours), markers[mine[0]["estimator"]]
                calls, values = [row["calls_ratio"] for row in mine], [row[key] for row in mine]
                axis.scatter(calls, values, 9, color=[colour], marker=marker, alpha=0.5)
                look = dict(color=[colour], marker=marker, edgecolors="black", linewidths=0.5)
                words = f"{mine[0]['estimator']}, {setting}"
                axis.scatter(statistics.mean(calls), statistics.mean(values), 70, label=words, **look)
            if key == "map_spearman":
                limits = [row[key] for row in rows if row["setting"] == "ceiling" and row["model"] == model]
                axis.axhline(statistics.mean(limits), color="grey", linestyle="--", label="a perfect map")
                axis.set_title(model)
            axis.set_xscale("log")
            axis.set_xticks([1, 1.25, 2, 4, 5], ["1", "1.25", "2", "4", "5"])
            axis.minorticks_off()
            axis.grid(alpha=0.3)
            axis.set_ylabel("Spearman with the truth, " + ("map" if key == "map_spearman" else "score"))
            if line:
                axis.set_xlabel("network calls, relative to plain sampling")
    axes[0][-1].legend(fontsize=7, loc="lower right")
    figure.tight_layout()
    figure.savefig(path, dpi=110)


def write_docs(rows: list[dict]) -> None:
    plot(rows, DOCS / "images" / "frontier.png")
    keys = ("model", "cfg", "steps", "sampler")
    sizes = {row["model"]: f"{row['images']} images, truth from {row['members']} members" for row in rows}
    settings = dict.fromkeys(tuple(row[key] for key in keys) for row in rows)
    text = [
        "# Fidelity against cost, measured",
        "",
        "How close map and score of each quality come to those of an ensemble of whole runs, and what that costs in",
        "network calls: three models at many steps and strengths of guidance. The first table has the means; in",
        "*map/ceiling*, 1 is a map as good as that ensemble can show. [sampling.md](sampling.md) explains the",
        "columns and says what to choose.",
        "",
        f"Made by `python dev.py bench frontier --docs`, seed {SEED}. Each setting (`--batch`, `--members`): "
        + "; ".join(f"{model}, {size}" for model, size in sizes.items())
        + ".",
        "",
        "![Fidelity of map and score against network calls](images/frontier.png)",
        "",
        "## Means over all settings",
        "",
        "*map/ceiling* is the mean over settings, and *least* its least; *std* is the median over settings.",
        "",
        *summary(rows),
        "",
        "## Every setting",
    ]
    for setting in settings:
        text += table([row for row in rows if tuple(row[key] for key in keys) == setting])
    (DOCS / "frontier.md").write_text("\n".join(text) + "\n")


@torch.inference_mode()
def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--models", type=list_of(), default=list(MODELS))
    parser.add_argument("--samplers", type=list_of(), default=["dpmpp_2m"])
    parser.add_argument("--steps", type=list_of(int), default=[4, 8, 20, 50])
    parser.add_argument("--cfg", type=list_of(float), default=[1.0, 3.0, 7.0])
    parser.add_argument("--prompts", type=list_of(), help="names, instead of the models' own")
    parser.add_argument("--batch", type=int, default=6, help="images per prompt")
    parser.add_argument("--members", type=int, default=8, help="members of the truth's ensemble")
    parser.add_argument("--mask", type=float, help="value of a noise mask over a finished image")
    parser.add_argument("--others", action="store_true", help="the estimators that no quality uses, too")
    parser.add_argument("--rows", type=list_of(Path))
    parser.add_argument("--docs", action="store_true", help="write docs/frontier.md and its plot")
    arguments = parser.parse_args()
    arguments.done = []
    if arguments.rows:
        arguments.done = [row for path in arguments.rows for row in json.loads(path.read_text())]
    else:
        for name in arguments.models:
            arguments.done += frontier(name, arguments)
    print("\n" + "\n".join(summary(arguments.done)))
    if len({row["sampler"] for row in arguments.done}) > 1:
        print("\n" + "\n".join(sizes(arguments.done)))
    if arguments.docs:
        write_docs(arguments.done)


if __name__ == "__main__":
    main()

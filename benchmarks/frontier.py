"""Fidelity against cost: how close each estimator comes to the posterior ensemble, and what it costs, in one run.

    python dev.py bench frontier [--models demo,fashion] [--samplers euler,dpmpp_2m,euler_ancestral] [--steps 20,50]
                                 [--cfg 1,7] [--prompts NAME,NAME] [--batch 6] [--members 16]
                                 [--json PATH] [--docs] [--rows PATH,PATH]

On the demo model (a UNet, eps prediction) and on a second one (a transformer, rectified flow, pixels). The truth is the
mean square deviation of an ensemble of many members. The agreement of its two halves says how well a perfect map
would agree with it: that is the ceiling. Two controls need no posterior: random noise, and the local gradient energy of
the latent. Spearman is of the maps, cell by cell, averaged over images, and of the images' scores within a prompt,
averaged over prompts. Costs are relative to the stock sampler's. ``--docs`` writes table and plot to docs/; ``--rows``
shows what earlier runs measured instead of measuring.
"""

from __future__ import annotations

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
from bayesdiff.bayesdiff_core.estimators.deviations import Deviations  # noqa: E402
from bayesdiff.bayesdiff_core.estimators.ensemble import Ensemble, EnsembleVariance  # noqa: E402
from bayesdiff.bayesdiff_core.estimators.moments import Moments  # noqa: E402
from bayesdiff.bayesdiff_core.estimators.paper import Paper  # noqa: E402
from bayesdiff.bayesdiff_core.estimators.registry import QUALITIES  # noqa: E402
from bayesdiff.bayesdiff_core.estimators.tangents import Tangents  # noqa: E402
from bayesdiff.host.demo_model import load_demo_model  # noqa: E402
from bayesdiff.host.posterior import Posterior  # noqa: E402
from bayesdiff.host.run.sample import sample_with_uncertainty  # noqa: E402
from bayesdiff.host.settings import Guidance, RunSettings  # noqa: E402
from factory import fit_own_head  # noqa: E402
from fashion_model import load_fashion_model  # noqa: E402
from measure import gradient_energy, spearman  # noqa: E402
from reporting import list_of, make_parser, write_rows  # noqa: E402

# Of noise and estimators, and of the truth: its members are draws that no estimator has seen.
SEED, TRUTH_SEED = 1, 7
DOCS = in_process.ROOT / "docs"
# How a model is loaded, the shape of one latent, and its prompts.
MODELS = {
    "demo": (load_demo_model, (4, 16, 16), "owl"),
    "fashion": (load_fashion_model, (3, 32, 32), "sandal"),
}
ESTIMATORS = {
    **QUALITIES,
    "4 members, not moderated": Deviations(states=5, members=4, moderated=False),
    "2 members": Tangents(members=2),
    "every 2nd step, 1 pair": Moments(every=2, draws=1),
    "Skip 5, S = 10": Paper(every=5, draws=10),
    "4 members": Ensemble(4),
}


def scores_of(maps: torch.Tensor) -> torch.Tensor:
    return maps.clamp(min=0).sqrt().mean((1, 2))[None]


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


def measure(head, model, settings: RunSettings, empty: dict, members: int) -> dict[str, dict]:
    """For one prompt: every estimator's agreement with the truth, and its cost."""

    def run(model, latent):
        return settings.sample(model, latent, SEED)

    run(model, empty)  # warms up
    times = []
    for _ in range(3):
        start = time.perf_counter()
        run(model, empty)
        times.append(time.perf_counter() - start)
    plain = statistics.median(times)
    truth = sample_truth(Posterior.bind(head, model, TRUTH_SEED), settings, empty, members)

    def row(found, calls_ratio, wall_ratio=None, has_scale=True, against=truth.whole):
        return {
            "calls_ratio": calls_ratio,
            "wall_ratio": wall_ratio,
            "map_spearman": spearman(found, against),
            "score_spearman": spearman(scores_of(found), scores_of(against)),
            "variance_ratio": float(found.mean() / against.mean()) if has_scale else None,
        }

    rows = {"halves": row(truth.half, 1.0 + members / 2, against=truth.other)}
    agreement = max(rows["halves"]["map_spearman"], 0.0)
    # Agreement of a perfect map with a truth whose halves agree this well (Spearman and Brown, 1910).
    ceiling = math.sqrt(2 * agreement / (1 + agreement))
    rows["ceiling"] = dict(
        calls_ratio=1.0 + members, wall_ratio=None, map_spearman=ceiling, score_spearman=None, variance_ratio=None
    )
    posterior = Posterior.bind(head, model, SEED)
    for name, estimator in ESTIMATORS.items():
        start = time.perf_counter()
        found = sample_with_uncertainty(run, empty, posterior, estimator).uncertainty
        rows[name] = row(found.variance.mean(1), found.cost, (time.perf_counter() - start) / plain)
    noise = torch.rand(truth.half.shape, generator=torch.Generator().manual_seed(TRUTH_SEED))
    rows["random noise"] = row(noise, 1.0, 1.0, has_scale=False)
    rows["gradient energy"] = row(gradient_energy(truth.latent), 1.0, 1.0, has_scale=False)
    return rows


def kind_of(setting: str) -> str:
    """The kind of estimator that a row's setting belongs to."""
    if setting in ESTIMATORS:
        return ESTIMATORS[setting].name
    return "truth" if setting in ("halves", "ceiling") else "control"


def average(values: list[float | None], of: Callable = statistics.mean) -> float | None:
    """The mean of figures, or their median; None where a figure is missing."""
    return None if None in values else of(values)


def frontier(name: str, arguments) -> list[dict]:
    """Rows of one model, at every sampler, number of steps and guidance."""
    load, shape, default_prompts = MODELS[name]
    prompts = arguments.prompts or [default_prompts]
    model, positive, negative, _ = load(prompts[0])
    conditions, empty = [load(prompt)[1] for prompt in prompts], {"samples": torch.zeros(arguments.batch, *shape)}
    rows = []
    for cfg in arguments.cfg:
        head = fit_own_head(model, Guidance(positive, negative, cfg), shape)
        for steps, sampler in itertools.product(arguments.steps, arguments.samplers):
            settings = [RunSettings(steps, cfg, sampler, "normal", prompt, negative) for prompt in conditions]
            found = [measure(head, model, of_prompt, empty, arguments.members) for of_prompt in settings]
            setting = {"model": name, "sampler": sampler, "steps": steps, "cfg": cfg}
            size = {"pictures": arguments.batch * len(prompts), "members": arguments.members}
            rows += [
                setting
                | {"estimator": kind_of(key), "setting": key}
                | {column: average([of_prompt[key][column] for of_prompt in found]) for column in value}
                | size
                for key, value in found[0].items()
            ]
            print("\n".join(table(rows[-len(found[0]) :])), flush=True)
            write_rows(arguments.json, arguments.done + rows)
    return rows


# ---------------------------------------------------------------- what is shown


def cell(value: float | None, digits: int = 2) -> str:
    if value is None:
        return ""
    return f"{value:.{digits}f}" if abs(value) < 100 else f"{value:.2g}"


def label(row: dict) -> str:
    bold = "**" if row["setting"] in QUALITIES else ""
    return f"{bold}{row['estimator']}, {row['setting']}{bold}"


def table(rows: list[dict]) -> list[str]:
    """The rows of one setting, in Markdown."""
    first = rows[0]
    lines = [
        f"\n{first['model']}, {first['sampler']}, {first['steps']} steps, cfg {first['cfg']:g}\n",
        "| estimator | calls | time | map | score | mean/truth |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        cells = [cell(row[key]) for key in ("calls_ratio", "wall_ratio")]
        cells += [cell(row["map_spearman"], 3), cell(row["score_spearman"]), cell(row["variance_ratio"])]
        lines.append(f"| {label(row)} | " + " | ".join(cells) + " |")
    return lines


def summary(rows: list[dict]) -> list[str]:
    """Means over samplers, steps and guidances, one group of columns per model, in Markdown."""
    models = list(dict.fromkeys(row["model"] for row in rows))
    columns = [f"{model}: {column}" for model in models for column in ("calls", "map", "score", "mean/truth")]
    lines = ["| estimator | " + " | ".join(columns) + " |", "|---" * (1 + len(columns)) + "|"]
    for setting in dict.fromkeys(row["setting"] for row in rows):
        cells = []
        for model in models:
            mine = [row for row in rows if row["setting"] == setting and row["model"] == model]
            cells += [
                cell(average([row["calls_ratio"] for row in mine])),
                cell(average([row["map_spearman"] for row in mine]), 3),
                cell(average([row["score_spearman"] for row in mine])),
                cell(average([row["variance_ratio"] for row in mine], statistics.median)),
            ]
        row = next(row for row in rows if row["setting"] == setting)
        lines.append(f"| {label(row)} | " + " | ".join(cells) + " |")
    return lines


def plot(rows: list[dict], path: Path) -> None:
    """Fidelity of map and score against network calls, one panel per model; small marks are single settings."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    models = list(dict.fromkeys(row["model"] for row in rows))
    figure, axes = plt.subplots(2, len(models), figsize=(5.5 * len(models), 8), sharex=True, squeeze=False)
    markers = {"deviations": "o", "tangents": "v", "moments": "s", "paper": "X", "ensemble": "D", "control": "."}
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
    sizes = {row["model"]: f"{row['pictures']} images, truth from {row['members']} members" for row in rows}
    settings = dict.fromkeys(tuple(row[key] for key in keys) for row in rows)
    text = [
        "# Fidelity against cost, measured",
        "",
        f"Made by `python dev.py bench frontier --docs`, seed {SEED}. Each setting (`--batch`, `--members`): "
        + "; ".join(f"{model}, {size}" for model, size in sizes.items())
        + ". [sampling.md](sampling.md) explains the columns and what they say.",
        "",
        "![Fidelity of map and score against network calls](images/frontier.png)",
        "",
        "## Means over all settings",
        "",
        "*mean/truth* is the median over settings.",
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
    parser.add_argument("--samplers", type=list_of(), default=["euler", "dpmpp_2m", "euler_ancestral"])
    parser.add_argument("--steps", type=list_of(int), default=[20, 50])
    parser.add_argument("--cfg", type=list_of(float), default=[1.0, 7.0])
    parser.add_argument("--prompts", type=list_of(), help="names, instead of the models' own")
    parser.add_argument("--batch", type=int, default=6, help="images per prompt")
    parser.add_argument("--members", type=int, default=16, help="number of members in the ensemble that is the truth")
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
    if arguments.docs:
        write_docs(arguments.done)


if __name__ == "__main__":
    main()

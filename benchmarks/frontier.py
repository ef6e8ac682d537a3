"""Fidelity against cost: how close each estimator comes to the posterior ensemble, and what it costs, in one run.

    python dev.py bench frontier [--models demo,fashion] [--samplers euler,dpmpp_2m,euler_ancestral] [--steps 20,50]
                                 [--cfg 1,7] [--prompts NAME,NAME] [--batch 6] [--members 16]
                                 [--json PATH] [--docs] [--rows PATH,PATH]

On the demo model (a UNet, eps prediction) and on a second one (a transformer, rectified flow, pixels). The truth is the
mean square deviation of an ensemble of many members. How well its two halves agree tells how well a perfect map would
agree with it: that is the ceiling. Two controls need no posterior at all: random noise, and the local gradient energy
of the latent. Spearman is of the maps, cell by cell, averaged over pictures, and of the pictures' scores within a
prompt, averaged over prompts. Costs are relative to the stock sampler's. ``--docs`` writes table and plot to docs/;
``--rows`` shows what earlier runs measured in place of measuring.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import time
from pathlib import Path

import in_process

in_process.import_host_and_pack()

import nodes  # noqa: E402
import torch  # noqa: E402
from bayesdiff.bayesdiff_core.estimators.deviations import Deviations  # noqa: E402
from bayesdiff.bayesdiff_core.estimators.ensemble import Ensemble, EnsembleVariance  # noqa: E402
from bayesdiff.bayesdiff_core.estimators.moments import Moments  # noqa: E402
from bayesdiff.bayesdiff_core.estimators.paper import Paper  # noqa: E402
from bayesdiff.bayesdiff_core.estimators.tangents import Tangents  # noqa: E402
from bayesdiff.host.demo_model import load_demo_model  # noqa: E402
from bayesdiff.host.fitting import as_examples, fit_head, own_samples  # noqa: E402
from bayesdiff.host.last_layer import find_last_layer  # noqa: E402
from bayesdiff.host.sampling import sample_with_uncertainty  # noqa: E402
from bayesdiff.nodes.sampler import QUALITIES  # noqa: E402
from fashion_model import load_fashion_model  # noqa: E402
from measure import count_calls, spearman  # noqa: E402

SEED = 1
DOCS = in_process.ROOT / "docs"
# How a model is loaded, the shape of one latent, and its prompts.
MODELS = {
    "demo": (load_demo_model, (4, 16, 16), "owl"),
    "fashion": (load_fashion_model, (3, 32, 32), "sandal"),
}
ESTIMATORS = {
    **QUALITIES,
    "4 members, not moderated": Deviations(5, fixed_members=4, moderated=False),
    "2 members": Tangents(2),
    "every 2nd step, 1 pair": Moments(2, 1),
    "Skip 5, S = 10": Paper(5, 10),
    "4 members": Ensemble(4),
}


def gradient_energy(latent: torch.Tensor) -> torch.Tensor:
    """Mean square of the differences to the right and lower neighbour, ``(n, h, w)``; edges repeat."""
    padded = torch.nn.functional.pad(latent, (0, 1, 0, 1), mode="replicate")
    right, down = padded[..., :-1, 1:] - latent, padded[..., 1:, :-1] - latent
    return (right.square() + down.square()).mean(1)


def scores_of(maps: torch.Tensor) -> torch.Tensor:
    return maps.clamp(min=0).sqrt().mean((1, 2))[None]


def measure(model, layer, head, prompt, negative, latent, sampler, steps, cfg, members) -> dict[str, dict]:
    """Of one prompt: every estimator's agreement with the truth, and its cost."""

    def run(model):
        return nodes.common_ksampler(model, SEED, steps, cfg, sampler, "normal", prompt, negative, latent)[0]

    calls, nominal = count_calls(layer, lambda: run(model)["samples"])
    times = []
    for _ in range(3):
        start = time.perf_counter()
        run(model)
        times.append(time.perf_counter() - start)
    plain = statistics.median(times)
    halves, generator = [EnsembleVariance(nominal), EnsembleVariance(nominal)], torch.Generator().manual_seed(7)
    for number in range(members):
        with layer.perturbed(head.draw(generator)):
            halves[number % 2].add(run(model)["samples"])
    half, other = (part.mean_square().mean(1) for part in halves)
    truth = (half + other) / 2

    def row(found, calls_ratio, wall_ratio=None, has_scale=True, against=truth):
        return {
            "calls_ratio": calls_ratio,
            "wall_ratio": wall_ratio,
            "map_spearman": spearman(found, against),
            "score_spearman": spearman(scores_of(found), scores_of(against)),
            "variance_ratio": float(found.mean() / against.mean()) if has_scale else None,
        }

    rows = {"halves": row(half, 1.0 + members / 2, against=other)}
    agreement = max(rows["halves"]["map_spearman"], 0.0)
    # Of a perfect map with a truth whose halves agree so (Spearman and Brown, 1910).
    ceiling = math.sqrt(2 * agreement / (1 + agreement))
    rows["ceiling"] = dict(
        calls_ratio=1.0 + members, wall_ratio=None, map_spearman=ceiling, score_spearman=None, variance_ratio=None
    )
    for name, estimator in ESTIMATORS.items():
        start = time.perf_counter()
        _, _, uncertainty = sample_with_uncertainty(run, model, layer, head, estimator, SEED)
        rows[name] = row(uncertainty.variance.mean(1), uncertainty.cost, (time.perf_counter() - start) / plain)
    rows["random noise"] = row(torch.rand(truth.shape, generator=generator), 1.0, 1.0, has_scale=False)
    rows["gradient energy"] = row(gradient_energy(nominal), 1.0, 1.0, has_scale=False)
    return rows


def kind_of(setting: str) -> str:
    """What a row's setting is of."""
    if setting in ESTIMATORS:
        return ESTIMATORS[setting].name
    return "truth" if setting in ("halves", "ceiling") else "control"


def average(values: list[float | None]) -> float | None:
    return None if None in values else statistics.mean(values)


def frontier(name: str, arguments) -> list[dict]:
    """Rows of one model, at every sampler, number of steps and guidance."""
    load, shape, default_prompts = MODELS[name]
    prompts = (arguments.prompts or default_prompts).split(",")
    model, positive, negative, _ = load(prompts[0])
    layer, conditions = find_last_layer(model), [load(prompt)[1] for prompt in prompts]
    latent = {"samples": torch.zeros(arguments.batch, *shape)}
    rows = []
    for cfg in arguments.cfg:
        data = own_samples(model, positive, negative, {"samples": torch.zeros(1, *shape)}, 32, 12, cfg, seed=0)
        head = fit_head(model, as_examples(data, positive), negative, cfg, 8, 0)
        for steps in arguments.steps:
            for sampler in arguments.samplers:
                found = [
                    measure(model, layer, head, prompt, negative, latent, sampler, steps, cfg, arguments.members)
                    for prompt in conditions
                ]
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
                if arguments.json:
                    arguments.json.write_text(json.dumps(arguments.done + rows, indent=1))
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
    """Means over samplers, steps and guidances, one column a model, in Markdown."""
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
                cell(None if mine[0]["variance_ratio"] is None
                     else statistics.median(row["variance_ratio"] for row in mine)),
            ]  # fmt: skip
        row = next(row for row in rows if row["setting"] == setting)
        lines.append(f"| {label(row)} | " + " | ".join(cells) + " |")
    return lines


def plot(rows: list[dict], path: Path) -> None:
    """Fidelity of map and score against network calls, one panel a model; small marks are single settings."""
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
                axis.scatter(
                    statistics.mean(calls), statistics.mean(values), 70, color=[colour], marker=marker,
                    edgecolors="black", linewidths=0.5, label=f"{mine[0]['estimator']}, {setting}",
                )  # fmt: skip
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
    sizes = {row["model"]: f"{row['pictures']} pictures, an ensemble of {row['members']} as the truth" for row in rows}
    settings = dict.fromkeys(tuple(row[key] for key in keys) for row in rows)
    text = [
        "# Fidelity against cost, measured",
        "",
        f"Made by `python dev.py bench frontier --docs`, seed {SEED}; a setting is "
        + "; ".join(f"of {model}, {size}" for model, size in sizes.items())
        + " (`--batch`, `--members`). What the columns are and what they say: [sampling.md](sampling.md).",
        "",
        "![Fidelity of map and score against network calls](images/frontier.png)",
        "",
        "## Means over all settings",
        "",
        "The mean over the truth is a median here.",
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
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=lambda text: text.split(","), default=list(MODELS))
    parser.add_argument(
        "--samplers", type=lambda text: text.split(","), default=["euler", "dpmpp_2m", "euler_ancestral"]
    )
    parser.add_argument("--steps", type=lambda text: [int(part) for part in text.split(",")], default=[20, 50])
    parser.add_argument("--cfg", type=lambda text: [float(part) for part in text.split(",")], default=[1.0, 7.0])
    parser.add_argument("--prompts", help="names, in place of the models' own")
    parser.add_argument("--batch", type=int, default=6, help="pictures a prompt")
    parser.add_argument("--members", type=int, default=16, help="members of the ensemble that is the truth")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--rows", type=lambda text: [Path(part) for part in text.split(",")])
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

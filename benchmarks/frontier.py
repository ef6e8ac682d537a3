"""Fidelity against cost: how close each estimator comes to the posterior ensemble, and what it costs, in one run.

    python dev.py bench frontier [--samplers euler,dpmpp_2m,euler_ancestral] [--steps 20] [--cfg 3]
                                 [--prompts 3 | --prompt NAME] [--members 32] [--json PATH]

On the demo model, four pictures a prompt. The truth is the mean square deviation of an ensemble of many members; the
row "truth, halves" says how well its two halves agree with each other, which no estimator can beat by much. Two
controls need no posterior at all: random noise, and the local gradient energy of the latent. Spearman is of the maps,
cell by cell, averaged over pictures, and of the pictures' scores. Costs are relative to the stock sampler's.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path

import in_process

in_process.import_host_and_pack()

import nodes  # noqa: E402
import torch  # noqa: E402
from bayesdiff.bayesdiff_core.ensemble import EnsembleVariance  # noqa: E402
from bayesdiff.host.demo_model import load_demo_model, prompt_names  # noqa: E402
from bayesdiff.host.fitting import as_examples, fit_head, own_samples  # noqa: E402
from bayesdiff.host.last_layer import find_last_layer  # noqa: E402
from bayesdiff.host.sampling import Ensemble, Thinned, sample_with_uncertainty  # noqa: E402
from bayesdiff.nodes.sampler import QUALITIES  # noqa: E402
from measure import count_calls, spearman  # noqa: E402

SEED = 1
ESTIMATORS = {
    **QUALITIES,
    "share 0.25, 4 states": Thinned(0.25, 4),
    "share 0.25, 8 states": Thinned(0.25, 8),
    "share 1, 4 states": Thinned(1.0, 4),
    "share 1, 8 states": Thinned(1.0, 8),
    "share 3, 5 states": Thinned(3.0, 5),
    "2 members": Ensemble(2),
    "4 members": Ensemble(4),
    "8 members": Ensemble(8),
}


def gradient_energy(latent: torch.Tensor) -> torch.Tensor:
    """Mean square of the differences to the right and lower neighbour, ``(n, h, w)``; edges repeat."""
    padded = torch.nn.functional.pad(latent, (0, 1, 0, 1), mode="replicate")
    right, down = padded[..., :-1, 1:] - latent, padded[..., 1:, :-1] - latent
    return (right.square() + down.square()).mean(1)


def frontier(model, head, prompts, negative, sampler: str, steps: int, cfg: float, members: int) -> list[dict]:
    """Rows of one setting, every estimator on every prompt."""
    layer, latent = find_last_layer(model), {"samples": torch.zeros(4, 4, 16, 16)}
    maps: dict[str, list[torch.Tensor]] = {}
    costs: dict[str, list[tuple[float, float]]] = {}
    for prompt in prompts:

        def run(model, prompt=prompt):
            return nodes.common_ksampler(model, SEED, steps, cfg, sampler, "normal", prompt, negative, latent)[0]

        calls, nominal = count_calls(layer, lambda run=run: run(model)["samples"])
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
        found = {"half": halves[0].mean_square(), "other half": halves[1].mean_square()}
        found["truth"] = (found["half"] + found["other half"]) / 2
        for name, estimator in ESTIMATORS.items():
            start = time.perf_counter()
            spent, (_, _, uncertainty) = count_calls(
                layer, lambda e=estimator, run=run: sample_with_uncertainty(run, model, layer, head, e, SEED)
            )
            costs.setdefault(name, []).append((spent / calls, (time.perf_counter() - start) / plain))
            found[name] = uncertainty.variance
        for name, variance in found.items():
            maps.setdefault(name, []).append(variance.mean(1))
        maps.setdefault("random noise", []).append(torch.rand(nominal[:, 0].shape, generator=generator))
        maps.setdefault("gradient energy", []).append(gradient_energy(nominal))
    joined = {name: torch.cat(parts) for name, parts in maps.items()}
    truth, other = joined.pop("truth"), joined.pop("other half")
    joined = {"halves": joined.pop("half"), **joined}
    rows = []
    for name, found in joined.items():
        against = other if name == "halves" else truth
        scores = [values.sqrt().mean((1, 2))[None] for values in (found, against)]
        estimator = ESTIMATORS[name].name if name in ESTIMATORS else "control"
        cost = [statistics.mean(column) for column in zip(*costs.get(name, [(1.0, 1.0)]))]
        rows.append(
            {
                "model": "demo",
                "sampler": sampler,
                "steps": steps,
                "cfg": cfg,
                "estimator": "truth" if name == "halves" else estimator,
                "setting": name,
                "calls_ratio": 1.0 + members / 2 if name == "halves" else cost[0],
                "wall_ratio": None if name == "halves" else cost[1],
                "map_spearman": spearman(found, against),
                "score_spearman": spearman(*scores),
                "variance_ratio": float(found.mean() / against.mean()) if estimator != "control" else None,
            }
        )
    return rows


def show(rows: list[dict]) -> None:
    first = rows[0]
    print(f"\n{first['sampler']}, {first['steps']} steps, cfg {first['cfg']:g}")
    print(f"{'estimator':<34}{'calls':>7}{'time':>7}{'map':>8}{'score':>8}{'mean/truth':>12}")
    for row in rows:
        wall = "" if row["wall_ratio"] is None else f"{row['wall_ratio']:.2f}"
        ratio = "" if row["variance_ratio"] is None else f"{row['variance_ratio']:.2f}"
        print(
            f"{row['estimator'] + ', ' + row['setting']:<34}{row['calls_ratio']:>7.2f}{wall:>7}"
            f"{row['map_spearman']:>8.3f}{row['score_spearman']:>8.3f}{ratio:>12}",
            flush=True,
        )


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samplers", default="euler,dpmpp_2m,euler_ancestral")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--cfg", type=float, default=3.0)
    parser.add_argument("--prompts", type=int, default=3)
    parser.add_argument("--prompt", choices=prompt_names(), metavar="NAME", help="this prompt alone")
    parser.add_argument("--members", type=int, default=32, help="members of the ensemble that is the truth")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    names = prompt_names()
    names = names[len(names) // (2 * arguments.prompts) :: len(names) // arguments.prompts][: arguments.prompts]
    if arguments.prompt:
        names = [arguments.prompt]
    model, positive, negative, _ = load_demo_model(names[0])
    prompts = [load_demo_model(name)[1] for name in names]
    print(f"prompts: {', '.join(names)}; seed {SEED}")
    latent = {"samples": torch.zeros(1, 4, 16, 16)}
    data = own_samples(model, positive, negative, latent, 32, 12, arguments.cfg, seed=0)
    head = fit_head(model, as_examples(data, positive), negative, arguments.cfg, 8, 0)
    rows = []
    for sampler in arguments.samplers.split(","):
        found = frontier(
            model, head, prompts, negative, sampler, arguments.steps, arguments.cfg, arguments.members
        )  # fmt: skip
        show(found)
        rows += found
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()

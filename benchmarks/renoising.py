"""Uncertainty without a head against the posterior's, on the demo model, in one run.

    python dev.py bench renoising [--prompt "any animal mammal"] [--pictures 16] [--json PATH]

The truth is quality "precise" of KSampler (BayesDiff). Spearman of the maps, cell by cell, averaged over pictures, and
of the pictures' scores; calls are those beside a finished picture. The control is the latent's gradient energy, which
needs no network at all.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import in_process

in_process.import_host_and_pack()

import nodes  # noqa: E402
import torch  # noqa: E402
from bayesdiff.host.demo_model import load_demo_model  # noqa: E402
from bayesdiff.host.fitting import as_examples, fit_head, own_samples  # noqa: E402
from bayesdiff.host.last_layer import find_last_layer  # noqa: E402
from bayesdiff.host.renoising import renoise  # noqa: E402
from bayesdiff.host.sampling import sample_with_uncertainty  # noqa: E402
from bayesdiff.nodes.sampler import QUALITIES  # noqa: E402
from frontier import gradient_energy  # noqa: E402
from measure import spearman  # noqa: E402

CFG, STEPS, SEED = 3.0, 20, 5
# Highest and lowest level, how many, and draws at each.
CASES = [(0.5, 0.5, 1, 5), (0.3, 0.3, 1, 5), (0.7, 0.7, 1, 5), (0.8, 0.2, 3, 2), (0.5, 0.5, 1, 2), (0.5, 0.5, 1, 16)]


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompt", default="any animal mammal")
    parser.add_argument("--pictures", type=int, default=16)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()

    model, positive, negative, _ = load_demo_model(arguments.prompt)
    data = own_samples(model, positive, negative, {"samples": torch.zeros(1, 4, 16, 16)}, 32, 12, CFG, seed=0)
    head = fit_head(model, as_examples(data, positive), negative, CFG, 8, 0)
    empty = {"samples": torch.zeros(arguments.pictures, 4, 16, 16)}

    def run(model):
        return nodes.common_ksampler(model, SEED, STEPS, CFG, "euler", "normal", positive, negative, empty)[0]

    latent, _, truth = sample_with_uncertainty(run, model, find_last_layer(model), head, QUALITIES["precise"], 1)
    samples = latent["samples"]
    rows = []

    def add(name: str, calls: int, std_map: torch.Tensor, scores: torch.Tensor) -> None:
        agreement = spearman(std_map, truth.std_map()), spearman(scores[None], truth.scores()[None])
        rows.append(dict(zip(("case", "calls", "map_spearman", "score_spearman"), (name, calls, *agreement))))
        print(f"{name:<40}{calls:>6}{agreement[0]:>8.2f}{agreement[1]:>8.2f}", flush=True)

    print(f"{'case':<40}{'calls':>6}{'map':>8}{'score':>8}")
    for highest, lowest, levels, draws in CASES:
        found = renoise(model, samples, positive, negative, CFG, highest, lowest, levels, draws, seed=0)
        where = f"{highest} to {lowest}" if levels > 1 else f"{highest}"
        add(f"noise {where}, levels {levels}, draws {draws}", levels * draws, found.std_map(), found.scores())
    energy = gradient_energy(samples)
    add("control: gradient energy", 0, energy, energy.mean((1, 2)))
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()

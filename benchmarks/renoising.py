"""Uncertainty without a head against the posterior's, on the demo model, in one run.

    python dev.py bench renoising [--prompt "any animal mammal"] [--pictures 16] [--json PATH]

The truth is quality "precise" of KSampler (BayesDiff). Spearman of the maps, cell by cell, averaged over images, and of
the images' scores. Calls are those on top of a finished image. The control is the latent's gradient energy, which needs
no network.
"""

from __future__ import annotations

import in_process

in_process.import_host_and_pack()

import torch  # noqa: E402
from bayesdiff.bayesdiff_core.estimators.registry import QUALITIES  # noqa: E402
from bayesdiff.bayesdiff_core.estimators.renoising import Renoising  # noqa: E402
from bayesdiff.host.demo_model import load_demo_model  # noqa: E402
from bayesdiff.host.posterior import Posterior  # noqa: E402
from bayesdiff.host.run.sample import sample_with_uncertainty  # noqa: E402
from bayesdiff.host.settings import RunSettings  # noqa: E402
from bayesdiff.host.uses.renoise import renoise  # noqa: E402
from factory import fit_own_head  # noqa: E402
from measure import gradient_energy, spearman  # noqa: E402
from reporting import make_parser, write_rows  # noqa: E402

CFG, STEPS, SEED, TRUTH_SEED = 3.0, 20, 5, 1
CASES = [
    Renoising(0.5, 0.5, 1, 5),
    Renoising(0.3, 0.3, 1, 5),
    Renoising(0.7, 0.7, 1, 5),
    Renoising(0.8, 0.2, 3, 2),
    Renoising(0.5, 0.5, 1, 2),
    Renoising(0.5, 0.5, 1, 16),
]


@torch.inference_mode()
def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--prompt", default="any animal mammal")
    parser.add_argument("--pictures", type=int, default=16)
    arguments = parser.parse_args()

    model, positive, negative, _ = load_demo_model(arguments.prompt)
    settings = RunSettings(STEPS, CFG, "euler", "normal", positive, negative)
    posterior = Posterior.bind(fit_own_head(model, settings.guidance, (4, 16, 16)), model, TRUTH_SEED)
    empty = {"samples": torch.zeros(arguments.pictures, 4, 16, 16)}

    def run(model, latent):
        return settings.sample(model, latent, SEED)

    truth = sample_with_uncertainty(run, empty, posterior, QUALITIES["precise"]).uncertainty
    rows = []

    def add(name: str, calls: int, std_map: torch.Tensor, scores: torch.Tensor) -> None:
        agreement = spearman(std_map, truth.std_map()), spearman(scores[None], truth.scores()[None])
        rows.append(dict(zip(("case", "calls", "map_spearman", "score_spearman"), (name, calls, *agreement))))
        print(f"{name:<40}{calls:>6}{agreement[0]:>8.2f}{agreement[1]:>8.2f}", flush=True)

    print(f"{'case':<40}{'calls':>6}{'map':>8}{'score':>8}")
    for case in CASES:
        found = renoise(model, truth.latent, settings.guidance, case, seed=0)
        where = f"{case.highest} to {case.lowest}" if case.levels > 1 else f"{case.highest}"
        name = f"noise {where}, levels {case.levels}, draws {case.draws}"
        add(name, case.calls, found.std_map(), found.scores())
    energy = gradient_energy(truth.latent)
    add("control: gradient energy", 0, energy, energy.mean((1, 2)))
    write_rows(arguments.json, rows)


if __name__ == "__main__":
    main()

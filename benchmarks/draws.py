"""How far estimates from other draws of the last layer lie apart, for the same images.

    python dev.py bench draws [--prompt "any animal mammal"] [--quality balanced] [--sets 8] [--json PATH]

On the demo model, four images of one run. Each set of draws has a seed of its own. *sd of log mean variance* and *sd of
log mean score* are over the sets. *map Spearman* is between the maps of each two sets: the least, and the mean.
"""

from __future__ import annotations

import itertools
import statistics

import in_process

in_process.import_host_and_pack()

import torch  # noqa: E402
from bayesdiff.bayesdiff_core.estimators.registry import MEMBERS  # noqa: E402
from bayesdiff.host.demo_model import load_demo_model  # noqa: E402
from bayesdiff.host.posterior import Posterior  # noqa: E402
from bayesdiff.host.run.sample import sample_with_uncertainty  # noqa: E402
from bayesdiff.host.settings import RunSettings  # noqa: E402
from factory import fit_own_head  # noqa: E402
from measure import spearman  # noqa: E402
from reporting import make_parser, write_rows  # noqa: E402

CFG, STEPS, SEED = 3.0, 20, 7


@torch.inference_mode()
def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--prompt", default="any animal mammal")
    parser.add_argument("--quality", choices=list(MEMBERS), default="balanced")
    parser.add_argument("--sets", type=int, default=8)
    arguments = parser.parse_args()

    model, positive, negative, _ = load_demo_model(arguments.prompt)
    settings = RunSettings(STEPS, CFG, "dpmpp_2m", "karras", positive, negative)
    head, empty = fit_own_head(model, settings.guidance, (4, 16, 16)), {"samples": torch.zeros(4, 4, 16, 16)}

    def run(model, latent):
        return settings.sample(model, latent, SEED)

    found = [
        sample_with_uncertainty(run, empty, Posterior.bind(head, model, seed), MEMBERS[arguments.quality]).uncertainty
        for seed in range(arguments.sets)
    ]
    agreement = [spearman(one.std_map(), other.std_map()) for one, other in itertools.combinations(found, 2)]
    row = {
        "prompt": arguments.prompt,
        "quality": arguments.quality,
        "sets": arguments.sets,
        "sd_log_variance": statistics.stdev(float(each.variance.mean().log()) for each in found),
        "sd_log_score": statistics.stdev(float(each.scores().mean().log()) for each in found),
        "least_map_spearman": min(agreement),
        "mean_map_spearman": statistics.mean(agreement),
    }
    print("| sets | sd of log mean variance | sd of log mean score | map Spearman, least | mean |")
    print("|---|---|---|---|---|")
    figures = ("sd_log_variance", "sd_log_score", "least_map_spearman", "mean_map_spearman")
    print(f"| {row['sets']} | " + " | ".join(f"{row[name]:.2f}" for name in figures) + " |")
    write_rows(arguments.json, [row])


if __name__ == "__main__":
    main()

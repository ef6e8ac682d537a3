"""Best of N: how well an early score foretells the final one, and what ranking by it saves, in one run.

    python dev.py bench best_of_n [--samplers euler,dpmpp_2m] [--prompts "any animal mammal"] [--candidates 32]
                                  [--keep 8] [--steps 20] [--json PATH]

On the demo model. The final score of a picture is that of quality "precise" in a full run; the rows "to the end" rank
by full runs with other draws of the last layer, which no early score can beat by much.
*spearman*: of early and final scores. *kept*: mean final score of the kept, relative to all candidates; 1 is what a
random choice gives, and its standard error over random choices is in the first line. *place*: mean place of the kept
by final score, from 0 (best) to 1; a random choice gives 0.5. *best*: what the best by final score have. *saved*:
network calls that KSampler Best of N did not make, of those for sampling all candidates to the end with the stock
KSampler, and of those for scoring them all by KSampler (BayesDiff) at quality "draft" or "balanced". A star marks the
node's defaults.
"""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path

import in_process

in_process.import_host_and_pack()

import nodes  # noqa: E402
import torch  # noqa: E402
from bayesdiff.bayesdiff_core import rank  # noqa: E402
from bayesdiff.host.best_of_n import Counter  # noqa: E402
from bayesdiff.host.demo_model import load_demo_model  # noqa: E402
from bayesdiff.host.fitting import as_examples, fit_head, own_samples  # noqa: E402
from bayesdiff.host.last_layer import find_last_layer  # noqa: E402
from bayesdiff.host.sampling import sample_with_uncertainty  # noqa: E402
from bayesdiff.nodes.best_of_n import RANKINGS, KSamplerBestOfN  # noqa: E402
from measure import spearman  # noqa: E402

SEED, CFG = 5, 3.0
SHARES = {"quick": (0.15, 0.25, 0.35, 0.45, 0.5), "draft": (0.35, 0.5), "balanced": (0.5,)}
# What the node proposes.
DEFAULTS = {item.id: getattr(item, "default", None) for item in KSamplerBestOfN.define_schema().inputs}
SAVED = "stock", "draft", "balanced"
ROW = "{:<28}{:>10}{:>8}{:>8}{:>8}{:>8}{:>14}{:>14}{:>17}"


def settings_of(prompt: str, sampler: str, arguments) -> list[dict]:
    model, positive, negative, _ = load_demo_model(prompt)
    layer, latent = find_last_layer(model), {"samples": torch.zeros(1, 4, 16, 16)}
    data = own_samples(model, positive, negative, latent, 32, 12, CFG, seed=0)
    head = fit_head(model, as_examples(data, positive), negative, CFG, 8, 0)
    count, keep = arguments.candidates, arguments.keep
    everything = latent | {"samples": latent["samples"].repeat(count, 1, 1, 1), "batch_index": list(range(count))}

    def final(quality: str, seed: int) -> tuple[torch.Tensor, int]:
        counter = Counter()

        def run(model):
            return nodes.common_ksampler(
                model, SEED, arguments.steps, CFG, sampler, "normal", positive, negative, everything
            )[0]

        *_, uncertainty = sample_with_uncertainty(run, counter.count(model), layer, head, RANKINGS[quality], seed)
        return uncertainty.scores().double(), counter.calls

    truth, _ = final("precise", 101)
    ends = {quality: final(quality, SEED) for quality in ("balanced", "draft")}
    generator = torch.Generator().manual_seed(0)
    chance = torch.stack([truth[torch.randperm(count, generator=generator)[:keep]].mean() for _ in range(2000)])
    print(f"\n{prompt}, {sampler}, {arguments.steps} steps: best {keep} of {count}")
    print(f"random choice: kept {chance.mean() / truth.mean():.2f} ± {chance.std() / truth.mean():.2f}")
    print(
        ROW.format(
            "ranking", "spearman", "kept", "best", "place", "best", "saved, stock", "saved, draft", "saved, balanced"
        )
    )
    rows, places = [], truth.argsort().argsort().double() / (count - 1)

    def add(name, share, scores, saved=(None, None, None)):
        kept, best = rank.rank(scores)[:keep], rank.rank(truth)[:keep]
        row = {
            "test": "best_of_n", "model": "demo", "prompt": prompt, "sampler": sampler, "score": name, "share": share,
            "default": (name, share) == (DEFAULTS["quality"], DEFAULTS["share"]),
            "value": float(truth[kept].mean() / truth.mean()), "control": float(chance.mean() / truth.mean()),
            "standard_error": float(chance.std() / truth.mean()), "best": float(truth[best].mean() / truth.mean()),
            "place": float(places[kept].mean()), "best_place": float(places[best].mean()),
            "spearman": spearman(scores[None], truth[None]), "saved": dict(zip(SAVED, saved)),
        }  # fmt: skip
        rows.append(row)
        percent = ["" if value is None else f"{value:.0%}" for value in saved]
        label = name if share is None else f"{name}, share {share}" + " *" * row["default"]
        print(
            ROW.format(
                label,
                f"{row['spearman']:.2f}",
                f"{row['value']:.2f}",
                f"{row['best']:.2f}",
                f"{row['place']:.2f}",
                f"{row['best_place']:.2f}",
                *percent,
            ),
            flush=True,
        )

    for quality, (scores, _) in ends.items():
        add(f"{quality}, to the end", None, scores)
    for quality, shares in SHARES.items():
        for share in shares:
            output = KSamplerBestOfN.execute(
                model, SEED, arguments.steps, CFG, sampler, "normal", positive, negative, latent, 1.0, head, count,
                keep, share, quality, DEFAULTS["batch_size"], False,
            )  # fmt: skip
            spent, whole = map(int, re.search(r"(\d+) in all; .* takes (\d+),", output.args[4]).groups())
            scores = torch.tensor(output.args[3], dtype=torch.float64)
            add(quality, share, scores, [1 - spent / calls for calls in (whole, ends["draft"][1], ends["balanced"][1])])
    return rows


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samplers", default="euler,dpmpp_2m")
    parser.add_argument("--prompts", default="any animal mammal", help="names, parted by semicolons")
    parser.add_argument("--candidates", type=int, default=32)
    parser.add_argument("--keep", type=int, default=8)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    rows = []
    for prompt in arguments.prompts.split(";"):
        for sampler in arguments.samplers.split(","):
            rows += settings_of(prompt, sampler, arguments)
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()

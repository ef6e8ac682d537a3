"""Best of N: how well an early score predicts the final one, and what ranking by it saves, in one run.

    python dev.py bench best_of_n [--samplers euler,dpmpp_2m] [--prompts "any animal mammal"] [--candidates 32]
                                  [--keep 8] [--steps 20] [--json PATH]

On the demo model. The final score of an image is that of quality "precise" in a full run. The rows "to the end" rank by
full runs with other draws of the last layer, which no early score can beat by much.
*spearman*: between early and final scores. *kept*: mean final score of the kept images, relative to all candidates; a
random choice has 1, with the standard error in the first line. *place*: mean place of the kept images by final score,
from 0 (best) to 1; a random choice has 0.5. *best*: the same for the best by final score. *saved*: network calls saved
by KSampler Best of N, compared with sampling all candidates to the end with the stock KSampler, and with scoring them
all by KSampler (BayesDiff) at quality "draft" or "balanced". A star marks the node's defaults.
"""

from __future__ import annotations

import in_process

in_process.import_host_and_pack()

import torch  # noqa: E402
from bayesdiff.bayesdiff_core.estimators.registry import RANKINGS  # noqa: E402
from bayesdiff.bayesdiff_core.reading import rank  # noqa: E402
from bayesdiff.host.demo_model import load_demo_model  # noqa: E402
from bayesdiff.host.posterior import Posterior  # noqa: E402
from bayesdiff.host.run.sample import sample_with_uncertainty  # noqa: E402
from bayesdiff.host.settings import RunSettings  # noqa: E402
from bayesdiff.host.uses.best_of_n import Counter, Plan, best_of_n  # noqa: E402
from bayesdiff.nodes.best_of_n import KSamplerBestOfN  # noqa: E402
from factory import fit_own_head  # noqa: E402
from measure import spearman  # noqa: E402
from reporting import list_of, make_parser, write_rows  # noqa: E402

SEED, TRUTH_SEED, CFG = 5, 101, 3.0
SHARES = {"instant": (0.35, 0.5), "quick": (0.15, 0.25, 0.35, 0.45, 0.5), "draft": (0.35, 0.5), "balanced": (0.5,)}
# The node's defaults.
DEFAULTS = {item.id: getattr(item, "default", None) for item in KSamplerBestOfN.define_schema().inputs}
SAVED = "stock", "draft", "balanced"
ROW = "{:<28}{:>10}{:>8}{:>8}{:>8}{:>8}{:>14}{:>14}{:>17}"


def settings_of(prompt: str, sampler: str, arguments) -> list[dict]:
    model, positive, negative, _ = load_demo_model(prompt)
    settings = RunSettings(arguments.steps, CFG, sampler, "normal", positive, negative)
    head = fit_own_head(model, settings.guidance, (4, 16, 16))
    posterior = Posterior.bind(head, model, SEED)
    count, keep = arguments.candidates, arguments.keep
    latent = {"samples": torch.zeros(count, 4, 16, 16), "batch_index": list(range(count))}

    def final(quality: str, seed: int) -> tuple[torch.Tensor, int]:
        """Scores of all candidates, sampled to the end, and the network calls that these took."""
        counter = Counter()
        counted = Posterior.bind(head, counter.count(model), seed)
        sampled = sample_with_uncertainty(
            lambda model, latent: settings.sample(model, latent, SEED), latent, counted, RANKINGS[quality]
        )
        return sampled.uncertainty.scores().double(), counter.calls

    def sample(model, latent, numbers, last_step):
        return settings.sample(model, latent, SEED, last_step=last_step, force_full_denoise=True)

    truth, _ = final("precise", TRUTH_SEED)
    ends = {quality: final(quality, SEED) for quality in ("balanced", "draft")}
    generator = torch.Generator().manual_seed(0)
    chance = torch.stack([truth[torch.randperm(count, generator=generator)[:keep]].mean() for _ in range(2000)])
    print(f"\n{prompt}, {sampler}, {arguments.steps} steps: best {keep} of {count}")
    print(f"random choice: kept {chance.mean() / truth.mean():.2f} ± {chance.std() / truth.mean():.2f}")
    columns = "ranking", "spearman", "kept", "best", "place", "best", "saved, stock", "saved, draft", "saved, balanced"
    print(ROW.format(*columns))
    rows, places = [], truth.argsort().argsort().double() / (count - 1)

    def add(name, share, scores, saved=(None, None, None)):
        kept, best = rank.rank(scores)[:keep], rank.rank(truth)[:keep]
        row = {
            "test": "best_of_n",
            "model": "demo",
            "prompt": prompt,
            "sampler": sampler,
            "score": name,
            "share": share,
            "default": (name, share) == (DEFAULTS["quality"], DEFAULTS["share"]),
            "value": float(truth[kept].mean() / truth.mean()),
            "control": float(chance.mean() / truth.mean()),
            "standard_error": float(chance.std() / truth.mean()),
            "best": float(truth[best].mean() / truth.mean()),
            "place": float(places[kept].mean()),
            "best_place": float(places[best].mean()),
            "spearman": spearman(scores[None], truth[None]),
            "saved": dict(zip(SAVED, saved)),
        }
        rows.append(row)
        percent = ["" if value is None else f"{value:.0%}" for value in saved]
        label = name if share is None else f"{name}, share {share}" + " *" * row["default"]
        figures = [f"{row[key]:.2f}" for key in ("spearman", "value", "best", "place", "best_place")]
        print(ROW.format(label, *figures, *percent), flush=True)

    for quality, (scores, _) in ends.items():
        add(f"{quality}, to the end", None, scores)
    for quality, shares in SHARES.items():
        for share in shares:
            plan = Plan(keep, max(1, round(share * arguments.steps)), DEFAULTS["batch_size"])
            found = best_of_n(sample, latent, posterior, RANKINGS[quality], plan)
            spent, others = found.ranking + found.finishing, (found.whole, ends["draft"][1], ends["balanced"][1])
            add(quality, share, found.scores.double(), [1 - spent / calls for calls in others])
    return rows


@torch.inference_mode()
def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--samplers", type=list_of(), default="euler,dpmpp_2m")
    parser.add_argument(
        "--prompts", type=list_of(separator=";"), default="any animal mammal", help="names, separated by semicolons"
    )
    parser.add_argument("--candidates", type=int, default=32)
    parser.add_argument("--keep", type=int, default=8)
    parser.add_argument("--steps", type=int, default=20)
    arguments = parser.parse_args()
    rows = []
    for prompt in arguments.prompts:
        for sampler in arguments.samplers:
            rows += settings_of(prompt, sampler, arguments)
    write_rows(arguments.json, rows)


if __name__ == "__main__":
    main()

"""Repair: does repairing the uncertain part lower the score more than repairing another part, or than a new seed?

    python dev.py bench repair [--pictures 16] [--rounds 2] [--steps 20] [--denoise 0.6] [--seed 5] [--quality draft]
                               [--json PATH] [--picture PATH]

On the demo model, "any animal mammal". The node's own score chooses what is kept. The reported score has quality
"balanced", with other noise and other draws than the choice, so that luck in choosing does not count.
*after*: mean score of what was kept, divided by that of the originals; each image's ratio is averaged as a logarithm.
*repaired*: the same for all repaired images, without a choice. *kept*: share of repaired images that were kept, over
rounds and images. *improved*: share of images with a lower score than before, among those that changed.

Controls: the same masks, shifted at random, so with the same area and shape; and, at the same number of network calls,
as many new seeds as rounds, judged and kept in the same way.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import in_process

in_process.import_host_and_pack()

import torch  # noqa: E402
from bayesdiff.bayesdiff_core.drawing.pillow import to_pil  # noqa: E402
from bayesdiff.bayesdiff_core.estimators.registry import JUDGES  # noqa: E402
from bayesdiff.bayesdiff_core.reading.masks import repair_mask  # noqa: E402
from bayesdiff.bayesdiff_core.reading.uncertainty import Uncertainty  # noqa: E402
from bayesdiff.host.demo_model import load_demo_model  # noqa: E402
from bayesdiff.host.posterior import Posterior  # noqa: E402
from bayesdiff.host.settings import RunSettings  # noqa: E402
from bayesdiff.host.uses.finished import uncertainty_of_finished  # noqa: E402
from bayesdiff.host.uses.repair import Attempt, RepairPlan, repair  # noqa: E402
from factory import fit_own_head  # noqa: E402
from reporting import make_parser, write_rows  # noqa: E402

CFG, AREA, GROW, FRESH = 3.0, 0.15, 8, 4321
ROW = "{:<38}{:>16}{:>10}{:>8}{:>10}"


def uncertain_mask(found: Uncertainty) -> torch.Tensor:
    """The mask that the node makes."""
    return repair_mask(found.maps(), AREA, GROW)


def shifted_mask(generator: torch.Generator):
    """The node's masks, shifted by random amounts."""

    def mask_of(found: Uncertainty) -> torch.Tensor:
        shifted = [
            mask.roll(torch.randint(0, len(mask), (2,), generator=generator).tolist(), (0, 1))
            for mask in uncertain_mask(found)
        ]
        return torch.stack(shifted)

    return mask_of


def figures_of(logs: torch.Tensor, attempts: list[Attempt]) -> dict[str, float]:
    """What one way of repairing came to.

    Args:
        logs: logarithms of each image's reported score after it, divided by that before, ``(n,)``.
    """
    every = torch.stack([(attempt.after / attempts[0].before).double().log() for attempt in attempts])
    kept = torch.stack([attempt.kept for attempt in attempts])
    value = float(logs.mean().exp())
    return {
        "value": value,
        "standard_error": float(logs.std() / len(logs) ** 0.5) * value,
        "mended": float(every.mean().exp()),
        "kept": float(kept.double().mean()),
        "improved": float((logs[kept.any(0)] < 0).double().mean()),
    }


@torch.inference_mode()
def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--pictures", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--denoise", type=float, default=0.6)
    parser.add_argument("--seed", type=int, default=5)
    parser.add_argument("--quality", default="draft")
    parser.add_argument("--picture", type=Path, help="where to save a sheet of images before, masks, and images after")
    arguments = parser.parse_args()
    model, positive, negative, vae = load_demo_model("any animal mammal")
    settings = RunSettings(arguments.steps, CFG, "euler", "normal", positive, negative)
    head = fit_own_head(model, settings.guidance, (4, 16, 16))
    choosing, fresh = (Posterior.bind(head, model, seed) for seed in (arguments.seed, FRESH))

    def sample(seed: int) -> torch.Tensor:
        return settings.sample(model, {"samples": torch.zeros(arguments.pictures, 4, 16, 16)}, seed)["samples"]

    def score_of(samples: torch.Tensor, posterior: Posterior, quality: str) -> torch.Tensor:
        return uncertainty_of_finished(samples, posterior, JUDGES[quality], settings.guidance).scores()

    originals = sample(arguments.seed)
    start = score_of(originals, fresh, "balanced").double()

    def repaired(mask_of, rectify: bool = False) -> tuple[torch.Tensor, list[Attempt]]:
        partial = dataclasses.replace(settings, denoise=arguments.denoise)
        plan = RepairPlan(JUDGES[arguments.quality], arguments.rounds, rectify)
        best, attempts = repair({"samples": originals}, choosing, partial, plan, mask_of)
        return best.latent, attempts

    def new_seeds() -> tuple[torch.Tensor, list[Attempt]]:
        best = originals
        score, attempts = score_of(best, choosing, arguments.quality), []
        for number in range(1, arguments.rounds + 1):
            other = sample(arguments.seed + 1000 * number)
            attempt = Attempt(other, None, score, score_of(other, choosing, arguments.quality))
            attempts.append(attempt)
            best = torch.where(attempt.kept[:, None, None, None], other, best)
            score = torch.where(attempt.kept, attempt.after, score)
        return best, attempts

    shift = shifted_mask(torch.Generator().manual_seed(arguments.seed))
    arms = {
        "inpaint, most uncertain": lambda: repaired(uncertain_mask),
        "inpaint, shifted mask (control)": lambda: repaired(shift),
        "new seeds, equal cost (control)": new_seeds,
        "rectify, most uncertain": lambda: repaired(uncertain_mask, rectify=True),
    }
    print(f"{arguments.pictures} images, {arguments.rounds} rounds, denoise {arguments.denoise}")
    print(ROW.format("", "after", "repaired", "kept", "improved"))
    rows = []
    for name, arm in arms.items():
        best, attempts = arm()
        ratios = score_of(best, fresh, "balanced").double() / start
        row = {"test": "repair", "model": "demo", "score": name, "default": name == next(iter(arms))}
        row |= figures_of(ratios.log(), attempts)
        rows.append(row)
        after = f"{row['value']:.2f} ± {row['standard_error']:.2f}"
        cells = after, f"{row['mended']:.2f}", f"{row['kept']:.0%}", f"{row['improved']:.0%}"
        print(ROW.format(name, *cells), flush=True)
        if arguments.picture and attempts[0].mask is not None:
            arm_name = name.split(" (")[0].replace(", ", "_").replace(" ", "_")
            path = arguments.picture.with_stem(f"{arguments.picture.stem}_{arm_name}")
            to_pil(sheet_of(vae, originals, attempts, best)).save(path)
    shifted = next(row["value"] for row in rows if "shifted" in row["score"])
    write_rows(arguments.json, [row | {"control": shifted} for row in rows])


def sheet_of(vae, originals: torch.Tensor, attempts: list[Attempt], best: torch.Tensor) -> torch.Tensor:
    """One column per image: before, the mask and the repaired image of each round, and what was kept."""
    rows = [vae.decode(originals)]
    for attempt in attempts:
        rows += [attempt.mask[..., None].expand(-1, -1, -1, 3), vae.decode(attempt.samples)]
    rows.append(vae.decode(best))
    return torch.cat([torch.cat(list(row.cpu()), dim=1) for row in rows])


if __name__ == "__main__":
    main()

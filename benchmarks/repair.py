"""Repair: whether mending what is uncertain lowers the score more than mending anything, or than another seed.

    python dev.py bench repair [--pictures 16] [--rounds 2] [--steps 20] [--denoise 0.6] [--seed 5] [--quality draft]
                               [--json PATH] [--picture PATH]

On the demo model, "any animal mammal". What is kept is chosen by the node's own score; what is reported is a score of
quality "balanced" under other noise and other draws than those of the choice, so that luck in choosing does not count.
*after*: mean score of what was kept, over that of the originals, each picture's own ratio averaged as a logarithm.
*mended*: the same of all mended ones, without a choice. *kept*: share of rounds and pictures whose mended one was kept.
*improved*: share of pictures with a lower score than before, among those that changed.

Controls: the same masks, shifted at random, so of the same area and shape; and, for the same number of network calls,
as many new seeds as there are rounds, judged and kept in the same way.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import in_process

in_process.import_host_and_pack()

import nodes  # noqa: E402
import torch  # noqa: E402
from bayesdiff.bayesdiff_core import masks  # noqa: E402
from bayesdiff.bayesdiff_core.maps import resize_map  # noqa: E402
from bayesdiff.host.demo_model import load_demo_model  # noqa: E402
from bayesdiff.host.fitting import as_examples, fit_head, own_samples  # noqa: E402
from bayesdiff.host.given import uncertainty_of  # noqa: E402
from bayesdiff.host.last_layer import find_last_layer  # noqa: E402
from bayesdiff.host.repair import Attempt, repair  # noqa: E402
from bayesdiff.host.resample import Settings  # noqa: E402
from bayesdiff.nodes.repair import JUDGES, STATES  # noqa: E402
from PIL import Image  # noqa: E402

CFG, AREA, GROW, FRESH = 3.0, 0.15, 8, 4321
ROW = "{:<38}{:>16}{:>10}{:>8}{:>10}"


def uncertain_mask(found) -> torch.Tensor:
    """As the node makes it."""
    std = resize_map(found.std_map(), *(side * found.downscale for side in found.latent.shape[-2:]))
    return masks.grow(masks.most_uncertain_area(std, AREA), GROW)


def shifted_mask(generator: torch.Generator):
    """The node's masks, moved around by random amounts."""

    def mask_of(found) -> torch.Tensor:
        shifted = [
            mask.roll(torch.randint(0, len(mask), (2,), generator=generator).tolist(), (0, 1))
            for mask in uncertain_mask(found)
        ]
        return torch.stack(shifted)

    return mask_of


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--denoise", type=float, default=0.6)
    parser.add_argument("--seed", type=int, default=5)
    parser.add_argument("--quality", default="draft")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--picture", type=Path, help="where to save pictures before, masks, and after")
    arguments = parser.parse_args()
    model, positive, negative, vae = load_demo_model("any animal mammal")
    layer, latent = find_last_layer(model), {"samples": torch.zeros(1, 4, 16, 16)}
    data = own_samples(model, positive, negative, latent, 32, 12, CFG, seed=0)
    head = fit_head(model, as_examples(data, positive), negative, CFG, 8, 0)
    empty = {"samples": latent["samples"].repeat(arguments.pictures, 1, 1, 1)}

    def sample(seed: int) -> torch.Tensor:
        return nodes.common_ksampler(
            model, seed, arguments.steps, CFG, "euler", "normal", positive, negative, empty
        )[0]["samples"]  # fmt: skip

    def judge(samples: torch.Tensor, quality: str, seed: int):
        return uncertainty_of(
            model, layer, head, JUDGES[quality], samples, CFG, positive, negative, STATES, seed
        )  # fmt: skip

    settings = Settings(arguments.steps, CFG, "euler", "normal", positive, negative, arguments.denoise)
    originals = sample(arguments.seed)
    start = judge(originals, "balanced", FRESH).scores().double()

    def mended(rectify: bool, mask_of) -> tuple[torch.Tensor, list[Attempt]]:
        best, attempts = repair(
            model, layer, head, JUDGES[arguments.quality], STATES, settings, {"samples": originals}, arguments.seed,
            arguments.rounds, rectify, mask_of,
        )  # fmt: skip
        return best.latent, attempts

    def new_seeds() -> tuple[torch.Tensor, list[Attempt]]:
        best = originals
        score, attempts = judge(best, arguments.quality, arguments.seed).scores(), []
        for number in range(1, arguments.rounds + 1):
            other = sample(arguments.seed + 1000 * number)
            attempt = Attempt(other, None, score, judge(other, arguments.quality, arguments.seed).scores())
            attempts.append(attempt)
            best = torch.where(attempt.kept[:, None, None, None], other, best)
            score = torch.where(attempt.kept, attempt.after, score)
        return best, attempts

    shift = shifted_mask(torch.Generator().manual_seed(arguments.seed))
    arms = {
        "inpaint, most uncertain": lambda: mended(False, uncertain_mask),
        "inpaint, shifted mask (control)": lambda: mended(False, shift),
        "new seeds, equal cost (control)": new_seeds,
        "rectify, most uncertain": lambda: mended(True, uncertain_mask),
    }
    print(f"{arguments.pictures} pictures, {arguments.rounds} rounds, denoise {arguments.denoise}")
    print(ROW.format("", "after", "mended", "kept", "improved"))
    rows = []
    for name, arm in arms.items():
        best, attempts = arm()
        logs = (judge(best, "balanced", FRESH).scores().double() / start).log()
        error = float(logs.std() / len(logs) ** 0.5)
        every = torch.stack([(attempt.after / attempts[0].before).double().log() for attempt in attempts])
        kept = torch.stack([attempt.kept for attempt in attempts])
        changed = kept.any(0)
        row = {
            "test": "repair", "model": "demo", "score": name, "default": name == next(iter(arms)),
            "value": float(logs.mean().exp()), "standard_error": error * float(logs.mean().exp()),
            "mended": float(every.mean().exp()), "kept": float(kept.double().mean()),
            "improved": float((logs[changed] < 0).double().mean()),
        }  # fmt: skip
        rows.append(row)
        after = f"{row['value']:.2f} ± {row['standard_error']:.2f}"
        print(
            ROW.format(name, after, f"{row['mended']:.2f}", f"{row['kept']:.0%}", f"{row['improved']:.0%}"), flush=True
        )
        if arguments.picture and attempts[0].mask is not None:
            save_sheet(vae, originals, attempts, best, arguments.picture, name)
    shifted = next(row["value"] for row in rows if "shifted" in row["score"])
    if arguments.json:
        rows = [row | {"control": shifted} for row in rows]
        arguments.json.write_text(json.dumps(rows, indent=1))


def save_sheet(vae, originals: torch.Tensor, attempts: list[Attempt], best: torch.Tensor, path: Path, name: str):
    """A column a picture: before, the mask and the mended one of each round, and what was kept."""
    rows = [vae.decode(originals)]
    for attempt in attempts:
        rows += [attempt.mask[..., None].expand(-1, -1, -1, 3), vae.decode(attempt.samples)]
    rows.append(vae.decode(best))
    sheet = torch.cat([torch.cat(list(row.cpu()), dim=1) for row in rows])
    stem = f"{path.stem}_{name.split(' (')[0].replace(', ', '_').replace(' ', '_')}"
    Image.fromarray((sheet.clamp(0, 1) * 255).byte().numpy()).save(path.with_name(stem + path.suffix))


if __name__ == "__main__":
    main()

"""Which map in pixels is nearest to the spread of decoded posterior members?

    python dev.py bench pixel_maps [--prompts 4] [--members 24] [--steps 20] [--cfg 3] [--json PATH]

On the demo model, four pictures a prompt. The truth decodes every member of an ensemble and takes the standard
deviation of each pixel around the decoded sample; "halves" says how well its two halves agree. Maps are made from the
truth's own variance, and from that of a few other members, as an estimator gives it: the latent's map enlarged,
antithetic draws of independent cells decoded, and the members themselves decoded.

Spearman is over the pixels of a picture, averaged over pictures; "seen" is the same where the truth exceeds a grey
level (1/255): much of an emoji's ground is white in every member, which any map that decodes knows. Ratio is of the
mean standard deviations, decodings are those beyond the picture's own.
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path

import in_process

in_process.import_host_and_pack()

import nodes  # noqa: E402
import torch  # noqa: E402
from bayesdiff.bayesdiff_core.maps import pixel_variance, resize_map  # noqa: E402
from bayesdiff.bayesdiff_core.uncertainty import Uncertainty  # noqa: E402
from bayesdiff.host.decode import decode, decoded_std  # noqa: E402
from bayesdiff.host.demo_model import load_demo_model, prompt_names  # noqa: E402
from bayesdiff.host.fitting import as_examples, fit_head, own_samples  # noqa: E402
from bayesdiff.host.last_layer import find_last_layer  # noqa: E402
from scipy.stats import spearmanr  # noqa: E402

SEED, FEW = 1, (1, 2, 4, 8)


def without_members(latent: torch.Tensor, members: torch.Tensor) -> Uncertainty:
    """The variance of some members, as deviations from the latent, and no more of them."""
    return Uncertainty(members.square().mean(0), latent, 8, "ensemble", len(members), {}, 1.0, members[:0])


def agreement(values: torch.Tensor, truth: torch.Tensor, seen: bool) -> float:
    """Mean over pictures of the rank correlation of their pixels."""
    found = []
    for picture, expected in zip(values, truth):
        where = expected > 1 / 255 if seen else torch.ones_like(expected, dtype=torch.bool)
        found.append(spearmanr(picture[where].numpy(), expected[where].numpy()).statistic)
    return statistics.mean(found)


def maps_of(
    latent: torch.Tensor, truth: torch.Tensor, others: torch.Tensor, vae
) -> tuple[dict, torch.Tensor, torch.Tensor]:
    """``({row: (decodings, std map)}, the truth's map, that of its other half)``; members as deviations from latent."""
    picture = decode(vae, latent)
    decoded = [decode(vae, latent + change) for change in truth]
    expected = pixel_variance(picture, decoded).sqrt()
    found = {"truth, halves": (len(truth), pixel_variance(picture, decoded[::2]).sqrt())}
    other_half = pixel_variance(picture, decoded[1::2]).sqrt()
    sources = {"truth's variance": truth} | {f"{k} members" if k > 1 else "1 member": others[:k] for k in FEW}
    for name, members in sources.items():
        known = without_members(latent, members)
        found[f"{name}, latent map enlarged"] = (0, resize_map(known.std_map(), *picture.shape[1:3]))
        for pairs in (1, 4):
            draws = decoded_std(vae, known, picture, pairs=pairs)
            found[f"{name}, antithetic draws, {pairs} pair{'s' * (pairs > 1)}"] = (2 * pairs, draws)
        if members is not truth:
            decoded = [decode(vae, latent + change) for change in members]
            found[f"{name}, members decoded"] = (len(members), pixel_variance(picture, decoded).sqrt())
    grey = picture.mean(-1)
    gradient = sum(g.square() for g in torch.gradient(grey, dim=(1, 2))).sqrt()
    found["control: gradient of the picture"] = (0, gradient)
    return found, expected, other_half


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=4)
    parser.add_argument("--members", type=int, default=24, help="members of the ensemble that is the truth")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--cfg", type=float, default=3.0)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    names = prompt_names()
    names = names[len(names) // (2 * arguments.prompts) :: len(names) // arguments.prompts][: arguments.prompts]
    model, positive, negative, vae = load_demo_model(names[0])
    layer, empty = find_last_layer(model), {"samples": torch.zeros(4, 4, 16, 16)}
    data = own_samples(model, positive, negative, {"samples": torch.zeros(1, 4, 16, 16)}, 32, 12, arguments.cfg, 0)
    head = fit_head(model, as_examples(data, positive), negative, arguments.cfg, 8, 0)
    generator = torch.Generator().manual_seed(7)
    rows: dict[str, dict[str, list[float]]] = {}
    for name in names:
        prompt = load_demo_model(name)[1]

        def run(prompt=prompt):
            return nodes.common_ksampler(
                model, SEED, arguments.steps, arguments.cfg, "dpmpp_2m", "karras", prompt, negative, empty
            )[0]["samples"]

        latent, members = run(), []
        for _ in range(arguments.members + max(FEW)):
            with layer.perturbed(head.draw(generator)):
                members.append(run() - latent)
        members = torch.stack(members)
        found, truth, other_half = maps_of(latent, members[: arguments.members], members[arguments.members :], vae)
        for row, (decodings, values) in found.items():
            against = other_half if row == "truth, halves" else truth
            measured = {
                "decodings": decodings,
                "map_spearman": agreement(values, against, seen=False),
                "map_spearman_seen": agreement(values, against, seen=True),
                "mean_ratio": float(values.mean() / against.mean()),
            }
            for key, value in measured.items():
                rows.setdefault(row, {}).setdefault(key, []).append(value)
    print(f"prompts: {', '.join(names)}; seed {SEED}; truth: {arguments.members} members")
    print(f"{'map':<48}{'decodings':>10}{'Spearman':>10}{'seen':>8}{'ratio':>8}")
    table = []
    for row, cells in rows.items():
        means = {key: statistics.mean(values) for key, values in cells.items()}
        table.append({"model": "demo", "map": row, **means})
        # A latent's units and a picture's gradient are no colours.
        ratio = "" if "enlarged" in row or "control" in row else f"{means['mean_ratio']:.2f}"
        print(
            f"{row:<48}{means['decodings']:>10.0f}{means['map_spearman']:>10.3f}{means['map_spearman_seen']:>8.3f}"
            f"{ratio:>8}"
        )
    if arguments.json:
        arguments.json.write_text(json.dumps(table, indent=1))


if __name__ == "__main__":
    main()

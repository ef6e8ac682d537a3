"""Which pixel map is closest to the spread of decoded posterior members?

    python dev.py bench pixel_maps [--prompts 4] [--members 24] [--steps 20] [--cfg 3] [--json PATH]

On the demo model, four images per prompt. The truth decodes every member of an ensemble and takes the standard
deviation of each pixel around the decoded sample; "halves" says how well its two halves agree. Maps are made from the
truth's own variance, from that of the estimators without members, and from that of a few other members: the latent's
map enlarged, antithetic draws of independent cells decoded, and the members themselves decoded.

Spearman is over the pixels of an image, averaged over images. "seen" is the same where the truth exceeds one grey level
(1/255): much of an emoji's background is white in every member, which any map that decodes knows. Ratio is that of the
mean standard deviations. Decodings are those besides the image's own.
"""

from __future__ import annotations

import dataclasses
import functools
import statistics

import in_process

in_process.import_host_and_pack()

import torch  # noqa: E402
from bayesdiff.bayesdiff_core.estimators.change import Change  # noqa: E402
from bayesdiff.bayesdiff_core.estimators.instant import Instant  # noqa: E402
from bayesdiff.bayesdiff_core.reading.grid import LatentGrid  # noqa: E402
from bayesdiff.bayesdiff_core.reading.maps import pixel_variance  # noqa: E402
from bayesdiff.bayesdiff_core.reading.uncertainty import Uncertainty  # noqa: E402
from bayesdiff.host.decode import decode, decoded_std  # noqa: E402
from bayesdiff.host.demo_model import load_demo_model, prompt_names  # noqa: E402
from bayesdiff.host.posterior import Posterior  # noqa: E402
from bayesdiff.host.run.sample import sample_with_uncertainty  # noqa: E402
from bayesdiff.host.settings import RunSettings  # noqa: E402
from factory import fit_own_head  # noqa: E402
from reporting import make_parser, write_rows  # noqa: E402
from scipy.stats import spearmanr  # noqa: E402

SEED, MEMBERS_SEED, FEW = 1, 7, (1, 2, 4, 8)


def without_members(latent: torch.Tensor, variance: torch.Tensor) -> Uncertainty:
    """An uncertainty of a variance alone."""
    nobody = torch.empty(0, *latent.shape)
    return Uncertainty(variance, latent, LatentGrid(8), "ensemble", 0, {}, 1.0, nobody)


def agreement(values: torch.Tensor, truth: torch.Tensor, seen: bool) -> float:
    """Mean over images of the rank correlation of their pixels."""
    found = []
    for picture, expected in zip(values, truth):
        where = expected > 1 / 255 if seen else torch.ones_like(expected, dtype=torch.bool)
        found.append(spearmanr(picture[where].numpy(), expected[where].numpy()).statistic)
    return statistics.mean(found)


def maps_of(
    latent: torch.Tensor, truth: torch.Tensor, others: torch.Tensor, seen: dict[str, torch.Tensor], vae
) -> tuple[dict, torch.Tensor, torch.Tensor]:
    """``({row: (decodings, std map)}, the truth's map, that of its other half)``; members as deviations from latent.

    Args:
        seen: by the name of an estimator without members, its variance.
    """
    picture = decode(vae, latent)
    decoded = [decode(vae, latent + change) for change in truth]
    expected = pixel_variance(picture, decoded).sqrt()
    found = {"truth, halves": (len(truth), pixel_variance(picture, decoded[::2]).sqrt())}
    other_half = pixel_variance(picture, decoded[1::2]).sqrt()
    sources = {"truth's variance": truth} | {f"{k} members" if k > 1 else "1 member": others[:k] for k in FEW}
    variances = seen | {name: members.square().mean(0) for name, members in sources.items()}
    for name, variance in variances.items():
        known = without_members(latent, variance)
        found[f"{name}, latent map enlarged"] = (0, known.maps())
        for pairs in (1, 4):
            draws = decoded_std(vae, known, picture, pairs=pairs)
            found[f"{name}, antithetic draws, {pairs} pair{'s' * (pairs > 1)}"] = (2 * pairs, draws)
        members = sources.get(name)
        if members is not None and members is not truth:
            decoded = [decode(vae, latent + change) for change in members]
            found[f"{name}, members decoded"] = (len(members), pixel_variance(picture, decoded).sqrt())
    grey = picture.mean(-1)
    gradient = sum(g.square() for g in torch.gradient(grey, dim=(1, 2))).sqrt()
    found["control: gradient of the image"] = (0, gradient)
    return found, expected, other_half


@torch.inference_mode()
def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--prompts", type=int, default=4)
    parser.add_argument("--members", type=int, default=24, help="number of members in the ensemble that is the truth")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--cfg", type=float, default=3.0)
    arguments = parser.parse_args()
    names = prompt_names()
    names = names[len(names) // (2 * arguments.prompts) :: len(names) // arguments.prompts][: arguments.prompts]
    model, positive, negative, vae = load_demo_model(names[0])
    first = RunSettings(arguments.steps, arguments.cfg, "dpmpp_2m", "karras", positive, negative)
    head = fit_own_head(model, first.guidance, (4, 16, 16))
    posterior, empty = Posterior.bind(head, model, MEMBERS_SEED), {"samples": torch.zeros(4, 4, 16, 16)}
    rows: dict[str, dict[str, list[float]]] = {}
    for name in names:
        settings = dataclasses.replace(first, positive=load_demo_model(name)[1])
        seen, run = {}, functools.partial(settings.sample, seed=SEED)
        for estimator in (Change(), Instant()):
            sampled = sample_with_uncertainty(run, empty, posterior, estimator)
            seen[estimator.name] = sampled.uncertainty.variance
        latent, members = sampled.latent["samples"], []
        for number in range(arguments.members + max(FEW)):
            with posterior.perturbed(number):
                members.append(settings.sample(model, empty, SEED)["samples"] - latent)
        members = torch.stack(members)
        of_truth, others = members[: arguments.members], members[arguments.members :]
        found, truth, other_half = maps_of(latent, of_truth, others, seen, vae)
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
        # Neither a latent's units, nor what has none, nor an image's gradient are colours.
        ratio = "" if "enlarged" in row or row.startswith(("control", Change.name)) else f"{means['mean_ratio']:.2f}"
        print(
            f"{row:<48}{means['decodings']:>10.0f}{means['map_spearman']:>10.3f}{means['map_spearman_seen']:>8.3f}"
            f"{ratio:>8}"
        )
    write_rows(arguments.json, table)


if __name__ == "__main__":
    main()

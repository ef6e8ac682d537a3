"""What a head's calibration costs and brings: images and members to learn from, in one run.

    python dev.py bench calibration [--models demo,fashion] [--json PATH]

A head is fitted as the node's defaults do, without calibration. Then it learns from more and more of the model's own
images, of the fit's prompt and setting (euler, simple, 12 steps), and quality ``instant`` is tested on images of other
prompts at other settings: Spearman of the map with the truth, over the ceiling, as in the frontier. *share* is the time
of the calibration over that of the fit.
"""

from __future__ import annotations

import time

import in_process

in_process.import_host_and_pack()

import torch  # noqa: E402
from bayesdiff.bayesdiff_core.estimators.registry import NO_HEAD, QUALITIES  # noqa: E402
from bayesdiff.host.calibrate import OwnRun, calibrate  # noqa: E402
from bayesdiff.host.fit import FitSettings, as_examples, fit_head, own_samples  # noqa: E402
from bayesdiff.host.posterior import Posterior  # noqa: E402
from bayesdiff.host.run.sample import sample_with_uncertainty  # noqa: E402
from bayesdiff.host.settings import Guidance, RunSettings  # noqa: E402
from frontier import MODELS, SEED, TRUTH_SEED, ceiling_of, sample_truth  # noqa: E402
from measure import spearman  # noqa: E402
from reporting import list_of, make_parser, write_rows  # noqa: E402

# Images, and members of each.
LEARNED = [(2, 1), (4, 1), (6, 1), (12, 1), (24, 1), (6, 4)]
STEPS, IMAGES, MEMBERS = (8, 20), 6, 8


def tests_of(name: str, head, model, negative) -> list[tuple]:
    """Settings, latents and truths to test on."""
    of, found = MODELS[name], []
    empty = {"samples": torch.zeros(IMAGES, *of.shape)}
    posterior = Posterior.bind(head, model, TRUTH_SEED)
    for steps in STEPS:
        for prompt in of.prompts:
            settings = RunSettings(steps, of.cfg, "dpmpp_2m", "normal", of.load(prompt)[1], negative)
            found.append((settings, empty, sample_truth(posterior, settings, empty, MEMBERS)))
    return found


def agreement(head, model, estimator, tests: list[tuple]) -> float:
    """Of an estimator's maps with the truths, over the ceiling."""
    maps, ceilings = [], []
    for settings, empty, truth in tests:

        def run(model, latent, settings=settings):
            return settings.sample(model, latent, SEED)

        found = sample_with_uncertainty(run, empty, Posterior.bind(head, model, SEED), estimator).uncertainty
        maps.append(spearman(found.variance.mean(1), truth.whole))
        ceilings.append(ceiling_of(spearman(truth.half, truth.other)))
    return sum(maps) / sum(ceilings)


def calibration(name: str) -> list[dict]:
    of = MODELS[name]
    model, positive, negative, _ = of.load(of.fitted)
    guidance, empty = Guidance(positive, negative, of.cfg), {"samples": torch.zeros(1, *of.shape)}
    start = time.perf_counter()
    data = as_examples(own_samples(model, guidance, empty, 32, 12, seed=0), positive)
    bare = fit_head(model, data, negative, FitSettings(of.cfg, own_images=0))
    fit = time.perf_counter() - start
    tests = tests_of(name, bare, model, negative)
    rows = [
        {"images": 0, "members": 0, "seconds": 0.0, "share": 0.0, "agreement": agreement(bare, model, estimator, tests)}
        | {"setting": setting}
        for setting, estimator in ((NO_HEAD.name, NO_HEAD), ("draft, not calibrated", QUALITIES["draft"]))
    ]
    settings = RunSettings(12, of.cfg, "euler", "simple", positive, negative)
    for images, members in LEARNED:
        start = time.perf_counter()
        head = calibrate(bare, model, [OwnRun(settings, empty["samples"])] * images, 0, members)
        seconds = time.perf_counter() - start
        rows.append(
            {"images": images, "members": members, "seconds": seconds, "share": seconds / fit, "setting": "instant"}
            | {"agreement": agreement(head, model, QUALITIES["instant"], tests)}
        )
    print(f"\n{name}: the fit alone took {fit:.1f} s\n")
    print("| quality | images | members of each | seconds | share | map/ceiling |\n|---|---|---|---|---|---|")
    for row in rows:
        cells = [row["setting"], row["images"], row["members"], f"{row['seconds']:.1f}", f"{row['share']:.0%}"]
        print("| " + " | ".join(map(str, [*cells, f"{row['agreement']:.3f}"])) + " |", flush=True)
    return [row | {"model": name} for row in rows]


@torch.inference_mode()
def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--models", type=list_of(), default=["demo", "fashion"])
    arguments = parser.parse_args()
    rows = []
    for name in arguments.models:
        rows += calibration(name)
        write_rows(arguments.json, rows)


if __name__ == "__main__":
    main()

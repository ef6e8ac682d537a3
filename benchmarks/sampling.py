"""What uncertainty costs: KSampler (BayesDiff) against the stock KSampler, in one run.

    python dev.py bench sampling [--model demo] [--steps 20] [--batch 4] [--repeats 3] [--json PATH]
    python dev.py bench sampling --model sd15 --size 32 --steps 4 --batch 1 --qualities instant,draft
    python dev.py bench sampling --model flux --steps 4 --batch 1 --qualities instant
    python dev.py bench sampling --model wan --steps 2 --batch 1 --repeats 1 --qualities instant

On the demo model; on random weights in the shape of SD 1.5; on one block of random weights as wide as Flux (3,072),
whose 4,096 tokens are those of 1024 by 1024 pixels; or on three of thirty blocks as wide as Wan 2.1's 1.3B, for a clip
of 33 frames of 832 by 480 pixels. Network calls are counted at the model's last layer; times are medians over the
repeats. *overhead* is the time beyond that of as many calls of plain sampling; *memory* is the peak above what was used
before the run, relative to plain sampling's, left out below 100 MiB, where it is noise.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from pathlib import Path

import in_process

in_process.import_host_and_pack()

import torch  # noqa: E402
from bayesdiff.bayesdiff_core.estimators.registry import ENSEMBLE, NO_HEAD, QUALITIES  # noqa: E402
from bayesdiff.host.demo_model import load_demo_model  # noqa: E402
from bayesdiff.host.fit import FitSettings, as_examples, fit_head, own_samples  # noqa: E402
from bayesdiff.host.last_layer import find_last_layer  # noqa: E402
from bayesdiff.host.settings import Guidance  # noqa: E402
from large_models import WIDE_FLUX, WIDE_WAN, conditioning, load_unet  # noqa: E402
from measure import PeakMemory, count_calls  # noqa: E402
from reporting import list_of, make_parser, write_rows  # noqa: E402
from running import ours, stock  # noqa: E402

CFG, MEMBERS = {"demo": 3.0, "sd15": 3.0, "flux": 1.0, "wan": 1.0}, 8
WIDE = {"flux": WIDE_FLUX, "wan": WIDE_WAN}


def measure(function, layer, repeats: int) -> tuple[int, float, float]:
    """Network calls of one run, the median of its seconds, and the peak of its memory in MiB."""
    calls, _ = count_calls(layer, function)  # which also warms up
    times, peaks = [], []
    for _ in range(repeats):
        with PeakMemory() as memory:
            start = time.perf_counter()
            function()
            times.append(time.perf_counter() - start)
        peaks.append(memory.mib)
    return calls, statistics.median(times), max(peaks)


def load(name: str, folder: Path) -> tuple:
    """A model with positive and negative conditioning, and latents to fit its head on."""
    if name in WIDE:
        family = WIDE[name]
        prompts = [family.conditioning(seed) for seed in (1, 2)]
        # A small latent is enough to fit on, of a clip with two frames.
        small = (2, family.latent[1], *(2 for _ in family.latent[2:-2]), 16, 16)
        data = torch.randn(small, generator=torch.Generator().manual_seed(0))
        return (family.build(), *prompts), data
    if name == "sd15":
        model, prompts = load_unet("SD 1.5", folder), [conditioning("SD 1.5", seed) for seed in (1, 2)]
        return (model, *prompts), torch.randn(2, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    model, *prompts, _ = load_demo_model("owl")
    data = own_samples(model, Guidance(*prompts, CFG[name]), {"samples": torch.zeros(1, 4, 16, 16)}, 32, 12, seed=0)
    return (model, *prompts), data


@torch.inference_mode()
def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--model", choices=list(CFG), default="demo")
    parser.add_argument("--qualities", type=list_of(), default=[*QUALITIES, ENSEMBLE])
    parser.add_argument("--size", type=int, default=16, help="side of a latent")
    arguments = parser.parse_args()

    with tempfile.TemporaryDirectory() as folder:
        compare(*load(arguments.model, Path(folder)), arguments)


def compare(prompted: tuple, data: torch.Tensor, arguments) -> None:
    model, positive, negative = prompted
    layer = find_last_layer(model)
    cfg = CFG[arguments.model]
    shape = WIDE[arguments.model].latent[1:] if arguments.model in WIDE else (data.shape[1], *[arguments.size] * 2)
    latent = {"samples": torch.zeros(arguments.batch, *shape)}
    start = time.perf_counter()
    # A large network need not learn from its own images here: that changes no cost of a run.
    fit = FitSettings(cfg) if arguments.model == "demo" else FitSettings(cfg, levels=2, own_images=0)
    head = fit_head(model, as_examples(data, positive), negative, fit)
    print(f"fit of the head on {len(data)} samples: {time.perf_counter() - start:.1f} s")

    inputs = dict(seed=0, steps=arguments.steps, cfg=cfg)
    cases = {
        "stock KSampler": lambda: stock(prompted, latent, **inputs),
        NO_HEAD.name: lambda: ours(prompted, None, latent, **inputs),
    }
    for quality in arguments.qualities:
        name = f"{quality}, {MEMBERS} members" if quality == ENSEMBLE else quality
        cases[name] = lambda quality=quality: ours(prompted, head, latent, quality, MEMBERS, **inputs)
    rows = []
    for name, function in cases.items():
        calls, seconds, peak = measure(function, layer, arguments.repeats)
        base = rows[0] if rows else {"calls": calls, "seconds": seconds, "peak": peak}
        rows.append(
            {
                "case": name,
                "calls": calls,
                "seconds": seconds,
                "peak": peak,
                "calls_ratio": calls / base["calls"],
                "wall_ratio": seconds / base["seconds"],
                "overhead": seconds / base["seconds"] * base["calls"] / calls - 1,
                "memory_ratio": peak / base["peak"] if base["peak"] > 100 else None,
            }
        )
    print("| case | network calls | seconds | calls ratio | time ratio | overhead | memory |")
    print("|---|---|---|---|---|---|---|")
    for row in rows:
        memory = "" if row["memory_ratio"] is None else f"{row['memory_ratio']:.2f}"
        print(
            f"| {row['case']} | {row['calls']} | {row['seconds']:.2f} | {row['calls_ratio']:.2f} | "
            f"{row['wall_ratio']:.2f} | {row['overhead']:+.1%} | {memory} |"
        )
    write_rows(arguments.json, rows)


if __name__ == "__main__":
    main()

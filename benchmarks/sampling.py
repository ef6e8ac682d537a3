"""What uncertainty costs: KSampler (BayesDiff) against the stock KSampler, in one run.

    python dev.py bench sampling [--model demo] [--steps 20] [--batch 4] [--repeats 3] [--json PATH]
    python dev.py bench sampling --model sd15 --size 32 --steps 4 --repeats 1

On the demo model, or on random weights in the shape of SD 1.5. Network calls are counted at the model's last layer;
times are medians over the repeats. *overhead* is the time beyond that of as many calls of plain sampling; *memory* is
the peak above what was used before the run, relative to plain sampling's, left out below 100 MiB, where it is noise.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path

import in_process

in_process.import_host_and_pack()

import nodes  # noqa: E402
import torch  # noqa: E402
from bayesdiff.host.demo_model import load_demo_model  # noqa: E402
from bayesdiff.host.fitting import as_examples, fit_head, own_samples  # noqa: E402
from bayesdiff.host.last_layer import find_last_layer  # noqa: E402
from bayesdiff.nodes.sampler import ENSEMBLE, QUALITIES, KSamplerBayesDiff  # noqa: E402
from large_models import conditioning, load_unet  # noqa: E402
from measure import PeakMemory, count_calls  # noqa: E402


def measure(function, layer, repeats: int) -> tuple[int, float, float]:
    """Network calls of one run, the median of its seconds, and the peak of its memory in MiB."""
    calls, _ = count_calls(layer, function)
    times, peaks = [], []
    for _ in range(repeats):
        with PeakMemory() as memory:
            start = time.perf_counter()
            function()
            times.append(time.perf_counter() - start)
        peaks.append(memory.mib)
    return calls, statistics.median(times), max(peaks)


def load(name: str, folder: Path) -> tuple:
    """Model, positive and negative conditioning, guidance, and a data set for its head, one latent each."""
    if name == "sd15":
        model, prompts = load_unet("SD 1.5", folder), [conditioning("SD 1.5", seed) for seed in (1, 2)]
        return model, *prompts, torch.randn(2, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    model, positive, negative, _ = load_demo_model("owl")
    data = own_samples(model, positive, negative, {"samples": torch.zeros(4, 4, 16, 16)}, 32, 12, 3.0, seed=0)
    return model, positive, negative, data


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--model", choices=["demo", "sd15"], default="demo")
    parser.add_argument("--size", type=int, default=16, help="side of a latent")
    arguments = parser.parse_args()

    with tempfile.TemporaryDirectory() as folder:
        compare(*load(arguments.model, Path(folder)), arguments)


def compare(model, positive, negative, data, arguments) -> None:
    layer = find_last_layer(model)
    latent = {"samples": torch.zeros(arguments.batch, 4, arguments.size, arguments.size)}
    start = time.perf_counter()
    head = fit_head(model, as_examples(data, positive), negative, 3.0, 8 if arguments.model == "demo" else 2, 0)
    print(f"fit of the head on {len(data)} samples: {time.perf_counter() - start:.1f} s")

    common = (model, 0, arguments.steps, 3.0, "euler", "normal", positive, negative, latent)
    cases = {"stock KSampler": lambda: nodes.common_ksampler(*common)}
    for name in QUALITIES:
        cases[name] = lambda name=name: KSamplerBayesDiff.execute(*common, 1.0, head, name, 8)
    cases["ensemble, 8 members"] = lambda: KSamplerBayesDiff.execute(*common, 1.0, head, ENSEMBLE, 8)
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
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()

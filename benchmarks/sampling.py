"""What uncertainty costs: KSampler (BayesDiff) against the stock KSampler, on the demo model, in one run.

    python dev.py bench sampling [--steps 20] [--repeats 3] [--json PATH]

Network calls are counted at the model's last layer; times are medians over the repeats.
"""

from __future__ import annotations

import argparse
import json
import statistics
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
from measure import count_calls  # noqa: E402


def measure(function, layer, repeats: int) -> tuple[int, float]:
    """Network calls of one run, and the median of its seconds."""
    calls, _ = count_calls(layer, function)
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return calls, statistics.median(times)


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()

    model, positive, negative, _ = load_demo_model("owl")
    layer, latent = find_last_layer(model), {"samples": torch.zeros(arguments.batch, 4, 16, 16)}
    data = own_samples(model, positive, negative, latent, 32, 12, 3.0, seed=0)
    start = time.perf_counter()
    head = fit_head(model, as_examples(data, positive), negative, 3.0, 8, 0)
    print(f"fit of the head on {len(data)} samples: {time.perf_counter() - start:.1f} s")

    common = (model, 0, arguments.steps, 3.0, "euler", "normal", positive, negative, latent)
    cases = {"stock KSampler": lambda: nodes.common_ksampler(*common)}
    for name in QUALITIES:
        cases[name] = lambda name=name: KSamplerBayesDiff.execute(*common, 1.0, head, name, 8)
    cases["ensemble, 8 members"] = lambda: KSamplerBayesDiff.execute(*common, 1.0, head, ENSEMBLE, 8)
    rows = []
    for name, function in cases.items():
        calls, seconds = measure(function, layer, arguments.repeats)
        base = rows[0] if rows else {"calls": calls, "seconds": seconds}
        rows.append(
            {
                "case": name,
                "calls": calls,
                "seconds": seconds,
                "calls_ratio": calls / base["calls"],
                "wall_ratio": seconds / base["seconds"],
            }
        )
    print(f"{'case':<24}{'calls':>7}{'seconds':>9}{'calls ratio':>13}{'wall ratio':>12}")
    for row in rows:
        print(
            f"{row['case']:<24}{row['calls']:>7}{row['seconds']:>9.2f}{row['calls_ratio']:>13.2f}"
            f"{row['wall_ratio']:>12.2f}"
        )
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()

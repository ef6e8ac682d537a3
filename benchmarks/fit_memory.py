"""Memory of a fit at real size: UNets in the shape of SD 1.5 and SDXL, random weights, through the stock loader.

    python dev.py bench fit_memory [--models "SD 1.5,SDXL"] [--side 64] [--json PATH]

Peaks are over the memory of the process with the model loaded. A plain call of the network, as sampling one picture
with guidance makes it, stands beside the fit, whose own calls are smaller.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path

import in_process

in_process.import_host_and_pack()

import large_models  # noqa: E402
import psutil  # noqa: E402
import torch  # noqa: E402
from bayesdiff.host.fitting import as_examples, fit_head, own_samples  # noqa: E402
from measure import PeakMemory  # noqa: E402


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default=",".join(large_models.CONFIGS))
    parser.add_argument("--side", type=int, default=64, help="side of the latent")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for name in arguments.models.split(","):
            model = large_models.load_unet(name, Path(folder))
            positive, negative = large_models.conditioning(name, 1), large_models.conditioning(name, 2)
            latent = {"samples": torch.zeros(1, 4, arguments.side, arguments.side)}
            data = own_samples(model, positive, negative, latent, 2, 1, 4.0, seed=0)
            with PeakMemory() as call:
                own_samples(model, positive, negative, latent, 1, 1, 4.0, seed=0)
            loaded, start = psutil.Process().memory_info().rss, time.perf_counter()
            with PeakMemory() as fit:
                head = fit_head(model, as_examples(data, positive), negative, 4.0, 2, 0)
            rows.append(
                {
                    "model": name,
                    "width": head.geometry.width,
                    "rank": int(head.about["rank"]),
                    "seconds": time.perf_counter() - start,
                    "process_mib": loaded / 2**20,
                    "call_peak_mib": call.mib,
                    "fit_peak_mib": fit.mib,
                }
            )
            print(rows[-1], flush=True)
            del model
    print(f"{'model':<10}{'width':>7}{'rank':>6}{'fit s':>8}{'loaded MiB':>12}{'call adds':>11}{'fit adds':>10}")
    for row in rows:
        print(
            f"{row['model']:<10}{row['width']:>7}{row['rank']:>6}{row['seconds']:>8.0f}{row['process_mib']:>12.0f}"
            f"{row['call_peak_mib']:>11.0f}{row['fit_peak_mib']:>10.0f}"
        )
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()

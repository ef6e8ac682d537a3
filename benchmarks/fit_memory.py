"""Memory of a fit at real size: UNets in the shape of SD 1.5 and SDXL, random weights, through the stock loader.

    python dev.py bench fit_memory [--models "SD 1.5,SDXL"] [--side 64] [--json PATH]

Peaks are over the memory of the process with the model loaded. A plain call of the network, as sampling one image
with guidance makes it, stands beside the fit, whose own calls are smaller.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

import in_process

in_process.import_host_and_pack()

import large_models  # noqa: E402
import psutil  # noqa: E402
import torch  # noqa: E402
from bayesdiff.host.fit import FitSettings, as_examples, fit_head, own_samples  # noqa: E402
from bayesdiff.host.settings import Guidance  # noqa: E402
from measure import PeakMemory  # noqa: E402
from reporting import list_of, make_parser, write_rows  # noqa: E402


@torch.inference_mode()
def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--models", type=list_of(), default=list(large_models.CONFIGS))
    parser.add_argument("--side", type=int, default=64, help="side of the latent")
    arguments = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for name in arguments.models:
            model = large_models.load_unet(name, Path(folder))
            guidance = Guidance(large_models.conditioning(name, 1), large_models.conditioning(name, 2), 4.0)
            latent = {"samples": torch.zeros(1, 4, arguments.side, arguments.side)}
            data = as_examples(own_samples(model, guidance, latent, 2, 1, seed=0), guidance.positive)
            with PeakMemory() as call:
                own_samples(model, guidance, latent, 1, 1, seed=0)
            loaded, start = psutil.Process().memory_info().rss, time.perf_counter()
            with PeakMemory() as fit:
                head = fit_head(model, data, guidance.negative, FitSettings(guidance.cfg, levels=2))
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
    write_rows(arguments.json, rows)


if __name__ == "__main__":
    main()

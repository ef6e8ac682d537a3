"""What γ² costs at the size of SD 1.5, against one call of its network and against laplace-torch, in one run.

    python dev.py bench head [--side 64] [--repeats 5] [--json PATH]

The network has the shape of SD 1.5 and random weights, comes through the stock loader and is called as a sampler
calls it; its own features are what γ² is computed on. laplace-torch computes the same with Jacobians. The second table
says how far each shape and each dtype of the file is from the full posterior in float32, on the trained demo model.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

import in_process

in_process.import_host_and_pack()

import large_models  # noqa: E402
import torch  # noqa: E402
from bayesdiff.bayesdiff_core.posterior.laplace_head import STRUCTURES  # noqa: E402
from bayesdiff.bayesdiff_core.posterior.storage import DTYPES, load_head, save_head  # noqa: E402
from bayesdiff.host.demo_model import load_demo_model  # noqa: E402
from bayesdiff.host.fit import FitSettings, as_examples, fit_head, own_samples  # noqa: E402
from bayesdiff.host.last_layer import find_last_layer  # noqa: E402
from bayesdiff.host.settings import Guidance, RunSettings  # noqa: E402
from bayesdiff.host.states import NoisedState, visit_state  # noqa: E402
from measure import measure, spearman  # noqa: E402
from reporting import make_parser, write_rows  # noqa: E402


def laplace_torch_variance(rows: torch.Tensor, outputs: int):
    """A function that computes laplace-torch's functional variance of ``rows``."""
    from laplace import KronLLLaplace
    from laplace.curvature import CurvlinopsGGN

    with torch.inference_mode(False), torch.enable_grad():
        rows = rows.clone()
        layer = torch.nn.Linear(rows.shape[1], outputs, bias=False)
        model = torch.nn.Sequential(torch.nn.Identity(), layer)
        laplace = KronLLLaplace(model, "regression", last_layer_name="1", backend=CurvlinopsGGN)
        data = torch.utils.data.TensorDataset(rows, torch.zeros(len(rows), outputs))
        laplace.fit(torch.utils.data.DataLoader(data, batch_size=1024))

    def variance():
        with torch.inference_mode(False), torch.no_grad():
            return laplace(rows)[1]

    return variance


def costs(side: int, repeats: int, folder: Path) -> list[dict]:
    name = "SD 1.5"
    model = large_models.load_unet(name, folder)
    positive, negative = large_models.conditioning(name, 1), large_models.conditioning(name, 2)
    latent, layer = torch.zeros(1, 4, side, side), find_last_layer(model)
    eps = torch.randn(latent.shape, generator=torch.Generator().manual_seed(0))
    data = as_examples(torch.randn(2, 4, side, side, generator=torch.Generator().manual_seed(1)), positive)
    rows, seen = [], []

    def add(case: str, function) -> None:
        milliseconds, peak = measure(function, repeats)
        rows.append({"case": case, "ms": milliseconds, "peak_mib": peak})
        print(f"  {case}: {milliseconds:.1f} ms", flush=True)

    def visit(denoise, x, sigma, x0):
        add("network, one call", lambda: denoise(x))
        with layer.watched(lambda features: seen.append(features.clone())):
            denoise(x)

    visit_state(model, NoisedState(latent, 0.5, eps), Guidance(positive, positive, 1.0), visit)
    features = seen[0]
    for structure in STRUCTURES:
        start = time.perf_counter()
        head = fit_head(model, data, negative, FitSettings(4.0, levels=2, structure=structure))
        rank = f", rank {head.about['rank']}" if "rank" in head.about else ""
        print(f"  fit on 2 images: {time.perf_counter() - start:.0f} s, λ {head.prior_precision:.3g}{rank}")
        add(f"γ², {structure}{rank}", lambda head=head: head.variance(features))
    unfolded = layer.geometry.rows(features)
    add("γ², laplace-torch", laplace_torch_variance(unfolded, layer.geometry.out_features))
    for row in rows:
        row["ratio_to_network"] = row["ms"] / rows[0]["ms"]
        row["ratio_to_laplace_torch"] = row["ms"] / rows[-1]["ms"]
    return rows


def errors(folder: Path) -> list[dict]:
    """Relative error of γ² over the states of a sampling run of the demo model."""
    model, positive, negative, _ = load_demo_model("owl")
    settings = RunSettings(12, 3.0, "euler", "normal", positive, negative)
    latent, layer, seen = {"samples": torch.zeros(4, 4, 16, 16)}, find_last_layer(model), []
    with layer.watched(lambda features: seen.append(features.clone())):
        settings.sample(model, latent, seed=1)
    features = torch.cat(seen)
    data = as_examples(own_samples(model, settings.guidance, latent, 32, 12, seed=0), positive)
    rows, exact = [], None
    for structure in ("full", "low-rank", "diag"):
        head = fit_head(model, data, negative, FitSettings(settings.cfg, structure=structure))
        for name, dtype in DTYPES.items():
            path = folder / "head.safetensors"
            save_head(head, path, dtype)
            variance = load_head(path).variance(features)
            exact = variance if exact is None else exact
            error = (variance / exact - 1).abs()
            rows.append(
                {
                    "case": f"{structure}, {name}",
                    "mean_error": float(error.mean()),
                    "max_error": float(error.max()),
                    "spearman": spearman(variance, exact),
                    "kib": path.stat().st_size / 1024,
                }
            )
    return rows


@torch.inference_mode()
def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--side", type=int, default=64, help="side of the latent")
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        rows = costs(arguments.side, arguments.repeats, Path(folder))
        stored = errors(Path(folder))
    print(f"\n{'case':<26}{'ms':>9}{'of network':>12}{'of laplace-torch':>18}{'peak MiB':>10}")
    for row in rows:
        print(
            f"{row['case']:<26}{row['ms']:>9.1f}{row['ratio_to_network']:>12.2%}"
            f"{row['ratio_to_laplace_torch']:>18.2%}{row['peak_mib']:>10.0f}"
        )
    print(f"\n{'posterior, file':<26}{'mean error':>12}{'max error':>12}{'Spearman':>10}{'KiB':>8}")
    for row in stored:
        print(
            f"{row['case']:<26}{row['mean_error']:>12.2e}{row['max_error']:>12.2e}{row['spearman']:>10.4f}"
            f"{row['kib']:>8.0f}"
        )
    write_rows(arguments.json, rows)


if __name__ == "__main__":
    main()

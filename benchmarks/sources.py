"""How much a map depends on what the head was fitted on: own samples, latents, a folder with captions.

    python dev.py bench sources [--prompts 4] [--quality precise] [--json PATH]

On the demo model. Real images are those of ``demo_model/pictures``. Every head samples the same images with the
same draws of unit noise, so what differs is the head alone; the first row, the same head with other draws, says how
well two maps of this quality can agree at all. Spearman is of the maps, cell by cell, averaged over images.
"""

from __future__ import annotations

from pathlib import Path

import in_process

in_process.import_host_and_pack()

import torch  # noqa: E402
from bayesdiff.bayesdiff_core.estimators.registry import QUALITIES  # noqa: E402
from bayesdiff.host.demo_model import load_demo_model, prompt_names  # noqa: E402
from bayesdiff.host.files import read_image  # noqa: E402
from bayesdiff.host.fit import Example, FitSettings, as_examples, fit_head, own_samples  # noqa: E402
from bayesdiff.host.posterior import Posterior  # noqa: E402
from bayesdiff.host.run.sample import sample_with_uncertainty  # noqa: E402
from bayesdiff.host.settings import Guidance, RunSettings  # noqa: E402
from measure import spearman  # noqa: E402
from reporting import make_parser, write_rows  # noqa: E402

PICTURES = Path(__file__).resolve().parents[1] / "demo_model" / "pictures"
CFG, SEED = 3.0, 0


def fit_heads(model, positive, negative, vae) -> dict:
    latent, paths = {"samples": torch.zeros(1, 4, 16, 16)}, sorted(PICTURES.glob("*.webp"))
    encoded = torch.cat([vae.encode(read_image(path)) for path in paths])
    captions = [load_demo_model(path.stem)[1] for path in paths]

    def samples(prompt, count: int, seed: int) -> torch.Tensor:
        return own_samples(model, Guidance(prompt, negative, CFG), latent, count, 12, seed)

    data = {
        "own samples, one prompt": as_examples(samples(positive, len(paths), SEED), positive),
        "own samples, many prompts": [
            Example(samples(caption, 1, SEED + i), caption) for i, caption in enumerate(captions)
        ],
        "latents, one prompt": as_examples(encoded, positive),
        "latents, half of them": as_examples(encoded[::2], positive),
        "folder with captions": [Example(x[None], caption) for x, caption in zip(encoded, captions)],
    }
    return {
        name: fit_head(model, examples, negative, FitSettings(CFG, seed=SEED, source=name))
        for name, examples in data.items()
    }


def maps(posterior: Posterior, positive, negative, quality: str) -> torch.Tensor:
    settings = RunSettings(20, CFG, "dpmpp_2m", "karras", positive, negative)

    def run(model, latent):
        return settings.sample(model, latent, seed=1)

    latent = {"samples": torch.zeros(4, 4, 16, 16)}
    return sample_with_uncertainty(run, latent, posterior, QUALITIES[quality]).uncertainty.std_map()


@torch.inference_mode()
def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--prompts", type=int, default=4)
    parser.add_argument("--quality", choices=list(QUALITIES), default="precise")
    arguments = parser.parse_args()
    model, positive, negative, vae = load_demo_model("owl")
    heads = fit_heads(model, positive, negative, vae)
    names = prompt_names()
    prompts = [load_demo_model(name)[1] for name in names[:: len(names) // arguments.prompts][: arguments.prompts]]

    def all_maps(head, seed=0):
        posterior = Posterior.bind(head, model, seed)
        return torch.cat([maps(posterior, prompt, negative, arguments.quality) for prompt in prompts])

    found = {name: all_maps(head) for name, head in heads.items()}
    reference = "folder with captions"
    found = {f"{reference}, other draws": all_maps(heads[reference], seed=1), **found}
    rows = [
        {
            "source": name,
            "map_spearman": spearman(std, found[reference]),
            "score_spearman": spearman(std.mean((1, 2))[None], found[reference].mean((1, 2))[None]),
            "mean_std_ratio": float(std.mean() / found[reference].mean()),
        }
        for name, std in found.items()
    ]
    print(f"{'head fitted on':<36}{'map Spearman':>14}{'score Spearman':>16}{'mean std':>10}")
    for row in rows:
        print(
            f"{row['source']:<36}{row['map_spearman']:>14.3f}{row['score_spearman']:>16.3f}{row['mean_std_ratio']:>10.2f}"
        )
    write_rows(arguments.json, rows)


if __name__ == "__main__":
    main()

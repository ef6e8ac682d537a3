"""How much a map depends on what the head was fitted on: own samples, latents, a folder with captions.

    python dev.py bench sources [--prompts 4] [--quality precise] [--json PATH]

On the demo model. Real pictures are those of ``demo_model/pictures``. Every head samples the same pictures with the
same draws of unit noise, so what differs is the head alone; the first row, the same head with other draws, says how
well two maps of this quality can agree at all. Spearman is of the maps, cell by cell, averaged over pictures.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import in_process

in_process.import_host_and_pack()

import nodes  # noqa: E402
import torch  # noqa: E402
from bayesdiff.host.demo_model import load_demo_model, prompt_names  # noqa: E402
from bayesdiff.host.files import read_picture  # noqa: E402
from bayesdiff.host.fitting import Example, as_examples, fit_head, own_samples  # noqa: E402
from bayesdiff.host.last_layer import check_head  # noqa: E402
from bayesdiff.host.sampling import sample_with_uncertainty  # noqa: E402
from bayesdiff.nodes.sampler import QUALITIES  # noqa: E402
from measure import spearman  # noqa: E402

PICTURES = Path(__file__).resolve().parents[1] / "demo_model" / "pictures"
CFG, LEVELS, SEED = 3.0, 8, 0


def fit_heads(model, positive, negative, vae) -> dict:
    latent, paths = {"samples": torch.zeros(1, 4, 16, 16)}, sorted(PICTURES.glob("*.webp"))
    encoded = torch.cat([vae.encode(read_picture(path)) for path in paths])
    captions = [load_demo_model(path.stem)[1] for path in paths]
    half = encoded[::2]
    data = {
        "own samples, one prompt": as_examples(
            own_samples(model, positive, negative, latent, len(paths), 12, CFG, SEED), positive
        ),
        "own samples, many prompts": [
            Example(own_samples(model, caption, negative, latent, 1, 12, CFG, SEED + i), caption)
            for i, caption in enumerate(captions)
        ],
        "latents, one prompt": as_examples(encoded, positive),
        "latents, half of them": as_examples(half, positive),
        "folder with captions": [Example(x[None], caption) for x, caption in zip(encoded, captions)],
    }
    return {name: fit_head(model, d, negative, CFG, LEVELS, SEED, source=name) for name, d in data.items()}


def maps(model, positive, negative, head, quality: str, seed: int) -> torch.Tensor:
    latent, layer = {"samples": torch.zeros(4, 4, 16, 16)}, check_head(head, model)

    def run(model):
        return nodes.common_ksampler(model, 1, 20, CFG, "dpmpp_2m", "karras", positive, negative, latent)[0]

    return sample_with_uncertainty(run, model, layer, head, QUALITIES[quality], seed)[2].std_map()


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=4)
    parser.add_argument("--quality", choices=list(QUALITIES), default="precise")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    model, positive, negative, vae = load_demo_model("owl")
    heads = fit_heads(model, positive, negative, vae)
    names = prompt_names()
    prompts = [load_demo_model(name)[1] for name in names[:: len(names) // arguments.prompts][: arguments.prompts]]

    def all_maps(head, seed=0):
        return torch.cat([maps(model, prompt, negative, head, arguments.quality, seed) for prompt in prompts])

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
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()

"""A data set filtered by the farm: are the kept images closer to real ones than as many taken at random?

    python dev.py bench farm_dataset [--images 2000] [--quality instant] [--workers 2] [--out FOLDER] [--json PATH]

Images of the demo model, as many of each of ten prompts in batches of 8, of which the farm keeps the better half of
each prompt (the paper's experiment, section 4.3, there with ImageNet's Inception). The judge (tools/judges.py) is
MobileNetV2, and the reference are the emoji that the demo model was trained on. *Frechet distance* is of a set to the
reference, *nearness* minus the mean distance of an image to the nearest of them. *random* are halves taken at random
within each prompt, with their standard deviation, the error of one half. With ``--out`` a stopped run goes on.
"""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import in_process

in_process.import_host_and_pack()

import numpy  # noqa: E402
import torch  # noqa: E402
from bayesdiff.host.demo_model import prompt_names  # noqa: E402
from comfy_server import link_pack  # noqa: E402
from figures_of_merit import frechet_distance, ranks_within  # noqa: E402
from judges import EmojiJudge  # noqa: E402
from PIL import Image  # noqa: E402
from reporting import make_parser, write_rows  # noqa: E402

PROMPTS, BATCH, STEPS, RANDOM_HALVES = 10, 8, 20, 200


def node(class_type: str, **inputs) -> dict:
    return {"class_type": class_type, "inputs": inputs}


def make_workflow(quality: str) -> dict:
    prompts = dict(model=["demo", 0], positive=["demo", 1], negative=["demo", 2])
    fit = dict(fit_on="own samples", samples=16, steps=10, cfg=3.0, noise_levels=4, structure="low-rank")
    fit |= dict(explained_variance=0.99, seed=0, folder="input", own_images=6, from_share=0.0, to_share=1.0)
    sampling = dict(seed=0, steps=STEPS, cfg=3.0, sampler_name="dpmpp_2m", scheduler="karras", denoise=1.0)
    return {
        "demo": node("BayesDiffDemoModel", prompt="any animal mammal"),
        # One head for all prompts, so that their scores have one scale.
        "same": node("BayesDiffDemoModel", prompt="any animal mammal"),
        "empty": node("EmptyLatentImage", width=128, height=128, batch_size=BATCH),
        "head": node(
            "BayesDiffFitLaplaceHead",
            model=["same", 0],
            positive=["same", 1],
            negative=["same", 2],
            latent=["empty", 0],
            **fit,
        ),
        "ours": node(
            "BayesDiffKSampler",
            latent_image=["empty", 0],
            head=["head", 0],
            quality=quality,
            members=8,
            **prompts,
            **sampling,
        ),
        "decode": node("VAEDecode", samples=["ours", 0], vae=["demo", 3]),
    }


def run_farm(folder: Path, arguments) -> float:
    """Make the images; how many seconds it took."""
    names = [name for name in prompt_names() if name.startswith("any ")]
    names = [names[i * len(names) // PROMPTS] for i in range(PROMPTS)]
    seeds = max(2, arguments.images // (PROMPTS * BATCH))
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "prompts.txt").write_text("\n".join(names), encoding="utf-8")
    (folder / "workflow.json").write_text(json.dumps(make_workflow(arguments.quality)), encoding="utf-8")
    link_pack(folder / "base" / "custom_nodes")
    out = folder / "run"
    what = [folder / "workflow.json", "--seeds", seeds, "--prompts", folder / "prompts.txt", "--save", "images"]
    command = [os.environ["BAYESDIFF_FARM_PYTHON"], "-m", "bayesdiff_farm", "--out", out]
    command += ["--resume"] if (out / "run.json").exists() else what
    command += ["--keep-per-prompt", seeds * BATCH // 2, "--workers", arguments.workers]
    environment = os.environ | {"BAYESDIFF_FARM_BASE": str(folder / "base")}
    start = time.monotonic()
    if code := subprocess.run([str(part) for part in command], env=environment).returncode:
        sys.exit(code)
    return time.monotonic() - start


def read(run: Path) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Images ``(n, h, w, 3)`` in [0, 1], their scores, which were kept, and their prompts' numbers."""
    lines = (run / "results.jsonl").read_text(encoding="utf-8").splitlines()
    files = {}
    for row in map(json.loads, lines):
        for place, image in enumerate(row["images"]):
            files[row["task"], place] = run / "work" / image["files"]["images"][0]
    with (run / "table.csv").open(encoding="utf-8") as file:
        table = list(csv.DictReader(file))
    images = [numpy.asarray(Image.open(files[int(row["task"]), int(row["place"])]).convert("RGB")) for row in table]
    groups = [row["inputs"] for row in table]
    return (
        torch.from_numpy(numpy.stack(images)).float() / 255,
        torch.tensor([float(row["score"]) for row in table]),
        torch.tensor([row["kept"] == "True" for row in table]),
        torch.tensor([sorted(set(groups)).index(group) for group in groups]),
    )


def compare(run: Path) -> list[dict]:
    judge = EmojiJudge()
    images, scores, kept, groups = read(run)
    verdict = judge.judge(images, groups)

    def measures(chosen: torch.Tensor) -> dict[str, float]:
        distance = frechet_distance(verdict.features[chosen], judge.reference)
        return {"Frechet distance": distance, "nearness": float(verdict.qualities["nearness"][chosen].mean())}

    generator = torch.Generator().manual_seed(0)
    halves = [
        measures(ranks_within(torch.rand(len(groups), generator=generator), groups) <= 0.5)
        for _ in range(RANDOM_HALVES)
    ]
    found = {"kept": measures(kept), "dropped": measures(~kept), "all": measures(torch.ones_like(kept))}
    rows = []
    for name in halves[0]:
        chance = torch.tensor([half[name] for half in halves], dtype=torch.float64)
        row = {"measure": name, "images": len(images)} | {which: one[name] for which, one in found.items()}
        rows.append(row | {"random": float(chance.mean()), "error": float(chance.std())})
    return rows


@torch.inference_mode()
def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--quality", default="instant")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--out", type=Path, help="keep everything in this folder")
    arguments = parser.parse_args()
    EmojiJudge.fetch_data()
    with tempfile.TemporaryDirectory(prefix="bayesdiff-") as temporary:
        folder = (arguments.out or Path(temporary)).resolve()
        print(f"the farm took {run_farm(folder, arguments):.0f} s")
        rows = compare(folder / "run")
    print("| measure | images | kept half | random half | dropped half | all | lead in errors |")
    print("|---|---|---|---|---|---|---|")
    for row in rows:
        better = -1 if row["measure"] == "Frechet distance" else 1
        lead = better * (row["kept"] - row["random"]) / row["error"]
        print(
            f"| {row['measure']} | {row['images']} | {row['kept']:.3f} | {row['random']:.3f} ± {row['error']:.3f} | "
            f"{row['dropped']:.3f} | {row['all']:.3f} | {lead:.1f} |"
        )
    write_rows(arguments.json, rows)


if __name__ == "__main__":
    main()

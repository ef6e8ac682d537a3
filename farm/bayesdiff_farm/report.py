"""What is kept: its files, one workflow each, a contact sheet, and a histogram of all scores."""

from __future__ import annotations

import io
import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import safetensors
import safetensors.numpy
from PIL import Image as Picture
from PIL import ImageDraw

from .plan import Plan
from .table import Image

MOST_SHOWN, TILE, LABEL = 400, 192, 30
ENDINGS = {"images": "", "maps": "_map", "latents": ""}
Read = Callable[[Image, str], bytes | None]


def lacking(image: Image, read: Read) -> bool:
    """Whether a file of an image is no longer anywhere."""
    return any(read(image, name) is None for names in image.files.values() for name in names)


def fetch(folder: Path, plan: Plan, kept: list[Image], read: Read) -> list[Path]:
    """Put the files of the kept images into ``folder``; the first picture of each.

    Each also gets the workflow that makes it again.
    """
    new = folder.with_name(folder.name + ".new")
    shutil.rmtree(new, ignore_errors=True)
    new.mkdir(parents=True)
    shown = []
    for rank, image in enumerate(kept, 1):
        name = f"{rank:04}_seed{image.task.seed}_{image.place}"
        workflow = json.dumps(plan.workflow_of(image.task), indent=1, ensure_ascii=False)
        (new / f"{name}.json").write_text(workflow, encoding="utf-8")
        for kind, files in image.files.items():
            for i, file in enumerate(files):
                content = read(image, file)
                if kind == "latents":
                    content = one_latent(content, image.place)
                frame = f"_{i:03}" if len(files) > 1 else ""
                (new / f"{name}{ENDINGS[kind]}{frame}{Path(file).suffix}").write_bytes(content)
        if pictures := image.files.get("images"):
            shown.append(folder / f"{name}{'_000' if len(pictures) > 1 else ''}.png")
    shutil.rmtree(folder, ignore_errors=True)
    new.rename(folder)
    return shown


def one_latent(content: bytes, place: int) -> bytes:
    """A file as the host's SaveLatent writes it, of one image of the batch."""
    tensors = safetensors.numpy.load(content)
    metadata = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")]).get("__metadata__")
    latent = tensors["latent_tensor"]
    if len(latent) > 1:
        tensors["latent_tensor"] = latent[place : place + 1].copy()
    return safetensors.numpy.save(tensors, metadata)


def caption(rank: int, image: Image) -> str:
    score = "unknown" if math.isnan(image.score) else f"{image.score:.4g}"
    place = "" if image.percentile is None else f" ({image.percentile:.0f} %)"
    return f"{rank}: {score}{place}\nseed {image.task.seed}, {image.place}"


def contact_sheet(path: Path, kept: list[Image], pictures: list[Path]) -> None:
    """The kept images, best first, each with its score, percentile, seed and place in the batch."""
    pairs = list(zip(kept, pictures))[:MOST_SHOWN]
    columns = min(8, max(1, math.ceil(math.sqrt(len(pairs)))))
    rows = math.ceil(len(pairs) / columns)
    sheet = Picture.new("RGB", (columns * TILE, rows * (TILE + LABEL)), "white")
    draw = ImageDraw.Draw(sheet)
    for i, (image, picture) in enumerate(pairs):
        x, y = i % columns * TILE, i // columns * (TILE + LABEL)
        with Picture.open(picture) as opened:
            tile = opened.convert("RGB")
        scale = min(TILE / tile.width, TILE / tile.height)
        tile = tile.resize((max(1, round(tile.width * scale)), max(1, round(tile.height * scale))))
        sheet.paste(tile, (x + (TILE - tile.width) // 2, y))
        draw.multiline_text((x + 4, y + TILE + 2), caption(i + 1, image), fill="black", spacing=1)
    sheet.save(path)


def histogram(path: Path, images: list[Image], kept: list[Image]) -> None:
    """How the scores of all images are spread, and where the kept ones lie."""
    scores = [image.score for image in images if math.isfinite(image.score)]
    best = [image.score for image in kept if math.isfinite(image.score)]
    unknown = len(images) - len(scores)
    figure, axes = plt.subplots(figsize=(7, 4))
    _, edges, _ = axes.hist(scores or [0], bins=min(60, max(5, len(scores) // 5)), color="#9aa5b1", label="all")
    axes.hist(best, bins=edges, color="#d1603d", label="kept")
    words = f", {unknown} unknown" if unknown else ""
    axes.set(xlabel="score (lower is more certain)", ylabel="images", title=f"{len(images)} images{words}")
    axes.legend()
    figure.tight_layout()
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=120)
    plt.close(figure)
    path.write_bytes(content.getvalue())

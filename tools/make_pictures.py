"""Make the pictures of the docs by running the pack in a real ComfyUI.

    python dev.py pictures

``docs/images/quickstart.png``: what the quick start makes, one column a sample.
``docs/images/samples.png``: 36 samples of the demo model, its prompts taken at even distances from the node's list.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

from comfy_server import ComfyServer
from PIL import Image, ImageDraw, ImageFont

ROOT = Path(__file__).resolve().parent.parent
IMAGES = ROOT / "docs" / "images"
QUICKSTART_ROWS = {"sample": "13", "uncertainty": "15", "mask": "16", "repaired": "17"}
TILE = 144


def sheet(rows: list[list[Path]], captions: list[list[str]], row_titles: list[str]) -> Image.Image:
    """Pictures in a grid, each with a caption below, each row with a title at its left."""
    left = 110 if any(row_titles) else 8
    caption_height = 18 if any(any(row) for row in captions) else 4
    width, height = left + len(rows[0]) * (TILE + 6), len(rows) * (TILE + caption_height) + 6
    image = Image.new("RGB", (width, height), "white")
    draw, font = ImageDraw.Draw(image), ImageFont.load_default(12)
    for y, (row, texts, title) in enumerate(zip(rows, captions, row_titles)):
        top = 4 + y * (TILE + caption_height)
        draw.text((8, top + TILE // 2 - 8), title, fill="black", font=ImageFont.load_default(15))
        for x, (path, text) in enumerate(zip(row, texts)):
            tile = Image.open(path).convert("RGB").resize((TILE, TILE), Image.Resampling.LANCZOS)
            image.paste(tile, (left + x * (TILE + 6), top))
            draw.text((left + x * (TILE + 6) + 2, top + TILE), fit_text(text, font), fill="black", font=font)
    return image


def fit_text(text: str, font: ImageFont.ImageFont) -> str:
    """As many whole words as fit under a tile."""
    words = text.split()
    while len(words) > 1 and font.getlength(" ".join(words)) > TILE:
        words[-2:] = ["..."] if words[-1] != "..." else [words[-1]]
    return " ".join(words)


def quickstart(server: ComfyServer) -> Image.Image:
    graph = json.loads((ROOT / "tests" / "graphs" / "quickstart.json").read_text(encoding="utf-8"))
    pictures = server.files(server.run(graph))
    rows = [pictures[node_id] for node_id in QUICKSTART_ROWS.values()]
    return sheet(rows, [[""] * len(row) for row in rows], list(QUICKSTART_ROWS))


def samples(server: ComfyServer, side: int = 6) -> Image.Image:
    names = server.object_info()["BayesDiffDemoModel"]["input"]["required"]["prompt"][1]["options"]
    names = names[len(names) // (2 * side**2) :: len(names) // side**2][: side**2]
    graph = {"empty": node("EmptyLatentImage", width=128, height=128, batch_size=1)}
    for i, name in enumerate(names):
        graph[f"demo{i}"] = node("BayesDiffDemoModel", prompt=name)
        graph[f"sample{i}"] = node(
            "KSampler", model=[f"demo{i}", 0], positive=[f"demo{i}", 1], negative=[f"demo{i}", 2],
            latent_image=["empty", 0], seed=i, steps=24, cfg=3.0, sampler_name="dpmpp_2m", scheduler="karras",
            denoise=1.0,
        )  # fmt: skip
        graph[f"decode{i}"] = node("VAEDecode", samples=[f"sample{i}", 0], vae=[f"demo{i}", 3])
        graph[f"save{i}"] = node("SaveImage", images=[f"decode{i}", 0], filename_prefix=f"grid{i:02}")
    pictures = server.files(server.run(graph))
    grid = [[pictures[f"save{y * side + x}"][0] for x in range(side)] for y in range(side)]
    return sheet(grid, [names[y * side : (y + 1) * side] for y in range(side)], [""] * side)


def node(class_type: str, **inputs) -> dict:
    return {"class_type": class_type, "inputs": inputs}


def main() -> None:
    IMAGES.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder, ComfyServer(Path(folder)) as server:
        for make in (quickstart, samples):
            path = IMAGES / f"{make.__name__}.png"
            make(server).save(path, optimize=True)
            print(path.relative_to(ROOT))


if __name__ == "__main__":
    main()

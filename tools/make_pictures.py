"""Make the pictures of the docs by running the pack in a real ComfyUI.

    python dev.py pictures

``docs/images/quickstart.png``: what the quick start makes, one column a sample.
``docs/images/maps.png``: one batch in pixels and in latent cells, the sheets of the node Uncertainty Map.
``docs/images/masks.png``: what the thresholds and options of Uncertainty to Mask make of it.
``docs/images/plot.png``: the histogram of scores of a larger batch.
``docs/images/samples.png``: 36 samples of the demo model, its prompts taken at even distances from the node's list.
``docs/images/clips.png``: two clips of the demo video model for each motion, its emoji taken at even distances.
``web/docs/images/*.png``: parts of these, for the help pages in the side bar.
"""

from __future__ import annotations

import json
import tempfile
import textwrap
from pathlib import Path

from comfy_server import ComfyServer
from PIL import Image, ImageDraw, ImageFont

ROOT = Path(__file__).resolve().parent.parent
IMAGES = ROOT / "docs" / "images"
WITH_A_HEAD = "21"  # the quick start's second sampler
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


def uncertain_batch(pictures: int, quality: str = "precise") -> dict:
    """The quick start's nodes up to the sampler that has a head, with another number of pictures."""
    graph = json.loads((ROOT / "tests" / "graphs" / "quickstart.json").read_text(encoding="utf-8"))
    graph = {node_id: graph[node_id] for node_id in ("1", "2", "3", WITH_A_HEAD)}
    graph["2"]["inputs"]["batch_size"] = pictures
    graph[WITH_A_HEAD]["inputs"]["quality"] = quality
    return graph


def maps(server: ComfyServer) -> Image.Image:
    graph, modes = uncertain_batch(2), {"latent": "inferno", "pixels": "viridis"}
    for mode, colours in modes.items():
        graph[mode] = node(
            "BayesDiffUncertaintyMap",
            uncertainty=[WITH_A_HEAD, 1],
            vae=["1", 3],
            scale="each image",
            opacity=0.85,
            resolution=mode,
            colours=colours,
            colour_bar=True,
        )
        graph[f"save {mode}"] = node("SaveImage", images=[mode, 5], filename_prefix=mode)
    pictures = server.files(server.run(graph))
    sheets = [Image.open(pictures[f"save {mode}"][0]).convert("RGB") for mode in modes]
    width, height = max(sheet.width for sheet in sheets), sheets[0].height
    image = Image.new("RGB", (2 * width + 16, height + 22), "white")
    draw, font = ImageDraw.Draw(image), ImageFont.load_default(15)
    for x, (mode, found) in enumerate(zip(modes, sheets)):
        draw.text((x * (width + 16) + 4, 2), f"resolution: {mode}, colours: {modes[mode]}", fill="black", font=font)
        image.paste(found, (x * (width + 16), 22))
    return image


MASKS = {
    "area share 0.15": {},
    "quantile of the batch": dict(threshold="quantile of the batch"),
    "Otsu": dict(threshold="Otsu"),
    "no islands, holes filled": dict(smallest_island=120, fill_holes=True),
    "bounding box": dict(smallest_island=120, bounding_box=True),
    "soft, grown, blurred": dict(soft=True, grow=6, blur=3.0),
}


def masks(server: ComfyServer, pictures: int = 4) -> Image.Image:
    graph = uncertain_batch(pictures)
    graph["decode"] = node("VAEDecode", samples=[WITH_A_HEAD, 0], vae=["1", 3])
    graph["sample"] = node("SaveImage", images=["decode", 0], filename_prefix="sample")
    for name, options in MASKS.items():
        inputs = dict(uncertainty=[WITH_A_HEAD, 1], area=0.15, grow=0, blur=0.0)
        graph[f"mask {name}"] = node("BayesDiffUncertaintyToMask", **(inputs | options))
        graph[f"image {name}"] = node("MaskToImage", mask=[f"mask {name}", 0])
        graph[name] = node("SaveImage", images=[f"image {name}", 0], filename_prefix="mask")
    found = server.files(server.run(graph))
    rows = ["sample", *MASKS]
    captions = [[name] * pictures if name in MASKS else [""] * pictures for name in rows]
    return sheet([found[name] for name in rows], captions, [""] * len(rows))


def plot(server: ComfyServer) -> Image.Image:
    graph = uncertain_batch(24, "draft")
    graph["plot"] = node(
        "BayesDiffUncertaintyPlot",
        uncertainty=[WITH_A_HEAD, 1],
        plot="scores of the batch",
        score="mean std",
        width=768,
        height=448,
    )
    graph["save"] = node("SaveImage", images=["plot", 0], filename_prefix="plot")
    return Image.open(server.files(server.run(graph))["save"][0])


def sampled(number: int, prefix: str, **settings) -> dict:
    """Nodes that sample from the node ``empty`` with the demo model of this number, which is the seed, and save it.

    Args:
        settings: steps, sampler and scheduler.
    """
    demo, sample, decode = f"demo{number}", f"sample{number}", f"decode{number}"
    return {
        sample: node(
            "KSampler",
            model=[demo, 0],
            positive=[demo, 1],
            negative=[demo, 2],
            latent_image=["empty", 0],
            seed=number,
            cfg=3.0,
            denoise=1.0,
            **settings,
        ),
        decode: node("VAEDecode", samples=[sample, 0], vae=[demo, 3]),
        f"save{number}": node("SaveImage", images=[decode, 0], filename_prefix=prefix),
    }


def samples(server: ComfyServer, side: int = 6) -> Image.Image:
    names = server.object_info()["BayesDiffDemoModel"]["input"]["required"]["prompt"][1]["options"]
    names = names[len(names) // (2 * side**2) :: len(names) // side**2][: side**2]
    graph = {"empty": node("EmptyLatentImage", width=128, height=128, batch_size=1)}
    for i, name in enumerate(names):
        graph[f"demo{i}"] = node("BayesDiffDemoModel", prompt=name)
        graph |= sampled(i, f"grid{i:02}", steps=24, sampler_name="dpmpp_2m", scheduler="karras")
    pictures = server.files(server.run(graph))
    grid = [[pictures[f"save{y * side + x}"][0] for x in range(side)] for y in range(side)]
    return sheet(grid, [names[y * side : (y + 1) * side] for y in range(side)], [""] * side)


def clips(server: ComfyServer, frames: int = 7) -> Image.Image:
    """A clip in a row, every other of its frames."""
    inputs = server.object_info()["BayesDiffDemoVideoModel"]["input"]["required"]
    emoji, motions = (inputs[name][1]["options"][1:] for name in ("emoji", "motion"))
    count = 2 * len(motions)
    graph = {"empty": node("EmptyHunyuanLatentVideo", width=80, height=80, length=13, batch_size=1)}
    names = []
    for i in range(count):
        subject, front = emoji[i * len(emoji) // count], emoji[(i * len(emoji) // count + 7) % len(emoji)]
        names.append(f"{subject} {motions[i // 2]}" + f" {front}" * motions[i // 2].endswith("behind"))
        graph[f"demo{i}"] = node("BayesDiffDemoVideoModel", emoji=subject, motion=motions[i // 2], front=front)
        graph |= sampled(i, f"clip{i:02}", steps=20, sampler_name="euler", scheduler="simple")
    pictures = server.files(server.run(graph))
    rows = [pictures[f"save{i}"][::2][:frames] for i in range(count)]
    found = sheet(rows, [[""] * frames] * count, [textwrap.fill(name, 13) for name in names])
    return found.resize((found.width // 2, found.height // 2), Image.Resampling.LANCZOS)


def node(class_type: str, **inputs) -> dict:
    return {"class_type": class_type, "inputs": inputs}


# Picture of the help pages: the picture of the docs that it is a part of, and from where to where from top, 0 to 1.
HELP = {
    "sampler": ("quickstart", 0.0, 0.5),
    "repair": ("quickstart", 0.0, 1.0),
    "map": ("maps", 0.0, 1.0),
    "mask": ("masks", 0.0, 0.57),
    "plot": ("plot", 0.0, 1.0),
    "demo": ("samples", 0.0, 0.335),
    "clips": ("clips", 0.0, 0.5),
}
HELP_WIDTH = 560


def help_pictures() -> None:
    """Parts of the pictures of the docs, smaller and in 128 colours: the pack's archive holds these alone."""
    folder = ROOT / "web" / "docs" / "images"
    folder.mkdir(parents=True, exist_ok=True)
    for name, (source, top, bottom) in HELP.items():
        picture = Image.open(IMAGES / f"{source}.png").convert("RGB")
        picture = picture.crop((0, round(top * picture.height), picture.width, round(bottom * picture.height)))
        if picture.width > HELP_WIDTH:
            size = HELP_WIDTH, round(picture.height * HELP_WIDTH / picture.width)
            picture = picture.resize(size, Image.Resampling.LANCZOS)
        picture.quantize(128).save(folder / f"{name}.png", optimize=True)


def main() -> None:
    IMAGES.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder, ComfyServer(Path(folder)) as server:
        for make in (quickstart, maps, masks, plot, samples, clips):
            path = IMAGES / f"{make.__name__}.png"
            make(server).save(path, optimize=True)
            print(path.relative_to(ROOT))
    help_pictures()


if __name__ == "__main__":
    main()

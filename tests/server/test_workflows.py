"""The shared workflows: each equals the graph that it was made from, and each graph runs on the real server."""

from __future__ import annotations

import copy
import itertools
import json
import re
from pathlib import Path

import av
import comfy_server
import make_workflows
import numpy
import pytest
from PIL import Image
from workflow_texts import NOTES, THUMBNAILS

ROOT = Path(__file__).resolve().parents[2]
GRAPHS = {
    path.stem: json.loads(path.read_text(encoding="utf-8"))
    for path in sorted((ROOT / "tests" / "graphs").glob("*.json"))
}
# Those that need model files: the nodes and inputs that name them.
FILES = {
    "sd15": {"1": ["ckpt_name"]},
    "sdxl": {"1": ["ckpt_name"]},
    "flux": {"1": ["unet_name"], "2": ["clip_name1", "clip_name2"], "3": ["vae_name"]},
    "sdxl_refiner": {"1": ["ckpt_name"], "2": ["ckpt_name"]},
    "wan22": {"1": ["unet_name"], "2": ["unet_name"], "3": ["clip_name"], "4": ["vae_name"]},
}
# Standard deviation of an image's values from 0 to 1, below which it counts as blank.
NOT_BLANK = 0.03


@pytest.fixture(scope="module")
def object_info(server):
    return server.object_info()


@pytest.fixture(scope="module")
def made(server):
    """What a graph makes, run once: its history entry and its images ``(n, h, w, 3)`` by the title of their node."""
    known = {}

    def run(name: str):
        if name not in known:
            entry = server.run(make_workflows.runnable(GRAPHS[name]))
            known[name] = entry, images_of(server, GRAPHS[name], entry)
        return known[name]

    return run


def images_of(server, graph: dict, entry: dict) -> dict[str, numpy.ndarray]:
    return {
        graph[node_id]["_meta"]["title"]: numpy.concatenate([pixels(path) for path in paths])
        for node_id, paths in server.files(entry).items()
    }


def pixels(path: Path) -> numpy.ndarray:
    """An image, or the frames of a video, ``(n, h, w, 3)``."""
    if path.suffix == ".mp4":
        with av.open(str(path)) as video:
            frames = [frame.to_ndarray(format="rgb24") for frame in video.decode(video=0)]
    else:
        frames = [Image.open(path).convert("RGB")]
    return numpy.stack([numpy.asarray(frame, dtype=numpy.float32) for frame in frames]) / 255


def text(name: str, entry: dict, title: str) -> str:
    """What a node of this title showed: one text, for of a list the page shows the first alone."""
    (node_id,) = (node_id for node_id, node in GRAPHS[name].items() if node["_meta"]["title"] == title)
    (shown,) = entry["outputs"][node_id]["text"]
    return shown


def scores_in(table: str) -> list[float]:
    return [float(row.split("|")[2]) for row in table.splitlines()[2:]]


def shown(found: dict[str, numpy.ndarray]) -> dict[str, tuple[int, ...]]:
    """Count, height and width of what was saved, none of it blank."""
    for title, images in found.items():
        for image in images:
            assert image.std() > NOT_BLANK, title
    return {title: images.shape[:3] for title, images in found.items()}


# ---------------------------------------------------------------- the files


def test_every_graph_has_a_workflow_and_every_workflow_a_graph(server):
    assert {path.stem for path in (ROOT / "workflows").glob("*.json")} == GRAPHS.keys() == NOTES.keys()
    assert {path.stem for path in (ROOT / "workflows").glob("*.jpg")} == GRAPHS.keys() == THUMBNAILS.keys()
    assert sorted(server.get("/api/workflow_templates")["BayesDiff"]) == sorted(GRAPHS)


@pytest.mark.parametrize("name", GRAPHS)
def test_the_workflow_is_the_tested_graph(object_info, name):
    workflow = json.loads((ROOT / "workflows" / f"{name}.json").read_text(encoding="utf-8"))
    assert make_workflows.to_api(workflow, object_info) == GRAPHS[name]
    assert workflow["version"] == 0.4
    for node in workflow["nodes"]:
        ours = node["type"].startswith("BayesDiff")
        assert node["properties"]["cnr_id"] == ("bayesdiff" if ours else "comfy-core") and node["properties"]["ver"]
    (note,) = (node for node in workflow["nodes"] if node["type"] == "MarkdownNote")
    assert note["widgets_values"] == [NOTES[name]]
    boxes = [
        (node["pos"][0], node["pos"][1] - make_workflows.TITLE, *numpy.add(node["pos"], node["size"]))
        for node in workflow["nodes"]
    ]
    boxes_of_groups = [
        (x, y, x + width, y + height) for x, y, width, height in (g["bounding"] for g in workflow["groups"])
    ]
    for a, b in [*itertools.combinations(boxes, 2), *itertools.combinations(boxes_of_groups, 2)]:
        assert a[0] >= b[2] or b[0] >= a[2] or a[1] >= b[3] or b[1] >= a[3], "nothing lies upon another"
    with Image.open(ROOT / "workflows" / f"{name}.jpg") as thumbnail:
        assert thumbnail.size == (384, 384)
    assert pixels(ROOT / "workflows" / f"{name}.jpg").std() > NOT_BLANK


@pytest.mark.parametrize("name", GRAPHS)
def test_every_node_input_link_and_value_of_a_graph_exists(object_info, name):
    graph = GRAPHS[name]
    for node_id, node in graph.items():
        info = object_info[node["class_type"]]
        specs, muted = dict(make_workflows.connections_and_widgets(info)), node["_meta"].get("muted")
        assert node["inputs"].keys() <= specs.keys()
        assert info["input"].get("required", {}).keys() <= node["inputs"].keys()
        for key, value in node["inputs"].items():
            spec = specs[key]
            if isinstance(value, list):
                source, output = value
                kind = object_info[graph[source]["class_type"]]["output"][output]
                assert spec[0] in (kind, "*"), (node_id, key)
                assert muted or not graph[source]["_meta"].get("muted"), (node_id, key)
            elif key not in FILES.get(name, {}).get(node_id, []) and not (muted and key == "head_name"):
                assert_legal(spec, value, f"{name} {node_id} {key}")


def assert_legal(spec: list, value, where: str) -> None:
    options = spec[1] if len(spec) > 1 else {}
    choices = spec[0] if isinstance(spec[0], list) else options.get("options")
    if choices is not None:
        assert value in choices, where
    elif spec[0] in ("INT", "FLOAT"):
        assert options.get("min", value) <= value <= options.get("max", value), where
        assert spec[0] == "FLOAT" or isinstance(value, int), where
    else:
        assert isinstance(value, {"STRING": str, "BOOLEAN": bool}[spec[0]]), where


# ---------------------------------------------------------------- those of the demo model


def test_quickstart_makes_samples_maps_masks_and_repairs(made):
    entry, found = made("quickstart")
    sizes = shown(found)
    assert sizes.pop("Before and after") == (4, 128, 260)
    assert len(sizes) == 6 and set(sizes.values()) == {(4, 128, 128)}
    assert len(scores_in(text("quickstart", entry, "Scores: lower is more certain"))) == 4
    with_head = text("quickstart", entry, "Scores and percentiles")
    assert with_head.count("% of this model's images") == len(scores_in(with_head)) == 4
    for sample, heat_map, mask, pair in zip(
        *(found[title] for title in ("Samples", "Heat maps", "Masks", "Before and after"))
    ):
        assert heat_map.mean(2).std() > 0.05, "the map has structure"
        assert 0.15 <= mask.mean() < 0.6
        before, after = pair[:, :128], pair[:, -128:]
        assert numpy.abs(before - sample).max() < 0.01
        change = numpy.abs(before - after).mean(2)
        inside = mask[..., 0] > 0.5
        assert change[inside].mean() > 0.01, "the repair changes what is masked"
        assert change[~inside].mean() < 0.5 * change[inside].mean(), "and little else"


def test_batch_filter_keeps_the_surest_and_shows_all_by_rank(made):
    entry, found = made("batch_filter")
    sizes = shown(found)
    assert sizes["Kept"] == sizes["Chosen"] == (3, 128, 128)
    assert numpy.array_equal(found["Kept"], found["Chosen"]), "all of the kept, until somebody chooses"
    assert sizes["Dropped"] == (5, 128, 128) and sizes["Histogram"] == (1, 384, 512)
    report = text("batch_filter", entry, "What was kept")
    assert report.startswith("Kept 3 of 8") and "Dropped 5 of 8" in report
    # The sheet's cells are the images twice as large, in the order of rank: the kept, then the dropped.
    (sheet,) = found["Contact sheet"]
    cells = [sheet[row * 293 + 8 :, column * 264 + 8 :][:256:2, :256:2] for row in range(3) for column in range(3)]
    for rank, image in enumerate([*found["Kept"], *found["Dropped"]]):
        assert numpy.argmin([numpy.abs(cell - image).mean() for cell in cells]) == rank


def test_see_and_choose_redraws_the_surest_alone_inside_their_masks(made):
    entry, found = made("see_and_choose")
    assert shown(found) == {"Kept": (3, 128, 128), "Redrawn": (3, 128, 128)}
    assert text("see_and_choose", entry, "What was chosen").startswith("Automatic: the surest 3 of 8.")
    for before, after in zip(found["Kept"], found["Redrawn"]):
        change = numpy.abs(before - after).mean(2)
        assert change.max() > 0.05 and (change > 0.02).mean() < 0.7, "a part was redrawn"


def test_best_of_n_finishes_the_best_and_says_what_it_saved(made):
    entry, found = made("best_of_n")
    assert shown(found) == {"The best": (4, 128, 128), "Chosen of them": (2, 128, 128)}
    assert all(any(numpy.array_equal(chosen, best) for best in found["The best"]) for chosen in found["Chosen of them"])
    report = text("best_of_n", entry, "Which were kept, calls saved")
    assert report.startswith("Kept 4 of 16") and "Dropped 12: " in report and "% saved" in report
    numbers, early = zip(*re.findall(r"(\d+) \(([\d.e+-]+)\)", report))
    assert sorted(map(int, numbers)) == list(range(16)) and list(early) == sorted(early, key=float)
    for a, b in itertools.combinations(found["The best"], 2):
        assert numpy.abs(a - b).max() > 0.05, "four seeds, four images"


def test_mask_to_inpaint_changes_what_is_masked_and_nothing_else(made):
    _, found = made("mask_to_inpaint")
    sizes = shown(found)
    assert len(sizes) == 6 and set(sizes.values()) == {(4, 128, 128)}
    samples = found["Samples"]
    hard, soft = found["Hard masks"][..., 0], found["Soft masks"][..., 0]
    assert set(numpy.unique(hard)) == {0, 1} and len(numpy.unique(soft)) > 20
    change = numpy.abs(found["Repaired, the rest untouched"] - samples).mean(3)
    assert not change[hard == 0].any() and change[hard == 1].mean() > 0.01
    softly = numpy.abs(found["Repaired softly"] - samples).mean(3)
    assert softly[soft > 0.6].mean() > 3 * softly[soft == 0].mean()


def test_fit_a_head_saves_what_the_muted_group_loads(server, made):
    """As the note says: run, reload the list of files, take the mute off, run again."""
    entry, found = made("fit_a_head")
    titles = ["Overlays, the own-samples head", "Overlays, the images head"]
    assert shown(found) == {title: (4, 128, 128) for title in titles}
    folder = server.folder / "models" / "laplace_heads"
    assert {f"demo_{kind}_00001_.safetensors" for kind in ("own_samples", "pictures")} <= {
        path.name for path in folder.iterdir()
    }
    graph = GRAPHS["fit_a_head"]
    entry = server.run(graph)
    own, other, loaded = (
        scores_in(text("fit_a_head", entry, f"Scores, the {kind} head")) for kind in ("own-samples", "images", "loaded")
    )
    assert own == loaded and len(own) == 4 and own != other
    again = images_of(server, graph, entry)
    assert numpy.array_equal(again["Overlays, the loaded head"], again[titles[0]])


def test_sampler_custom_advanced_keeps_the_uncertainty_on_the_way(made):
    entry, found = made("sampler_custom_advanced")
    sizes = shown(found)
    assert sizes["Samples"] == (4, 128, 128) and sizes["Uncertainty over sigma"] == (1, 384, 512)
    count, height, width = sizes["Sheet in pixels"]
    assert count == 1 and height > 4 * 128 and width > 3 * 128, "a row per image: itself, its map, the overlay"
    assert len(scores_in(text("sampler_custom_advanced", entry, "Scores: lower is more certain"))) == 4


def test_repair_loop_keeps_the_surest_of_what_it_tried(made):
    entry, found = made("repair_loop")
    masks = found["What was repaired"][..., 0]
    assert masks.shape == (12, 128, 128) and not masks[::3].any(), "nothing is masked in the images themselves"
    assert all(0.15 < mask.mean() < 0.6 for place, mask in enumerate(masks) if place % 3)
    sizes = shown({title: images for title, images in found.items() if title != "What was repaired"})
    candidates = found["Each image, then its rounds"]
    assert sizes == {
        "Samples": (4, 128, 128), "The best of each": (4, 128, 128), "Each image, then its rounds": (12, 128, 128)
    }  # fmt: skip
    assert numpy.array_equal(candidates[::3], found["Samples"])
    for image, best in enumerate(found["The best of each"]):
        assert any(numpy.array_equal(best, tried) for tried in candidates[3 * image : 3 * image + 3])
    report = text("repair_loop", entry, "What each round did")
    rounds = [line for line in report.splitlines() if line.startswith("Round")]
    assert len(rounds) == 8
    for line in rounds:
        before, after = (float(words.split()[-1]) for words in line.split(": ")[1].split(", ")[:2])
        assert line.rstrip().endswith("kept." if after < before else "dropped.")


def test_variations_vary_and_keep_to_their_mask(made):
    _, found = made("variations")
    sizes, both = shown(found), ("Each image, then its variations", "Varied inside the mask")
    assert sizes == {"Overlays": (2, 128, 128), "Masks": (2, 128, 128), both[0]: (8, 128, 128), both[1]: (8, 128, 128)}
    everywhere, inside = (found[title] for title in both)
    assert numpy.array_equal(everywhere[::4], inside[::4]), "the images themselves"
    for image, mask in enumerate(found["Masks"][..., 0] == 1):
        for variation in range(1, 4):
            place = 4 * image + variation
            assert numpy.abs(everywhere[place] - everywhere[4 * image]).max() > 0.1
            change = numpy.abs(inside[place] - inside[4 * image]).mean(2)
            assert change[mask].mean() > 3 * change[~mask].mean()


def test_two_stages_of_one_schedule_make_one_map(made):
    _, found = made("two_stage")
    titles = ("Images", "Maps of the whole run", "Maps of the last stage alone")
    assert shown(found) == {title: (4, 128, 128) for title in titles}
    assert numpy.abs(found[titles[1]] - found[titles[2]]).max() > 0.1, "the first stage is in it"


def test_hires_fix_takes_the_uncertainty_along(made):
    _, found = made("hires_fix")
    titles = ("Images", "Maps", "Images through pixels", "Maps through pixels")
    assert shown(found) == {title: (2, 192, 192) for title in titles}


def test_video_shows_clips_with_their_maps_and_redraws_the_masked_cells(made):
    entry, found = made("video")
    sizes = shown(found)
    assert sizes["Frames"] == (26, 80, 80) and sizes["Before, masks, after"] == (26, 80, 248)
    assert sizes["Clips and maps"] == (26, 80, 164) and sizes["Before, masks, after: a video"] == (26, 80, 248)
    assert len(scores_in(text("video", entry, "Scores: lower is more certain"))) == 2
    seen = found["Clips and maps"][:, :, :80]
    assert numpy.abs(seen - found["Frames"]).mean() < 0.04, "the video is of the frames"
    both = found["Before, masks, after"]
    mask = both[:, :, 84:164, 0] > 0.5
    assert mask.any() and len({frame.tobytes() for frame in mask}) > 2, "other cells at other times"
    change = numpy.abs(both[:, :, :80] - both[:, :, 168:]).mean(3)
    assert change[mask].mean() > 2 * change[~mask].mean()


# ---------------------------------------------------------------- those that need a model file


@pytest.mark.parametrize("name", FILES)
def test_the_model_files_are_all_that_is_missing(server, object_info, name):
    with pytest.raises(comfy_server.PromptRejected) as rejection:
        server.queue(make_workflows.runnable(GRAPHS[name]))
    errors = {
        node_id: sorted((error["type"], error["extra_info"]["input_name"]) for error in node["errors"])
        for node_id, node in rejection.value.node_errors.items()
    }
    assert errors == {
        node_id: [("value_not_in_list", input_name) for input_name in inputs] for node_id, inputs in FILES[name].items()
    }


@pytest.mark.parametrize("name", ["sd15", "sdxl", "flux"])
def test_the_rest_of_the_graph_runs_on_the_demo_model(server, name):
    """The demo model in the place of the loaders and prompts, at its own size and with fewer steps."""
    graph = on_demo_model(make_workflows.runnable(GRAPHS[name]))
    entry = server.run(graph)
    (batch,) = (node["inputs"]["batch_size"] for node in graph.values() if "batch_size" in node["inputs"])
    found = images_of(server, graph, entry)
    assert shown(found) == {title: (batch, 128, 128) for title in ("Samples", "Overlays", "Masks", "Repaired")}
    masks = found["Masks"][..., 0]
    change = numpy.abs(found["Repaired"] - found["Samples"]).mean(3)
    assert change[masks == 1].mean() > 2 * change[masks == 0].mean()


def test_base_and_refiner_run_on_the_demo_model(server):
    graph = on_demo_model(make_workflows.runnable(GRAPHS["sdxl_refiner"]))
    found = images_of(server, graph, server.run(graph))
    assert shown(found) == {"Images": (2, 128, 128), "Maps": (2, 128, 128)}


SMALLER = dict(width=128, height=128, batch_size=2, samples=4, noise_levels=2, steps=6, grow=4, smallest_island=8)


def on_demo_model(graph: dict) -> dict:
    demo = {"MODEL": ["demo", 0], "VAE": ["demo", 3]}
    loaded = {"CheckpointLoaderSimple": ["MODEL", "CLIP", "VAE"], "UNETLoader": ["MODEL"], "VAELoader": ["VAE"]}
    places = {
        (node_id, output): demo[kind]
        for node_id, node in graph.items()
        for output, kind in enumerate(loaded.get(node["class_type"], []))
        if kind in demo
    }
    places |= {
        (node_id, 0): ["demo", 2 if "Negative" in node["_meta"]["title"] else 1]
        for node_id, node in graph.items()
        if node["class_type"] == "CLIPTextEncode"
    }
    replaced = {node_id for node_id, _ in places} | {
        node_id for node_id, node in graph.items() if node["class_type"] == "DualCLIPLoader"
    }
    small = {"demo": {"class_type": "BayesDiffDemoModel", "inputs": {"prompt": "owl"}, "_meta": {"title": "Demo"}}}
    for node_id, node in copy.deepcopy(graph).items():
        if node_id in replaced:
            continue
        node["inputs"] = {
            key: places.get(tuple(value), value) if isinstance(value, list) else SMALLER.get(key, value)
            for key, value in node["inputs"].items()
        } | ({"steps": node["inputs"]["steps"]} if "start_at_step" in node["inputs"] else {})
        if node["class_type"] == "EmptySD3LatentImage":  # 16 channels
            node["class_type"] = "EmptyLatentImage"
        small[node_id] = node
    return small

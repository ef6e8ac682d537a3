"""The pack in a real ComfyUI server, through its API, as a user queues it."""

from __future__ import annotations

import copy
import dataclasses
import inspect
import json
import shutil
import threading

import comfy_server
import numpy
import pytest
import safetensors.torch
import torch
from bayesdiff.bayesdiff_core.posterior.storage import load_head, save_head
from comfy_api.latest import io
from PIL import Image


def node(class_type: str, **inputs) -> dict:
    return {"class_type": class_type, "inputs": inputs}


SETTINGS = dict(seed=11, steps=6, cfg=3.0, sampler_name="euler", scheduler="normal", denoise=1.0)
CONNECTIONS = dict(model=["demo", 0], positive=["demo", 1], negative=["demo", 2], latent_image=["empty", 0])


def base_graph(**fit) -> dict:
    settings = dict(
        fit_on="own samples", samples=8, steps=6, cfg=3.0, noise_levels=2, structure="low-rank",
        explained_variance=0.99, seed=0, folder="input",
    )  # fmt: skip
    return {
        "demo": node("BayesDiffDemoModel", prompt="owl"),
        "empty": node("EmptyLatentImage", width=128, height=128, batch_size=2),
        "fit": node(
            "BayesDiffFitLaplaceHead", model=["demo", 0], positive=["demo", 1], negative=["demo", 2],
            latent=["empty", 0], **(settings | fit),
        ),
    }  # fmt: skip


def with_sampler(graph: dict, quality: str = "balanced", members: int = 3, head=("fit", 0), **changes) -> dict:
    inputs = CONNECTIONS | SETTINGS | changes
    return graph | {
        "ours": node("BayesDiffKSampler", head=list(head), quality=quality, members=members, **inputs),
        "scores": node("PreviewAny", source=["ours", 2]),
        "save": node("SaveLatent", samples=["ours", 0], filename_prefix="ours"),
    }


def stock_graph(prefix: str = "stock", **changes) -> dict:
    graph = base_graph()
    del graph["fit"]
    return graph | {
        "stock": node("KSampler", **(CONNECTIONS | SETTINGS | changes)),
        "save": node("SaveLatent", samples=["stock", 0], filename_prefix=prefix),
    }


def saved_latent(server, entry, node_id="save") -> torch.Tensor:
    return safetensors.torch.load_file(server.files(entry, "latents")[node_id][0])["latent_tensor"]


def scores(entry) -> list[float]:
    return [float(text) for text in entry["outputs"]["scores"]["text"]]


def pixels(path) -> numpy.ndarray:
    return numpy.asarray(Image.open(path).convert("RGB"), dtype=numpy.float32) / 255


def test_every_node_explains_itself(server):
    ours = {k: v for k, v in server.object_info().items() if k.startswith("BayesDiff")}
    assert len(ours) == 22
    for name, info in ours.items():
        assert info["description"] and info["category"] == "BayesDiff"
        inputs = info["input"].get("required", {}) | info["input"].get("optional", {})
        assert all(spec[1].get("tooltip") for spec in inputs.values()), name
        assert all(info["output_tooltips"]), name


def test_nodes_are_found_by_other_words_and_fold_away_what_few_need(server):
    known = server.object_info()
    told = any(info.get("search_aliases") for name, info in known.items() if not name.startswith("BayesDiff"))
    for name, info in known.items():
        if name.startswith("BayesDiff"):
            assert bool(info.get("search_aliases")) == told, name
    fit = known["BayesDiffFitLaplaceHead"]["input"]["required"]
    folded = {name for name, spec in fit.items() if spec[1].get("advanced")}
    tells = "advanced" in inspect.signature(io.Int.Input).parameters
    assert folded == ({"noise_levels", "structure", "explained_variance"} if tells else set())


# ---------------------------------------------------------------- the image is sacred


@pytest.mark.parametrize("sampler", ["euler", "euler_ancestral", "dpmpp_2m", "dpmpp_sde"])
def test_latent_equals_the_stock_ksamplers(server, sampler):
    """A → B → A: stock, ours, stock again; all three the same to the bit."""
    before = saved_latent(server, server.run(stock_graph(f"before_{sampler}", sampler_name=sampler)))
    ours = saved_latent(server, server.run(with_sampler(base_graph(), sampler_name=sampler)))
    # Another prefix makes the host save again; another seed first makes it sample again.
    server.run(stock_graph(f"between_{sampler}", sampler_name=sampler, seed=12))
    after = saved_latent(server, server.run(stock_graph(f"after_{sampler}", sampler_name=sampler)))
    assert torch.equal(ours, before) and torch.equal(after, before)


def test_the_advanced_and_the_custom_sampler_are_the_stock_ones_too(server):
    graph = base_graph()
    settings = {key: SETTINGS[key] for key in ("steps", "cfg", "sampler_name", "scheduler")}
    uncertain = dict(head=["fit", 0], quality="draft", members=8)
    advanced = (
        CONNECTIONS
        | settings
        | dict(add_noise="enable", noise_seed=61, start_at_step=1, end_at_step=5, return_with_leftover_noise="enable")
    )
    graph["noise"] = node("RandomNoise", noise_seed=62)
    graph["guider"] = node("CFGGuider", model=["demo", 0], positive=["demo", 1], negative=["demo", 2], cfg=3.0)
    graph["sampler"] = node("KSamplerSelect", sampler_name="dpmpp_2m_sde")
    graph["sigmas"] = node("BasicScheduler", model=["demo", 0], scheduler="karras", steps=6, denoise=1.0)
    custom = {name: [name, 0] for name in ("noise", "guider", "sampler", "sigmas")} | {"latent_image": ["empty", 0]}
    nodes = {
        "advanced": node("KSamplerAdvanced", **advanced),
        "our_advanced": node("BayesDiffKSamplerAdvanced", **advanced, **uncertain),
        "custom": node("SamplerCustomAdvanced", **custom),
        "our_custom": node("BayesDiffSamplerCustomAdvanced", **custom, **uncertain),
    }
    saves = {f"save_{name}": node("SaveLatent", samples=[name, 0], filename_prefix=name) for name in nodes}
    saves |= {f"denoised_{n}": node("SaveLatent", samples=[n, 1], filename_prefix=n) for n in ("custom", "our_custom")}
    maps = {
        f"map_{name}": node("BayesDiffUncertaintyToMask", uncertainty=[name, output], area=0.2, grow=0, blur=0.0)
        for name, output in (("our_advanced", 1), ("our_custom", 2))
    }
    shown = {f"show_{name}": node("MaskPreview", mask=[name, 0]) for name in maps}
    entry = server.run(graph | nodes | saves | maps | shown)
    for kind, name in (("save", "advanced"), ("save", "custom"), ("denoised", "custom")):
        stock, ours = (saved_latent(server, entry, f"{kind}_{which}") for which in (name, f"our_{name}"))
        assert torch.equal(stock, ours), (kind, name)
    for name in shown:
        assert 0.1 < pixels(server.files(entry)[name][0]).mean() < 0.3


def test_cancel_in_an_ensemble_leaves_the_stock_sampler_as_it_was(server):
    before = saved_latent(server, server.run(stock_graph("before_cancel", seed=21)))
    started = threading.Event()

    def watch(node_id, value, maximum):
        if node_id == "ours" and value > SETTINGS["steps"] * 2:
            started.set()

    server.on_progress = watch
    prompt = server.queue(with_sampler(base_graph(), quality="ensemble", members=200, seed=21))
    assert started.wait(120), "the ensemble reports its progress"
    server.interrupt()
    with pytest.raises(comfy_server.PromptInterrupted):
        server.wait(prompt, seconds=60)
    server.on_progress = None
    server.run(stock_graph("other", seed=22))
    assert torch.equal(saved_latent(server, server.run(stock_graph("after_cancel", seed=21))), before)
    assert torch.equal(saved_latent(server, server.run(with_sampler(base_graph(), seed=21))), before)


@pytest.mark.parametrize(("quality", "total", "totals"), [("ensemble", 30, {0, 5, 30}), ("balanced", 11, {0, 1, 11})])
def test_progress_counts_all_calls(server, quality, total, totals):
    seen = []
    # An id of its own: a word of the prompt before may still be on its way.
    graph = json.loads(json.dumps(with_sampler(base_graph(), quality, 4, seed=31)).replace('"ours"', f'"{quality}"'))
    server.on_progress = lambda node_id, value, maximum: seen.append((node_id, value, maximum))
    server.run(graph)
    server.on_progress = None
    values = [value for node_id, value, maximum in seen if node_id == quality and maximum == total]
    assert values == sorted(values) and values[-1] == total
    assert {maximum for node_id, _, maximum in seen if node_id == quality} <= totals


# ---------------------------------------------------------------- options


@pytest.mark.parametrize("estimator", ["as quality says", "tangents", "moments", "paper"])
def test_options_of_experts(server, estimator):
    """Another estimator, and the trajectory at chosen sigmas, drawn as a curve."""
    graph = with_sampler(base_graph(), seed=91)
    graph["sigmas"] = node("BasicScheduler", model=["demo", 0], scheduler="normal", steps=6, denoise=1.0)
    graph["options"] = node(
        "BayesDiffUncertaintyOptions", estimator=estimator, members=2, states=4, every=2, draws=2,
        preview="uncertainty", sigmas=["sigmas", 0],
    )  # fmt: skip
    graph["ours"]["inputs"]["options"] = ["options", 0]
    graph["plot"] = node(
        "BayesDiffUncertaintyPlot", uncertainty=["ours", 1], plot="uncertainty over sigma", score="mean std",
        width=400, height=256,
    )  # fmt: skip
    graph["curve"] = node("PreviewImage", images=["plot", 0])
    entry = server.run(graph)
    stock = saved_latent(server, server.run(stock_graph(f"options_{estimator}", seed=91)))
    assert torch.equal(saved_latent(server, entry), stock) and scores(entry)[0] > 0
    assert pixels(server.files(entry)["curve"][0]).std() > 0.05, "a curve is drawn"


# ---------------------------------------------------------------- reading an uncertainty


@pytest.mark.parametrize("count", [1, 3])
def test_maps_masks_scores_and_plots_of_a_batch(server, count):
    """All that can be read of one run: in pixels, with a scale, thresholds, inside a mask, drawn."""
    graph = with_sampler(base_graph(), seed=81)
    graph["empty"]["inputs"]["batch_size"] = count
    graph["map"] = node(
        "BayesDiffUncertaintyMap", uncertainty=["ours", 1], vae=["demo", 3], scale="whole batch", opacity=0.8,
        resolution="pixels, tiled" if count == 1 else "pixels", tile_size=96, colours="viridis", colour_bar=True,
    )  # fmt: skip
    options = dict(threshold="Otsu", fill_holes=True, smallest_island=20, soft=True, area=0.2, grow=2, blur=1.0)
    graph["mask"] = node("BayesDiffUncertaintyToMask", uncertainty=["ours", 1], **options)
    graph["score"] = node("BayesDiffUncertaintyScore", uncertainty=["ours", 1], score="median", mask=["mask", 0])
    graph["everywhere"] = node("BayesDiffUncertaintyScore", uncertainty=["ours", 1], score="median")
    graph["plot"] = node(
        "BayesDiffUncertaintyPlot", uncertainty=["ours", 1], plot="scores of the batch", score="median", width=400,
        height=256,
    )  # fmt: skip
    images = {
        "bar": ["map", 0],
        "overlay": ["map", 1],
        "raw": ["map", 4],
        "sheet": ["map", 5],
        "histogram": ["plot", 0],
    }
    graph |= {name: node("PreviewImage", images=source) for name, source in images.items()}
    graph |= {"std": node("MaskPreview", mask=["map", 3]), "masked": node("MaskPreview", mask=["mask", 0])}
    texts = {"table": ["score", 1], "inside": ["score", 0], "whole": ["everywhere", 0]}
    graph |= {name: node("PreviewAny", source=source) for name, source in texts.items()}
    entry = server.run(graph)
    shown = {name: [pixels(path) for path in paths] for name, paths in server.files(entry).items()}
    assert {name: len(found) for name, found in shown.items() if name in ("sheet", "histogram")} == {
        "sheet": 1, "histogram": 1,
    }  # fmt: skip
    for name in ("bar", "overlay", "raw", "std", "masked"):
        assert len(shown[name]) == count
        assert all(found.shape[0] == 128 and found.std() > 0.001 for found in shown[name]), name
    assert all(found.shape[1] == 128 for name in ("overlay", "raw", "std", "masked") for found in shown[name])
    assert shown["bar"][0].shape[1] > 128 and shown["histogram"][0].shape == (256, 400, 3)
    sheet = shown["sheet"][0]
    assert sheet.shape[0] > 128 * count and sheet.shape[1] > 3 * 128 and sheet.std() > 0.1
    assert numpy.abs(shown["raw"][0] - shown["std"][0]).max() < 0.01, "one map, as image and as mask"
    inside, whole = ([float(text) for text in entry["outputs"][name]["text"]] for name in ("inside", "whole"))
    assert len(inside) == len(whole) == count
    assert all(part > image for part, image in zip(inside, whole)), "what is masked is what is less certain"
    assert len(entry["outputs"]["table"]["text"][0].splitlines()) == count + 2


def test_a_semantic_score_without_its_encoder_is_one_sentence(server):
    graph = with_sampler(base_graph())
    graph["score"] = node("BayesDiffUncertaintyScore", uncertainty=["ours", 1], score="feature entropy")
    graph["shown"] = node("PreviewAny", source=["score", 0])
    with pytest.raises(comfy_server.PromptFailed, match="got no vae and no clip_vision; connect vae and clip_vision"):
        server.run(graph)


# ---------------------------------------------------------------- filter and best of N


def filtered(graph: dict, keep: int, **batches) -> dict:
    settings = dict(rule="keep the best", keep=keep, fraction=0.5, deviations=1.0, threshold=1.0, order="best first")
    outputs = {"kept": 1, "dropped": 8, "sheet": 14}  # kept images, dropped images, contact sheet
    return (
        graph
        | {
            "filter": node("BayesDiffFilter", **settings, **batches),
            "show_report": node("PreviewAny", source=["filter", 15]),
            "show_scores": node("PreviewAny", source=["filter", 6]),
        }
        | {f"show_{name}": node("PreviewImage", images=["filter", slot]) for name, slot in outputs.items()}
    )


@pytest.mark.parametrize(("keep", "kept", "dropped"), [(3, 3, 1), (0, 0, 4), (9, 4, 0)])
def test_a_filtered_batch_and_its_contact_sheet(server, keep, kept, dropped):
    """Four samples; what comes after an empty side simply does not run."""
    graph = with_sampler(base_graph(), quality="draft", seed=71)
    graph["empty"]["inputs"]["batch_size"] = 4
    graph["decoded"] = node("VAEDecode", samples=["ours", 0], vae=["demo", 3])
    graph["show_all"] = node("PreviewImage", images=["decoded", 0])
    batches = dict(scores=["ours", 2], uncertainty=["ours", 1], latent=["ours", 0], images=["decoded", 0])
    graph = filtered(graph, keep, **batches, positive=["demo", 1])
    graph["again"] = node("VAEDecode", samples=["filter", 0], vae=["demo", 3])
    graph["show_again"] = node("PreviewImage", images=["again", 0])
    graph["map"] = node(
        "BayesDiffUncertaintyToMask", uncertainty=["filter", 5], area=0.2, grow=0, blur=0.0
    )  # of the kept
    graph["show_map"] = node("MaskPreview", mask=["map", 0])
    entry = server.run(graph)
    files, values = server.files(entry), scores(entry)
    ranked = sorted(range(4), key=lambda i: values[i])
    shown = {name: [pixels(path) for path in files.get(f"show_{name}", [])] for name in ("kept", "dropped", "again")}
    assert (len(shown["kept"]), len(shown["dropped"])) == (kept, dropped)
    everything = [pixels(path) for path in files["show_all"]]
    for place, image in zip(ranked, [*shown["kept"], *shown["dropped"]], strict=True):
        assert numpy.array_equal(image, everything[place])
    # Decoded in a batch of another size, so equal to within rounding to 8 bits.
    assert all(numpy.abs(a - b).max() < 0.02 for a, b in zip(shown["again"], shown["kept"], strict=True))
    assert len(files.get("show_map", [])) == kept
    if kept:
        found = [float(text) for text in entry["outputs"]["show_scores"]["text"]]
        assert found == pytest.approx([values[i] for i in ranked[:kept]])
    else:
        assert "show_scores" not in entry["outputs"]
    (sheet,) = files["show_sheet"]
    assert pixels(sheet).shape[1] == 2 * 264 + 8 and pixels(sheet).std() > 0.1
    assert entry["outputs"]["show_report"]["text"][0].startswith(f"Kept {kept} of 4")


def test_best_of_n_and_a_filter_without_a_head(server):
    graph = base_graph()
    graph["best"] = node(
        "BayesDiffBestOfN", **(CONNECTIONS | SETTINGS), head=["fit", 0], candidates=6, keep=4, share=0.5,
        quality="quick", batch_size=2, score_finished=True,
    )  # fmt: skip
    graph["empty"]["inputs"]["batch_size"] = 1
    graph["show_words"] = node("PreviewAny", source=["best", 4])
    graph["scores"] = node("PreviewAny", source=["best", 2])
    prompts = dict(model=["demo", 0], positive=["demo", 1], negative=["demo", 2])
    graph["without"] = node(
        "BayesDiffRenoise", **prompts, latent=["best", 0], cfg=3.0, draws=3, levels=2, highest=0.6, lowest=0.4, seed=0
    )
    graph["decoded"] = node("VAEDecode", samples=["best", 0], vae=["demo", 3])
    graph = filtered(graph, 1, uncertainty=["without", 0], images=["decoded", 0])
    entry = server.run(graph)
    files = server.files(entry)
    assert len(files["show_kept"]) == 1 and len(files["show_dropped"]) == 3 and len(scores(entry)) == 4
    assert entry["outputs"]["show_words"]["text"][0].startswith("Kept 4 of 6, ranked after 3 of 6 steps")
    with pytest.raises(comfy_server.PromptRejected, match="Expected scores or an uncertainty to rank by, got neither"):
        server.queue(filtered(base_graph(), 1))


# ---------------------------------------------------------------- vary and repair


def test_variations_of_the_best_image_and_a_repair_of_all(server):
    """Filtered with its uncertainty, an image is varied inside a mask; next to it the whole batch is repaired."""
    graph = with_sampler(base_graph(), quality="draft", seed=91)
    run = {key: value for key, value in (CONNECTIONS | SETTINGS).items() if key != "latent_image"}
    graph = filtered(graph, 1, scores=["ours", 2], uncertainty=["ours", 1], latent=["ours", 0])
    graph = {name: step for name, step in graph.items() if name not in ("show_kept", "show_dropped", "show_sheet")}
    graph["mask"] = node("BayesDiffUncertaintyToMask", uncertainty=["filter", 5], area=0.3, grow=0, blur=0.0)
    graph["vary"] = node(
        "BayesDiffResample", **run, latent_image=["filter", 0], uncertainty=["filter", 5], start_at=0.6, variations=3,
        strength=2.0, include_original=True, mask=["mask", 0],
    )  # fmt: skip
    graph["repair"] = node(
        "BayesDiffRepair", **(run | dict(denoise=0.5)), latent_image=["ours", 0], head=["fit", 0], quality="draft",
        rounds=1, area=0.15, grow=8, method="inpaint", uncertainty=["ours", 1],
    )  # fmt: skip
    shown = {"varied": ["vary", 0], "candidates": ["repair", 3], "best": ["repair", 0]}
    for name, source in shown.items():
        graph[f"{name}_decoded"] = node("VAEDecode", samples=source, vae=["demo", 3])
        graph[f"show_{name}"] = node("PreviewImage", images=[f"{name}_decoded", 0])
    graph["show_masks"] = node("MaskPreview", mask=["repair", 4])
    graph["show_words"] = node("PreviewAny", source=["repair", 5])
    entry = server.run(graph)
    files = server.files(entry)
    varied, candidates, best, masks = (
        [pixels(path) for path in files[f"show_{name}"]] for name in ("varied", "candidates", "best", "masks")
    )
    assert (len(varied), len(candidates), len(best), len(masks)) == (4, 4, 2, 4)
    original, *others = varied
    assert original.std() > 0.1 and all(numpy.abs(other - original).max() > 0.05 for other in others)
    assert [mask.mean() > 0.1 for mask in masks] == [False, True, False, True]
    words = entry["outputs"]["show_words"]["text"][0].splitlines()
    assert len(words) == 3
    for image, line in enumerate(words[:2]):
        expected = candidates[2 * image + line.rstrip().endswith("kept.")]
        assert numpy.abs(best[image] - expected).max() < 0.02
    del graph["vary"]["inputs"]["mask"]
    graph["vary"]["inputs"]["steps"] = 9
    with pytest.raises(comfy_server.PromptFailed, match="no step at its sigma .*; set steps"):
        server.run(graph)


# ---------------------------------------------------------------- heads on disk


@pytest.fixture(scope="module")
def saved_head(server):
    """The fitted head, saved by the node: ``(file name, scores that it gives when used directly)``."""
    graph = with_sampler(base_graph(), seed=41)
    graph["keep"] = node("BayesDiffSaveLaplaceHead", head=["fit", 0], filename_prefix="owl/emoji", dtype="float32")
    entry = server.run(graph)
    assert entry["outputs"]["keep"]["text"] == ["Saved emoji_00001_.safetensors"]
    return "owl/emoji_00001_.safetensors", scores(entry)


def loading(name: str) -> dict:
    graph = base_graph()
    del graph["fit"]
    graph["load"] = node("BayesDiffLoadLaplaceHead", head_name=name)
    return with_sampler(graph, head=("load", 0), seed=41)


def test_a_saved_head_gives_the_same_scores(server, saved_head):
    name, expected = saved_head
    assert name in server.object_info()["BayesDiffLoadLaplaceHead"]["input"]["required"]["head_name"][1]["options"]
    assert scores(server.run(loading(name))) == expected
    assert all(score > 0 for score in expected)


def test_a_changed_file_is_read_again(server, saved_head):
    name, expected = saved_head
    path = server.folder / "models" / "laplace_heads" / name
    copy_path = path.with_name("wide.safetensors")
    shutil.copy(path, copy_path)
    assert scores(server.run(loading("owl/wide.safetensors"))) == expected
    head = load_head(path)
    save_head(
        dataclasses.replace(head, precision=dataclasses.replace(head.precision, values=head.precision.values / 4)),
        copy_path,
    )
    assert scores(server.run(loading("owl/wide.safetensors"))) != expected


def test_a_fit_that_is_cancelled_leaves_no_file_and_no_trace(server):
    before = saved_latent(server, server.run(stock_graph("before_fit", seed=51)))
    started = threading.Event()
    server.on_progress = lambda node_id, value, maximum: node_id == "fit" and value > 3 and started.set()
    graph = base_graph(samples=400)
    graph["keep"] = node("BayesDiffSaveLaplaceHead", head=["fit", 0], filename_prefix="cancelled", dtype="float16")
    prompt = server.queue(graph)
    assert started.wait(120), "the fit reports its progress"
    server.interrupt()
    with pytest.raises(comfy_server.PromptInterrupted):
        server.wait(prompt, seconds=60)
    server.on_progress = None
    assert not list((server.folder / "models").rglob("cancelled*"))
    server.run(stock_graph("other_fit", seed=52))
    assert torch.equal(saved_latent(server, server.run(stock_graph("after_fit", seed=51))), before)


def place(server, name: str, content: bytes) -> str:
    folder = server.folder / "models" / "laplace_heads"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(content)
    return name


def test_wrong_head_files_are_one_sentence(server, saved_head):
    source = server.folder / "models" / "laplace_heads" / saved_head[0]
    content = source.read_bytes()
    with pytest.raises(comfy_server.PromptFailed, match="short.safetensors is cut short or is another kind of file"):
        server.run(loading(place(server, "short.safetensors", content[: len(content) // 2])))
    with pytest.raises(comfy_server.PromptFailed, match="text.safetensors is cut short or is another kind of file"):
        server.run(loading(place(server, "text.safetensors", b"hello")))
    other = dataclasses.replace(load_head(source), about=load_head(source).about | {"network": "Flux"})
    save_head(other, source.with_name("flux.safetensors"))
    with pytest.raises(comfy_server.PromptFailed, match="Expected a Laplace head fitted on this model") as failure:
        server.run(loading("owl/flux.safetensors"))
    assert failure.value.node_type == "BayesDiffKSampler" and "\n" not in failure.value.exception_message


# ---------------------------------------------------------------- bad input


@pytest.mark.parametrize("members", [0, -3, 1])
def test_too_few_members_are_refused_before_anything_runs(server, members):
    with pytest.raises(comfy_server.PromptRejected, match=f"Expected at least 2 ensemble members .* got {members}"):
        server.queue(with_sampler(base_graph(), members=members))


def test_what_a_node_does_not_offer_is_refused_before_anything_runs(server):
    """Every choice of every node of ours, in one sentence: the oldest host lets them pass."""
    asked = set()
    for name, info in server.object_info().items():
        inputs = info["input"].get("required", {}) | info["input"].get("optional", {})
        for key in (key for key, spec in inputs.items() if spec[0] == "COMBO" and name.startswith("BayesDiff")):
            graph = {"ours": node(name, **{key: "nothing like it"}), "show": node("PreviewAny", source=["ours", 0])}
            with pytest.raises(comfy_server.PromptRejected) as rejection:
                server.queue(graph)
            found = [error["details"] for error in rejection.value.node_errors["ours"]["errors"]]
            assert len(found) == 1 and found[0].startswith(f"Expected one of what {key} offers ("), (name, key, found)
            assert found[0].endswith("), got 'nothing like it'; choose one of these.")
            asked.add(key)
    assert {"sampler_name", "scheduler", "quality", "estimator", "rule", "head_name", "add_noise"} <= asked


def test_a_latent_of_another_model_is_one_sentence(server):
    graph = with_sampler(base_graph())
    graph["wide"] = node("EmptySD3LatentImage", width=128, height=128, batch_size=1)
    graph["noisy"] = node("LatentAdd", samples1=["wide", 0], samples2=["ramp", 0])
    # A latent of 16 channels that is not empty, made by a stock node.
    graph["ramp"] = node("LoadLatent", latent="wide.latent")
    tensors = {"latent_tensor": torch.ones(1, 16, 16, 16), "latent_format_version_0": torch.tensor([])}
    (server.folder / "input").mkdir(exist_ok=True)
    safetensors.torch.save_file(tensors, server.folder / "input" / "wide.latent")
    graph["ours"]["inputs"]["latent_image"] = ["noisy", 0]
    with pytest.raises(
        comfy_server.PromptFailed, match="Expected a latent of 4 channels for this model .SD15., got 16"
    ):
        server.run(graph)


def test_fitting_on_an_empty_latent_is_one_sentence(server):
    with pytest.raises(comfy_server.PromptFailed, match="got an empty latent; connect VAE Encode"):
        server.run(with_sampler(base_graph(fit_on="latents")))


def test_a_head_cannot_be_saved_outside_its_folder(server):
    graph = copy.deepcopy(base_graph())
    graph["keep"] = node("BayesDiffSaveLaplaceHead", head=["fit", 0], filename_prefix="../../outside", dtype="float16")
    with pytest.raises(comfy_server.PromptFailed):
        server.run(graph)
    assert not list(server.folder.rglob("outside*"))


def test_fitting_on_given_latents_and_repairing_with_a_mask(server):
    """Encoded images as data, and our sampler itself as the repair: the mask stays where it was put."""
    graph = with_sampler(base_graph(fit_on="latents"))
    graph["fit"]["inputs"]["latent"] = ["encoded", 0]
    graph["image"] = node("EmptyImage", width=128, height=128, batch_size=2, color=0xFFAA33)
    graph["encoded"] = node("VAEEncode", pixels=["image", 0], vae=["demo", 3])
    graph["mask"] = node("BayesDiffUncertaintyToMask", uncertainty=["ours", 1], area=0.2, grow=0, blur=0.0)
    graph["masked"] = node("SetLatentNoiseMask", samples=["ours", 0], mask=["mask", 0])
    graph["repair"] = copy.deepcopy(graph["ours"])
    graph["repair"]["inputs"] |= {"latent_image": ["masked", 0], "seed": 99, "denoise": 0.7}
    graph["save_repair"] = node("SaveLatent", samples=["repair", 0], filename_prefix="repair")
    entry = server.run(graph)
    before, after = saved_latent(server, entry), saved_latent(server, entry, "save_repair")
    changed = (before - after).abs().amax(1) > 1e-4
    assert 0.1 < changed.float().mean() < 0.5


def test_an_unknown_uncertainty_costs_no_image(server):
    """A run of one step: the images are saved, the table says why, and only what reads the map is stopped."""
    graph = with_sampler(base_graph(), "instant", steps=1)
    del graph["fit"], graph["ours"]["inputs"]["head"]
    graph |= {
        "decoded": node("VAEDecode", samples=["ours", 0], vae=["demo", 3]),
        "images": node("SaveImage", images=["decoded", 0], filename_prefix="kept"),
        "map": node(
            "BayesDiffUncertaintyMap", uncertainty=["ours", 1], vae=["demo", 3], scale="each image", opacity=0.6
        ),
        "heat_map": node("SaveImage", images=["map", 0], filename_prefix="heat"),
        "score": node("BayesDiffUncertaintyScore", uncertainty=["ours", 1], score="mean std"),
        "table": node("PreviewAny", source=["score", 1]),
    }
    entry = server.run(graph, 120)
    outputs = entry["outputs"]
    assert entry["status"]["status_str"] == "success"
    assert len(outputs["images"]["images"]) == 2 and "heat_map" not in outputs
    assert "Expected a run of at least two predictions" in outputs["table"]["text"][0]

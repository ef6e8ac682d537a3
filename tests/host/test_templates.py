"""Saved graphs of the page as graphs for the executor: subgraphs, bypassed and muted nodes, promoted widgets."""

from __future__ import annotations

from template_files import family_of
from template_graphs import DYNAMIC, by_schema, unfolded

MODEL, LATENT = "MODEL", "LATENT"


def node(number, kind, inputs=(), values=(), outputs=(MODEL,), **more) -> dict:
    """A node as the page saves it.

    Args:
        inputs: ``(name, type, link or None)``, of a widget ``(name, type, link, "widget")``.
    """
    entries = [
        {"name": name, "type": of, "link": link} | ({"widget": {"name": name}} if widget else {})
        for name, of, link, *widget in inputs
    ]
    return {"id": number, "type": kind, "inputs": entries, "outputs": [{"type": of} for of in outputs]} | {
        "widgets_values": list(values), **more
    }  # fmt: skip


def sampler(number, model, latent, values=(7, "randomize", 4, 1.0, "euler", "simple", 1.0), **more) -> dict:
    inputs = [("model", MODEL, model), ("latent_image", LATENT, latent)]
    return node(number, "KSampler", inputs, values, (LATENT,), **more)


def test_widgets_are_read_by_name_and_the_control_of_a_seed_is_left_out():
    graph = unfolded({"nodes": [sampler(1, None, None)], "links": []})
    assert graph["1"]["inputs"] == dict(
        seed=7, steps=4, cfg=1.0, sampler_name="euler", scheduler="simple", denoise=1.0
    )  # fmt: skip


def test_a_choice_brings_inputs_of_its_own():
    sides = {"required": {"width": ("INT", {}), "height": ("INT", {})}}
    options = [
        {"key": "by a factor", "inputs": {"required": {"factor": ("FLOAT", {})}}},
        {"key": "to", "inputs": sides},
    ]
    declared = {"required": {"image": ("IMAGE", {}), "how": (DYNAMIC, {"options": options}), "rate": ("FLOAT,INT", {})}}
    assert by_schema(declared, ["to", 8, 9, 24]) == {"how": "to", "how.width": 8, "how.height": 9, "rate": 24}


def test_a_bypassed_node_passes_on_and_a_muted_one_does_not():
    loader = node(1, "UNETLoader", [("unet_name", "COMBO", None, "widget")], ["z_image.safetensors"])
    patch = node(2, "ModelSamplingAuraFlow", [("model", MODEL, 1)], [3.0], mode=4)
    empty = node(3, "EmptyLatentImage", [], [64, 64, 1], (LATENT,), mode=2)
    links = [[1, 1, 0, 2, 0, MODEL], [2, 2, 0, 4, 0, MODEL], [3, 3, 0, 4, 1, LATENT]]
    graph = unfolded({"nodes": [loader, patch, empty, sampler(4, 2, 3)], "links": links})
    assert graph["4"]["inputs"]["model"] == ["1", 0] and "latent_image" not in graph["4"]["inputs"]
    assert graph.keys() == {"1", "4"}


def test_a_sampler_in_a_subgraph_gets_what_comes_in_and_the_promoted_values():
    inner = sampler(9, 1, 2)
    inner["inputs"].append({"name": "steps", "type": "INT", "link": 3, "widget": {"name": "steps"}})
    subgraph = {
        "id": "b7c1", "nodes": [inner], "inputs": [
            {"name": "model", "type": MODEL}, {"name": "latent", "type": LATENT}, {"name": "steps", "type": "INT"},
        ],
        "links": [
            {"id": number, "origin_id": -10, "origin_slot": number - 1, "target_id": 9, "target_slot": number - 1}
            for number in (1, 2, 3)
        ],
    }  # fmt: skip
    loader = node(1, "UNETLoader", [("unet_name", "COMBO", None, "widget")], ["z_image.safetensors"])
    use = node(2, "b7c1", [("model", MODEL, 1)], [11], (LATENT,))
    saved = {"nodes": [loader, use], "links": [[1, 1, 0, 2, 0, MODEL]], "definitions": {"subgraphs": [subgraph]}}
    graph = unfolded(saved)
    assert graph["2:9"]["inputs"]["model"] == ["1", 0] and graph["2:9"]["inputs"]["steps"] == 11
    assert graph["1"] == {"class_type": "UNETLoader", "inputs": {"unet_name": "z_image.safetensors"}}


def test_an_input_that_nobody_gives_is_the_widget_that_it_stands_for():
    length = node(8, "EmptyLatentImage", [("width", "INT", 1, "widget")], [72, 64, 1], (LATENT,))
    inner = sampler(9, None, 2)
    inner["inputs"].append({"name": "steps", "type": "INT", "link": 3})
    ends = [(1, -10, 0, 8, 0), (2, 8, 0, 9, 1), (3, -10, 0, 9, 2)]
    keys = ("id", "origin_id", "origin_slot", "target_id", "target_slot")
    subgraph = {
        "id": "b7c1", "nodes": [length, inner], "inputs": [{"name": "width", "type": "INT"}],
        "links": [dict(zip(keys, end)) for end in ends],
    }  # fmt: skip
    graph = unfolded({"nodes": [node(2, "b7c1", [], [])], "links": [], "definitions": {"subgraphs": [subgraph]}})
    assert graph["2:8"]["inputs"]["width"] == graph["2:9"]["inputs"]["steps"] == 72


def test_a_models_file_tells_its_family():
    assert family_of("wan2.2_i2v_low_noise_14B_fp8_scaled.safetensors") == "Wan image"
    assert family_of("wan2.2_ti2v_5B_fp16.safetensors") == "Wan 2.2 5B"
    assert family_of("flux-2-klein-base-9b-fp8.safetensors") == "Flux 2"
    assert family_of("flux3-image-klein-int8-convrot.safetensors") == ""

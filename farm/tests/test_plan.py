"""What a workflow is read as, and what is refused before any work."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from bayesdiff_farm import Problem
from bayesdiff_farm.__main__ import make_parser, make_plan
from bayesdiff_farm.choose import Rule
from bayesdiff_farm.plan import Plan, find_prompt, find_sampler, find_seeds, read_workflow, upstream
from bayesdiff_farm.table import Image
from small import ROOT, node, small_workflow

GRAPHS = ROOT / "tests" / "graphs"


def shared(name: str) -> dict:
    return read_workflow(GRAPHS / f"{name}.json")


def plan_of(graph: dict, **changes) -> Plan:
    sampler = find_sampler(graph, None)
    return Plan(graph, sampler, find_seeds(graph, sampler), **(dict(first_seed=10, seeds=4) | changes))


def test_runs_are_each_prompt_with_each_grid_point_with_each_seed():
    graph = small_workflow()
    plan = plan_of(graph, prompt_input="demo.prompt", prompts=["owl", "fox"], grid={"ours.cfg": [2.0, 3.0, 4.0]})
    assert plan.count == 24
    tasks = [plan.task(number) for number in range(plan.count)]
    assert [task.seed for task in tasks[:5]] == [10, 11, 12, 13, 10]
    points = [(task.inputs["demo.prompt"], task.inputs["ours.cfg"]) for task in tasks]
    assert points[::4] == [(word, cfg) for word in ("owl", "fox") for cfg in (2.0, 3.0, 4.0)]
    made = plan.workflow_of(tasks[-1])
    assert (
        made["demo"]["inputs"]["prompt"] == "fox"
        and made["ours"]["inputs"] | {"cfg": 4.0, "seed": 13} == (made["ours"]["inputs"])
    )
    assert graph == small_workflow(), "the workflow itself stays"


def test_a_worker_runs_only_what_the_sampler_needs():
    plan = plan_of(shared("batch_filter"))
    graph = plan.graph_of(plan.task(0))
    kinds = [one["class_type"] for node_id, one in graph.items() if not node_id.startswith("farm_")]
    assert sorted(kinds) == [
        "BayesDiffDemoModel",
        "BayesDiffFitLaplaceHead",
        "BayesDiffKSampler",
        "EmptyLatentImage",
    ]
    assert {"farm_scores", "farm_percentiles", "farm_images", "farm_latents", "farm_maps"} <= graph.keys()
    assert graph["3"]["inputs"]["seed"] == 0, "the head is fitted as the workflow says"


@pytest.mark.parametrize("path", sorted(GRAPHS.glob("*.json")), ids=lambda path: path.stem)
def test_every_shared_workflow_is_read_or_refused_in_a_sentence(path):
    graph = read_workflow(path)
    try:
        plan = plan_of(graph)
    except Problem as problem:
        assert str(problem).startswith("Expected "), problem
        return
    made = plan.graph_of(plan.task(3))
    assert set(upstream(made, list(made))) == set(made), "no link leads nowhere"
    assert all(made[a.rpartition(".")[0]]["inputs"][a.rpartition(".")[2]] == 13 for a in plan.seed_inputs)


def test_seeds_and_prompts_are_found_where_they_are():
    assert find_seeds(shared("sampler_custom_advanced"), find_sampler(shared("sampler_custom_advanced"), None))
    two = shared("two_stage")
    with pytest.raises(Problem, match="--sampler to name one of .* 4, 5, 10, got nothing"):
        find_sampler(two, None)
    assert find_seeds(two, find_sampler(two, "5")) == ["5.noise_seed", "4.noise_seed"], "both stages"
    graph = small_workflow(seed=["number", 0]) | {"number": node("PrimitiveInt", value=5)}
    assert find_seeds(graph, "ours") == ["number.value"]
    sd15 = shared("sd15")
    address = find_prompt(sd15, find_sampler(sd15, None))
    assert sd15[address.split(".")[0]]["class_type"] == "CLIPTextEncode"


def test_the_early_sampler_stops_at_a_finished_image():
    plan = plan_of(small_workflow(steps=20), early=0.5)
    early = plan.graph_of(plan.task(1), early=True)
    inputs = early["ours"]["inputs"]
    assert early["ours"]["class_type"] == "BayesDiffKSamplerAdvanced"
    assert (inputs["noise_seed"], inputs["start_at_step"], inputs["end_at_step"], inputs["steps"]) == (11, 0, 10, 20)
    assert inputs["add_noise"] == "enable" and inputs["return_with_leftover_noise"] == "disable"
    assert not {"seed", "denoise"} & inputs.keys() and "farm_images" not in early


def options(*arguments) -> object:
    return make_parser().parse_args(["--out", "x", *map(str, arguments)])


def test_what_is_refused_is_refused_in_one_sentence(tmp_path):
    good = tmp_path / "good.json"
    good.write_text(json.dumps(small_workflow()))
    stock = tmp_path / "stock.json"
    stock.write_text(json.dumps({"1": node("KSampler", seed=1)}))
    page = tmp_path / "page.json"
    page.write_text(json.dumps({"nodes": [], "links": []}))
    torn = tmp_path / "torn.json"
    torn.write_text('{"1": {')
    empty = tmp_path / "empty.txt"
    empty.write_text("\n\n")
    for arguments, words in {
        (stock, "--seeds", 3): "a sampler (BayesDiff), got one without",
        (good,): "at least one image to make, got 0",
        (good, "--seeds", -1): "at least one image to make",
        (page, "--seeds", 3): "Export (API)",
        (torn, "--seeds", 3): "cannot be read",
        (tmp_path / "none.json", "--seeds", 3): "cannot be read",
        (good, "--seeds", 3, "--prompts", empty): "got none",
        (good, "--seeds", 3, "--grid", "ours.none=1,2"): "NODE.INPUT",
        (good, "--seeds", 3, "--grid", "ours.cfg"): "--grid",
        (good, "--seeds", 3, "--seed-input", "4.seed"): "NODE.INPUT",
        (good, "--seeds", 3, "--save", "images,sounds"): "sounds",
        (good, "--seeds", 3, "--sampler", "demo"): "--sampler",
        (good, "--seeds", 3, "--early", 1.5): "--early",
    }.items():
        with pytest.raises(Problem, match=r"^Expected ") as caught:
            make_plan(options(*arguments))
        assert words in str(caught.value) and str(caught.value).endswith("."), arguments
    for numbers in ((), (1, 2), (0,), (None, 0)):
        with pytest.raises(Problem, match="^Expected "):
            Rule(*numbers)


def image(score: float, number: int, percentile: float | None = None, **inputs) -> Image:
    task = plan_of(small_workflow(), seeds=100).task(number)
    return Image(type(task)(number, number, inputs), 0, score, percentile, {}, {})


def test_rules_keep_the_best_and_unknown_comes_last():
    images = [image(3.0, 0, 60.0, p="a"), image(math.nan, 1, None, p="a"), image(1.0, 2, 20.0, p="b")]
    images += [image(1.0, 3, 20.0, p="a"), image(2.0, 4, 50.0, p="b")]
    ranked = sorted(images, key=lambda one: one.order)
    numbers = [one.task.number for one in ranked]
    assert numbers == [2, 3, 4, 0, 1], "of two alike the earlier, unknown last"

    def kept(*rule):
        return [one.task.number for one in Rule(*rule).choose(ranked)]

    assert kept(3) == [2, 3, 4] and kept(9) == numbers
    assert kept(None, 1) == [2, 3] and kept(None, 2) == [2, 3, 4, 0]
    assert kept(None, None, 50.0) == [2, 3, 4]
    with pytest.raises(Problem, match="Laplace head"):
        Rule(None, None, 50.0).choose([image(1.0, 0)])


def test_a_workflow_file_is_data(tmp_path):
    """Values of a grid are JSON or words, whatever they look like."""
    path = tmp_path / "w.json"
    path.write_text(json.dumps(small_workflow()))
    plan = make_plan(options(path, "--seeds", 1, "--grid", "demo.prompt=__import__('os'),owl"))
    assert plan.grid == {"demo.prompt": ["__import__('os')", "owl"]}
    plan = make_plan(options(path, "--seeds", 1, "--grid", "ours.cfg=1,2.5"))
    assert plan.grid == {"ours.cfg": [1, 2.5]} and isinstance(path, Path)


def test_the_decoder_is_the_nearest_one_that_shows_the_samplers_own_image():
    graph = small_workflow()
    graph["decode"]["inputs"]["samples"] = ["part", 0]
    graph["part"] = node("LatentFromBatch", samples=["ours", 0], batch_index=0, length=2)
    graph["more"] = node("KSampler", latent_image=["ours", 0], model=["demo", 0], seed=1)
    graph["last"] = node("VAEDecode", samples=["more", 0], vae=["demo", 3])
    plan = plan_of(graph)
    made = plan.graph_of(plan.task(0))
    assert made["farm_decoded"] == graph["decode"] and "part" in made and "more" not in made
    del graph["decode"], graph["save"]
    plan = plan_of(graph)
    made = plan.graph_of(plan.task(0))["farm_decoded"]
    assert made == node("VAEDecode", samples=["ours", 0], vae=["demo", 3])

"""A real server that is cancelled, emptied, hurried and started in other ways: the stock graph stays what it was."""

from __future__ import annotations

import copy
import threading

import comfy_server
import pytest
import safetensors.torch
import torch


def node(class_type: str, **inputs) -> dict:
    return {"class_type": class_type, "inputs": inputs}


MODEL = dict(model=["demo", 0], positive=["demo", 1], negative=["demo", 2])
RUN = dict(seed=5, steps=4, cfg=3.0, sampler_name="euler", scheduler="normal", denoise=1.0)
HEAD = dict(head=["head", 0])
BASE = {
    "demo": node("BayesDiffDemoModel", prompt="owl"),
    "empty": node("EmptyLatentImage", width=64, height=64, batch_size=1),
    "head": node("BayesDiffLoadLaplaceHead"),
    "fit": node(
        "BayesDiffFitLaplaceHead", **MODEL, latent=["empty", 0], fit_on="own samples", samples=2, steps=2, cfg=3.0,
        noise_levels=2, structure="low-rank", explained_variance=0.99, seed=0, folder="input",
    ),
    "ours": node("BayesDiffKSampler", **MODEL, **RUN, **HEAD, latent_image=["empty", 0], quality="ensemble", members=3),
}  # fmt: skip
runs = iter(range(10**6))


def of(*names: str, **changes: dict) -> dict:
    """These nodes of the base graph, with changed inputs by node."""
    graph = {name: copy.deepcopy(BASE[name]) for name in names}
    for name, inputs in changes.items():
        graph[name]["inputs"] |= inputs
    return graph


def saving(graph: dict, name: str) -> dict:
    """The graph with its latent of a node saved, anew even if the host knows it."""
    return graph | {"save": node("SaveLatent", samples=[name, 0], filename_prefix=f"{name}_{next(runs)}")}


def saved(server, entry) -> torch.Tensor:
    return safetensors.torch.load_file(server.files(entry, "latents")["save"][0])["latent_tensor"]


def stock_graph(**changes) -> dict:
    return of("demo", "empty") | {"stock": node("KSampler", **MODEL, **(RUN | changes), latent_image=["empty", 0])}


def stock_latent(server) -> torch.Tensor:
    """The stock sampler's latent, sampled anew: another one in between makes the host forget the last."""
    server.run(saving(stock_graph(seed=6, steps=1), "stock"))
    return saved(server, server.run(saving(stock_graph(), "stock")))


def our_graph(head: str, **changes) -> dict:
    """Our sampler with a saved head, or with the one that is fitted."""
    graph = of("demo", "empty", "fit" if head == "fit" else "head", "ours", **changes)
    if head == "fit":
        graph["ours"]["inputs"]["head"] = ["fit", 0]
    else:
        graph["head"]["inputs"]["head_name"] = head
    return saving(graph | {"score": node("PreviewAny", source=["ours", 2])}, "ours")


def ours(server, entry) -> tuple[torch.Tensor, float]:
    return saved(server, entry), float(entry["outputs"]["score"]["text"][0])


def same(first: tuple[torch.Tensor, float], second: tuple[torch.Tensor, float]) -> bool:
    return torch.equal(first[0], second[0]) and first[1] == second[1]


@pytest.fixture(scope="module")
def heads(server) -> list[str]:
    """Two head files of the demo model."""
    graph = of("demo", "empty", "fit")
    graph["other"] = copy.deepcopy(graph["fit"])
    graph["other"]["inputs"] |= dict(structure="diag", samples=4, seed=1)
    for name in ("fit", "other"):
        graph[f"save_{name}"] = node(
            "BayesDiffSaveLaplaceHead", head=[name, 0], filename_prefix=f"robust/{name}", dtype="float32"
        )
    server.run(graph)
    return ["robust/fit_00001_.safetensors", "robust/other_00001_.safetensors"]


@pytest.fixture(scope="module")
def before(server, heads):
    """What stock and ours give before anything else happens."""
    return stock_latent(server), ours(server, server.run(our_graph(heads[0])))


# ---------------------------------------------------------------- cancelled

LONG = dict(
    best=node(
        "BayesDiffBestOfN", **MODEL, **(RUN | dict(steps=60)), **HEAD, latent_image=["empty", 0], candidates=3, keep=3,
        quality="quick", batch_size=1, score_finished=False,
    ),
    repair=node(
        "BayesDiffRepair", **MODEL, **(RUN | dict(denoise=0.6)), **HEAD, latent_image=["ours", 0], quality="draft",
        rounds=20, area=0.15, grow=8, method="inpaint",
    ),
    resample=node(
        "BayesDiffResample", **MODEL, **RUN, latent_image=["ours", 0], uncertainty=["ours", 1], start_at=0.4,
        variations=200, strength=1.0, include_original=True,
    ),
    renoise=node(
        "BayesDiffRenoise", **MODEL, latent=["ours", 0], cfg=3.0, draws=200, levels=2, highest=0.6, lowest=0.4, seed=0,
    ),
    map=node(
        "BayesDiffUncertaintyMap", uncertainty=["ours", 1], vae=["demo", 3], scale="each image", opacity=0.8,
        resolution="pixels", tile_size=512, colours="inferno", colour_bar=False,
    ),
    options=node(
        "BayesDiffUncertaintyOptions", estimator="tangents", members=200, states=5, every=5, draws=10,
        preview="picture",
    ),
)  # fmt: skip
LARGE = dict(width=128, height=128)
# The node that is cancelled, after how many ticks of its bars, and what is changed to make that last.
STAGES = {
    "drawing samples to fit on": ("fit", 3, dict(fit=dict(samples=400, seed=1))),
    "fitting": ("fit", 5, dict(fit=dict(samples=1, steps=1, noise_levels=64, seed=2))),
    "sampling": ("ours", 3, dict(ours=dict(steps=200, seed=6))),
    "the members of an ensemble": ("ours", 9, dict(ours=dict(members=200, seed=7))),
    "deviations": ("ours", 35, dict(ours=dict(steps=30, quality="precise", seed=8))),
    "tangents": ("ours", 6, dict(ours=dict(seed=9, options=["options", 0]))),
    "ranking the best of N": ("best", 6, dict(best=dict(share=1.0))),
    "finishing the best of N": ("best", 25, dict(best=dict(share=0.05))),
    "the score before repair": ("repair", 3, {}),
    "mending, some rounds later": ("repair", 40, {}),
    "resampling": ("resample", 6, {}),
    "noising again": ("renoise", 3, {}),
    "decoding a map": ("map", 2, dict(empty=LARGE, ours=dict(steps=1, members=16, seed=10))),
}


@pytest.mark.parametrize("stage", STAGES)
def test_cancelled_at_any_stage_everything_goes_on(server, heads, before, stage):
    name, value, changes = STAGES[stage]
    graph = our_graph("fit" if name == "fit" else heads[0])
    graph |= {key: copy.deepcopy(LONG[key]) for key in (name, "options") if key in LONG}
    for key, inputs in changes.items():
        graph[key]["inputs"] |= inputs
    graph["result"] = node("PreviewAny", source=[name, 0])
    reached, seen, last = threading.Event(), 0, 0

    def watch(node_id, done, total):
        nonlocal seen, last
        if node_id == name and total > 0:
            # Newer hosts tell some of the ticks only; a node with several bars begins again.
            seen, last = seen + (done - last if done >= last else done), done
            if seen >= value and not reached.is_set():
                reached.set()
                server.interrupt()

    server.on_progress = watch
    prompt = server.queue(graph)
    try:
        with pytest.raises(comfy_server.PromptInterrupted):
            server.wait(prompt, seconds=300)
    finally:
        server.on_progress = None
        server.interrupt()  # what would go on after a time-out, and into the tests to come
    assert reached.is_set()
    stock, expected = before
    assert torch.equal(stock_latent(server), stock)
    assert same(ours(server, server.run(our_graph(heads[0]))), expected)


# ---------------------------------------------------------------- queued, unloaded, shared


def test_two_prompts_in_the_queue_with_heads_of_their_own(server, heads, before):
    """Three wait at once; each comes out as it does alone, and the stock sampler between them too."""
    stock, first = before
    second = ours(server, server.run(our_graph(heads[1])))
    assert torch.equal(second[0], first[0]) and second[1] != first[1], "another head is another uncertainty"
    graphs = [our_graph(heads[0]), saving(stock_graph(), "stock"), our_graph(heads[1]), our_graph(heads[0])]
    entries = [server.wait(prompt) for prompt in [server.queue(graph) for graph in graphs]]
    assert torch.equal(saved(server, entries[1]), stock)
    assert same(ours(server, entries[0]), first) and same(ours(server, entries[3]), first)
    assert same(ours(server, entries[2]), second)


def test_a_model_that_is_unloaded_between_runs(server, heads, before):
    stock, expected = before
    for free in (dict(unload_models=True), dict(free_memory=True), dict(unload_models=True, free_memory=True)):
        server.post("/free", free)
        assert same(ours(server, server.run(our_graph(heads[0]))), expected)
        server.post("/free", free)
        assert torch.equal(stock_latent(server), stock)


def test_one_head_for_two_loads_of_a_model_in_one_graph(server, heads, before):
    """Two demo models with prompts of their own; the head fits both, and neither hears of the other."""
    _, expected = before
    graph = our_graph(heads[0])
    for name in ("demo", "ours", "score", "save"):
        other = copy.deepcopy(graph[name])
        for key, value in other["inputs"].items():
            if isinstance(value, list) and value[0] in ("demo", "ours"):
                other["inputs"][key] = [f"second_{value[0]}", value[1]]
        graph[f"second_{name}"] = other
    graph["second_demo"]["inputs"]["prompt"] = "cat"
    entry = server.run(graph)
    assert same(ours(server, entry), expected)
    assert float(entry["outputs"]["second_score"]["text"][0]) not in (0.0, expected[1])


def test_a_full_disk_is_one_sentence_and_leaves_nothing(server):
    """A limit on the size of files, set on the running server, stands in for the disk's end."""
    resource = pytest.importorskip("resource", reason="limits of a process are Unix's")
    if not hasattr(resource, "prlimit"):
        pytest.skip("only Linux sets limits of another process")
    folder, pid = server.folder / "models" / "laplace_heads" / "full", server.process.pid
    graph = of("demo", "empty", "fit", fit=dict(structure="full"))
    graph["keep"] = node("BayesDiffSaveLaplaceHead", head=["fit", 0], filename_prefix="full/head", dtype="float32")
    limits = resource.prlimit(pid, resource.RLIMIT_FSIZE)
    resource.prlimit(pid, resource.RLIMIT_FSIZE, (10**6, limits[1]))
    try:
        with pytest.raises(
            comfy_server.PromptFailed, match=r"^\w+: Expected a folder with room for the head"
        ) as failure:
            server.run(graph)
    finally:
        resource.prlimit(pid, resource.RLIMIT_FSIZE, limits)
    sentence = failure.value.exception_message
    assert "head_00001_.safetensors (1.34 MB), got 'File too large'; free some" in sentence and "\n" not in sentence
    assert list(folder.iterdir()) == []
    server.run(graph)
    assert [path.name for path in folder.iterdir()] == ["head_00001_.safetensors"]


def test_a_file_in_the_place_of_a_folder_of_heads_is_one_sentence(server):
    blocking = server.folder / "models" / "laplace_heads" / "blocked"
    blocking.parent.mkdir(parents=True, exist_ok=True)
    blocking.write_text("")
    graph = of("demo", "empty", "fit")
    graph["keep"] = node("BayesDiffSaveLaplaceHead", head=["fit", 0], filename_prefix="blocked/head", dtype="float32")
    try:
        with pytest.raises(
            comfy_server.PromptFailed, match="Expected a folder for the head blocked/head in the models"
        ):
            server.run(graph)
    finally:
        blocking.unlink()


# ---------------------------------------------------------------- started in other ways

FLAGS = [
    ("--cache-none", "--bf16-unet", "--fp32-vae", "--disable-smart-memory"),
    ("--cache-lru", "1", "--fp8_e4m3fn-unet", "--bf16-vae"),
    ("--force-fp16", "--use-split-cross-attention", "--deterministic"),
]


@pytest.mark.parametrize("flags", FLAGS, ids=" ".join)
def test_other_flags_of_the_host(tmp_path, flags):
    """What a CPU knows: caches, number formats, attention. The host refuses --lowvram and --novram beside --cpu, so
    what they do is in test_models.py; --disable-smart-memory is taken, and frees nothing where nothing is video memory.
    """
    with comfy_server.ComfyServer(tmp_path, arguments=flags) as server:
        stock = stock_latent(server)
        latent, score = ours(server, server.run(our_graph("fit")))
        assert torch.equal(latent, stock) and torch.equal(stock_latent(server), stock)
        assert 0 < score < 100

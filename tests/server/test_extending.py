"""What docs/extending.md shows works: its own code is put into a copy of the pack, and a real ComfyUI runs it."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import comfy_server
import make_workflows
import pytest

ROOT = Path(__file__).resolve().parents[2]
PARTS = ["__init__.py", "bayesdiff_core", "demo_model", "host", "locales", "nodes", "web", "workflows"]
ENTRY = '    "paper": Kind(Paper),\n'
IMPORT = "from .moments import Moments\n"
AFTER_A_SCORE = "    return variance.clamp(min=0).sqrt()[..., inside].mean()\n"


def code_of(heading: str) -> list[str]:
    """The blocks of code below a heading of the page."""
    page = (ROOT / "docs" / "extending.md").read_text(encoding="utf-8")
    section = page.split(f"## {heading}")[1].split("\n## ")[0]
    return re.findall(r"```python\n(.*?)```", section, re.S)


def insert(path: Path, place: str, text: str) -> None:
    source = path.read_text(encoding="utf-8")
    assert source.count(place) == 1
    path.write_text(source.replace(place, place + text), encoding="utf-8")


@pytest.fixture(scope="module")
def extended(tmp_path_factory):
    """A server with a copy of the pack that has one estimator and one score more."""
    folder = tmp_path_factory.mktemp("extended")
    pack = folder / "pack"
    pack.mkdir()
    for part in PARTS:
        source = ROOT / part
        ignore = shutil.ignore_patterns("__pycache__")
        shutil.copytree(source, pack / part, ignore=ignore) if source.is_dir() else shutil.copy(source, pack / part)
    core = pack / "bayesdiff_core"
    estimator, entry = code_of("An estimator: one file and one line")
    (core / "estimators" / "last_look.py").write_text(estimator, encoding="utf-8")
    insert(core / "estimators" / "registry.py", ENTRY, entry)
    insert(core / "estimators" / "registry.py", IMPORT, "from .last_look import LastLook\n")
    (score,) = code_of("A score: one function")
    insert(core / "reading" / "scores.py", AFTER_A_SCORE, f"\n\n{score}")
    with comfy_server.ComfyServer(folder / "server", pack=pack) as server:
        yield server


def test_a_new_estimator_and_a_new_score_are_in_the_nodes(extended):
    info = extended.object_info()
    widgets = dict(make_workflows.widget_inputs(info["BayesDiffUncertaintyOptions"]))
    specs = dict(make_workflows.connections_and_widgets(info["BayesDiffUncertaintyOptions"]))
    assert list(widgets)[-1] == "factor", "what came later stands last, where saved graphs have no value"
    assert widgets["factor"]["tooltip"] == "For last look: what to multiply the variance by."
    choices = widgets["estimator"].get("options") or specs["estimator"][0]
    assert choices[-1] == "last look" and "Last look: the variance" in widgets["estimator"]["tooltip"]
    for name in ("BayesDiffUncertaintyScore", "BayesDiffUncertaintyPlot"):
        spec = dict(make_workflows.connections_and_widgets(info[name]))["score"]
        assert "worst cell" in (make_workflows.options_of(spec).get("options") or spec[0])


def test_they_run(extended):
    settings = dict(seed=3, steps=4, cfg=3.0, sampler_name="euler", scheduler="normal", denoise=1.0)
    prompts = {"model": ["demo", 0], "positive": ["demo", 1], "negative": ["demo", 2]}
    fit = dict(fit_on="own samples", samples=2, steps=2, cfg=3.0, noise_levels=2, structure="low-rank")
    fit |= dict(explained_variance=0.99, seed=0, folder="input", latent=["empty", 0])
    numbers = dict(members=2, states=4, every=2, draws=2, preview="picture")

    def scores(factor: int) -> list[float]:
        graph = {
            "demo": ("BayesDiffDemoModel", {"prompt": "owl"}),
            "empty": ("EmptyLatentImage", {"width": 64, "height": 64, "batch_size": 2}),
            "fit": ("BayesDiffFitLaplaceHead", prompts | fit),
            "options": ("BayesDiffUncertaintyOptions", numbers | {"estimator": "last look", "factor": factor}),
            "sample": (
                "BayesDiffKSampler",
                prompts
                | settings
                | dict(head=["fit", 0], quality="draft", members=8, latent_image=["empty", 0], options=["options", 0]),
            ),
            "score": ("BayesDiffUncertaintyScore", {"uncertainty": ["sample", 1], "score": "worst cell"}),
            "show": ("PreviewAny", {"source": ["score", 1]}),
        }
        queued = {name: {"class_type": kind, "inputs": inputs} for name, (kind, inputs) in graph.items()}
        table = extended.run(queued)["outputs"]["show"]["text"][0]
        return [float(row.split("|")[2]) for row in table.splitlines()[2:]]

    one, four = scores(1), scores(4)
    assert len(one) == 2 and min(one) > 0
    assert four == pytest.approx([2 * score for score in one], rel=1e-3), "a standard deviation is a root"

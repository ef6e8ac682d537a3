"""Cancelled, broken or out of memory at every moment of everything that the pack does: nothing is left behind."""

from __future__ import annotations

import dataclasses
import gc

import comfy.model_management
import comfy.utils
import folder_paths
import nodes
import pytest
import torch
from bayesdiff.bayesdiff_core.estimators.moments import Moments
from bayesdiff.bayesdiff_core.estimators.paper import Paper
from bayesdiff.bayesdiff_core.estimators.tangents import Tangents
from bayesdiff.bayesdiff_core.reading.uncertainty import Uncertainty
from bayesdiff.host.posterior import Posterior
from bayesdiff.host.run.context import RunContext
from bayesdiff.host.run.look import Look
from bayesdiff.host.run.observe import Observer
from bayesdiff.host.run.progress import Progress
from bayesdiff.host.run.recorder import Recorder
from bayesdiff.host.run.replay import Replay
from bayesdiff.host.run.ride import Changing, Rider
from bayesdiff.host.states import VisitState
from bayesdiff.host.uses.best_of_n import Counter, PredictionCache
from bayesdiff.host.uses.finished import NoiseAgain
from bayesdiff.nodes.best_of_n import KSamplerBestOfN
from bayesdiff.nodes.head import FitLaplaceHead
from bayesdiff.nodes.map import UncertaintyMap
from bayesdiff.nodes.renoise import UncertaintyWithoutHead
from bayesdiff.nodes.repair import Repair
from bayesdiff.nodes.resample import Resample
from bayesdiff.nodes.sampler import KSamplerBayesDiff
from bayesdiff.nodes.viewer import UncertaintyViewer
from in_process import traces
from running import options

EMPTY = {"samples": torch.zeros(1, 4, 8, 8)}
RUN = dict(steps=2, cfg=3.0, sampler_name="euler", scheduler="normal")
Interrupted, OutOfMemory = (
    comfy.model_management.InterruptProcessingException,
    comfy.model_management.OOM_EXCEPTION,
)


class Broken(RuntimeError):
    pass


pytestmark = pytest.mark.usefixtures("inference_mode", "temp_folder")


@pytest.fixture
def temp_folder(tmp_path, monkeypatch):
    """Where the viewer leaves what a page would show."""
    monkeypatch.setattr(folder_paths, "temp_directory", str(tmp_path))


@dataclasses.dataclass
class Scene:
    """The demo model, its head, and an image with its uncertainty."""

    demo: tuple
    head: object
    latent: dict | None = None
    uncertainty: Uncertainty | None = None

    @property
    def prompts(self) -> dict:
        return dict(model=self.demo[0], positive=self.demo[1], negative=self.demo[2])

    def sample(self, quality="draft", estimator=None, preview=True):
        return KSamplerBayesDiff.execute(
            **self.prompts, **RUN, seed=3, latent_image=EMPTY, denoise=1.0, head=self.head, quality=quality, members=2,
            options=options(estimator, map_preview=preview),
        ).args  # fmt: skip

    def fit(self):
        return FitLaplaceHead.execute(
            **self.prompts, latent=EMPTY, fit_on="own samples", samples=2, steps=2, cfg=3.0, noise_levels=2,
            structure="low-rank", explained_variance=0.99, seed=0, folder="input",
        ).args  # fmt: skip

    def best_of_n(self, score_finished: bool):
        return KSamplerBestOfN.execute(
            **self.prompts, **RUN, seed=3, latent_image=EMPTY, denoise=1.0, head=self.head, candidates=3, keep=2,
            share=0.5, quality="quick", batch_size=2, score_finished=score_finished,
        ).args[::2]  # fmt: skip

    def repair(self, method: str, rounds: int):
        return Repair.execute(
            **self.prompts, **RUN, seed=3, latent_image=self.latent, denoise=0.6, head=self.head, quality="draft",
            rounds=rounds, area=0.2, grow=8, method=method, uncertainty=self.uncertainty,
        ).args  # fmt: skip

    def resample(self):
        return Resample.execute(
            **self.prompts, **RUN, seed=3, denoise=1.0, latent_image=self.latent, uncertainty=self.uncertainty,
            start_at=0.4, variations=2, strength=1.0, include_original=True,
        ).args  # fmt: skip

    def renoise(self):
        return UncertaintyWithoutHead.execute(
            **self.prompts, latent=self.latent, cfg=3.0, draws=2, levels=2, highest=0.6, lowest=0.4, seed=0
        ).args

    def map(self):
        return UncertaintyMap.execute(self.uncertainty, self.demo[3], "each image", 0.85, resolution="pixels").args

    def view(self):
        images = torch.rand(3, 64, 64, 3, generator=torch.Generator().manual_seed(1))
        uncertainty = self.uncertainty.select(torch.zeros(3, dtype=torch.int64))
        return UncertaintyViewer.execute(images=[images], uncertainty=[uncertainty], keep=[2]).args

    def stock(self, decoded: bool) -> torch.Tensor:
        model, positive, negative, vae = self.demo
        latent = nodes.common_ksampler(model, 9, 1, 3.0, "euler", "normal", positive, negative, EMPTY)[0]["samples"]
        return vae.decode(latent) if decoded else latent


RUNS = {
    "fit": Scene.fit,
    "deviations": lambda scene: scene.sample("draft"),
    "ensemble": lambda scene: scene.sample("ensemble"),
    "tangents": lambda scene: scene.sample(estimator=Tangents(members=1)),
    "moments": lambda scene: scene.sample(estimator=Moments(every=1, draws=1)),
    "paper": lambda scene: scene.sample(estimator=Paper(every=1, draws=1)),
    "best of N": lambda scene: scene.best_of_n(False),
    "best of N, scored again": lambda scene: scene.best_of_n(True),
    "repair by inpainting": lambda scene: scene.repair("inpaint", 2),
    "repair by rectifying": lambda scene: scene.repair("rectify", 1),
    "resample": Scene.resample,
    "without a head": Scene.renoise,
    "map in pixels": Scene.map,
    "viewer": Scene.view,
}
# Those that call no network, and so have no moments but the ticks of the progress bar.
CALM = ("viewer",)


@pytest.fixture(scope="module")
def scene(demo, demo_head):
    with torch.inference_mode():
        made = Scene(demo, demo_head)
        latent, uncertainty, *_ = made.sample("ensemble")
        # Enough members for a map in pixels to decode.
        uncertainty = dataclasses.replace(uncertainty, deviations=uncertainty.deviations.repeat(2, 1, 1, 1, 1))
        return dataclasses.replace(made, latent=latent, uncertainty=uncertainty)


def tensors_of(found) -> list[torch.Tensor]:
    """All numbers in what a node returned, in order."""
    if torch.is_tensor(found):
        return [found]
    if isinstance(found, (float, int)):
        return [torch.tensor(found)]
    if dataclasses.is_dataclass(found):
        found = vars(found)
    parts = found.values() if isinstance(found, dict) else found if isinstance(found, (list, tuple)) else []
    return [tensor for part in parts for tensor in tensors_of(part)]


def same(first, second) -> bool:
    pairs = list(zip(tensors_of(first), tensors_of(second), strict=True))
    return len(pairs) > 0 and all(torch.equal(a, b) for a, b in pairs)


def living() -> list[str]:
    """What of ours that belongs to one run is still in memory."""
    gc.collect()
    of_a_run = (RunContext, Observer, Look, Recorder, Replay, Rider, Changing, Progress, Posterior)
    ours = (*of_a_run, PredictionCache, Counter, VisitState, NoiseAgain)
    return [type(thing).__name__ for thing in gc.get_objects() if type(thing) in ours]


def lost() -> int:
    """Entries of the host's list of loaded models whose model is gone: it warns of each as a leak, at every run."""
    gc.collect()
    return comfy.model_management.loaded_models().count(None)


class Stopper:
    """Counts the moments of a run, and stops it at one of them.

    Args:
        network: whose calls are the moments; None for the updates of the progress bar.
    """

    def __init__(self, network: torch.nn.Module | None):
        self.network, self.count = network, 0

    def moment(self, *_, **__):
        self.count += 1
        if self.count - 1 == self.at:
            self.stop()
        if self.network is None:  # as the hook of the host's server does
            comfy.model_management.throw_exception_if_processing_interrupted()

    def run(self, function, at: int | None = None, stop=None) -> tuple[object, BaseException | None]:
        """What ``function`` returned, or what it ended with, if ``stop`` is done at the moment ``at``."""
        self.count, self.at, self.stop = 0, at, stop
        kept = comfy.utils.PROGRESS_BAR_HOOK
        if self.network is None:
            comfy.utils.set_progress_bar_global_hook(self.moment)
        else:
            handle = self.network.register_forward_pre_hook(self.moment)
        try:
            return function(), None
        except (Interrupted, Broken, OutOfMemory) as error:
            return None, error.with_traceback(None)
        finally:
            comfy.utils.set_progress_bar_global_hook(kept)
            if self.network is not None:
                handle.remove()
            comfy.model_management.interrupt_current_processing(False)


def fail(error: BaseException):
    raise error


def network_of(scene: Scene, run: str) -> torch.nn.Module:
    """A part of the network that a run calls: its middle, so that both what comes before and after is half-way."""
    if run.startswith("map"):
        return scene.demo[3].first_stage_model.taesd_decoder
    return scene.demo[0].model.diffusion_model.middle_block[0]


# Runs that return what the stock sampler made, and its uncertainty.
SAMPLED = ("deviations", "ensemble", "tangents", "moments", "paper")
# The user cancels, which the host notices at the next tick or at the next layer of a network; or something breaks.
CANCEL = (comfy.model_management.interrupt_current_processing, Interrupted)
BREAK = (lambda: fail(Broken("broken on purpose")), Broken)


@pytest.mark.parametrize(
    ("run", "moments"), [(run, kind) for run in RUNS for kind in ("tick", "call") if kind == "tick" or run not in CALM]
)
def test_stopped_at_every_moment_nothing_is_left(scene, run, moments):
    """Calls are cancelled and broken in turn; of a long run, moments spread evenly over all its stages."""
    model, vae, decodes = scene.demo[0], scene.demo[3], run.startswith("map")
    stopper = Stopper(network_of(scene, run) if moments == "call" else None)
    stock, before = scene.stock(decodes), traces(model, vae)
    whole, _ = stopper.run(lambda: RUNS[run](scene))
    count, state = stopper.count, torch.get_rng_state()
    assert count >= 2
    for number, at in enumerate(range(0, count, 1 + count // 12)):
        stop, expected = BREAK if moments == "call" and number % 2 else CANCEL
        found, error = stopper.run(lambda: RUNS[run](scene), at, stop)
        if expected is Broken and found is not None:
            # What breaks beside the work does not cost it: neither the posterior nor an image.
            assert error is None, (at, error)
            if run == "fit":
                # A batch that breaks is tried again one image at a time.
                assert found[0].calibration is None or stopper.count > at + 1
            elif run in SAMPLED:
                assert torch.equal(found[0]["samples"], whole[0]["samples"]) and found[1].unknown
        else:
            assert isinstance(error, expected) and found is None, (at, error)
            assert stopper.count == at + 1, "nothing goes on after it"
        assert traces(model, vae) == before, at
        assert torch.equal(scene.stock(decodes), stock), at
    del error
    assert living() == []
    again, _ = stopper.run(lambda: RUNS[run](scene))
    assert same(again, whole) and torch.equal(torch.get_rng_state(), state)
    assert torch.equal(scene.stock(decodes), stock)


@pytest.mark.parametrize("run", ["deviations", "ensemble", "best of N", "best of N, scored again", "resample"])
def test_the_host_loses_no_model_that_a_run_loaded(scene, run):
    """A run that has to load the model first, whole or broken: the host keeps its entry for the user's own model."""
    stopper = Stopper(network_of(scene, run))
    comfy.model_management.unload_all_models()
    stopper.run(lambda: RUNS[run](scene))
    assert lost() == 0
    for at in (0, stopper.count - 1):
        comfy.model_management.unload_all_models()
        found, error = stopper.run(lambda: RUNS[run](scene), at, lambda: fail(Broken("broken on purpose")))
        assert isinstance(error, Broken) if at == 0 else error or found
        del error, found
        assert lost() == 0, at


@pytest.mark.parametrize(("run", "steps"), [("deviations", 2), ("ensemble", 2), ("tangents", 2)])
def test_out_of_memory_is_the_hosts_word_until_the_image_is_there(scene, run, steps):
    """Type and message stay the host's, which then unloads its models; beside the image it is one sentence of ours."""
    model, stopper = scene.demo[0], Stopper(network_of(scene, run))
    stock, before = scene.stock(False), traces(model)
    whole, _ = stopper.run(lambda: RUNS[run](scene))
    for at in range(min(stopper.count, 8)):
        found, error = stopper.run(lambda: RUNS[run](scene), at, lambda: fail(OutOfMemory("Allocation on device")))
        if at < steps:
            assert type(error) is OutOfMemory and str(error) == "Allocation on device"
        else:
            assert error is None and torch.equal(found[0]["samples"], whole[0]["samples"])
            assert found[1].unknown.startswith("Expected memory for the estimate beside the sampling, got none left; ")
        assert traces(model) == before
        comfy.model_management.unload_all_models()
        assert torch.equal(scene.stock(False), stock)
    assert same(stopper.run(lambda: RUNS[run](scene))[0], whole)


def test_out_of_memory_in_decoding_is_left_to_the_host_which_decodes_in_tiles(scene):
    """Half of the draws do not fit at once."""
    stopper = Stopper(network_of(scene, "map"))
    whole, _ = stopper.run(scene.map)
    found, error = stopper.run(scene.map, stopper.count // 2, lambda: fail(OutOfMemory("Allocation on device")))
    assert error is None and stopper.count > 0
    for tensor, expected in zip(tensors_of(found), tensors_of(whole)):
        assert torch.allclose(tensor, expected, atol=0.1)

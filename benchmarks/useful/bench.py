"""A model, how it is sampled, and all that was sampled and judged."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import torch
from bayesdiff.bayesdiff_core.estimators.ensemble import Ensemble
from bayesdiff.bayesdiff_core.estimators.paper import Paper
from bayesdiff.bayesdiff_core.estimators.redrawing import Redrawing
from bayesdiff.bayesdiff_core.estimators.registry import DEFAULT_QUALITY, NO_HEAD, QUALITIES, REDRAW
from bayesdiff.bayesdiff_core.estimators.renoising import Renoising
from bayesdiff.bayesdiff_core.reading.scores import DEFAULT, SCORES, SEMANTIC_SCORES
from bayesdiff.bayesdiff_core.reading.uncertainty import Uncertainty
from bayesdiff.host.demo_model import load_demo_model, prompt_names
from bayesdiff.host.fit import FitSettings, as_examples, fit_head, own_samples
from bayesdiff.host.posterior import Posterior
from bayesdiff.host.run.sample import sample_with_uncertainty
from bayesdiff.host.run.stock import Run
from bayesdiff.host.settings import Guidance, RunSettings
from bayesdiff.host.uses.redraw import redraw
from bayesdiff.host.uses.renoise import renoise
from fashion_model import kinds, load_fashion_model
from figures_of_merit import ranks_within
from judges import EmojiJudge, GarmentJudge, MobileNet
from measure import gradient_energy

STEPS, DRAWS_SEED = 20, 1
# "truth", the uncertainty of many whole runs, shows the best that an estimate could do.
ESTIMATORS = {
    NO_HEAD.name: NO_HEAD,
    **{name: QUALITIES[name] for name in ("instant", "draft", "balanced")},
    "truth": Ensemble(8),
    "published": Paper(every=5, draws=10),
}
# The default score uses this one.
DEFAULT_ESTIMATOR = DEFAULT_QUALITY
# Other noise over signal to redraw from, and how many steps back.
REDRAWN = [Redrawing(level) for level in (0.7, 1.0, 1.5, 3.0, 4.0, 6.0)] + [Redrawing(steps=4)]
# Scores whose ranks are added.
MIXTURES = [("instant", "redraw"), (NO_HEAD.name, "redraw"), ("balanced", "redraw")]
# One member is too few for a spread of features.
SEMANTIC_ESTIMATOR = "balanced"


@dataclasses.dataclass(frozen=True)
class Setting:
    """A model and how it is sampled.

    Attributes:
        load: of a prompt, see ``load_demo_model``.
        names: its prompts.
        shape: of one latent.
        pictures: number of images per prompt, unless ``--pictures`` says otherwise.
    """

    load: Callable
    names: Callable[[], list[str]]
    shape: tuple[int, int, int]
    cfg: float
    sampler: str
    scheduler: str
    judge: type
    pictures: int


def emoji_kinds() -> list[str]:
    return [name for name in prompt_names() if name.startswith("any ")]


SETTINGS = {
    "demo": Setting(load_demo_model, emoji_kinds, (4, 16, 16), 3.0, "dpmpp_2m", "karras", EmojiJudge, 24),
    "fashion": Setting(load_fashion_model, kinds, (3, 32, 32), 1.0, "euler", "normal", GarmentJudge, 24),
}


def thin(names: list[str], count: int) -> list[str]:
    """At most ``count`` names at even distances."""
    return [names[i * len(names) // count] for i in range(min(count, len(names)))] if count < len(names) else names


class Bench:
    """One model with its head, its judge and everything that was sampled.

    Attributes:
        plants: what one prompt's images with planted faults were, by kind of fault, once that was tested.
        repaired: images by what was done to them, and the masks, once that was tested.
    """

    def __init__(self, name: str, arguments):
        self.name, self.setting, self.seed = name, SETTINGS[name], arguments.seed
        self.count = arguments.pictures or self.setting.pictures
        self.judge, self.encoder = self.setting.judge(), MobileNet()
        self.names = thin(self.setting.names(), arguments.prompts)
        self.model, _, self.negative, self.vae = self.setting.load(self.names[0])
        self.conditions = [self.setting.load(prompt)[1] for prompt in self.names]
        # The judge of garments numbers the kinds by their place among all.
        self.kinds = torch.tensor([self.setting.names().index(prompt) for prompt in self.names])
        self.posterior = Posterior.bind(self.fit(), self.model, DRAWS_SEED)
        self.plants, self.repaired = {}, None

    def fit(self):
        """A head, fitted on two samples of every prompt."""
        data = []
        for i, positive in enumerate(self.conditions):
            own = own_samples(self.model, self.guidance(i), self.empty(1), 2, 12, seed=1000 + i)
            data += as_examples(own, positive)
        return fit_head(self.model, data, self.negative, FitSettings(self.setting.cfg, levels=4))

    def guidance(self, prompt: int) -> Guidance:
        return Guidance(self.conditions[prompt], self.negative, self.setting.cfg)

    def empty(self, count: int) -> dict:
        return {"samples": torch.zeros(count, *self.setting.shape)}

    def run(self, prompt: int, seed: int, positive: list | None = None, denoise: float = 1.0, **stage) -> Run:
        """A stock sampling run for one of the prompts.

        Args:
            positive: the conditioning, if not that of the prompt.
            stage: see :meth:`RunSettings.sample <bayesdiff.host.settings.RunSettings.sample>`.
        """
        setting = self.setting
        settings = RunSettings(
            STEPS,
            setting.cfg,
            setting.sampler,
            setting.scheduler,
            positive or self.conditions[prompt],
            self.negative,
            denoise,
        )
        return lambda model, latent: settings.sample(model, latent, seed, **stage)

    def uncertain(self, run: Run, latent: dict, estimator: str = "balanced") -> Uncertainty:
        return sample_with_uncertainty(run, latent, self.posterior, ESTIMATORS[estimator]).uncertainty

    def sample(self) -> None:
        """``count`` images of every prompt by every estimator, and the judge's verdict."""
        parts: dict[str, list[Uncertainty]] = {}
        for prompt in range(len(self.names)):
            run = self.run(prompt, self.seed * 1000 + prompt)
            of_prompt = {name: self.uncertain(run, self.empty(self.count), name) for name in ESTIMATORS}
            latent = of_prompt[DEFAULT_ESTIMATOR].latent
            of_prompt["re-noising"] = self.renoised(latent, prompt)
            for redrawing in (REDRAW, *REDRAWN):
                of_prompt[redraw_name(redrawing)] = self.redrawn(latent, prompt, redrawing)
            for name, uncertainty in of_prompt.items():
                parts.setdefault(name, []).append(uncertainty)
        self.found = {name: Uncertainty.join(of_prompts) for name, of_prompts in parts.items()}
        self.latents = self.found[DEFAULT_ESTIMATOR].latent
        self.groups = torch.arange(len(self.names)).repeat_interleave(self.count)
        self.pictures = self.decode(self.latents)
        members = (self.latents + deviation for deviation in self.found[SEMANTIC_ESTIMATOR].deviations)
        seen = [self.pictures, *(self.decode(latents) for latents in members)]
        self.features = torch.stack([self.encoder.features(pictures) for pictures in seen])
        self.verdict = self.judge.judge(self.pictures, self.kinds[self.groups])

    def renoised(self, latent: torch.Tensor, prompt: int) -> Uncertainty:
        """Uncertainty without a head, with the node's default settings."""
        return renoise(self.model, latent, self.guidance(prompt), Renoising(), seed=0)

    def redrawn(self, latent: torch.Tensor, prompt: int, redrawing: Redrawing = REDRAW) -> Uncertainty:
        """Uncertainty of redrawing, by default with the node's settings."""
        return redraw(self.model, latent, self.guidance(prompt), redrawing, seed=0)

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        return self.vae.decode(latents)[..., :3].float().cpu()

    def scores(self) -> dict[tuple[str, str], torch.Tensor]:
        """One value per image, by estimator and score; higher is less certain."""
        table = {}
        for estimator in (NO_HEAD.name, "instant", "draft", "balanced", "truth", "redraw"):
            table |= {(estimator, score): self.found[estimator].scores(score) for score in SCORES}
        for name in map(redraw_name, REDRAWN):
            table[name, self.found[name].score] = self.found[name].scores()
        # What the posterior says and what it does not: where a rank of both is high.
        for first, second in MIXTURES:
            together = torch.zeros_like(self.groups)
            ranks = [ranks_within(self.found[each].scores(), together) for each in (first, second)]
            table[f"{first} + {second}", DEFAULT] = ranks[0] + ranks[1]
        table |= {(SEMANTIC_ESTIMATOR, name): score(self.features) for name, score in SEMANTIC_SCORES.items()}
        # The sum as published: of the variances as they are, negative ones included.
        table["published", "sum"] = self.found["published"].scores("sum")
        table["re-noising", DEFAULT] = self.found["re-noising"].scores()
        table["control", "gradient energy"] = gradient_energy(self.latents).mean((1, 2))
        table["control", "random"] = torch.rand(len(self.latents), generator=torch.Generator().manual_seed(3))
        return table

    def row(self, test: str, score: str, value: float, control: float | None, error: float, **more) -> dict:
        row = {"test": test, "model": self.name, "score": score, "default": False}
        return row | more | {"value": value, "control": control, "standard_error": error}


def redraw_name(redrawing: Redrawing) -> str:
    """Of the estimator in tables; the default has no numbers."""
    if redrawing == REDRAW:
        return REDRAW.name
    return f"{REDRAW.name} from {redrawing.level:g}, {redrawing.steps} steps"


def is_default(estimator: str, score: str) -> bool:
    return estimator == DEFAULT_ESTIMATOR and score == DEFAULT


def standard_error(values: torch.Tensor) -> float:
    return float(values.double().std() / len(values) ** 0.5)


def costs(bench: Bench) -> dict[str, float]:
    """Network calls with each estimator, relative to plain sampling."""
    found = {name: uncertainty.cost for name, uncertainty in bench.found.items()}
    redrawn = map(redraw_name, (REDRAW, *REDRAWN))
    found |= {name: 1 + found[name] / STEPS for name in ("re-noising", *redrawn)}
    mixed = {f"{first} + {second}": found[first] + found[second] - 1 for first, second in MIXTURES}
    return found | mixed | {"control": 1.0}

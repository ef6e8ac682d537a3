"""Images sampled in stages: how well the uncertainty of the last stage tells that of the whole, in one run.

    python dev.py bench stages [--models demo,fashion] [--cases NAME,NAME] [--prompts NAME,NAME] [--batch 6]
                               [--members 8] [--seed 1] [--json PATH] [--docs]

The truth is an ensemble of which every member runs *all* stages under one W of each model, see the frontier bench for
its ceiling and the columns. *Alone* is the last stage without the uncertainty of the latent that comes in, *carried* is
with it, and *uncut* is the same quality on a run that was not cut. Cases:

* split 25, 50, 75: one schedule of one model, cut after so many in a hundred of its steps;
* thirds: the same in three stages;
* two models: cut in the middle, the second half by a model whose weights differ by a random change of low rank, with a
  head of its own;
* again: the finished image sampled again at denoise 0.4;
* hires: the latent enlarged 1.5-fold, and sampled again at denoise 0.5;
* through pixels: decoded, enlarged 1.5-fold, encoded, and sampled again at denoise 0.5 (the demo model has a VAE).
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import in_process

in_process.import_host_and_pack()

import torch  # noqa: E402
import torch.nn.functional as F  # noqa: E402
from bayesdiff.bayesdiff_core.estimators.base import STANDARD_DEVIATION  # noqa: E402
from bayesdiff.bayesdiff_core.estimators.ensemble import Ensemble, EnsembleVariance  # noqa: E402
from bayesdiff.bayesdiff_core.estimators.registry import NO_HEAD, QUALITIES  # noqa: E402
from bayesdiff.bayesdiff_core.reading.members import as_batch, from_batch  # noqa: E402
from bayesdiff.host.posterior import posterior_of  # noqa: E402
from bayesdiff.host.run.sample import sample_with_uncertainty  # noqa: E402
from bayesdiff.host.settings import Guidance, RunSettings  # noqa: E402
from factory import fit_own_head  # noqa: E402
from frontier import MODELS, TRUTH_SEED, Found, cell, figures, with_error  # noqa: E402
from reporting import list_of, make_parser, write_rows  # noqa: E402

DOCS = in_process.ROOT / "docs"
STEPS, AGAIN, ENLARGED = 20, 10, 1.5
ESTIMATORS = {NO_HEAD.name: NO_HEAD, **{name: QUALITIES[name] for name in ("instant", "draft", "balanced")}}
ESTIMATORS["ensemble of 4"] = Ensemble(4)


class Stage(NamedTuple):
    """One stage.

    Attributes:
        model: its place among the models.
        steps, denoise, part: of the run; part is what else the host's sampler is told.
        between: what is done to the latent before, to latents ``(m, ...)`` of any number of images.
    """

    model: int = 0
    steps: int = STEPS
    denoise: float = 1.0
    part: dict = {}  # noqa: RUF012, never written to
    between: Callable[[torch.Tensor], torch.Tensor] | None = None


def cut(first: int, last: int, model: int = 0) -> Stage:
    """Steps ``first`` to ``last`` of one schedule."""
    part = dict(start_step=first, last_step=last, disable_noise=first > 0, force_full_denoise=last == STEPS)
    return Stage(model, part=part)


def enlarge(latents: torch.Tensor) -> torch.Tensor:
    size = [round(ENLARGED * side) for side in latents.shape[-2:]]
    return F.interpolate(latents, size, mode="bilinear")


def through_pixels(vae) -> Callable[[torch.Tensor], torch.Tensor]:
    def change(latents: torch.Tensor) -> torch.Tensor:
        images = vae.decode(latents).movedim(-1, 1)
        size = [round(ENLARGED * side) for side in images.shape[-2:]]
        return vae.encode(F.interpolate(images, size, mode="bicubic").clamp(0, 1).movedim(1, -1))

    return change


def cases(vae) -> dict[str, list[Stage]]:
    quarters = {f"split {share}": share * STEPS // 100 for share in (25, 50, 75)}
    found = {name: [cut(0, at), cut(at, STEPS)] for name, at in quarters.items()}
    found["thirds"] = [cut(0, 7), cut(7, 13), cut(13, STEPS)]
    found["two models"] = [cut(0, STEPS // 2), cut(STEPS // 2, STEPS, model=1)]
    found["again"] = [Stage(), Stage(steps=AGAIN, denoise=0.4)]
    found["hires"] = [Stage(), Stage(steps=AGAIN, denoise=0.5, between=enlarge)]
    if vae is not None:
        found["through pixels"] = [Stage(), Stage(steps=AGAIN, denoise=0.5, between=through_pixels(vae))]
    return found


def other_model(model):
    """A clone with a random change of low rank of its weights, as a strong LoRA makes."""
    generator, patches = torch.Generator().manual_seed(5), {}
    for name, weight in model.model.diffusion_model.state_dict().items():
        if weight.ndim == 2 and min(weight.shape) >= 8:
            down, up = (
                torch.randn(*shape, generator=generator) for shape in ((4, weight.shape[1]), (weight.shape[0], 4))
            )
            change = up @ down
            patches[f"diffusion_model.{name}"] = ("diff", (change * (0.1 * weight.float().norm() / change.norm()),))
    clone = model.clone()
    clone.add_patches(patches)
    return clone


class Setting(NamedTuple):
    """What is sampled: models with a head each, prompts, and an empty latent."""

    models: list
    heads: list
    guidance: Guidance
    empty: dict
    seed: int

    def run(self, stage: Stage, number: int):
        """A stage as a run; each has noise of its own."""
        settings = RunSettings(
            stage.steps,
            self.guidance.cfg,
            "euler",
            "normal",
            self.guidance.positive,
            self.guidance.negative,
            stage.denoise,
        )

        def run(model, latent):
            return settings.sample(model, latent, self.seed + number, **stage.part)

        return run


def whole_run(setting: Setting, stages: list[Stage], member: int | None) -> torch.Tensor:
    """All stages, under one draw of each model's head."""
    latent = setting.empty["samples"]
    for number, stage in enumerate(stages):
        latent = latent if stage.between is None else stage.between(latent)
        run, model = setting.run(stage, number), setting.models[stage.model]
        if member is None:
            latent = run(model, {"samples": latent})["samples"]
            continue
        with posterior_of(setting.heads[stage.model], model, TRUTH_SEED).perturbed(member):
            latent = run(model, {"samples": latent})["samples"]
    return latent


def estimated(setting: Setting, stages: list[Stage], estimator, carried: bool):
    """The uncertainty of the last stage."""
    latent, before = setting.empty, None
    for number, stage in enumerate(stages):
        if stage.between is not None:
            through = before is not None and len(before.deviations) > 0
            if through:
                batch = stage.between(as_batch(before))
                before = from_batch(batch, before)
                latent = {"samples": before.latent}
            else:
                latent = {"samples": stage.between(latent["samples"])}
        head = setting.heads[stage.model] if estimator.needs_head else None
        posterior = posterior_of(head, setting.models[stage.model], setting.seed)
        is_last = number == len(stages) - 1
        sampled = sample_with_uncertainty(
            setting.run(stage, number), latent, posterior, estimator, before=before if carried else None
        )
        latent, before = sampled.latent, sampled.uncertainty if carried or is_last else None
    assert not before.unknown, before.unknown
    return before


def measure(setting: Setting, stages: list[Stage], members: int, is_cut: bool) -> dict[str, Found]:
    """For one prompt: the maps of the truth's halves, and of every row."""
    nominal = whole_run(setting, stages, None)
    halves = [EnsembleVariance(nominal), EnsembleVariance(nominal)]
    for member in range(members):
        halves[member % 2].add(whole_run(setting, stages, member))
    parts = zip(("half", "truth"), halves)
    found = {name: Found(part.mean_square().mean(1), 1.0 + members / 2) for name, part in parts}
    for name, estimator in ESTIMATORS.items():
        rows = {
            "alone": estimated(setting, stages, estimator, False),
            "carried": estimated(setting, stages, estimator, True),
        }
        if is_cut:
            rows["uncut"] = estimated(setting, [cut(0, STEPS)], estimator, False)
        for row, uncertainty in rows.items():
            assert torch.equal(uncertainty.latent, nominal) or row == "uncut", "the image is the stock sampler's"
            has_scale = estimator.measures == STANDARD_DEVIATION
            found[f"{name}, {row}"] = Found(uncertainty.variance.mean(1), uncertainty.cost, has_scale=has_scale)
    return found


def stages_of(name: str, arguments) -> list[dict]:
    """Rows of one model."""
    of, rows = MODELS[name], []
    model, positive, negative, vae = of.load(of.fitted)
    models = [model, other_model(model)]
    heads = [fit_own_head(each, Guidance(positive, negative, of.cfg), of.shape) for each in models]
    empty = {"samples": torch.zeros(arguments.batch, *of.shape)}
    prompts = [of.load(prompt)[1] for prompt in arguments.prompts or of.prompts]
    for case, stages in cases(vae).items():
        if arguments.cases and case not in arguments.cases:
            continue
        settings = [
            Setting(models, heads, Guidance(prompt, negative, of.cfg), empty, arguments.seed) for prompt in prompts
        ]
        is_cut = stages[-1].part != {} and all(stage.model == 0 for stage in stages)
        found = figures([measure(setting, stages, arguments.members, is_cut) for setting in settings])
        rows += [dict(model=name, case=case, setting=setting) | row for setting, row in found.items()]
        print("\n".join(table(rows[-len(found) :])), flush=True)
        write_rows(arguments.json, arguments.done + rows)
    return rows


def table(rows: list[dict]) -> list[str]:
    """The rows of one case, in Markdown."""
    lines = [f"\n**{rows[0]['model']}, {rows[0]['case']}**\n", "| row | calls | map | score | std | mean score |"]
    lines.append("|---|---|---|---|---|---|")
    for row in rows:
        cells = [cell(row["calls_ratio"]), with_error(row, "map"), with_error(row, "score")]
        cells += [cell(row["std_ratio"]), cell(row["mean_score"])]
        lines.append(f"| {row['setting']} | " + " | ".join(cells) + " |")
    return lines


def write_docs(rows: list[dict], command: str) -> None:
    """Write the tables below the mark in docs/stages.md; the text above it is written by hand."""
    path, mark = DOCS / "stages.md", "<!-- what follows is written by the command -->"
    above = path.read_text(encoding="utf-8").split(mark)[0]
    tables = [table([row for row in rows if (row["model"], row["case"]) == key]) for key in keys_of(rows)]
    text = [
        above + mark,
        "",
        "## All tables",
        "",
        f"Written by `{command}`.",
        *(line for lines in tables for line in lines),
    ]
    path.write_text("\n".join(text).rstrip() + "\n", encoding="utf-8")


def keys_of(rows: list[dict]) -> list[tuple[str, str]]:
    return list(dict.fromkeys((row["model"], row["case"]) for row in rows))


@torch.inference_mode()
def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--models", type=list_of(), default=["demo", "fashion"])
    parser.add_argument("--cases", type=list_of())
    parser.add_argument("--prompts", type=list_of())
    parser.add_argument("--batch", type=int, default=6)
    parser.add_argument("--members", type=int, default=8)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--rows", type=list_of(Path), default=[], help="show what earlier runs wrote with --json")
    parser.add_argument("--docs", action="store_true", help="write the tables of docs/stages.md")
    arguments = parser.parse_args()
    arguments.done = [row for path in arguments.rows for row in json.loads(path.read_text())]
    for name in [] if arguments.rows else arguments.models:
        arguments.done += stages_of(name, arguments)
    if arguments.docs:
        write_docs(arguments.done, "python dev.py bench stages --docs")


if __name__ == "__main__":
    main()

"""Does a map find where and when a clip goes wrong? In one run, on the demo video model.

    python dev.py bench video [--emoji 8] [--clips 4] [--seed 1] [--json PATH] [--docs]

Faults are planted in clips in space and time, see the functions. *cells*: AUROC over all cells of a clip, frame by
frame, against where and when the fault was planted. *cells of the frame*: only those of the frames that hold the fault,
so where, given when. *frames*: of the frames' mean standard deviations, so when alone. Means over clips and their
standard errors. Controls, which see the latent alone: *gradient energy* (edges in space) and *frame difference* (to
the frames before and after). ``--docs`` writes the table and the picture of docs/video.md.
"""

from __future__ import annotations

import dataclasses

import in_process

in_process.import_host_and_pack()

import torch  # noqa: E402
from bayesdiff.bayesdiff_core.drawing.pillow import to_pil  # noqa: E402
from bayesdiff.bayesdiff_core.drawing.sheets import sheet, strips  # noqa: E402
from bayesdiff.bayesdiff_core.estimators.registry import NO_HEAD, QUALITIES  # noqa: E402
from bayesdiff.bayesdiff_core.reading.maps import colour_map, normalise_map  # noqa: E402
from bayesdiff.bayesdiff_core.reading.uncertainty import Uncertainty  # noqa: E402
from bayesdiff.host.demo_model import emoji_names, load_video_model  # noqa: E402
from bayesdiff.host.fit import FitSettings, as_examples, fit_head, own_samples  # noqa: E402
from bayesdiff.host.posterior import Posterior  # noqa: E402
from bayesdiff.host.run.sample import sample_with_uncertainty  # noqa: E402
from bayesdiff.host.settings import Guidance, RunSettings  # noqa: E402
from figures_of_merit import auroc  # noqa: E402
from measure import gradient_energy  # noqa: E402
from reporting import make_parser, write_rows  # noqa: E402

DOCS = in_process.ROOT / "docs"
MARK = "<!-- what follows is written by the command -->"
SHAPE, CFG, STEPS = (16, 4, 10, 10), 3.0, 20
# The latent is disturbed where it is as much noise as image, at a sigma of 0.5. At more, the sampler heals most faults.
PLANT_STEP = 15
JUMP = 4  # cells
MOTIONS = "slides right", "falls", "bounces", "turns"
ESTIMATORS = {NO_HEAD.name: NO_HEAD, "instant": QUALITIES["instant"], "members": QUALITIES["balanced"]}


@dataclasses.dataclass(frozen=True)
class Plant:
    """Clips with a fault: where and when it is ``(n, t, h, w)``, and what estimators say of them, by name."""

    where: torch.Tensor
    by: dict[str, Uncertainty]


class Bench:
    def __init__(self, arguments):
        names = emoji_names()
        self.prompts = [
            (names[i * len(names) // arguments.emoji], MOTIONS[i % len(MOTIONS)]) for i in range(arguments.emoji)
        ]
        loaded = [load_video_model(emoji, motion, emoji) for emoji, motion in self.prompts]
        self.model, _, self.negative, self.vae = loaded[0]
        self.conditions = [positive for _, positive, _, _ in loaded]
        self.clips, self.seed = arguments.clips, arguments.seed
        data = []
        for i, positive in enumerate(self.conditions):
            own = own_samples(self.model, Guidance(positive, self.negative, CFG), self.empty(1), 2, 12, seed=1000 + i)
            data += as_examples(own, positive)
        head = fit_head(self.model, data, self.negative, FitSettings(CFG, levels=4))
        self.posterior = Posterior.bind(head, self.model, 1)

    def empty(self, count: int) -> dict:
        return {"samples": torch.zeros(count, *SHAPE)}

    def run(self, prompt: int, positive: list | None = None, **stage):
        settings = RunSettings(STEPS, CFG, "euler", "simple", positive or self.conditions[prompt], self.negative)
        return lambda model, latent: settings.sample(model, latent, self.seed * 1000 + prompt, **stage)

    def seen(self, run, latent: dict, where: torch.Tensor) -> Plant:
        return Plant(
            where,
            {
                name: sample_with_uncertainty(run, latent, self.posterior, estimator).uncertainty
                for name, estimator in ESTIMATORS.items()
            },
        )

    def disturbed(self, prompt: int, disturb) -> Plant:
        """On the way, the noisy latent is disturbed; then the run goes on.

        Args:
            disturb: of the noisy latent and of what the run would have ended at, to the disturbed one and the place.
        """
        on_the_way = self.run(prompt, last_step=PLANT_STEP)(self.model, self.empty(self.clips))
        go_on = self.run(prompt, disable_noise=True, start_step=PLANT_STEP)
        samples, where = disturb(on_the_way["samples"], go_on(self.model, on_the_way)["samples"])
        return self.seen(go_on, on_the_way | {"samples": samples}, where)


def frame_swapped(bench: Bench, prompt: int) -> Plant:
    """A latent frame is that of the next clip of the batch. The place is all of the frame."""
    frame = 1 + prompt % (SHAPE[1] - 1)

    def disturb(x, _):
        swapped, where = x.clone(), torch.zeros(len(x), *SHAPE[1:])
        swapped[:, :, frame] = x[:, :, frame].roll(1, 0)
        where[:, frame] = 1
        return swapped, where

    return bench.disturbed(prompt, disturb)


def object_jumps(bench: Bench, prompt: int) -> Plant:
    """In one latent frame all is moved four cells aside. The place is where the object then is, and where it was."""
    frame = 1 + prompt % (SHAPE[1] - 1)

    def disturb(x, end):
        moved, where = x.clone(), torch.zeros(len(x), *SHAPE[1:])
        moved[:, :, frame] = x[:, :, frame].roll(JUMP, -1)
        change = (end[:, :, frame].roll(JUMP, -1) - end[:, :, frame]).square().mean(1)
        where[:, frame] = (change > 0.25 * change.amax((1, 2), keepdim=True)).float()
        return moved, where

    return bench.disturbed(prompt, disturb)


def another_prompt(bench: Bench, prompt: int) -> Plant:
    """From the start, another prompt is asked for in the last two latent frames, through a mask of the conditioning."""
    where = torch.zeros(1, *SHAPE[1:])
    where[:, 2:] = 1
    other = bench.conditions[(prompt + 1) % len(bench.conditions)]
    positive = [
        [tokens, options | {"mask": mask, "mask_strength": 1.0, "set_area_to_bounds": False}]
        for condition, mask in ((other, where), (bench.conditions[prompt], 1 - where))
        for tokens, options in condition
    ]
    return bench.seen(bench.run(prompt, positive), bench.empty(bench.clips), where.expand(bench.clips, -1, -1, -1))


def frame_difference(latent: torch.Tensor) -> torch.Tensor:
    """Mean square of the differences to the frames before and after, ``(n, t, h, w)``; the ends have one."""
    change = latent.diff(dim=2).square().mean(1)
    before, after = torch.cat([change[:, :1], change], 1), torch.cat([change, change[:, -1:]], 1)
    return (before + after) / 2


def maps_of(plant: Plant) -> dict[str, torch.Tensor]:
    """``(n, t, h, w)`` each."""
    latent = plant.by[NO_HEAD.name].latent
    flat = latent.movedim(2, 1).flatten(0, 1)
    controls = {
        "gradient energy": gradient_energy(flat).unflatten(0, latent.shape[:1] + latent.shape[2:3]),
        "frame difference": frame_difference(latent),
    }
    return {name: uncertainty.std_map() for name, uncertainty in plant.by.items()} | controls


def measure(values: torch.Tensor, where: torch.Tensor) -> dict[str, float]:
    """AUROCs of the map of one clip, each ``(t, h, w)``, see above; none where all cells are of one kind."""
    when = where.flatten(1).any(1)
    found = {"cells": auroc(values.flatten(), where.flatten()), "frames": auroc(values.flatten(1).mean(1), when)}
    if not where[when].all():
        found["cells of the frame"] = auroc(values[when].flatten(), where[when].flatten())
    return found


def draw(plants: dict[str, Plant], decode) -> torch.Tensor:
    """One clip of each fault, its frames above its map."""
    columns, captions = [], []
    for name, plant in plants.items():
        uncertainty = plant.by["members"].select(torch.tensor([0]))
        frames = decode(uncertainty.latent)[..., :3]
        heat = colour_map(normalise_map(uncertainty.maps()[None], True)[0])
        columns.append(torch.cat([strips(part.reshape(1, *frames.shape[-4:])) for part in (frames, heat)], 1))
        captions.append(name)
    return sheet([torch.cat(columns)], captions)


FAULTS = {"a frame swapped": frame_swapped, "an object that jumps": object_jumps, "another prompt": another_prompt}


def table(rows: list[dict]) -> list[str]:
    measures = list(dict.fromkeys(row["measure"] for row in rows))
    found = ["| fault | found by | " + " | ".join(measures) + " |", "|---" * (2 + len(measures)) + "|"]
    for fault, name in dict.fromkeys((row["fault"], row["estimator"]) for row in rows):
        mine = {row["measure"]: row for row in rows if (row["fault"], row["estimator"]) == (fault, name)}
        cells = [f"{mine[of]['value']:.2f} ± {mine[of]['standard_error']:.2f}" if of in mine else "" for of in measures]
        found.append(f"| {fault} | {name} | " + " | ".join(cells) + " |")
    return found


@torch.inference_mode()
def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--emoji", type=int, default=8, help="how many emoji, each with one of four motions")
    parser.add_argument("--clips", type=int, default=4, help="of each emoji and fault")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--docs", action="store_true", help="write the table and the picture of docs/video.md")
    arguments = parser.parse_args()
    bench, rows, shown = Bench(arguments), [], {}
    for fault, plant_of in FAULTS.items():
        found: dict[tuple[str, str], list[float]] = {}
        for prompt in range(len(bench.prompts)):
            plant = plant_of(bench, prompt)
            shown.setdefault(fault, plant)
            for name, values in maps_of(plant).items():
                for of_clip, where in zip(values, plant.where > 0):
                    for of, value in measure(of_clip, where).items():
                        found.setdefault((name, of), []).append(value)
        for (name, of), values in found.items():
            values = torch.tensor(values)
            row = {"test": "video", "fault": fault, "estimator": name, "measure": of, "clips": len(values)}
            rows.append(
                row | {"value": float(values.mean()), "standard_error": float(values.std() / len(values) ** 0.5)}
            )
        print("\n".join(table([row for row in rows if row["fault"] == fault])), flush=True)
        write_rows(arguments.json, rows)
    if arguments.docs:
        path = DOCS / "video.md"
        above = path.read_text(encoding="utf-8").split(MARK)[0]
        text = [above + MARK, "", "Written by `python dev.py bench video --docs`.", "", *table(rows)]
        path.write_text("\n".join(text) + "\n", encoding="utf-8")
        picture = to_pil(draw(shown, bench.vae.decode)[0])
        picture.quantize(256).save(DOCS / "images" / "video_plants.png", optimize=True)


if __name__ == "__main__":
    main()

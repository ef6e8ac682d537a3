"""Tests of maps: do they find a fault that was planted in an image?"""

from __future__ import annotations

import dataclasses

import nodes
import torch
from bayesdiff.bayesdiff_core.reading.uncertainty import Uncertainty, std_of
from figures_of_merit import auroc
from measure import gradient_energy

from .bench import DEFAULT_ESTIMATOR, ESTIMATORS, Bench, standard_error

# The latent is disturbed after this many of the 20 steps.
PLANT_STEP = 10
SEEN_BY = [name for name in ESTIMATORS if name != "published"]


@dataclasses.dataclass(frozen=True)
class Plant:
    """Images of a prompt with a fault in a known place ``(n, h, w)``, and what estimators say of them, by name."""

    prompt: int
    where: torch.Tensor
    by: dict[str, Uncertainty]

    @property
    def found(self) -> Uncertainty:
        """What the default says."""
        return self.by[DEFAULT_ESTIMATOR]


def squares(count: int, height: int, width: int, generator: torch.Generator) -> torch.Tensor:
    """One square of a third of the side in every ``(height, width)``, within the middle three quarters."""
    side, margin = height // 3, height // 8
    where = torch.zeros(count, height, width)
    for picture in where:
        top, left = (
            int(torch.randint(margin, size - margin - side + 1, (), generator=generator)) for size in (height, width)
        )
        picture[top : top + side, left : left + side] = 1
    return where


def plant(bench: Bench, kind: str, prompt: int, count: int) -> Plant:
    """Sample ``count`` images of a prompt with a fault in a square.

    ``patch``: half-way, the square of the noisy latent is replaced by that of the next image of the batch. ``noise``:
    half-way, it is replaced by noise alone, as strong as the noisy latent. ``prompt``: the stock ConditioningSetMask
    asks for another prompt in the square from the start.
    """
    generator, seed = torch.Generator().manual_seed(100 + prompt), bench.seed * 1000 + 500 + prompt
    where = squares(count, *bench.setting.shape[1:], generator)
    if kind == "prompt":
        other = bench.conditions[(prompt + len(bench.names) // 2) % len(bench.names)]
        mask = where[:1]
        where = mask.expand(count, -1, -1)
        inside = nodes.ConditioningSetMask().append(other, mask, "default", 1.0)[0]
        outside = nodes.ConditioningSetMask().append(bench.conditions[prompt], 1 - mask, "default", 1.0)[0]
        run, latent = bench.run(prompt, seed, positive=[*outside, *inside]), bench.empty(count)
        return Plant(prompt, where, {name: bench.uncertain(run, latent, name) for name in SEEN_BY})
    half_way = bench.run(prompt, seed, last_step=PLANT_STEP)(bench.model, bench.empty(count))
    x = half_way["samples"]
    if kind == "patch":
        other = x.roll(1, 0)
    else:
        other = x.mean() + x.std() * torch.randn(x.shape, generator=generator)
    disturbed = half_way | {"samples": torch.where(where[:, None] > 0, other, x)}
    run = bench.run(prompt, seed, disable_noise=True, start_step=PLANT_STEP)
    return Plant(prompt, where, {name: bench.uncertain(run, disturbed, name) for name in SEEN_BY})


def bad_regions(bench: Bench, prompts: int = 4, count: int = 6) -> list[dict]:
    """AUROC, cell by cell, of maps against the place of a planted fault; mean over images.

    Of every estimator, of the members of balanced before moderation, of redrawing and re-noising. The control is the
    gradient energy of the latent, which has rows of its own with chance as their control.
    """
    rows = []
    for kind in ("patch", "noise", "prompt"):
        plants = [
            plant(bench, kind, prompt, count) for prompt in range(0, len(bench.names), -(-len(bench.names) // prompts))
        ]
        bench.plants[kind] = plants[0]
        maps = {name: torch.cat([each.by[name].std_map() for each in plants]) for name in SEEN_BY}
        alone = [std_of(each.by["balanced"].deviations.square().mean(0)) for each in plants]
        maps |= {
            "members alone": torch.cat(alone),
            "redraw": torch.cat([bench.redrawn(each.found.latent, each.prompt).std_map() for each in plants]),
            "re-noising": torch.cat([bench.renoised(each.found.latent, each.prompt).std_map() for each in plants]),
            "gradient energy": torch.cat([gradient_energy(each.found.latent) for each in plants]),
        }
        where = torch.cat([each.where for each in plants]).flatten(1) > 0
        values = {
            name: torch.tensor([auroc(found.flatten(), inside) for found, inside in zip(of_images, where)])
            for name, of_images in maps.items()
        }
        for name, value in values.items():
            control = 0.5 if name == "gradient energy" else float(values["gradient energy"].mean())
            rows.append(
                bench.row("bad_regions", "map", float(value.mean()), control, standard_error(value))
                | dict(estimator=name, measure=kind, default=name == DEFAULT_ESTIMATOR, pictures=len(value))
            )
    return rows

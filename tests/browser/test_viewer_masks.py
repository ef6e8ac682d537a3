"""The viewer's masks: what the page computes is what torch computes, to the pixel."""

from __future__ import annotations

import random

import pytest
import torch
from bayesdiff.bayesdiff_core.reading import levels, masks
from viewer_page import MODULES

pytestmark = pytest.mark.timeout(900)


def random_case(number: int) -> dict:
    """A map, ties and flat ones too, and thresholds on it; what torch makes of them, as text of 0 and 1."""
    draw, generator = random.Random(number), torch.Generator().manual_seed(number)
    shape, size = [draw.randint(1, 20) for _ in range(2)], [draw.randint(1, 90) for _ in range(2)]
    cells = {
        0: lambda: torch.randint(0, 65536, shape, generator=generator),
        1: lambda: torch.randint(0, 3, shape, generator=generator) * 30000,
        2: lambda: torch.full(shape, draw.choice([0, 1, 65535])),
        3: lambda: (torch.rand(shape, generator=generator) ** 8 * 65535).round().long(),
    }[number % 4]()
    top = draw.random() * draw.choice([0, 1, 100])
    area, std, percentile = (
        draw.choice([0, 1, draw.random()]),
        top * draw.random(),
        draw.choice([0, 100, 99.95, 100 * draw.random()]),
    )
    percentiles = levels.Levels(cells[None], top, torch.tensor([True])).percentiles()
    values = levels.enlarge(cells, *size)
    masks = [
        levels.most_uncertain(values, area),
        levels.above_std(values, std, top),
        levels.above_percentile(values, percentile, percentiles),
    ]
    return {
        "cells": cells.flatten().tolist(), "shape": shape, "size": size, "area": area, "std": std, "top": top,
        "percentile": percentile, "percentiles": percentiles,
        "masks": ["".join(map(str, mask.flatten().int().tolist())) for mask in masks],
    }  # fmt: skip


def test_the_page_and_torch_make_the_same_mask_to_the_pixel(page, server):
    page.goto(f"http://127.0.0.1:{server.port}/system_stats")
    cases = [random_case(number) for number in range(200)]
    found = page.evaluate(
        """async ([modules, cases]) => {
            const {enlarge, mostUncertain, aboveStd, abovePercentile} = await import(`${modules}/levels.js`)
            const {sample} = await import(`${modules}/runs.js`)
            const upTo = length => Int32Array.from({length}, (_, i) => i)
            return cases.map(({cells, shape, size, area, std, top, percentile, percentiles}) => {
                const map = enlarge({cells: Uint16Array.from(cells), rows: shape[0], columns: shape[1]}, size)
                const above = abovePercentile(map, percentile, percentiles)
                return [mostUncertain(map, area), aboveStd(map, std, top), above].map(
                    mask => sample(mask, 0, ...size.map(upTo)).join(''))
            })
        }""",
        [MODULES, cases],
    )
    assert found == [case["masks"] for case in cases]
    assert any("1" in mask and "0" in mask for case in cases for mask in case["masks"])


@pytest.mark.parametrize(("cells", "most"), [(128, 65536), (512, 65536), (128, 4), (37, 65536)])
def test_so_they_do_on_a_map_of_4k(page, server, cells, most):
    """Compared by the runs of each row: where they begin and end."""
    page.goto(f"http://127.0.0.1:{server.port}/system_stats")
    generator, height, width = torch.Generator().manual_seed(cells), 2160, 4096
    smooth = torch.linspace(0, 6, cells).sin().square()[:, None] * torch.linspace(0, 9, cells).cos().square()
    noise = torch.rand(cells, cells, generator=generator)
    level = ((0.7 * smooth + 0.3 * noise) * (most - 1)).round().long() * (65535 // (most - 1))
    values, top = levels.enlarge(level, height, width), 0.7
    percentiles = levels.Levels(level[None], top, torch.tensor([True])).percentiles()
    expected = [
        levels.most_uncertain(values, 0.15),
        levels.above_std(values, 0.31, top),
        levels.above_percentile(values, 90, percentiles),
    ]
    found = page.evaluate(
        """async ([modules, cells, side, size, top, percentiles]) => {
            const {aboveStd, abovePercentile, enlarge, mostUncertain} = await import(`${modules}/levels.js`)
            const map = enlarge({cells: Uint16Array.from(cells), rows: side, columns: side}, size)
            const masks = [mostUncertain(map, 0.15), aboveStd(map, 0.31, top), abovePercentile(map, 90, percentiles)]
            return masks.map(({starts, ends}) => [[...starts], [...ends.subarray(0, starts.at(-1))]])
        }""",
        [MODULES, level.flatten().tolist(), cells, [height, width], top, percentiles],
    )
    for mask, (starts, ends) in zip(expected, found, strict=True):
        changes = torch.nn.functional.pad(mask.int(), (1, 1)).diff(dim=1).nonzero()
        assert changes[:, 1].tolist() == ends
        assert [0, *torch.bincount(changes[:, 0], minlength=height).cumsum(0).tolist()] == starts


def test_the_page_grows_and_blurs_as_the_mask_node(page, server):
    page.goto(f"http://127.0.0.1:{server.port}/system_stats")
    generator = torch.Generator().manual_seed(1)
    for height, width, pixels, sigma in ((40, 60, 0, 3.0), (64, 50, 4, 0.5), (30, 20, 40, 2.5), (17, 33, 1, 12.0)):
        mask = (torch.rand(1, height, width, generator=generator) > 0.95).float()
        found, share = page.evaluate(
            """async ([path, mask, height, width, pixels, sigma]) => {
                const {Writer, grow, sample, share} = await import(path)
                const runs = new Writer(height, width), upTo = length => Int32Array.from({length}, (_, i) => i)
                for (let y = 0; y < height; y++, runs.endRow())
                    for (let x = 0; x < width; x++) if (mask[y * width + x]) runs.add(x, x + 1)
                const wider = grow(runs, pixels)
                return [[...sample(wider, sigma, upTo(height), upTo(width))], share(wider, sigma)]
            }""",
            [f"{MODULES}/runs.js", mask.flatten().int().tolist(), height, width, pixels, sigma],
        )
        expected = masks.blur(masks.grow(mask, pixels), sigma)
        assert torch.allclose(torch.tensor(found, dtype=torch.float32), expected.flatten(), atol=1e-5)
        assert share == pytest.approx(float(expected.mean()), abs=1e-5)

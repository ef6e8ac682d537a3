"""Rows of the benchmark in Markdown."""

from __future__ import annotations

from collections.abc import Callable

AMONG = {"prompt": "within prompts", "all": "all images together"}


def number(value: float) -> str:
    return f"{value:.3g}" if abs(value) >= 10 else f"{value:.2f}"


def with_error(value: float, error: float) -> str:
    return f"{number(value)} ± {number(error)}"


def value_with_error(row: dict) -> str:
    return with_error(row["value"], row["standard_error"])


def name_of(row: dict) -> str:
    words = f"{row['estimator']}, {row['score']}"
    return f"**{words}**" if row["default"] else words


def markdown(columns: list[str], lines: list[list[str]]) -> list[str]:
    return ["| " + " | ".join(cells) + " |" for cells in [columns, ["---"] * len(columns), *lines]]


def wide_tables(rows: list[dict], value_of: Callable[[dict], str]) -> list[str]:
    """One table per model, for all images and within prompts; one line per score, the default in bold."""
    found = []
    for model, among in dict.fromkeys((row["model"], row["among"]) for row in rows):
        mine = [row for row in rows if (row["model"], row["among"]) == (model, among)]
        measures = list(dict.fromkeys(row["measure"] for row in mine))
        lines: dict[str, list[str]] = {}
        for row in mine:
            lines.setdefault(name_of(row), [number(row["cost"])]).append(value_of(row))
        found += ["", f"{model}, {AMONG[among]}:", ""]
        found += markdown(["score", "calls", *measures], [[name, *cells] for name, cells in lines.items()])
    return found


def errors_better(row: dict) -> float:
    """By how many standard errors the kept half is better than a random one; none where all random halves are equal."""
    if row["standard_error"] == 0:
        return 0.0
    sign = -1 if row["measure"] == "Frechet distance" else 1
    return sign * (row["value"] - row["control"]) / row["standard_error"]


def show_filtering(rows: list[dict]) -> list[str]:
    chance = [
        dict(row, estimator="random halves", score="± standard error", default=False, value=row["control"], cost=1.0)
        for row in rows
        if row["score"] == "random"
    ]

    def cell(row: dict) -> str:
        if row["estimator"] == "random halves":
            return value_with_error(row)
        return f"{number(row['value'])} ({errors_better(row):+.1f})"

    return [
        "The kept half. In brackets: how many standard errors it is better (+) or worse (-) than a random half.",
        *wide_tables(rows + chance, cell),
    ]


def show_bad_samples(rows: list[dict]) -> list[str]:
    return [
        "AUROC ± bootstrap standard error; 0.5 is chance.",
        *wide_tables(rows, value_with_error),
    ]


def show_bad_regions(rows: list[dict]) -> list[str]:
    lines = [
        [*(row[key] for key in ("model", "measure", "estimator")), value_with_error(row), str(row["pictures"])]
        for row in rows
    ]
    return [
        "AUROC over latent cells ± standard error; 0.5 is chance. *members alone*: before moderation.",
        "",
        *markdown(["model", "fault", "found by", "AUROC", "images"], lines),
    ]


def show_paired(rows: list[dict]) -> list[str]:
    keys = ("model", "measure", "among", "against")
    lines = [
        [
            *(row[key] for key in keys),
            number(row["value"]),
            number(row["control"]),
            with_error(row["value"] - row["control"], row["standard_error"]),
        ]
        for row in rows
    ]
    return markdown(["model", "measure", "images", "control", "gain", "control's gain", "difference"], lines)


def show_best_of_n(rows: list[dict]) -> list[str]:
    saved = {f"{row['model']}, {row['among']}": row["saved"] for row in rows}
    lines = [[name, *(f"{share:.0%}" for share in shares.values())] for name, shares in saved.items()]
    columns = ["calls saved, compared with", *next(iter(saved.values()))]
    return [*markdown(columns, lines), "", *show_paired(rows)]


TITLES = {
    "filtering": ("Filtering: keeping the better half", show_filtering),
    "bad_samples": ("Finding bad images", show_bad_samples),
    "bad_regions": ("Finding bad regions: planted faults", show_bad_regions),
    "repair": ("Repair: inpainting the least certain fifth", show_paired),
    "best_of_n": ("Best of N", show_best_of_n),
}


def tables(rows: list[dict]) -> list[str]:
    found = []
    for test, (title, show) in TITLES.items():
        if mine := [row for row in rows if row["test"] == test]:
            found += [f"### {title}", "", *show(mine), ""]
    return found

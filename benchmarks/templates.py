"""What people run: each official template that samples images or video, with its own samplers and with ours.

    python dev.py bench templates [--host PATH] [--templates NAME,...] [--most-used 40] [--json PATH]
    python dev.py bench templates --rows OLD.json,NEW.json --docs

The templates are those of the newest ``comfyui-workflow-templates-json`` on PyPI (or of ``--folder``). Of each, the
graph that its samplers need is run in the host's own executor: its latents, samplers, guiders, sigmas, stages, masks,
model patches and prompts, at small sizes. Only what needs files is replaced: a small random instance of the model's
family, random tokens for texts, a small VAE, a random picture. Then each sampler is swapped for ours.

A sampler is *right* if the latent is the stock one's to the bit, at no more than 1.02 times the network calls, with a
map, a mask and a score of the right shape that are finite; *refused* if ours says in a sentence why it cannot;
*wrong* otherwise. *Stock fails*: the stock sampler stops on the small instance. *Not in this host*: it lacks a node or
the family. *Unbuilt*: this benchmark cannot build the graph yet.
"""

from __future__ import annotations

import json
import logging
import sys
import tempfile
import zipfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from subprocess import run

import in_process

in_process.import_host_and_pack()

import comfyui_version  # noqa: E402
import torch  # noqa: E402
from bayesdiff.host.nested import parts_of  # noqa: E402
from bayesdiff.nodes.map import UncertaintyMap  # noqa: E402
from bayesdiff.nodes.mask import UncertaintyToMask  # noqa: E402
from reporting import list_of, make_parser, write_rows  # noqa: E402
from template_files import KNOWN, SmallVae, family_of  # noqa: E402
from template_graphs import Graph, Template, read_templates, unfolded  # noqa: E402
from template_runs import (  # noqa: E402
    UNCERTAINTY,
    Failed,
    file_of,
    forget,
    kept,
    made_small,
    missing_nodes,
    model_files,
    prepare_host,
    run_graph,
    samplers_of,
    with_files,
    with_ours,
    without_heads,
)

PACKAGE = "comfyui-workflow-templates-json"
DOCS = in_process.ROOT / "docs" / "templates.md"
MARK = "<!-- what follows is written by the command -->"
RIGHT, WRONG, REFUSED, STOCK_FAILS = "right", "wrong", "refused", "stock fails"
NOT_HERE, UNBUILT = "not in this host", "unbuilt"
# Sound alone and shapes are no pictures; the names that such templates begin with.
NO_PICTURES = ("audio_", "3d_")
MOST_CALLS = 1.02


def download(folder: Path) -> Path:
    """The templates of the newest package, unpacked into a folder."""
    command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", str(folder), PACKAGE]
    run(command, check=True)
    with zipfile.ZipFile(next(folder.glob("*.whl"))) as archive:
        archive.extractall(folder)
    return next(folder.glob("*/templates"))


def fault(latent: dict, expected: dict, uncertainty, vae) -> tuple[str, str]:
    """Status of one run of a sampler, and why."""
    ours, stock = latent["samples"], expected["samples"]
    if not all(map(torch.equal, parts_of(ours), parts_of(stock))):
        return WRONG, "the latent is not the stock sampler's"
    if uncertainty.unknown:
        return REFUSED, uncertainty.unknown
    for part, latent_part in zip(uncertainty.parts, parts_of(stock), strict=True):
        if part.variance.shape != latent_part.shape or not part.variance.isfinite().all():
            return WRONG, f"a variance of shape {tuple(part.variance.shape)}, or not finite"
    if uncertainty.cost > MOST_CALLS:
        return WRONG, f"{uncertainty.cost:.2f} times the network calls"
    mask = UncertaintyToMask.execute(uncertainty, 0.2, 0, 0.0)[0]
    maps = UncertaintyMap.execute(uncertainty, vae, "each image", 0.8).args[2]
    planes = len(parts_of(stock)[0]) * uncertainty.frames
    if len(mask) != planes or mask.shape[1:] != maps.shape[1:] or len(maps) != planes or not maps.isfinite().all():
        return WRONG, f"a mask of {tuple(mask.shape)} and a map of {tuple(maps.shape)} for {planes} planes"
    return RIGHT, ""


def families_of(graph: Graph) -> list[str]:
    """Families of the models that a graph loads, ``?`` for a file of none that is known."""
    return list(dict.fromkeys(family_of(file) or f"? ({file})" for file in model_files(graph)))


def rows_of(template: Template) -> Iterator[dict]:
    """One row for each sampler of a template; none where it samples no picture here."""
    graph = unfolded(template.saved)
    if not graph or template.name.startswith(NO_PICTURES):
        return
    graph = made_small(graph)
    families, lacking = families_of(graph), missing_nodes(graph)
    about = {
        "host": comfyui_version.__version__,
        "template": template.name,
        "kind": template.kind,
        "family": ", ".join(families),
        "use": template.use,
    }
    kinds = {name: graph[name]["class_type"] for name in samplers_of(graph)}

    def all_of(status: str, why: str) -> Iterator[dict]:
        for kind in kinds.values():
            yield about | {"sampler": kind, "status": status, "why": why}

    unknown = [family for family in families if family not in KNOWN]
    if lacking or unknown:
        yield from all_of(NOT_HERE, ", ".join([*lacking, *unknown]))
    elif not families:
        yield from all_of(UNBUILT, "no model is loaded by a node that is known")
    else:
        yield from compared(graph, kinds, about, all_of)


def is_sentence(failed: Failed) -> bool:
    """Whether a node of ours stopped with a sentence for the user."""
    return failed.error == "ValueError" and failed.text.startswith("Expected")


def compared(graph: Graph, kinds: dict[str, str], about: dict, all_of) -> Iterator[dict]:
    """Rows of a graph that this host can run."""
    graph = with_files(graph)
    links = {name: [name, 0] for name in kinds}
    try:
        expected = run_graph(kept(graph, links))
    except Failed as failed:
        status = STOCK_FAILS if failed.kind in kinds.values() else UNBUILT
        yield from all_of(status, f"{failed.kind}: {failed.text}")
        return
    if missing := [kind for name, kind in kinds.items() if name not in expected]:
        yield from all_of(UNBUILT, f"{missing[0]} was not run")
        return
    swapped, before = with_ours(graph)
    for name in kinds:
        slot = UNCERTAINTY[swapped[name]["class_type"]]
        links |= {f"{name} uncertainty": [name, slot], f"{name} scores": [name, slot + 1]}
    note = ""
    try:
        try:
            found = run_graph(kept(swapped, links))
        except Failed as failed:
            if failed.kind != "TestHead" or not is_sentence(failed):
                raise
            note = f"without a head: {failed.text}"
            found = run_graph(kept(without_heads(swapped), links))
    except Failed as failed:
        yield from all_of(REFUSED if is_sentence(failed) else WRONG, f"{failed.kind}: {failed.text}")
        return
    for name, kind in kinds.items():
        vae = SmallVae(file_of(graph, name))
        ours, stock, uncertainties = found[name], expected[name], found[f"{name} uncertainty"]
        each = [fault(*parts, vae) for parts in zip(ours, stock, uncertainties, strict=True)]
        status, why = next((one for one in each if one[0] != RIGHT), each[0])
        scores, images = found[f"{name} scores"], sum(len(parts_of(latent["samples"])[0]) for latent in stock)
        if status == RIGHT and (len(scores) != images or not torch.tensor(scores).isfinite().all()):
            status, why = WRONG, f"{len(scores)} scores of {images} images, or not finite"
        why = why or note
        stage = {"stage": "carried" if before[name] else ""}
        yield about | {"sampler": kind, "status": status, "why": why} | stage


def status_of(rows: list[dict]) -> str:
    """Of a template: the worst of its samplers'."""
    order = [WRONG, REFUSED, STOCK_FAILS, UNBUILT, NOT_HERE, RIGHT]
    return min((row["status"] for row in rows), key=order.index)


def summary(rows: list[dict]) -> list[str]:
    """Templates and their use by status, for each host."""
    lines = []
    for host in dict.fromkeys(row["host"] for row in rows):
        by_template: dict[str, list[dict]] = {}
        for row in rows:
            if row["host"] == host:
                by_template.setdefault(row["template"], []).append(row)
        count, use = Counter(), Counter()
        for found in by_template.values():
            count[status_of(found)] += 1
            use[status_of(found)] += found[0]["use"]
        total = sum(use.values()) or 1
        lines += [f"ComfyUI {host}: {len(by_template)} templates", "", "| status | templates | use |", "|---|---|---|"]
        lines += [f"| {status} | {number} | {use[status] / total:.1%} |" for status, number in count.most_common()]
        runs = sum(use[status] for status in (RIGHT, WRONG, REFUSED)) or 1
        kinds = Counter((found[0]["kind"], status_of(found)) for found in by_template.values())
        counts = [
            f"{kinds[kind, RIGHT]} of {sum(kinds[kind, status] for status in (RIGHT, WRONG, REFUSED))} of {kind}"
            for kind in ("image", "video")
        ]
        carried = sum(row.get("stage") == "carried" for found in by_template.values() for row in found)
        lines += [
            "",
            f"Of what runs here, {use[RIGHT] / runs:.1%} by use is right: {' and '.join(counts)} templates.",
            f"Of the samplers, {carried} go on from another one with its uncertainty.",
            "",
        ]
    return lines


def latest(runs: list[list[dict]]) -> list[dict]:
    """Rows of all runs; of a template that several ran on one host, those of the last."""
    found: dict[tuple, list[dict]] = {}
    for run_rows in runs:
        of_run: dict[tuple, list[dict]] = {}
        for row in run_rows:
            of_run.setdefault((row["host"], row["template"]), []).append(row)
        found |= of_run
    return [row for rows in found.values() for row in rows]


def write_docs(rows: list[dict]) -> None:
    """Write the tables below the mark in docs/templates.md; the text above it is written by hand."""
    columns = ("template", "family", "use", "sampler", "host", "status", "stage", "why")
    lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    for row in sorted(rows, key=lambda row: (-row["use"], row["template"], row["host"])):
        cells = [row.get(key, "") for key in columns]
        lines.append("| " + " | ".join(str(cell).replace("|", "/") for cell in cells) + " |")
    above = DOCS.read_text(encoding="utf-8").split(MARK)[0]
    text = [above + MARK, "", "Written by `python dev.py bench templates --docs`.", "", *summary(rows), *lines]
    DOCS.write_text("\n".join(text) + "\n", encoding="utf-8")


def rows_of_all(arguments) -> list[dict]:
    rows: list[dict] = []
    with tempfile.TemporaryDirectory() as folder:
        templates = read_templates(arguments.folder or download(Path(folder)))
    prepare_host()
    logging.disable(logging.CRITICAL)  # each failure is in its row
    wanted = [one for one in templates if not arguments.templates or one.name in arguments.templates]
    tried = 0
    for template in wanted:
        try:
            found = list(rows_of(template))
        except Exception as error:
            found = [
                {
                    "host": comfyui_version.__version__,
                    "template": template.name,
                    "kind": template.kind,
                    "family": "",
                    "use": template.use,
                    "sampler": "",
                    "status": UNBUILT,
                    "why": f"{type(error).__name__}: {error}",
                }
            ]
        forget()
        for row in found:
            print(" | ".join(str(row[key]) for key in ("template", "family", "sampler", "status", "why")), flush=True)
        rows += found
        write_rows(arguments.json, rows)
        tried += bool(found)
        if arguments.most_used and tried >= arguments.most_used:
            break
    return rows


@torch.inference_mode()
def main() -> None:
    torch.set_num_threads(1)  # networks this small only wait for more
    parser = make_parser(__doc__)
    parser.add_argument("--folder", type=Path, help="templates with their index.json, instead of a download")
    parser.add_argument("--templates", type=list_of(), help="only these")
    parser.add_argument("--most-used", type=int, help="only so many, the most used first")
    parser.add_argument(
        "--rows", type=list_of(Path), default=[], help="show what earlier runs wrote with --json; later ones count"
    )
    parser.add_argument("--docs", action="store_true", help="write the tables of docs/templates.md")
    arguments = parser.parse_args()
    rows = latest([json.loads(path.read_text()) for path in arguments.rows]) or rows_of_all(arguments)
    print("\n".join(["", *summary(rows)]))
    write_rows(arguments.json, rows)
    if arguments.docs:
        write_docs(rows)


if __name__ == "__main__":
    main()

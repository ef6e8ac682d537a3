"""Make many images with a workflow, on all GPUs of this machine or of a Ray cluster, and keep the best.

    bayesdiff-farm WORKFLOW.json --out FOLDER --seeds 1000 --keep 20

The workflow is in ComfyUI's API format and has a sampler (BayesDiff). FOLDER then holds the kept images, latents, maps
and a workflow for each in kept/, contact_sheet.png, histogram.png, and all scores in table.csv.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import signal
import sys
from pathlib import Path

from . import Problem
from .choose import Rule
from .plan import SAVES, Plan, find_prompt, find_sampler, find_seeds, read_workflow
from .run import Run, Settings


class Parser(argparse.ArgumentParser):
    def error(self, message: str):
        raise Problem(f"{message}; see: {self.prog} --help")


def make_parser() -> argparse.ArgumentParser:
    parser = Parser(prog="bayesdiff-farm", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("workflow", nargs="?", type=Path, help="in API format; with --resume that of the folder")
    add("--out", type=Path, required=True, metavar="FOLDER", help="where all that this run makes goes")
    add("--resume", action="store_true", help="go on with the run in FOLDER; what is done stays done")
    what = parser.add_argument_group("what to make")
    what.add_argument("--seeds", type=int, default=0, help="how many; each is one run of the workflow, with its batch")
    what.add_argument("--first-seed", type=int, default=0, help="the first; the others follow it (default: 0)")
    what.add_argument("--prompts", type=Path, metavar="FILE", help="one prompt per line, each with every seed")
    what.add_argument(
        "--grid", action="append", default=[], metavar="NODE.INPUT=A,B", help="values of an input, as JSON or words"
    )
    what.add_argument("--sampler", metavar="NODE", help="whose images (default: the last sampler (BayesDiff))")
    what.add_argument("--seed-input", action="append", metavar="NODE.INPUT", help="default: the sampler's own")
    what.add_argument("--prompt-input", metavar="NODE.INPUT", help="default: the nearest text at its positive")
    keep = parser.add_argument_group("what to keep: one of")
    keep.add_argument("--keep", type=int, metavar="K", help="the best K")
    keep.add_argument("--keep-per-prompt", type=int, metavar="K", help="the best K of each prompt and grid point")
    keep.add_argument("--keep-percentile", type=float, metavar="P", help="those up to this percentile of the head")
    more = parser.add_argument_group("how")
    more.add_argument(
        "--early", type=float, metavar="SHARE", help="score after this share of the steps; finish the best"
    )
    more.add_argument("--finish", type=int, metavar="N", help="with --early: how many (default: as many as are kept)")
    more.add_argument("--save", default=",".join(SAVES), help=f"what to save: some of {','.join(SAVES)} (default: all)")
    more.add_argument("--discard", action="store_true", help="remove in the end what was not kept")
    where = parser.add_argument_group("where")
    where.add_argument("--workers", type=int, help="how many (default: one per GPU; one without GPUs)")
    where.add_argument("--gpus", type=float, default=1.0, help="GPUs per worker, such as 0.5 (default: 1)")
    where.add_argument("--cpus", type=int, default=1, help="threads per worker where there is no GPU (default: 1)")
    where.add_argument("--address", help="of a Ray cluster: HOST:6379, or auto (default: this machine alone)")
    where.add_argument("--comfyui", help="folder of ComfyUI; default: COMFYUI_PATH of each machine")
    where.add_argument("--python", help="Python of ComfyUI; default: COMFYUI_PYTHON, or that of its venv")
    where.add_argument("--server-arguments", default="", help="more of ComfyUI's command line, in quotes")
    return parser


def read_prompts(path: Path) -> list[str]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise Problem(f"Expected one prompt per line in UTF-8 in {path}, but it cannot be read ({error}).") from None
    prompts = [line.strip() for line in lines if line.strip()]
    if not prompts:
        raise Problem(f"Expected one prompt per line in {path}, got none; write some into it.")
    return prompts


def value_of(text: str) -> object:
    try:
        return json.loads(text)
    except ValueError:
        return text


def read_grid(texts: list[str]) -> dict[str, list]:
    grid = {}
    for text in texts:
        address, equals, values = text.partition("=")
        if not equals or not values:
            raise Problem(f"Expected NODE.INPUT=A,B after --grid, such as 4.cfg=3,5,7, got {text}.")
        whole = value_of(f"[{values}]")
        grid[address] = whole if isinstance(whole, list) else [value_of(part) for part in values.split(",")]
    return grid


def make_plan(options: argparse.Namespace) -> Plan:
    if options.workflow is None:
        raise Problem("Expected a workflow, got none; name its file, or add --resume.")
    graph = read_workflow(options.workflow)
    sampler = find_sampler(graph, options.sampler)
    prompts = read_prompts(options.prompts) if options.prompts else []
    save = [part for part in options.save.split(",") if part]
    if unknown := set(save) - set(SAVES):
        raise Problem(f"Expected some of {', '.join(SAVES)} after --save, got {', '.join(sorted(unknown))}.")
    return Plan(
        workflow=graph,
        sampler=sampler,
        seed_inputs=options.seed_input or find_seeds(graph, sampler),
        first_seed=options.first_seed,
        seeds=options.seeds,
        prompt_input=(options.prompt_input or find_prompt(graph, sampler)) if prompts else None,
        prompts=prompts,
        grid=read_grid(options.grid),
        save=save,
        early=options.early,
    )


def absolute(path: str) -> str:
    """As a worker, which has another present folder, understands it. A venv's Python stays the link that it is."""
    return os.path.abspath(os.path.expanduser(path))


def main(arguments: list[str]) -> int:
    options = make_parser().parse_args(arguments)
    for name in ("COMFYUI_PATH", "COMFYUI_PYTHON", "BAYESDIFF_FARM_BASE"):
        if os.environ.get(name):
            os.environ[name] = absolute(os.environ[name])
    plan = None if options.resume else make_plan(options)
    rule = Rule(options.keep, options.keep_per_prompt, options.keep_percentile)
    settings = Settings(
        workers=options.workers,
        cpus=options.cpus,
        gpus=options.gpus,
        address=options.address,
        comfyui=options.comfyui and absolute(options.comfyui),
        python=options.python and absolute(options.python),
        arguments=tuple(shlex.split(options.server_arguments)),
        finish=options.finish,
        discard=options.discard,
    )
    run = Run(options.out, plan, rule, settings)
    try:
        kept = run.make()
    finally:
        run.close()
    print(f"Kept {len(kept)} images, best first, in {run.folder / 'kept'}.")
    return 0


def stop(*_) -> None:
    raise KeyboardInterrupt


def run() -> None:
    signal.signal(signal.SIGTERM, stop)
    try:
        sys.exit(main(sys.argv[1:]))
    except Problem as problem:
        sys.exit(f"farm: {problem}")
    except KeyboardInterrupt:
        print("farm: stopped; go on with --resume.", file=sys.stderr)
        sys.exit(130)


if __name__ == "__main__":
    run()

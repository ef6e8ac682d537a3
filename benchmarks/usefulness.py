"""Does the uncertainty find bad images and bad regions, and does acting on it help? In one run.

    python dev.py bench usefulness [--models demo,fashion] [--prompts 10] [--pictures 24] [--seed 1]
                                   [--tests filtering,bad_samples,bad_regions,repair,best_of_n] [--json PATH] [--docs]

On the demo model and a rectified flow of garments. The judges (tools/judges.py) know nothing of either model.
``--docs`` writes the tables and figures of docs/usefulness.md, which also says what they mean. Each test is described
in its function.
"""

from __future__ import annotations

import json
import time
from pathlib import Path

import in_process

in_process.import_host_and_pack()

import torch  # noqa: E402
from judges import MobileNet  # noqa: E402
from reporting import list_of, make_parser, write_rows  # noqa: E402
from useful.acting import best_of_n, repair  # noqa: E402
from useful.bench import SETTINGS, Bench  # noqa: E402
from useful.figures import draw_all  # noqa: E402
from useful.images import bad_samples, filtering  # noqa: E402
from useful.regions import bad_regions  # noqa: E402
from useful.tables import tables  # noqa: E402

DOCS = in_process.ROOT / "docs"
TESTS = {test.__name__: test for test in (filtering, bad_samples, bad_regions, repair, best_of_n)}
MARK = "<!-- what follows is written by the command -->"


def write_docs(rows: list[dict], command: str) -> None:
    """Write the tables below the mark in docs/usefulness.md; the text above it is written by hand."""
    path = DOCS / "usefulness.md"
    above = path.read_text(encoding="utf-8").split(MARK)[0]
    text = [above + MARK, "", "## All tables", "", f"Written by `{command}`.", "", *tables(rows)]
    path.write_text("\n".join(text).rstrip() + "\n", encoding="utf-8")


def measure(name: str, arguments, rows: list[dict]) -> None:
    """Sample and test a model, and add to ``rows`` what is found."""
    start = time.monotonic()
    bench = Bench(name, arguments)
    print(f"{name}: {len(bench.names)} prompts, judged by {bench.judge.name}", flush=True)
    if accuracy := getattr(bench.judge, "accuracy", None):
        print(f"accuracy of the judge on images it has not seen: {accuracy:.3f}")
    bench.sample()
    print(f"{len(bench.latents)} images sampled and judged after {time.monotonic() - start:.0f} s", flush=True)
    for test in arguments.tests:
        found = TESTS[test](bench)
        rows += found
        write_rows(arguments.json, rows)
        print("\n".join(tables(found)), f"\n{test}: {time.monotonic() - start:.0f} s so far", flush=True)
    if arguments.docs:
        for drawing, image in draw_all(bench).items():
            image.quantize(256).save(DOCS / "images" / f"usefulness_{drawing}_{name}.png", optimize=True)


@torch.inference_mode()
def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--models", type=list_of(), default=list(SETTINGS))
    parser.add_argument("--tests", type=list_of(), default=list(TESTS))
    parser.add_argument("--prompts", type=int, default=10, help="at most this many of a model's prompts")
    parser.add_argument("--pictures", type=int, help="images per prompt, 24 unless told")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument(
        "--rows", type=list_of(Path), default=[], help="show what earlier runs wrote with --json instead of measuring"
    )
    parser.add_argument("--docs", action="store_true", help="write the tables and figures of docs/usefulness.md")
    arguments = parser.parse_args()
    if unknown := {*arguments.models} - {*SETTINGS} | {*arguments.tests} - {*TESTS}:
        parser.error(f"expected of {', '.join([*SETTINGS, *TESTS])}, got {', '.join(sorted(unknown))}")
    rows = [row for path in arguments.rows for row in json.loads(path.read_text())]
    names = [] if arguments.rows else arguments.models
    for name in names:
        SETTINGS[name].judge.fetch_data()
        MobileNet.fetch_data()
    for name in names:
        measure(name, arguments, rows)
    if arguments.docs:
        write_docs(rows, "python dev.py bench usefulness --docs")


if __name__ == "__main__":
    main()

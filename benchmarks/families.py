"""Which model families of the host work: a small random instance of each is built and sampled.

    python dev.py bench families [--families Flux,Wan] [--host PATH] [--json PATH]
    python dev.py bench families --rows OLD.json,NEW.json --docs

For every family of images or video in the host's ``supported_models``: is the last layer found, is our sampler's latent
the stock one's to the bit at as many network calls, is the variance that a run shows that of perturbed weights at the
place where each output lands, and have map and mask the image's size. Another host is named by ``--host`` or by
COMFYUI_PATH. ``--docs`` writes the table of docs/families.md, with a column for each host in the rows.
"""

from __future__ import annotations

import json
from pathlib import Path

import in_process

in_process.import_host_and_pack()

import comfy.supported_models as supported  # noqa: E402
import comfyui_version  # noqa: E402
import torch  # noqa: E402
from families import EVERY, set_up  # noqa: E402
from family_check import Fault, check_family  # noqa: E402
from reporting import list_of, make_parser, write_rows  # noqa: E402

DOCS = in_process.ROOT / "docs" / "families.md"
MARK = "<!-- what follows is written by the command -->"
YES, NO, NESTED = "yes", "no", "nested"
# Video with sound: a picture and a sound in one latent.
NESTED_CLASSES = {"LTXAV": "LTX 2", "MiniMaxH3": "MiniMax H3"}
# What is neither an image nor a video.
OTHERS = {
    "Hunyuan3Dv2mini", "Hunyuan3Dv2", "Hunyuan3Dv2_1", "TripoSplat", "Trellis2", "RT_DETR_v4", "SAM3", "SAM31",
    "DepthAnything3",
}  # fmt: skip


def is_of_pictures(config: type) -> bool:
    return config.__name__ not in OTHERS and "audio_model" not in config.unet_config


def try_family(name: str) -> tuple[str, str]:
    """Whether a family works, and how its last layer was found or what fails."""
    try:
        setup = set_up(name)
        setup.stock()
    except Exception as error:
        return NO, f"the stock sampler fails on the small instance ({type(error).__name__}: {error})"
    try:
        return YES, f"{setup.path}, {check_family(setup)}"
    except (Fault, ValueError) as fault:
        return NO, str(fault)
    except Exception as error:
        return NO, f"{type(error).__name__}: {error}"


def rows_of_host(wanted: list[str] | None) -> list[dict]:
    """One row for each class of the host's; of the wanted families alone, if some are named."""
    by_class, rows = {family.config: name for name, family in EVERY.items()}, []
    for config in supported.models:
        name = by_class.get(config.__name__, NESTED_CLASSES.get(config.__name__, config.__name__))
        if not is_of_pictures(config) or (wanted and name not in wanted):
            continue
        if config.__name__ in NESTED_CLASSES:
            works, why = NESTED, "picture and sound in one latent"
        elif name not in EVERY:
            works, why = NO, "no small instance is known"
        else:
            works, why = try_family(name)
        host = comfyui_version.__version__
        rows.append({"host": host, "family": name, "class": config.__name__, "works": works, "why": why})
        print(f"| {name} | {config.__name__} | {works} | {why} |", flush=True)
    return rows


def summary(rows: list[dict]) -> str:
    counted = [row for row in rows if row["works"] != NESTED]
    works = sum(row["works"] == YES for row in counted)
    share = f" ({works / len(counted):.0%})" if counted else ""
    return f"{works} of {len(counted)} families{share}, and {len(rows) - len(counted)} of nested latents"


def write_docs(rows: list[dict]) -> None:
    """Write the table below the mark in docs/families.md; the text above it is written by hand."""
    hosts = list(dict.fromkeys(row["host"] for row in rows))
    by_family: dict[tuple[str, str], dict[str, dict]] = {}
    for row in rows:
        by_family.setdefault((row["family"], row["class"]), {})[row["host"]] = row
    lines = [f"| family | class | {' | '.join(hosts)} | last layer, or why not |", "|---" * (3 + len(hosts)) + "|"]
    for (family, name), found in sorted(by_family.items(), key=lambda item: item[0][0].lower()):
        cells = [found[host]["works"] if host in found else "" for host in hosts]
        whys = dict.fromkeys(row["why"] for row in found.values())
        lines.append(f"| {family} | `{name}` | {' | '.join(cells)} | {'; '.join(whys)} |")
    sums = [f"- ComfyUI {host}: {summary([row for row in rows if row['host'] == host])}." for host in hosts]
    above = DOCS.read_text(encoding="utf-8").split(MARK)[0]
    text = [above + MARK, "", "Written by `python dev.py bench families --docs`.", "", *sums, "", *lines]
    DOCS.write_text("\n".join(text) + "\n", encoding="utf-8")


@torch.inference_mode()
def main() -> None:
    torch.set_num_threads(1)  # networks this small only wait for more
    parser = make_parser(__doc__)
    parser.add_argument("--families", type=list_of(), help="only these")
    parser.add_argument("--rows", type=list_of(Path), default=[], help="show what earlier runs wrote with --json")
    parser.add_argument("--docs", action="store_true", help="write the table of docs/families.md")
    arguments = parser.parse_args()
    rows = [row for path in arguments.rows for row in json.loads(path.read_text())]
    rows = rows or rows_of_host(arguments.families)
    for host in dict.fromkeys(row["host"] for row in rows):
        print(f"ComfyUI {host}: {summary([row for row in rows if row['host'] == host])}")
    write_rows(arguments.json, rows)
    if arguments.docs:
        write_docs(rows)


if __name__ == "__main__":
    main()

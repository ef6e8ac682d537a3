"""The farm with a real Ray and real ComfyUIs: the same answer whatever happens on the way."""

from __future__ import annotations

import csv
import json
import os
import re
import signal
import subprocess
import time
from pathlib import Path

import numpy
import psutil
import pytest
from bayesdiff_farm.server import Server
from PIL import Image
from safetensors.numpy import load_file
from small import BATCH, SEEDS, node, rows, servers, small_workflow, wait_for_rows, wait_until_gone


def kept(out: Path) -> dict[str, bytes]:
    """Names of the kept files, and what they hold; of pictures their pixels, since the file holds its graph too."""
    found = {}
    for path in sorted((out / "kept").iterdir()):
        if path.suffix == ".png":
            found[path.name] = numpy.asarray(Image.open(path)).tobytes()
        elif path.suffix == ".latent":
            found[path.name] = load_file(path)["latent_tensor"].tobytes()
        else:
            found[path.name] = path.read_bytes()
    return found


def scores(out: Path, again: bool = False) -> dict[tuple[int, int], float]:
    """The score of each image; ``again`` allows some to be made twice, if they come out alike."""
    made = [((row["task"], place), image["score"]) for row in rows(out) for place, image in enumerate(row["images"])]
    assert len({key for key, _ in made}) == len(set(made) if again else made), "nothing is done twice"
    return dict(made)


def assert_same(out: Path, reference: Path, again: bool = False) -> None:
    assert scores(out, again) == scores(reference) and len(scores(reference)) == SEEDS * BATCH
    assert kept(out) == kept(reference)


def listening(pid: int) -> list[str]:
    """Addresses that a process and its descendants listen on."""
    family = [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]
    found = [connection for process in family for connection in process.net_connections("inet")]
    return [connection.laddr.ip for connection in found if connection.status == psutil.CONN_LISTEN]


def test_what_is_kept_is_the_best_with_all_that_belongs_to_it(reference):
    ranked = sorted(scores(reference).items(), key=lambda item: (item[1], item[0]))
    with (reference / "table.csv").open() as file:
        table = list(csv.DictReader(file))
    assert [(int(line["task"]), int(line["place"])) for line in table] == [key for key, _ in ranked]
    assert [line["kept"] for line in table] == ["True"] * 3 + ["False"] * 9
    names = [f"{rank:04}_seed{task}_{place}" for rank, ((task, place), _) in enumerate(ranked[:3], 1)]
    ends = (".json", ".latent", ".png", "_map.png")
    assert sorted(kept(reference)) == sorted(name + end for name in names for end in ends)
    with Image.open(reference / "contact_sheet.png") as sheet, Image.open(reference / "histogram.png") as drawn:
        assert sheet.width >= 2 * 128 and numpy.asarray(drawn).std() > 5


def test_the_workflow_of_a_kept_image_makes_it_again(farm, reference):
    path = sorted((reference / "kept").glob("*.json"))[0]
    graph = json.loads(path.read_text())
    assert graph["save"] == small_workflow()["save"], "the user's own nodes are all there"
    graph["latent"] = node("SaveLatent", samples=["ours", 0], filename_prefix="again")
    arguments = ["--base-directory", farm.environment["BAYESDIFF_FARM_BASE"]]
    python = os.environ["COMFYUI_PYTHON"]
    server = Server(Path(os.environ["BAYESDIFF_COMFYUI"]), python, farm.root / "again", arguments, threads=1)
    try:
        saved = server.run(graph)["latent"]["latents"][0]["filename"]
    finally:
        server.stop()
    place = int(path.stem.rpartition("_")[2])
    again = load_file(farm.root / "again" / "output" / saved)["latent_tensor"][place : place + 1]
    assert numpy.array_equal(again, load_file(path.with_suffix(".latent"))["latent_tensor"])


def test_two_workers_of_which_one_is_killed_and_one_loses_its_server(farm, reference):
    out = farm.root / "killed"
    arguments = ("--seeds", SEEDS, "--keep", 3, "--workers", 2)
    process = farm.start(out, farm.workflow(small_workflow()), *arguments)
    wait_for_rows(out, 1, process)
    assert len(servers(out)) == 2
    addresses = listening(process.pid)
    assert len(addresses) > 4 and all(address.endswith("127.0.0.1") for address in addresses), addresses
    first, second = servers(out).items()
    os.kill(first[1], signal.SIGKILL)  # the worker: its server goes with it
    wait_for_rows(out, 2, process)
    os.kill(second[0], signal.SIGKILL)  # a server: its worker starts another
    said = "".join(process.communicate(timeout=250))
    assert process.returncode == 0, said
    assert_same(out, reference)
    wait_until_gone(out)


def test_a_killed_driver_and_a_cancelled_one_are_gone_on_with(farm, reference):
    out = farm.root / "resumed"
    process = farm.start(out, farm.workflow(small_workflow()), "--seeds", SEEDS, "--keep", 1)
    wait_for_rows(out, 1, process)
    process.send_signal(signal.SIGSTOP)  # a fast machine would be done before the next process has begun
    code, said = farm.run(out, "--resume", "--keep", 3)
    assert code == 1 and "one is at work" in said
    process.kill()
    process.communicate()
    wait_until_gone(out)
    before = (out / "results.jsonl").read_text()
    code, said = farm.run(out, farm.workflow(small_workflow()), "--seeds", SEEDS, "--keep", 3)
    assert code == 1 and "add --resume" in said

    process = farm.start(out, "--resume", "--keep", 3)
    wait_for_rows(out, len(before.splitlines()) + 1, process)
    process.send_signal(signal.SIGINT)
    said = "".join(process.communicate(timeout=60))
    assert process.returncode == 130 and "go on with --resume" in said
    wait_until_gone(out)
    then = (out / "results.jsonl").read_text()
    assert then.startswith(before)

    code, said = farm.run(out, "--resume", "--keep", 3)
    assert code == 0 and (out / "results.jsonl").read_text().startswith(then), said
    assert_same(out, reference)
    wait_until_gone(out)


def test_another_choice_needs_no_work_and_lost_files_are_made_again(farm, reference):
    out = farm.root / "choices"
    subprocess.run(["cp", "-r", reference, out], check=True)
    start = time.monotonic()
    code, said = farm.run(out, "--resume", "--keep", 2)
    assert code == 0 and "starting" not in said and time.monotonic() - start < 30, said
    assert len(list((out / "kept").glob("*.json"))) == 2
    best = sorted((reference / "kept").glob("0003*.latent"))[0]
    for path in (out / "work").rglob(f"{int(best.name.split('seed')[1].split('_')[0]):07}*"):
        path.unlink()
    code, said = farm.run(out, "--resume", "--keep", 3)
    assert code == 0 and "whose files are gone" in said, said
    assert kept(out) == kept(reference)


def test_two_passes_keep_the_best_early_scores_and_finish_the_same_images(farm, reference):
    out = farm.root / "passes"
    arguments = ("--seeds", SEEDS, "--keep", 1, "--early", 0.5, "--discard")
    code, said = farm.run(out, farm.workflow(small_workflow()), *arguments)
    assert code == 0, said
    early = {row["task"]: row for row in rows(out) if row["pass"] == "early"}
    final = [row for row in rows(out) if row["pass"] == "final"]
    best = min(early.values(), key=lambda row: min(image["score"] for image in row["images"]))
    assert len(early) == SEEDS and [row["task"] for row in final] == [best["task"]]
    whole = {row["task"]: row for row in rows(reference)}[best["task"]]
    assert [image["score"] for image in final[0]["images"]] == [image["score"] for image in whole["images"]]
    assert not list((out / "work").rglob("*.png")) and list((out / "kept").glob("*.png"))
    costly = farm.run(farm.root / "costly", farm.workflow(small_workflow()), "--seeds", 4, "--keep", 3, "--early", 0.5)
    assert costly[0] == 1 and "leave out --early" in costly[1]


def test_what_cannot_work_is_told_before_any_work(farm, tmp_path):
    """The folder, the kind of workflow, the number of images; and by ComfyUI what is wrong in the workflow itself."""
    file = tmp_path / "file"
    file.write_text("")
    for out, arguments, words in (
        (file / "out", (farm.workflow(small_workflow()), "--seeds", 2, "--keep", 1), "a folder to write to"),
        (tmp_path / "a", (farm.workflow(small_workflow()), "--seeds", 0, "--keep", 1), "got 0"),
        (tmp_path / "b", (farm.workflow({"1": node("KSampler")}), "--seeds", 2, "--keep", 1), "got one without"),
        (tmp_path / "c", ("--resume", "--keep", 1), "run to resume"),
        (tmp_path / "d", (farm.workflow(small_workflow()), "--seeds", 2), "one of --keep"),
        (tmp_path / "e", (farm.workflow(small_workflow(steps=0)), "--seeds", 9, "--keep", 1), "steps"),
    ):
        code, said = farm.run(out, *arguments)
        assert code == 1 and words in said and "Traceback" not in said, said
        assert re.search(r"^farm: Expected .+", said, re.M) and not rows(out)
    wait_until_gone(tmp_path)


@pytest.mark.parametrize("small_disk", [("700k", "-l")], indirect=True, ids=["700k"])
def test_a_full_disk_stops_and_is_gone_on_with(farm, reference, small_disk):
    out = small_disk / "out"
    code, said = farm.run(out, farm.workflow(small_workflow()), "--seeds", SEEDS, "--keep", 3)
    assert code == 1 and "--resume" in said and "oom for" in said and "Traceback" not in said, said
    assert {**scores(reference)} | scores(out) == scores(reference)
    wait_until_gone(out)
    subprocess.run(["mount", "-o", "remount,size=20m", str(small_disk)], check=True)
    code, said = farm.run(out, "--resume", "--keep", 3)
    assert code == 0, said
    assert_same(out, reference)

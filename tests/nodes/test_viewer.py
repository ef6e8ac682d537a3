"""The viewer's outputs, and what it tells the page."""

from __future__ import annotations

import json
import math

import comfy.utils
import folder_paths
import numpy
import pytest
import torch
from bayesdiff.bayesdiff_core.reading import masks
from bayesdiff.bayesdiff_core.reading.grid import LatentGrid
from bayesdiff.bayesdiff_core.reading.uncertainty import Uncertainty
from bayesdiff.nodes.viewer import AREA, PERCENTILE, UI, USED, VALUE, WIDGETS, UncertaintyViewer
from comfy_execution.graph_utils import ExecutionBlocker
from PIL import Image

COUNT, SIDE = 4, 32
# The third is the surest, then the first, the fourth, the second.
STDS = [0.2, 0.4, 0.1, 0.3]
NAMES = [output.id for output in UncertaintyViewer.define_schema().outputs]


@pytest.fixture(autouse=True)
def temp_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(folder_paths, "temp_directory", str(tmp_path / "temp"))
    return tmp_path / "temp"


def numbered(*shape: int, count: int = COUNT) -> torch.Tensor:
    """A batch whose every element is the number of its image, over ten."""
    return torch.arange(float(count)).reshape(-1, *[1] * len(shape)).expand(count, *shape) / 10


def uncertainty_of(stds=STDS, unknown: str = "", cells: int = 4) -> Uncertainty:
    """Maps that rise from left to right, around these standard deviations."""
    ramp = torch.linspace(0.5, 1.5, cells)
    variance = (torch.tensor(stds)[:, None, None] * ramp.expand(cells, cells)).square()[:, None].expand(-1, 4, -1, -1)
    return Uncertainty(
        variance, torch.zeros_like(variance), LatentGrid(8), "ensemble", 2, {}, 1.0, torch.empty(0, *variance.shape),
        unknown=unknown,
    )  # fmt: skip


def view(**given) -> tuple[dict, dict]:
    """The node's outputs by name, and what it tells the page."""
    given = {"images": numbered(SIDE, SIDE, 3), "uncertainty": uncertainty_of()} | given
    output = UncertaintyViewer.execute(**{name: [value] for name, value in given.items()})
    (shown,) = output.ui[UI]
    json.dumps(shown, allow_nan=False)
    return dict(zip(NAMES, output.args)), shown


def numbers_of(images) -> list[int]:
    return [] if isinstance(images, ExecutionBlocker) else [round(10 * float(image.mean())) for image in images]


CHOICES = {
    "": ([0, 2], "Automatic: the surest 2 of 4."),
    "1, 3": ([1, 3], "Chosen by hand."),
    "3 1 1": ([1, 3], "Chosen by hand."),
    "all": ([0, 1, 2, 3], "Chosen by hand: all."),
    "none": ([], "Chosen by hand: none."),
    "0, 5": ([0], "The choice also names 5, which this batch does not have."),
    "7": ([0, 2], "The choice names no image of this batch."),
}


@pytest.mark.parametrize("choice", CHOICES)
def test_the_chosen_go_on(choice):
    kept, words = CHOICES[choice]
    found, _ = view(keep=2, choice=choice)
    dropped = [i for i in range(COUNT) if i not in kept]
    assert numbers_of(found["kept_images"]) == kept and numbers_of(found["dropped_images"]) == dropped
    assert words in found["report"]
    if kept:
        assert found["numbers"] == kept and len(found["mask"]) == len(kept)
    else:
        assert isinstance(found["numbers"], ExecutionBlocker) and isinstance(found["mask"], ExecutionBlocker)


def test_everything_connected_is_split_alike():
    found, _ = view(
        choice="3", latent={"samples": numbered(4, 4, 4)}, masks=numbered(SIDE, SIDE), positive=[[numbered(5, 6), {}]],
        negative=[[torch.zeros(1, 5, 6), {}]],
    )  # fmt: skip
    for kind, of in {"latent": lambda x: x["samples"], "masks": lambda x: x, "positive": lambda x: x[0][0]}.items():
        assert numbers_of(of(found[f"kept_{kind}"])) == [3] and numbers_of(of(found[f"dropped_{kind}"])) == [0, 1, 2]
    assert len(found["kept_negative"][0][0]) == 1
    assert found["kept_uncertainty"].variance.shape[0] == 1 and len(found["dropped_uncertainty"]) == 3


@pytest.mark.parametrize(
    ("threshold", "setting"), [(AREA, {"area": 0.25}), (VALUE, {"value": 0.29}), (PERCENTILE, {"percentile": 75.0})]
)
def test_the_mask_is_that_of_the_mask_node(threshold, setting):
    """But for the 16 bits of the page's map: no value of these lies within them of the threshold."""
    found, _ = view(choice="all", threshold=threshold, grow=2, blur=1.5, **setting)
    std = uncertainty_of().maps((SIDE, SIDE))
    hard = {
        AREA: lambda: masks.most_uncertain_area(std, 0.25),
        VALUE: lambda: masks.above(std, 0.29),
        PERCENTILE: lambda: masks.above(std, float(uncertainty_of().std_map().quantile(0.75))),
    }[threshold]()
    assert torch.allclose(found["mask"], masks.blur(masks.grow(hard, 2), 1.5), atol=1e-6)


def test_the_page_is_told_what_the_widgets_were():
    """Another node may have set them."""
    output = UncertaintyViewer.execute(
        images=[numbered(SIDE, SIDE, 3)], uncertainty=[uncertainty_of()], area=[0.4], choice=["1"]
    )
    assert output.ui[USED] == [dict(WIDGETS, area=0.4, choice="1")]


def test_images_of_another_size_get_masks_of_theirs():
    found, shown = view(images=numbered(48, 20, 3), choice="all", grow=0)
    assert found["mask"].shape == (COUNT, 48, 20) and shown["size"] == [48, 20] and shown["cells"] == [4, 4]


def test_the_page_is_told_what_it_needs_and_nothing_is_written_twice(temp_folder):
    before = 1 - numbered(SIDE, SIDE, 3)
    _, shown = view(before=before, images=numbered(300, 200, 3))
    assert shown["order"] == [2, 0, 3, 1] and len(shown["percentiles"]) == 1001 and shown["unknown"] == ""
    for i, each in enumerate(shown["images"]):
        told = {kind: each[kind] if kind == "thumb" else each[kind][0] for kind in KINDS}
        files = {kind: temp_folder / file["subfolder"] / file["filename"] for kind, file in told.items()}
        assert Image.open(files["images"]).size == (200, 300) and max(Image.open(files["thumb"]).size) == 192
        assert numpy.asarray(Image.open(files["images"])).max() == int(255 * i / 10)
        assert numpy.asarray(Image.open(files["before"])).max() == int(255 * (1 - i / 10))
        cells = numpy.fromfile(files["levels"], "<u2").reshape(4, 4) * shown["top"] / 65535
        assert numpy.allclose(cells, uncertainty_of().std_map()[i], atol=shown["top"] / 65535)
        assert each["score"] == pytest.approx(float(uncertainty_of().scores()[i])) and each["percentile"] is None
    written = {path: path.stat().st_mtime_ns for path in temp_folder.rglob("*") if path.is_file()}
    view(before=before, images=numbered(300, 200, 3), choice="1", area=0.5)
    assert {path: path.stat().st_mtime_ns for path in temp_folder.rglob("*") if path.is_file()} == written


KINDS = ("images", "thumb", "before", "levels")


def test_one_image_before_serves_all():
    _, shown = view(before=torch.ones(1, 8, 8, 3))
    assert len({each["before"][0]["filename"] for each in shown["images"]}) == 1


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_an_image_of_which_nothing_is_known_is_shown_and_can_be_chosen(value):
    stds = [0.2, value, 0.1, 0.3]
    why = "The network was not called." if math.isnan(value) else ""
    found, shown = view(uncertainty=uncertainty_of(stds, why), choice="0, 2", grow=0)
    assert numbers_of(found["kept_images"]) == [0, 2] and len(found["mask"]) == 2
    assert [each["levels"] is None for each in shown["images"]] == [False, True, False, False]
    which = f"{why} This holds for 1 of 4 images: 1 (counted from 0)."
    assert shown["unknown"] == which if why else "got NaN or infinity in 1 of 4 images" in shown["unknown"]
    found, _ = view(uncertainty=uncertainty_of(stds, why), choice="1")
    assert numbers_of(found["kept_images"]) == [1], "the image goes on"
    assert isinstance(found["mask"], ExecutionBlocker) and found["mask"].message == shown["unknown"]


def test_of_an_unknown_batch_all_go_on():
    found, shown = view(uncertainty=uncertainty_of([math.nan] * COUNT, "Nobody knows."))
    assert numbers_of(found["kept_images"]) == [0, 1, 2, 3] and "nothing is known of any image" in found["report"]
    assert shown["unknown"] == "Nobody knows." and found["mask"].message == "Nobody knows."


def test_a_full_disk_costs_the_page_alone(temp_folder):
    temp_folder.write_text("a file where a folder should be")
    found, shown = view()
    assert numbers_of(found["kept_images"]) == [2] and "Expected room in the temp folder" in shown["problem"]


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
@pytest.mark.parametrize("kind", [torch.float32, torch.float16, torch.bfloat16])
def test_images_of_any_channels_and_precision_are_shown_and_go_on(temp_folder, channels, kind):
    images = numbered(SIDE, SIDE, channels).to(kind)
    images[1, 0, 0] = math.nan
    found, shown = view(images=images, choice="0, 3")
    assert numbers_of(found["kept_images"]) == [0, 3]
    file = shown["images"][3]["images"][0]
    with Image.open(temp_folder / file["subfolder"] / file["filename"]) as image:
        assert image.size == (SIDE, SIDE) and image.mode == {3: "RGB", 4: "RGBA"}.get(channels, "L")


def test_cancelled_at_any_image_nothing_is_left_half_written(temp_folder):
    class Cancelled(Exception):
        pass

    def cancel(at):
        def hook(value, *_, **__):
            if value == at:
                raise Cancelled

        return hook

    try:
        for at in range(1, COUNT + 1):
            comfy.utils.set_progress_bar_global_hook(cancel(at))
            with pytest.raises(Cancelled):
                view()
            assert not list(temp_folder.rglob("*.part"))
    finally:
        comfy.utils.set_progress_bar_global_hook(None)
    assert numbers_of(view()[0]["kept_images"]) == [2]


def test_wrong_input_is_one_sentence():
    with pytest.raises(ValueError, match="Expected 4 in the batch at the input images, one per score, got 3"):
        view(images=numbered(SIDE, SIDE, 3, count=3))
    with pytest.raises(ValueError, match="Expected 4 in the batch at the input images, one per score, got 0"):
        view(images=numbered(SIDE, SIDE, 3, count=0))
    with pytest.raises(ValueError, match="Expected 4 in the batch at the input before, one per score, got 3"):
        view(before=numbered(SIDE, SIDE, 3, count=3))
    wrong = UncertaintyViewer.validate_inputs(choice=["<img src=x>"])
    assert "Expected the numbers of the images to keep" in wrong
    assert UncertaintyViewer.validate_inputs(choice=["0, 2"]) is UncertaintyViewer.validate_inputs() is True


def test_a_list_of_batches_is_joined():
    half = [uncertainty_of(STDS[:2]), uncertainty_of(STDS[2:])]
    output = UncertaintyViewer.execute(
        images=[numbered(SIDE, SIDE, 3)[:2], numbered(SIDE, SIDE, 3)[2:]], uncertainty=half, keep=[2]
    )
    assert numbers_of(output.args[0]) == [0, 2] and len(output.ui[UI][0]["images"]) == COUNT


def test_clips_are_shown_masked_and_chosen_frame_by_frame():
    """Two clips of five frames: the first latent frame makes one, the second four."""
    stds = torch.tensor([[0.1, 0.4], [0.3, 0.2]])
    ramp = torch.linspace(0.5, 1.5, 4)
    variance = (stds[:, :, None, None] * ramp.expand(4, 4)).square()[:, None].expand(-1, 4, -1, -1, -1)
    clips = Uncertainty(variance, variance, LatentGrid(8, 4), "test", 0, {}, 1.0, torch.empty(0, *variance.shape))
    images, value = numbered(SIDE, SIDE, 3, count=10), {"threshold": VALUE, "value": 0.25, "grow": 0}
    found, shown = view(uncertainty=clips, images=images, choice="1", **value)
    assert numbers_of(found["kept_images"]) == [5, 6, 7, 8, 9] and numbers_of(found["dropped_images"]) == [
        0,
        1,
        2,
        3,
        4,
    ]
    std = clips.maps((SIDE, SIDE))
    assert torch.equal(found["mask"], masks.above(std, 0.25)[5:])
    assert shown["map_of"] == [0, 1, 1, 1, 1]
    assert [len(each[kind]) for each in shown["images"] for kind in ("images", "levels")] == [5, 2, 5, 2]
    with pytest.raises(ValueError, match="Expected 2 clips of 5 frames at the input before, clip after clip, got 7"):
        view(uncertainty=clips, images=images, before=numbered(SIDE, SIDE, 3, count=7))

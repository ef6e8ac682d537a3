"""Head files: round trip, and every way in which a file can be wrong."""

import dataclasses
import json
import os

import pytest
import safetensors.torch
import torch

from bayesdiff_core.estimators.trend import Slopes, Trend
from bayesdiff_core.posterior.calibration import Calibration
from bayesdiff_core.posterior.features import LayerGeometry
from bayesdiff_core.posterior.laplace_head import DiagonalPrecision, LaplaceHead, SpectralPrecision
from bayesdiff_core.posterior.storage import HeadFileError, digest, load_head, save_head
from bayesdiff_core.reading.scale import ScoreScale


def make_head(rank: int | None = None, in_channels: int = 2) -> LaplaceHead:
    generator = torch.Generator().manual_seed(0)
    geometry = LayerGeometry.of(torch.nn.Conv2d(in_channels, 3, 3, padding=1))
    basis = torch.linalg.qr(torch.randn(geometry.width, geometry.width, generator=generator))[0][:, :rank].contiguous()
    values = 0.1 + 1e4 ** torch.rand(basis.shape[1], generator=generator)
    return LaplaceHead(geometry, SpectralPrecision(basis, values, 0.4), 0.25, {"network": "UNet"})


@pytest.fixture
def head():
    return make_head()


@pytest.mark.parametrize("shape", ["full", "low-rank", "diag"])
def test_round_trip(tmp_path, shape):
    head = make_head(7 if shape == "low-rank" else None)
    if shape == "diag":
        head = dataclasses.replace(head, precision=DiagonalPrecision(head.precision.values))
    save_head(head, tmp_path / "sub" / "head.safetensors")
    loaded = load_head(tmp_path / "sub" / "head.safetensors")
    assert loaded.precision.structure == shape
    assert loaded.geometry == head.geometry
    assert torch.equal(loaded.draw(1, 0), head.draw(1, 0))
    assert loaded.prior_precision == head.prior_precision and loaded.about == head.about
    assert os.listdir(tmp_path / "sub") == ["head.safetensors"]


@pytest.mark.parametrize("rank", [None, 40])
@pytest.mark.parametrize(("dtype", "limit"), [(torch.bfloat16, 2e-2), (torch.float16, 2e-3)])
def test_half_precision_halves_the_file_and_hardly_changes_the_variance(tmp_path, rank, dtype, limit):
    head = make_head(rank, in_channels=32)
    sizes = []
    for stored in (torch.float32, dtype):
        save_head(head, tmp_path / "head.safetensors", stored)
        sizes.append((tmp_path / "head.safetensors").stat().st_size)
    loaded = load_head(tmp_path / "head.safetensors")
    assert sizes[1] < 0.6 * sizes[0]
    features = torch.randn(2, 32, 8, 8, generator=torch.Generator().manual_seed(1)) + 2
    error = (loaded.variance(features) / head.variance(features) - 1).abs()
    assert 0 < error.max() < limit


def test_a_file_that_is_cut_short(head, tmp_path):
    path = tmp_path / "head.safetensors"
    save_head(head, path)
    content = path.read_bytes()
    for length in (0, 4, 100, len(content) // 2, len(content) - 1):
        path.write_bytes(content[:length])
        with pytest.raises(HeadFileError, match="head.safetensors is cut short or is another kind of file"):
            load_head(path)


def test_other_files_are_refused(head, tmp_path):
    text = tmp_path / "notes.safetensors"
    text.write_text("not a head")
    with pytest.raises(HeadFileError, match="notes.safetensors is cut short or is another kind of file"):
        load_head(text)
    lora = tmp_path / "lora.safetensors"
    safetensors.torch.save_file({"weight": torch.zeros(2)}, lora)
    with pytest.raises(HeadFileError, match="lora.safetensors is a safetensors file of something else"):
        load_head(lora)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format_version": "4"}, "of format version 1, 2 or 3, but .* has version 4"),
        ({"parts": "2"}, "lacks or garbles"),
        ({"parts": "0"}, "lacks or garbles"),
        ({"parts": "1000000000"}, "lacks or garbles"),
        ({"parts": "many"}, "lacks or garbles"),
        ({"geometry": "{}"}, "lacks or garbles"),
        ({"geometry": '{"kind": "linear", "in_features": 5, "out_features": 1, "bias": true}'}, "do not fit"),
        ({"prior_precision": "many"}, "lacks or garbles"),
        ({"prior_precision": "-1.0"}, "do not fit"),
        ({"rest_precision": "0.0"}, "do not fit"),
        ({"rest_precision": "inf"}, "do not fit"),
        ({"about": "[1]"}, "lacks or garbles"),
    ],
)
def test_metadata_that_does_not_fit(head, tmp_path, change, message):
    path = tmp_path / "head.safetensors"
    save_head(head, path)
    with safetensors.safe_open(path, framework="pt") as file:
        metadata, tensors = file.metadata(), {key: file.get_tensor(key) for key in file.keys()}
    safetensors.torch.save_file(tensors, path, metadata | change)
    with pytest.raises(HeadFileError, match=message):
        load_head(path)


def test_heads_of_several_layers_are_one_file(head, tmp_path):
    sound = dataclasses.replace(make_head(7, 5), about={"layer": "audio_proj_out"}, calibration=make_calibration())
    path = tmp_path / "head.safetensors"
    save_head(dataclasses.replace(head, others=(sound,)), path)
    loaded = load_head(path)
    assert [each.about for each in (loaded, *loaded.others)] == [head.about, sound.about]
    assert loaded.calibration is None and loaded.others[0].calibration is not None
    for own, back in ((head, loaded), (sound, loaded.others[0])):
        assert torch.equal(own.draw(1, 2), back.draw(1, 2)) and own.geometry == back.geometry
    with safetensors.safe_open(path, framework="pt") as file:
        metadata, tensors = file.metadata(), {key: file.get_tensor(key) for key in file.keys()}
    assert metadata["format_version"] == "3", "older versions of the pack shall not take it for a head of one layer"
    broken = tensors | {"1.precision": torch.full_like(tensors["1.precision"], torch.nan)}
    safetensors.torch.save_file(broken, path, metadata)
    with pytest.raises(HeadFileError, match="do not fit"):
        load_head(path)


def make_calibration() -> Calibration:
    full, blind, way = (torch.arange(float(count)) for count in (18, 10, 8))
    scale = ScoreScale(6, {"mean std": (-2.5, 0.3), "sum": (1.0, 0.0)})
    return Calibration(Trend(Slopes(full, 0.5), Slopes(blind, -0.5), way, 0.4, 6), scale)


def rewritten(path, metadata=None, tensors=None) -> None:
    """The file with some of it changed, and its hash made anew."""
    with safetensors.safe_open(path, framework="pt") as file:
        said = file.metadata() | (metadata or {})
        kept = {key: file.get_tensor(key) for key in file.keys()} | (tensors or {})
    safetensors.torch.save_file(kept, path, said | {"sha256": digest(kept, said)})


def test_what_a_head_learned_is_kept(head, tmp_path):
    path, learned = tmp_path / "head.safetensors", make_calibration()
    save_head(dataclasses.replace(head, calibration=learned), path)
    found = load_head(path).calibration
    assert found.scale == learned.scale and found.to_json() == learned.to_json()
    assert all(torch.equal(found.tensors()[name], tensor) for name, tensor in learned.tensors().items())
    alone = dataclasses.replace(learned, scale=None)
    save_head(dataclasses.replace(head, calibration=alone), path)
    assert load_head(path).calibration.scale is None


def test_a_head_of_the_first_format_loads_and_lacks_what_it_never_learned(head, tmp_path):
    path = tmp_path / "head.safetensors"
    save_head(head, path)
    rewritten(path, {"format_version": "1"})
    assert load_head(path).calibration is None and torch.equal(load_head(path).draw(1, 0), head.draw(1, 0))


@pytest.mark.parametrize(
    ("metadata", "tensors"),
    [
        ({"calibration": "{}"}, {}),
        ({"calibration": "[" * 100_000}, {}),
        ({"calibration": make_calibration().to_json().replace("0.4", "-1")}, {}),
        ({"calibration": make_calibration().to_json().replace("0.3", "NaN")}, {}),
        ({"calibration": make_calibration().to_json().replace("-2.5", "1e999")}, {}),
        ({"calibration": make_calibration().to_json().replace("[0.5, -0.5]", "[0.5]")}, {}),
        ({}, {"trend.full": torch.zeros(17)}),
        ({}, {"trend.blind": torch.zeros(0)}),
        ({}, {"trend.way": torch.full((8,), torch.nan)}),
        ({}, {"trend.way": torch.zeros(8, 2)}),
    ],
)
def test_learning_that_cannot_be(head, tmp_path, metadata, tensors):
    path = tmp_path / "head.safetensors"
    save_head(dataclasses.replace(head, calibration=make_calibration()), path)
    rewritten(path, metadata, tensors)
    with pytest.raises(HeadFileError, match="Expected a complete Laplace head, but head.safetensors lacks or garbles"):
        load_head(path)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 0.0, -1.0])
def test_precisions_that_cannot_be(head, tmp_path, value):
    path = tmp_path / "head.safetensors"
    head.precision.values[2] = value
    save_head(head, path)
    with pytest.raises(HeadFileError, match="finite, positive precision"):
        load_head(path)


def test_a_full_disk_leaves_the_old_file_and_nothing_else(head, tmp_path):
    """A limit on the size of files stands in for the disk's end: the write itself fails, part of it done."""
    resource = pytest.importorskip("resource", reason="limits of a process are Unix's")
    path = tmp_path / "head.safetensors"
    save_head(head, path)
    before, larger = path.read_bytes(), make_head(in_channels=16)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, hard))
    try:
        with pytest.raises(OSError, match="Expected a folder with room for the head head.safetensors .* save again"):
            save_head(larger, path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert os.listdir(tmp_path) == ["head.safetensors"] and path.read_bytes() == before


def test_a_folder_that_is_a_file_is_one_sentence(head, tmp_path):
    (tmp_path / "heads").write_text("in the way")
    with pytest.raises(OSError, match="Expected a folder with room for the head .* make it writable, and save again"):
        save_head(head, tmp_path / "heads" / "head.safetensors")
    assert (tmp_path / "heads").read_text() == "in the way"


def test_about_is_text_that_survives(head, tmp_path):
    strange = dataclasses.replace(head, about={"data": json.dumps({"ü": "\n\"'"})})
    save_head(strange, tmp_path / "head.safetensors")
    assert load_head(tmp_path / "head.safetensors").about == strange.about

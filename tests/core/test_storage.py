"""Head files: round trip, and every way in which a file can be wrong."""

import json
import os

import pytest
import safetensors.torch
import torch
from bayesdiff.bayesdiff_core import storage
from bayesdiff.bayesdiff_core.features import LayerGeometry
from bayesdiff.bayesdiff_core.laplace_head import LaplaceHead
from bayesdiff.bayesdiff_core.storage import HeadFileError, load_head, save_head


@pytest.fixture
def head():
    generator = torch.Generator().manual_seed(0)
    geometry = LayerGeometry.of(torch.nn.Conv2d(2, 3, 3, padding=1))
    vectors = torch.linalg.qr(torch.randn(geometry.width, geometry.width, generator=generator))[0]
    return LaplaceHead(geometry, torch.rand(geometry.width, generator=generator), vectors, 0.25, {"network": "UNet"})


def test_round_trip(head, tmp_path):
    save_head(head, tmp_path / "sub" / "head.safetensors")
    loaded = load_head(tmp_path / "sub" / "head.safetensors")
    assert loaded.geometry == head.geometry
    assert torch.equal(loaded.eigenvalues, head.eigenvalues) and torch.equal(loaded.eigenvectors, head.eigenvectors)
    assert loaded.prior_precision == head.prior_precision and loaded.about == head.about
    assert os.listdir(tmp_path / "sub") == ["head.safetensors"]


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
        ({"format_version": "2"}, "has version 2"),
        ({"geometry": "{}"}, "lacks or garbles"),
        ({"geometry": '{"kind": "linear", "in_features": 5, "out_features": 1, "bias": true}'}, "do not fit"),
        ({"prior_precision": "many"}, "lacks or garbles"),
        ({"prior_precision": "-1.0"}, "do not fit"),
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


def test_values_that_are_not_finite(head, tmp_path):
    path = tmp_path / "head.safetensors"
    head.eigenvalues[2] = float("nan")
    save_head(head, path)
    with pytest.raises(HeadFileError, match="finite values"):
        load_head(path)


def test_nothing_is_left_when_the_disk_is_full(head, tmp_path, monkeypatch):
    path = tmp_path / "head.safetensors"
    save_head(head, path)
    before = path.read_bytes()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(storage.os, "replace", full)
    with pytest.raises(OSError, match="No space left"):
        save_head(head, path)
    assert os.listdir(tmp_path) == ["head.safetensors"] and path.read_bytes() == before


def test_about_is_text_that_survives(head, tmp_path):
    strange = LaplaceHead(head.geometry, head.eigenvalues, head.eigenvectors, 1.0, {"data": json.dumps({"ü": "\n\"'"})})
    save_head(strange, tmp_path / "head.safetensors")
    assert load_head(tmp_path / "head.safetensors").about == strange.about

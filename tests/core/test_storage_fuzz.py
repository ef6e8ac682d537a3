"""Head files with any damage: the same head to the bit, or one sentence that names the file. Nothing else."""

from __future__ import annotations

import dataclasses
import json
import math
import struct
from itertools import zip_longest

import hypothesis
import hypothesis.strategies as st
import psutil
import pytest
import safetensors
import safetensors.torch
import torch

from bayesdiff_core.estimators.trend import Slopes, Trend
from bayesdiff_core.posterior.calibration import Calibration
from bayesdiff_core.posterior.features import LayerGeometry
from bayesdiff_core.posterior.laplace_head import DiagonalPrecision, LaplaceHead, SpectralPrecision
from bayesdiff_core.posterior.storage import DTYPES, HeadFileError, load_head, save_head
from bayesdiff_core.reading.scale import ScoreScale

NAME = "emoji_00001_.safetensors"
ROOM = 2**30  # bytes of memory that no bad file may take beyond what there is


def make_head(rank: int | None = 3, kind: str = "linear", width: int = 4, structure: str = "low-rank") -> LaplaceHead:
    generator = torch.Generator().manual_seed(rank or 0)
    layer = torch.nn.Linear(width, 2) if kind == "linear" else torch.nn.Conv2d(width, 2, 3, padding=1)
    geometry = LayerGeometry.of(layer)
    basis = torch.linalg.qr(torch.randn(geometry.width, geometry.width, generator=generator))[0][:, :rank].contiguous()
    values = 0.1 + torch.rand(basis.shape[1], generator=generator)
    precision = SpectralPrecision(basis, values, 0.5)
    if structure == "diag":
        precision = DiagonalPrecision(0.1 + torch.rand(geometry.width, generator=generator))
    learned = None
    if structure != "diag":
        full, blind, way = (torch.rand(count, generator=generator) for count in (18, 10, 8))
        scale = ScoreScale(6, {"mean std": (-2.5, 0.3)})
        learned = Calibration(Trend(Slopes(full, 0.5), Slopes(blind, -0.5), way, 0.4, 6), scale)
    return LaplaceHead(geometry, precision, 0.25, {"network": "UNet", "data": "own samples"}, learned)


def learned_parts(head: LaplaceHead) -> list:
    learned = head.calibration
    return [None] if learned is None else [learned.to_json(), *learned.tensors().values()]


def same(first: LaplaceHead, second: LaplaceHead) -> bool:
    """To the bit, in everything."""
    both = list(zip_longest((first, *first.others), (second, *second.others)))
    return all(one is not None and other is not None and same_layer(one, other) for one, other in both)


def same_layer(first: LaplaceHead, second: LaplaceHead) -> bool:
    parts = [
        [*vars(head.precision).values(), head.precision.structure, head.geometry, head.prior_precision, head.about]
        + learned_parts(head)
        for head in (first, second)
    ]
    return len(parts[0]) == len(parts[1]) and all(
        torch.equal(a, b) if torch.is_tensor(a) else a == b for a, b in zip(*parts)
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("heads")


@pytest.fixture(scope="module", params=["low-rank", "full", "diag", "two layers"])
def saved(request, folder):
    """A head and the bytes of its file."""
    structure = request.param if request.param == "diag" else "low-rank"
    head = make_head(None if request.param == "full" else 3, structure=structure)
    if request.param == "two layers":
        head = dataclasses.replace(head, others=(make_head(2, width=3),))
    save_head(head, folder / NAME)
    return load_head(folder / NAME), (folder / NAME).read_bytes()


def outcome(path, content: bytes) -> LaplaceHead | str:
    """The head of these bytes, or the sentence; any other error is the test's own failure."""
    path.write_bytes(content)
    try:
        return load_head(path)
    except HeadFileError as error:
        text = str(error)
        assert (
            text.startswith("Expected a ")
            and NAME in text
            and len(text) < 1000
            and text.endswith(("again.", "written."))
        )
        return text


def header_end(content: bytes) -> int:
    return 8 + struct.unpack("<Q", content[:8])[0]


# ---------------------------------------------------------------- damage


def test_cut_short_anywhere_is_one_sentence(saved, folder):
    _, content = saved
    for length in range(len(content)):
        assert isinstance(outcome(folder / NAME, content[:length]), str), length


def test_a_flipped_bit_anywhere_is_one_sentence_or_changes_nothing(saved, folder):
    """Every byte of the header and of the tensors; where the name of the hash is hit, the rest is sound."""
    head, content = saved
    unchanged = 0
    for place in range(len(content)):
        damaged = bytearray(content)
        damaged[place] ^= 1 << place % 8
        found = outcome(folder / NAME, bytes(damaged))
        unchanged += not isinstance(found, str)
        assert isinstance(found, str) or same(found, head), (place, content[max(0, place - 20) : place + 20])
    assert unchanged <= len("sha256"), "what holds a value is watched"


@hypothesis.given(data=st.data())
def test_any_other_damage(saved, folder, data):
    """Bytes put in, taken out, or replaced in a run, in header or tensors."""
    head, content = saved
    start = data.draw(st.integers(0, len(content)))
    if data.draw(st.booleans(), "in the header"):
        start %= header_end(content)
    removed, added = data.draw(st.integers(0, 40)), data.draw(st.binary(max_size=40))
    found = outcome(folder / NAME, content[:start] + added + content[start + removed :])
    assert isinstance(found, str) or same(found, head)


@hypothesis.given(content=st.binary(max_size=300), length=st.integers(0, 2**64 - 1))
@hypothesis.example(b"", 2**63)
@hypothesis.example(b"{" * 300, 300)
def test_any_other_file(folder, content, length):
    assert isinstance(outcome(folder / NAME, content), str)
    assert isinstance(outcome(folder / NAME, struct.pack("<Q", length) + content), str)


# ---------------------------------------------------------------- hostile content

HUGE = "x" * 1_000_000
GEOMETRY = {
    "kind": "linear",
    "in_features": 4,
    "out_features": 2,
    "bias": True,
    "kernel_size": [1, 1],
    "padding": [0, 0],
}
METADATA = {
    "a name that is a path": {"about": json.dumps({"layer": "../../../etc/passwd", "../key": "C:\\windows"})},
    "a huge string": {"about": json.dumps({"data": HUGE})},
    "extra keys": {HUGE: HUGE, "__class__": "os.system", "note": "\0"},
    "half a character": {"about": '{"data": "\\ud800"}'},
    "a huge version": {"format_version": HUGE},
    "a huge number": {"prior_precision": HUGE},
    "a number of many digits": {"geometry": json.dumps(GEOMETRY).replace("4", "4" * 5000)},
    "text nested deep": {"about": "[" * 100_000},
    "geometry nested deep": {"geometry": '{"kind":' * 100_000},
    "a list as text": {"about": "[]"},
    "no number": {"prior_precision": "nan"},
    "an infinite prior": {"prior_precision": "inf"},
    "a negative prior": {"prior_precision": "-0.25"},
    "an infinite rest": {"rest_precision": "inf"},
    "no rest": {"rest_precision": ""},
} | {
    f"geometry, {key} {value}": {"geometry": json.dumps(GEOMETRY | {key: value})}
    for key, value in [
        ("kind", "banana"), ("kind", None), ("in_features", -4), ("in_features", 4.0), ("in_features", "4"),
        ("in_features", 10**12), ("out_features", 0), ("out_features", -2), ("out_features", 2.5), ("bias", 1),
        ("bias", "yes"), ("kernel_size", 3), ("kernel_size", []), ("kernel_size", [1, 1, 1]), ("kernel_size", ["a", 1]),
        ("kernel_size", [-1, -1]), ("padding", [-1, 0]), ("padding", [math.inf, 0]), ("padding", {}), ("extra", 1),
    ]
}  # fmt: skip
SOUND = {"a name that is a path", "a huge string", "extra keys", "half a character"}


@pytest.fixture
def little_memory():
    """No more than a gibibyte beyond what the process has."""
    resource = pytest.importorskip("resource", reason="limits of a process are Unix's")
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    used = psutil.Process().memory_info().vms
    resource.setrlimit(resource.RLIMIT_AS, (used + ROOM, hard))
    yield
    resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def parts_of(head: LaplaceHead, path) -> tuple[dict, dict]:
    save_head(head, path)
    with safetensors.safe_open(path, framework="pt") as file:
        return {key: file.get_tensor(key).clone() for key in file.keys()}, file.metadata()


@pytest.mark.parametrize("name", METADATA)
def test_hostile_metadata(folder, name, little_memory):
    """With a hash that is right, or none, as an attacker would write."""
    path = folder / NAME
    tensors, metadata = parts_of(make_head(), path)
    expected = load_head(path)
    del metadata["sha256"]
    found = outcome(path, safetensors.torch.save(tensors, metadata | METADATA[name]))
    if name in SOUND:
        assert same(dataclasses.replace(found, about=expected.about), expected)
    else:
        assert isinstance(found, str)


TENSORS = {
    "precision of another length": {"precision": torch.ones(2)},
    "a single precision": {"precision": torch.ones(())},
    "no precision": {"precision": torch.ones(0)},
    "a matrix of precisions": {"precision": torch.ones(3, 1)},
    "NaN": {"precision": torch.tensor([1.0, math.nan, 1.0])},
    "infinity": {"precision": torch.tensor([1.0, math.inf, 1.0])},
    "a negative one": {"precision": torch.tensor([1.0, -1.0, 1.0])},
    "too large for float32": {"precision": torch.tensor([1.0, 1e300, 1.0], dtype=torch.float64)},
    "a basis that is a vector": {"basis": torch.ones(5)},
    "a basis that is a number": {"basis": torch.ones(())},
    "half a basis that is a vector": {"basis": torch.ones(5, dtype=torch.float16)},
    "half a basis that is a number": {"basis": torch.ones((), dtype=torch.bfloat16)},
    "a basis of a rank beyond its width": {"basis": torch.ones(5, 9), "precision": torch.ones(9)},
    "a basis of no rank": {"basis": torch.ones(5, 0), "precision": torch.ones(0)},
    "half a basis of no width": {"basis": torch.ones(0, 0, dtype=torch.float16), "precision": torch.ones(0)},
    "a basis of another width": {"basis": torch.ones(6, 3)},
    "a basis of many dimensions": {"basis": torch.ones(5, 3, 1, 1)},
    "a basis of NaN": {"basis": torch.full((5, 3), math.nan)},
    "half a basis of infinity": {"basis": torch.full((5, 3), math.inf, dtype=torch.float16)},
}


@pytest.mark.parametrize("name", TENSORS)
def test_hostile_tensors(folder, name, little_memory):
    path = folder / NAME
    tensors, metadata = parts_of(make_head(), path)
    del metadata["sha256"]
    assert isinstance(outcome(path, safetensors.torch.save(tensors | TENSORS[name], metadata)), str)


@pytest.mark.parametrize(
    "dtype", ["F4", "F6_E2M3", "F8_E5M2", "F8_E4M3", "F8_E8M0", "C64", "BOOL", "I64", "U16", "BF16"]
)
def test_tensors_of_any_number_format(folder, dtype):
    """Formats that this torch does not know, or that no head has, give a head or a sentence."""
    path = folder / NAME
    _, metadata = parts_of(make_head(None, structure="diag"), path)
    del metadata["sha256"]
    bits = {"F4": 4, "F6": 6, "F8": 8, "C6": 64, "BO": 8, "I6": 64, "U1": 16, "BF": 16}[dtype[:2]]
    count = 5 if bits >= 8 else 16
    size = count * bits // 8
    tensor = {"dtype": dtype, "shape": [count], "data_offsets": [0, size]}
    header = json.dumps({"__metadata__": metadata, "precision": tensor}).encode()
    found = outcome(path, struct.pack("<Q", len(header)) + header + bytes([1] * size))
    assert isinstance(found, str) or found.precision.is_sound()


def test_a_file_from_before_there_was_a_hash(folder):
    path = folder / NAME
    tensors, metadata = parts_of(make_head(), path)
    expected = load_head(path)
    del metadata["sha256"]
    assert same(outcome(path, safetensors.torch.save(tensors, metadata)), expected)
    assert "has been damaged or changed since" in outcome(
        path, safetensors.torch.save(tensors, metadata | {"sha256": "0" * 64})
    )


# ---------------------------------------------------------------- sound heads


def test_a_head_stays_what_it_was_when_its_file_is_written_over_or_emptied(folder):
    """In place, as a copying program does: a head that still looked at its file would change, or end the process."""
    path = folder / NAME
    save_head(make_head(), path)
    head, content = load_head(path), path.read_bytes()
    path.write_bytes(bytes(len(content)))
    assert same(head, make_head())
    path.write_bytes(b"")
    assert same(head, make_head())


@hypothesis.settings(max_examples=40)
@hypothesis.given(
    kind=st.sampled_from(["linear", "conv2d"]), width=st.integers(1, 6), rank=st.integers(1, 60),
    structure=st.sampled_from(["low-rank", "diag"]), dtype=st.sampled_from(list(DTYPES)),
    about=st.dictionaries(st.text(max_size=20), st.text(max_size=20), max_size=3),
)  # fmt: skip
def test_any_head_comes_back(folder, kind, width, rank, structure, dtype, about):
    head = dataclasses.replace(make_head(rank, kind, width, structure), about=about)
    save_head(head, folder / NAME, DTYPES[dtype])
    found = load_head(folder / NAME)
    assert found.about == about and found.geometry == head.geometry
    assert found.precision.structure == head.precision.structure
    assert dtype != "float32" or same(found, head)
    features = torch.randn(
        2, *((width,) if kind == "linear" else (width, 5, 4)), generator=torch.Generator().manual_seed(1)
    )
    assert torch.allclose(found.variance(features), head.variance(features), rtol=0.1)

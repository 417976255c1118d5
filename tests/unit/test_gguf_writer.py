"""Writing: the PyPI reader and ours read back what was written, and mistakes leave no file behind."""

import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gguf as pypi
import numpy as np
import pytest

from ggrun.gguf import GgufError, GgufWriter, MetadataArray, open_gguf
from quant.format import format_by_name

F32 = format_by_name("F32")
Q8_0 = format_by_name("Q8_0")


def test_the_pypi_reader_reads_what_was_written(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    writer = GgufWriter(path, alignment=64)
    values: dict[str, Any] = {
        "general.architecture": "llama",
        "t.small": 7,
        "t.negative": -7,
        "t.large": 1 << 40,
        "t.largest": (1 << 64) - 1,
        "t.least": -(1 << 63),
        "t.float": 0.5,
        "t.true": True,
        "t.ints": [1, -2, 3],
        "t.unsigned": [1, 1 << 31],
        "t.floats": [0.5, 1],
        "t.bools": [True, False],
        "t.strings": ["", "é", "🌍"],
        "t.array": np.array([1.5, 2.5], np.float64),
    }
    for key, value in values.items():
        writer.add(key, value)
    writer.add("t.wide", 7, "uint64")
    data = np.arange(96, dtype=np.float32)
    writer.add_tensor("a.weight", (32, 3), F32, data)
    writer.add_tensor("b.weight", (32, 2), Q8_0, (bytes([i]) * 34 for i in range(2)))
    writer.write()

    reader = pypi.GGUFReader(path)
    assert reader.alignment == 64
    for key, value in values.items():
        assert reader.fields[key].contents() == (value.tolist() if isinstance(value, np.ndarray) else value)
    kinds = {key: [kind.name for kind in reader.fields[key].types] for key in reader.fields}
    assert kinds["t.small"] == ["UINT32"]
    assert kinds["t.negative"] == ["INT32"]
    assert kinds["t.large"] == kinds["t.largest"] == kinds["t.wide"] == ["UINT64"]
    assert kinds["t.least"] == ["INT64"]
    assert kinds["t.ints"] == ["ARRAY", "INT32"]
    assert kinds["t.unsigned"] == ["ARRAY", "UINT32"]
    assert kinds["t.floats"] == ["ARRAY", "FLOAT32"]
    assert kinds["t.array"] == ["ARRAY", "FLOAT64"]
    a, b = reader.tensors
    assert (a.shape.tolist(), b.shape.tolist()) == ([32, 3], [32, 2])
    assert np.array_equal(a.data.reshape(-1), data)
    assert b.data.tobytes() == bytes(34) + b"\1" * 34
    assert a.data_offset % 64 == b.data_offset % 64 == 0


def test_nested_lists_and_copied_arrays(tmp_path: Path) -> None:
    writer = GgufWriter(tmp_path / "a.gguf")
    writer.add("nested", [[1, 2], [], [3]], "uint8")
    writer.add("strings", ["a", "b"])
    writer.add("numbers", [1, 2], "int64")
    writer.write()
    with open_gguf(tmp_path / "a.gguf") as first:
        writer = GgufWriter(tmp_path / "b.gguf")
        for key, value in first.metadata.items():
            writer.add(key, value)
        writer.write()
    with open_gguf(tmp_path / "b.gguf") as second:
        assert {key: value.tolist() for key, value in second.metadata.items() if isinstance(value, MetadataArray)} == {
            "nested": [[1, 2], [], [3]],
            "strings": ["a", "b"],
            "numbers": [1, 2],
        }
        numbers, nested = second.metadata["numbers"], second.metadata["nested"]
        assert isinstance(numbers, MetadataArray)
        assert isinstance(nested, MetadataArray)
        assert (numbers.element_type, nested[0].element_type) == ("int64", "uint8")
    assert (tmp_path / "a.gguf").read_bytes() == (tmp_path / "b.gguf").read_bytes()


def test_large_tensors_are_streamed(tmp_path: Path) -> None:
    chunk, n = bytes(1 << 20), 64

    def chunks() -> Iterator[bytes]:
        for _ in range(n):
            yield chunk

    writer = GgufWriter(tmp_path / "model.gguf")
    writer.add_tensor("a", (1 << 18, n), F32, chunks())
    tracemalloc.start()
    try:
        writer.write()
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 1 << 20
    with open_gguf(tmp_path / "model.gguf") as file:
        assert file.tensors["a"].n_bytes == n << 20


@pytest.mark.parametrize("n_bytes", [0, 127, 129])
def test_data_of_the_wrong_length_leaves_no_file(n_bytes: int, tmp_path: Path) -> None:
    writer = GgufWriter(tmp_path / "model.gguf")
    writer.add_tensor("a.weight", (32,), F32, bytes(n_bytes))
    with pytest.raises(GgufError, match=f"tensor 'a.weight' needs 128 bytes of data and got {n_bytes}"):
        writer.write()
    assert list(tmp_path.iterdir()) == []


def test_an_existing_file_survives_a_failed_write(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(b"before")
    writer = GgufWriter(path)
    writer.add_tensor("a.weight", (32,), F32, b"")
    with pytest.raises(GgufError):
        writer.write()
    assert path.read_bytes() == b"before"


def test_what_cannot_be_written(tmp_path: Path) -> None:
    writer = GgufWriter(tmp_path / "model.gguf")
    for value, type_name in [
        (300, "uint8"),
        (-1, "uint32"),
        ("a", "uint32"),
        (None, None),
        ([1, "a"], None),
        (1 << 64, None),
        ({}, None),
        (1, "string"),
    ]:
        with pytest.raises(GgufError, match=r"metadata key 'a\.key' cannot hold its value"):
            writer.add("a.key", value, type_name)
    with pytest.raises(ValueError, match="33 elements cannot be Q8_0"):
        writer.add_tensor("a", (33,), Q8_0, b"")
    writer.add_tensor("a", (32,), F32, bytes(128))
    with pytest.raises(GgufError, match="tensor 'a' was added before"):
        writer.add_tensor("a", (32,), F32, bytes(128))
    for alignment in (0, 3, 1 << 21):
        with pytest.raises(GgufError, match="power of two"):
            writer.add("general.alignment", alignment)

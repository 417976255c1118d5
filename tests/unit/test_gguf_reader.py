"""Reading GGUF files: the PyPI package writes them, ours must read the same out of them."""

import struct
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf as pypi
import numpy as np
import pytest

from ggrun.gguf import GgufError, MetadataArray, open_gguf
from quant.format import FORMATS, KNOWN_TYPES
from tests.conftest import shared_path
from tests.unit.gguf_bytes import ARRAY, BOOL, FLOAT64, I8, I64, STRING, U8, U16, U64, array, block_bytes, gguf, pair, string, tensor


def write(tmp_path: Path, raw: bytes) -> Path:
    path = tmp_path / "model.gguf"
    path.write_bytes(raw)
    return path


def plain(value: object) -> object:
    return [plain(v) for v in value] if isinstance(value, MetadataArray) else value


@pytest.fixture
def written_by_pypi(tmp_path: Path) -> Path:
    path = tmp_path / "pypi.gguf"
    writer = pypi.GGUFWriter(path, "llama")
    writer.add_uint8("t.u8", 200)
    writer.add_int8("t.i8", -100)
    writer.add_uint16("t.u16", 60000)
    writer.add_int16("t.i16", -30000)
    writer.add_uint32("t.u32", 4_000_000_000)
    writer.add_int32("t.i32", -2_000_000_000)
    writer.add_uint64("t.u64", (1 << 64) - 1)
    writer.add_int64("t.i64", -(1 << 63))
    writer.add_float32("t.f32", 0.5)
    writer.add_float64("t.f64", 0.1)
    writer.add_bool("t.true", True)
    writer.add_bool("t.false", False)
    writer.add_string("t.string", "Grüße, 世界 🌍")
    writer.add_array("t.ints", [3, -1, 2])
    writer.add_array("t.floats", [0.25, -1.5])
    writer.add_array("t.bools", [True, False, True])
    writer.add_array("t.strings", ["", "a", "Ġé", "x" * 300])
    writer.add_array("t.nested", [["a", "b"], ["c"]])
    writer.add_tensor("a.weight", np.arange(96, dtype=np.float32).reshape(3, 32))
    writer.add_tensor("b.weight", np.arange(7, dtype=np.float16))
    writer.add_tensor("c.weight", np.arange(2 * 3 * 18, dtype=np.uint8).reshape(2, 3, 18), raw_dtype=pypi.GGMLQuantizationType.Q4_0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_metadata_of_every_type(written_by_pypi: Path) -> None:
    with open_gguf(written_by_pypi) as file:
        assert {key: plain(value) for key, value in file.metadata.items()} == {
            "general.architecture": "llama",
            "t.u8": 200,
            "t.i8": -100,
            "t.u16": 60000,
            "t.i16": -30000,
            "t.u32": 4_000_000_000,
            "t.i32": -2_000_000_000,
            "t.u64": (1 << 64) - 1,
            "t.i64": -(1 << 63),
            "t.f32": 0.5,
            "t.f64": 0.1,
            "t.true": True,
            "t.false": False,
            "t.string": "Grüße, 世界 🌍",
            "t.ints": [3, -1, 2],
            "t.floats": [0.25, -1.5],
            "t.bools": [True, False, True],
            "t.strings": ["", "a", "Ġé", "x" * 300],
            "t.nested": [["a", "b"], ["c"]],
        }
        assert type(file.metadata["t.true"]) is bool
        assert type(file.metadata["t.u8"]) is int


def test_tensors(written_by_pypi: Path) -> None:
    with open_gguf(written_by_pypi) as file:
        a, b, c = file.tensors.values()
        assert [(t.name, t.dims, t.format.name, t.n_elements, t.n_rows, t.row_bytes, t.n_bytes) for t in (a, b, c)] == [
            ("a.weight", (32, 3), "F32", 96, 3, 128, 384),
            ("b.weight", (7,), "F16", 7, 1, 14, 14),
            ("c.weight", (32, 3, 2), "Q4_0", 192, 6, 18, 108),
        ]
        assert np.array_equal(a.raw.view(np.float32), np.arange(96))
        assert np.array_equal(b.raw.view(np.float16), np.arange(7))
        assert np.array_equal(c.raw, np.arange(108))
        for t in (a, b, c):
            assert t.raw.ctypes.data == t.address
            assert t.raw.tobytes() == written_by_pypi.read_bytes()[t.offset : t.offset + t.n_bytes]
            assert not t.raw.flags.writeable
            assert t.readable
        assert file.data_bytes == c.offset + c.n_bytes - a.offset


@pytest.mark.parametrize("version", [2, 3])
def test_versions(version: int, tmp_path: Path) -> None:
    path = write(tmp_path, gguf([pair("a", U8, b"\7")], version=version))
    with open_gguf(path) as file:
        assert (file.version, file.metadata["a"], len(file.tensors)) == (version, 7, 0)
        assert file.n_bytes == path.stat().st_size
        assert file.path == str(path)


@pytest.mark.parametrize("alignment", [1, 8, 64, 4096])
def test_alignment_moves_the_data(alignment: int, tmp_path: Path) -> None:
    pairs = [pair("general.alignment", 4, struct.pack("<I", alignment))]
    path = write(
        tmp_path,
        gguf(
            pairs,
            [tensor("a", (1,), offset=0), tensor("b", (1,), offset=alignment * 4)],
            bytes(range(1, 5)) * alignment * 8,
            alignment=alignment,
        ),
    )
    with open_gguf(path) as file:
        assert file.alignment == alignment
        assert file.tensors["a"].offset % alignment == 0
        assert file.tensors["a"].raw.tolist() == [1, 2, 3, 4]
        assert file.tensors["b"].raw.tolist() == [1, 2, 3, 4]


def test_tensors_in_any_order_with_gaps_and_a_tail(tmp_path: Path) -> None:
    path = write(tmp_path, gguf([], [tensor("b", (8,), offset=128), tensor("a", (8,), offset=0)], bytes(range(256)) + b"tail"))
    with open_gguf(path) as file:
        assert list(file.tensors) == ["b", "a"]
        assert file.tensors["a"].raw[0] == 0
        assert file.tensors["b"].raw[0] == 128
        assert file.data_bytes == 160


def array_of(tmp_path: Path, type_id: int, n: int, payload: bytes) -> Any:
    return open_gguf(write(tmp_path, gguf([pair("a", ARRAY, array(type_id, n, payload))]))).metadata["a"]


@pytest.mark.parametrize(
    ("type_id", "payload", "values", "dtype"),
    [
        (I8, b"\xff\x01", [-1, 1], np.int8),
        (U16, b"\xff\xff\x01\x00", [65535, 1], np.uint16),
        (I64, struct.pack("<2q", -(1 << 63), 5), [-(1 << 63), 5], np.int64),
        (U64, struct.pack("<2Q", (1 << 64) - 1, 5), [(1 << 64) - 1, 5], np.uint64),
        (FLOAT64, struct.pack("<2d", 0.1, -2.5), [0.1, -2.5], np.float64),
        (BOOL, b"\x00\x01", [False, True], np.bool_),
    ],
)
def test_number_arrays(tmp_path: Path, type_id: int, payload: bytes, values: list[object], dtype: Callable[..., object]) -> None:
    found = array_of(tmp_path, type_id, 2, payload)
    assert (len(found), found[0], found[-1], found[-2], found[0:2], list(found), found.tolist()) == (
        2,
        values[0],
        values[1],
        values[0],
        values,
        values,
        values,
    )
    assert type(found[1]) is type(values[1])
    assert found.numpy().dtype == dtype
    assert found.numpy().tolist() == values
    assert found.numpy().flags.owndata  # a copy: it outlives the file
    assert found == values
    assert found != values[:1]
    for outside in (2, -3):
        with pytest.raises(IndexError, match="outside an array of 2"):
            found[outside]


def test_string_arrays(tmp_path: Path) -> None:
    texts = ["", "a", "é", "\udcff\udc80", "z" * 1000]
    found = array_of(tmp_path, STRING, 5, b"".join(string(t.encode("utf-8", "surrogateescape")) for t in texts))
    assert found.element_type == "string"
    assert [found[i] for i in range(5)] == found.tolist() == list(found) == texts
    assert (found[-1], found[3:1:-1], "a" in found, found.index("é")) == (texts[-1], texts[3:1:-1], True, 2)
    with pytest.raises(TypeError, match="no NumPy form"):
        found.numpy()


def test_nested_arrays(tmp_path: Path) -> None:
    inner = [
        array(U8, 2, b"\1\2"),
        array(STRING, 2, string("ab") + string("")),
        array(ARRAY, 2, array(U8, 0) + array(U8, 1, b"\3")),
        array(U8, 1, b"\4"),
    ]
    found = array_of(tmp_path, ARRAY, 4, b"".join(inner))
    assert plain(found) == [[1, 2], ["ab", ""], [[], [3]], [4]]
    assert found[3].tolist() == [4]
    assert found[2][1][0] == 3


def test_empty_arrays(tmp_path: Path) -> None:
    for type_id in (U8, BOOL, STRING, ARRAY):
        found = array_of(tmp_path, type_id, 0, b"")
        assert (len(found), found.tolist(), list(found)) == (0, [], [])
    assert array_of(tmp_path, U16, 0, b"").numpy().shape == (0,)


def test_invalid_utf8_in_values_is_kept(tmp_path: Path) -> None:
    with open_gguf(write(tmp_path, gguf([pair("a", STRING, string(b"a\xffb"))]))) as file:
        value = file.metadata["a"]
        assert isinstance(value, str)
        assert value.encode("utf-8", "surrogateescape") == b"a\xffb"


def test_arrays_are_not_decoded_until_asked_for(tmp_path: Path) -> None:
    n = 300_000
    strings = b"".join(string(f"token {i}") for i in range(n))
    path = write(tmp_path, gguf([pair("tokenizer.ggml.tokens", ARRAY, array(STRING, n, strings)), pair("z", U8, b"\1")]))
    tracemalloc.start()
    try:
        with open_gguf(path) as file:
            peak = tracemalloc.get_traced_memory()[1]
            tokens: Any = file.metadata["tokenizer.ggml.tokens"]
            assert (len(tokens), tokens[n - 1], file.metadata["z"]) == (n, f"token {n - 1}", 1)
    finally:
        tracemalloc.stop()
    assert peak < 20 * n  # where each starts; decoded they would take 20 MB


@pytest.mark.parametrize("type_id", KNOWN_TYPES)
def test_every_ggml_type_can_be_described(type_id: int, tmp_path: Path) -> None:
    n, size = block_bytes(type_id)
    path = write(tmp_path, gguf([], [tensor("a.weight", (2 * n, 3), type_id)], bytes(6 * size)))
    with open_gguf(path) as file:
        found = file.tensors["a.weight"]
        assert (found.format.id, found.format.name, found.n_bytes, found.readable) == (
            type_id,
            KNOWN_TYPES[type_id].name,
            6 * size,
            type_id in FORMATS,
        )
        if not found.readable:
            with pytest.raises(GgufError, match=f"'a.weight': the type {found.format.name} is not supported"):
                file.load()
        else:
            file.load()


def compare_with_pypi(path: Path) -> None:
    reader = pypi.GGUFReader(path)
    with open_gguf(path) as file:
        ours = {key: plain(value) for key, value in file.metadata.items()}
        theirs = {key: field.contents() for key, field in reader.fields.items() if not key.startswith("GGUF.")}
        assert ours.keys() == theirs.keys()
        for key, value in theirs.items():
            assert ours[key] == pytest.approx(value) if isinstance(value, float) else ours[key] == value, key
        assert [t.name for t in file.tensors.values()] == [t.name for t in reader.tensors]
        for t in reader.tensors:
            found = file.tensors[t.name]
            assert (found.dims, found.format.id, found.n_bytes, found.offset) == (
                tuple(t.shape.tolist()),
                t.tensor_type.value,
                t.n_bytes,
                t.data_offset,
            )
            assert np.array_equal(found.raw, t.data.view(np.uint8).reshape(-1))


@pytest.mark.parametrize("name", ["llama-gqa.Q4_K_M", "llama-rope3.Q8_0", "gpt-oss.MXFP4_MOE", "gemma4.Q4_K_M", "deepseek2.Q8_0"])
def test_oracle_files_read_as_by_the_pypi_reader(name: str) -> None:
    compare_with_pypi(shared_path("oracle", f"{name}.gguf"))


def test_a_vocabulary_reads_as_by_the_pypi_reader() -> None:
    compare_with_pypi(shared_path("vocab", "ggml-vocab-llama-spm.gguf"))


@pytest.mark.slow
def test_all_shared_files_read_as_by_the_pypi_reader(shared: Path) -> None:
    paths = [*(shared / "oracle").glob("*.gguf"), *(shared / "vocab").glob("*.gguf")]
    assert len(paths) > 40
    for path in paths:
        compare_with_pypi(path)

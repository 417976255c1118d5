"""Damaged and hostile files: refused in one sentence that names the file and the field, and nothing large is allocated on the way."""

import gc
import os
import tracemalloc
from pathlib import Path

import pytest

from ggrun.gguf import GgufError, open_gguf
from tests.unit.gguf_bytes import ARRAY, BOOL, F32, I32, STRING, U8, U16, U32, array, gguf, pair, string, swapped, tensor

ONE = tensor("a.weight")
DATA = bytes(128)
HUGE = (1 << 64) - 1

# name: (file, what the sentence must contain)
CASES: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "it is empty"),
    "three_bytes": (b"GGU", "ends after 3 bytes"),
    "magic_only": (b"GGUF", "the version"),
    "version_0": (gguf(version=0), "version 0 is unknown"),
    "version_1": (gguf(version=1), "version 1"),
    "version_4": (gguf(version=4), "version 4 is unknown"),
    "big_endian_2": (swapped(gguf(version=2)), "big-endian"),
    "big_endian_3": (swapped(gguf(version=3)), "big-endian"),
    "count_missing": (gguf()[:20], "the number of metadata keys"),
    "tensor_count_huge": (gguf(n_tensors=HUGE), "the number of tensors is 18446744073709551615"),
    "tensor_count_overflows_when_multiplied": (gguf(n_tensors=(1 << 64) // 33 + 1), "the number of tensors"),
    "tensor_count_one_too_many": (gguf(tensors=[ONE], data=DATA, n_tensors=2), "tensor 1 of 2"),
    "pair_count_huge": (gguf(n_pairs=1 << 60), "the number of metadata keys is 1152921504606846976"),
    "pair_count_one_too_many": (gguf(pairs=[pair("a", U8, b"\1")], n_pairs=2) + bytes(20), "metadata key 1 of 2: the key is empty"),
    "many_pairs_in_a_large_file": (gguf(n_pairs=70_000) + bytes(1 << 20), "no more than 65536"),
    "key_of_2_60_bytes": (gguf(pairs=[string(b"x", 1 << 60) + bytes(40)]), "1152921504606846976 bytes long"),
    "key_too_long": (gguf(pairs=[pair("k" * 65536, U8, b"\1")]), "no more than 65535"),
    "key_not_utf8": (gguf(pairs=[pair(b"a\xff\xfe", U8, b"\1")]), "not valid UTF-8"),
    "key_empty": (gguf(pairs=[pair(b"", U32, bytes(4))]), "the key is empty"),
    "key_twice": (gguf(pairs=[pair("a.b", U8, b"\1")] * 2), "'a.b': the key occurs twice"),
    "value_type_unknown": (gguf(pairs=[pair("a.b", 13, bytes(8))]), "'a.b': the value's type is 13"),
    "value_type_huge": (gguf(pairs=[pair("a.b", 0xFFFFFFFF, bytes(8))]), "'a.b': the value's type is 4294967295"),
    "value_cut": (gguf(pairs=[pair("a.b", U32, b"\1\1")]), "'a.b': the uint32 value takes 4 bytes"),
    "bool_2": (gguf(pairs=[pair("a.b", BOOL, b"\2")]), "'a.b': a bool must be 0 or 1"),
    "string_of_2_60_bytes": (
        gguf(pairs=[pair("a.b", STRING, string(b"x", 1 << 60))]),
        "'a.b': the value is said to be 1152921504606846976 bytes",
    ),
    "string_one_byte_too_long": (gguf(pairs=[pair("a.b", STRING, string(b"x", 2))]), "'a.b': the value is said to be 2 bytes"),
    "array_type_unknown": (gguf(pairs=[pair("a.b", ARRAY, array(99, 0))]), "'a.b': the array's element type is 99"),
    "array_of_2_60": (gguf(pairs=[pair("a.b", ARRAY, array(U8, 1 << 60))]), "'a.b': the array's length is 1152921504606846976"),
    "array_overflows_when_multiplied": (gguf(pairs=[pair("a.b", ARRAY, array(I32, (1 << 62) + 1, bytes(8)))]), "'a.b': the array's length"),
    "array_one_too_many": (gguf(pairs=[pair("a.b", ARRAY, array(I32, 3, bytes(11)))]), "'a.b': the array's length is 3"),
    "strings_of_2_60": (gguf(pairs=[pair("a.b", ARRAY, array(STRING, 1 << 60))]), "'a.b': the array's length"),
    "string_in_array_too_long": (
        gguf(pairs=[pair("a.b", ARRAY, array(STRING, 3, string("x") + string("y", 1 << 60) + string("z")))]),
        "'a.b': string 1 of 3",
    ),
    "string_in_array_of_2_64": (
        gguf(pairs=[pair("a.b", ARRAY, array(STRING, 3, string("x") + string("y", HUGE) + string("z")))]),
        "'a.b': string 1 of 3",
    ),
    "last_string_in_array_too_long": (
        gguf(pairs=[pair("a.b", ARRAY, array(STRING, 2, string("x") + string("y", 2)))]),
        "'a.b': string 1 of 2",
    ),
    "string_array_cut": (gguf(pairs=[pair("a.b", ARRAY, array(STRING, 2, string("x" * 8) + bytes(7)))]), "'a.b': string 1 of 2"),
    "nested_too_deep": (gguf(pairs=[pair("a.b", ARRAY, array(ARRAY, 1) * 5 + array(U8, 0))]), "'a.b': arrays are nested more than 4 deep"),
    "nested_without_end": (gguf(pairs=[pair("a.b", ARRAY, array(ARRAY, 1) * 50_000)]), "nested more than 4 deep"),
    "nested_too_many": (gguf(pairs=[pair("a.b", ARRAY, array(ARRAY, 300_000, array(U8, 0) * 300_000))]), "more than a header may hold"),
    "alignment_0": (gguf(pairs=[pair("general.alignment", U32, bytes(4))]), "'general.alignment': the alignment must be a power of two"),
    "alignment_24": (
        gguf(pairs=[pair("general.alignment", U32, b"\x18\0\0\0")]),
        "'general.alignment': the alignment must be a power of two",
    ),
    "alignment_2_31": (
        gguf(pairs=[pair("general.alignment", U32, b"\0\0\0\x80")]),
        "'general.alignment': the alignment must be a power of two",
    ),
    "alignment_is_a_string": (gguf(pairs=[pair("general.alignment", STRING, string("32"))]), "the alignment must be a uint32"),
    "name_of_2_60_bytes": (
        gguf(tensors=[string(b"x", 1 << 60) + bytes(40)]),
        "tensor 0 of 1: the name is said to be 1152921504606846976 bytes",
    ),
    "name_too_long": (gguf(tensors=[tensor("n" * 1025)], data=DATA), "tensor 0 of 1: the name is said to be 1025 bytes"),
    "name_empty": (gguf(tensors=[tensor("") + b"\0"], data=DATA), "tensor 0 of 1: the name is empty"),
    "name_not_utf8": (gguf(tensors=[tensor(b"\xc3\x28")], data=DATA), "not valid UTF-8"),
    "name_twice": (gguf(tensors=[ONE, tensor("a.weight", offset=128)], data=DATA * 2), "'a.weight': the name occurs twice"),
    "no_dimensions": (
        gguf(tensors=[tensor("a.weight", ())], data=DATA),
        "'a.weight': the number of dimensions must be 1 to 4, this one is 0",
    ),
    "five_dimensions": (gguf(tensors=[tensor("a.weight", (1, 1, 1, 1, 1))], data=DATA), "this one is 5"),
    "2_31_dimensions": (gguf(tensors=[tensor("a.weight", n_dims=1 << 31)], data=DATA), "this one is 2147483648"),
    "dimension_0": (gguf(tensors=[tensor("a.weight", (32, 0))], data=DATA), "'a.weight': dimension 1 is 0"),
    "elements_overflow": (gguf(tensors=[tensor("a.weight", (1 << 32, 1 << 32))], data=DATA), "make more elements than a file can hold"),
    "elements_overflow_to_few": (
        gguf(tensors=[tensor("a.weight", (1 << 63, 2, 1 << 63, 2))], data=DATA),
        "make more elements than a file can hold",
    ),
    "row_not_whole_blocks": (gguf(tensors=[tensor("a.weight", (33,), 2)], data=DATA), "'a.weight': a row of 33 elements cannot be Q4_0"),
    "row_not_whole_superblocks": (
        gguf(tensors=[tensor("a.weight", (128, 2), 12)], data=DATA),
        "'a.weight': a row of 128 elements cannot be Q4_K",
    ),
    "type_unknown": (gguf(tensors=[tensor("a.weight", type_id=77)], data=DATA), "'a.weight': type 77 is not a GGML type"),
    "type_removed": (gguf(tensors=[tensor("a.weight", type_id=31)], data=DATA), "'a.weight': type 31 (Q4_0_4_4) was removed"),
    "offset_not_aligned": (gguf(tensors=[tensor("a.weight", offset=16)], data=DATA * 2), "'a.weight': the offset 16 is not a multiple"),
    "offset_outside": (
        gguf(tensors=[tensor("a.weight", offset=1 << 40)], data=DATA),
        "'a.weight': its 128 bytes at offset 1099511627776 end outside",
    ),
    "offset_of_2_64": (gguf(tensors=[tensor("a.weight", offset=HUGE - 31)], data=DATA), "'a.weight': its 128 bytes at offset"),
    "data_one_byte_short": (
        gguf(tensors=[ONE], data=DATA[:-1]),
        "'a.weight': its 128 bytes at offset 0 end outside the file, which has 127",
    ),
    "data_missing": (gguf(tensors=[ONE]), "'a.weight': its 128 bytes at offset 0 end outside the file, which has 0"),
    "tensors_overlap": (gguf(tensors=[ONE, tensor("b", offset=96)], data=DATA * 2), "'b': its bytes overlap those of tensor 'a.weight'"),
    "tensors_same_place": (gguf(tensors=[ONE, tensor("b")], data=DATA), "its bytes overlap those of tensor"),
    "split_number_outside": (gguf(pairs=[pair("split.count", U16, b"\2\0"), pair("split.no", U16, b"\2\0")]), "'split.no' is 2"),
    "split_count_is_a_string": (gguf(pairs=[pair("split.count", STRING, string("2"))]), "'split.count' must be a whole number"),
    "split_count_is_an_array": (gguf(pairs=[pair("split.count", ARRAY, array(U8, 1, b"\2"))]), "'split.count' must be a whole number"),
    "split_without_a_name": (
        gguf(pairs=[pair("split.count", U16, b"\2\0"), pair("split.no", U16, b"\0\0")]),
        "is file 1 of a model split into 2",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_refused_by_name(case: str, tmp_path: Path) -> None:
    raw, expected = CASES[case]
    path = tmp_path / "model.gguf"
    path.write_bytes(raw)
    tracemalloc.start()
    try:
        with pytest.raises(GgufError) as refusal:
            open_gguf(path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    sentence = str(refusal.value)
    assert sentence.startswith(str(path))
    assert expected in sentence
    assert "\n" not in sentence
    assert len(sentence) < 500
    assert peak < 1 << 20


@pytest.mark.parametrize("case", ["tensors_overlap", "value_cut", "split_without_a_name", "empty"])
def test_refusing_leaves_no_file_open(case: str, tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(CASES[case][0])
    gc.collect()
    before = set(os.listdir("/proc/self/fd"))
    for _ in range(5):
        with pytest.raises(GgufError):
            open_gguf(path)
    gc.collect()
    assert set(os.listdir("/proc/self/fd")) <= before


def test_control_characters_of_a_file_do_not_reach_the_terminal(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(gguf(pairs=[pair("\x1b[2J\nkey" + "y" * 500, 13, b"")]))
    with pytest.raises(GgufError) as refusal:
        open_gguf(path)
    assert str(refusal.value).isprintable()
    assert len(str(refusal.value)) < 400


def test_a_huge_sparse_file_is_not_read_into_memory(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    dims = (1 << 20, 1 << 14)
    path.write_bytes(gguf(tensors=[tensor("a.weight", dims, F32)], data=b"x"))
    os.truncate(path, (1 << 36) + 4096)
    with open_gguf(path) as file:
        assert file.tensors["a.weight"].n_bytes == 1 << 36
        assert file.tensors["a.weight"].raw[-1] == 0


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        (gguf(pairs=[pair("a.b", STRING, string(b"", (1 << 26) + 1))]), "'a.b': the value is said to be 67108865 bytes long; no more than"),
        (gguf(pairs=[pair("a.b", ARRAY, array(STRING, (1 << 24) + 1))]), "'a.b': the array has 16777217 entries"),
        (gguf(pairs=[pair("a.b", ARRAY, array(ARRAY, 1 << 20))]), "'a.b': the array has 1048576 entries"),
        (gguf(pairs=[pair("a.b", STRING, string(b"", 1 << 25))], n_pairs=3), "metadata key 1 of 3: the key is empty"),
        (gguf(n_tensors=65537), "the number of tensors is 65537; no more than 65536"),
    ],
)
def test_a_header_that_the_file_could_hold_but_no_model_needs(header: bytes, expected: str, tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(header)
    os.truncate(path, 1 << 28)  # zeros that take no disk
    tracemalloc.start()
    try:
        with pytest.raises(GgufError) as refusal:
            open_gguf(path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert expected in str(refusal.value)
    assert peak < 1 << 27


@pytest.mark.parametrize(
    ("beginning", "expected"),
    [
        (b"PK\x03\x04", "PyTorch"),
        (b"\x80\x02\x8a\x0al\xfc", "pickle"),
        (b'\x40\0\0\0\0\0\0\0{"__metadata__"', "safetensors"),
        (b"tjgg\x03\0\0\0", "ggjt"),
        (b"lmgg", "ggml"),
        (b"FUGG\0\0\0\x03", "big-endian"),
        (b"<!DOCTYPE html><html>", "web page"),
        (b"\n <HTML lang=en>", "web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid", "Git LFS pointer"),
        (b'{"model_type": "llama"}', "JSON"),
        (b"# A model card\n\nThis model", "text"),
        (b"\x1f\x8b\x08", "gzip"),
        (bytes(512), "zeros"),
        (b"\xde\xad\xbe\xef", "de ad be ef"),
    ],
)
def test_says_what_another_file_looks_like(beginning: bytes, expected: str, tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(beginning)
    with pytest.raises(GgufError, match="is not a GGUF file") as refusal:
        open_gguf(path)
    assert expected in str(refusal.value)


def test_paths_that_are_no_files(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path, expected in [
        (tmp_path / "missing.gguf", "there is no such file"),
        (tmp_path, "is a folder"),
        (tmp_path / "pipe", "not a regular file"),
        (Path("/dev/null"), "not a regular file"),
        (tmp_path / ("n" * 300), "cannot be opened"),
        (Path("nul\0"), "cannot be opened"),
    ]:
        with pytest.raises(GgufError) as refusal:
            open_gguf(path)
        assert expected in str(refusal.value)


def test_no_permission(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(gguf())

    def refuse(*_: object) -> int:  # root may open everything, so the system's refusal is played here
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(GgufError, match="cannot be opened: Permission denied"):
        open_gguf(path)

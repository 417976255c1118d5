"""The registry against the PyPI package's constants, and its refusals."""

import gguf
import pytest

from quant.format import FORMATS, KNOWN_TYPES, UnknownFormat, format_by_id, format_by_name
from quant.reference import CODECS

READABLE = ["F32", "F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_NL", "IQ4_XS"]


def test_readable_formats_are_exactly_the_promised_ones():
    assert {fmt.name for fmt in FORMATS.values()} == set(READABLE) == set(CODECS)


@pytest.mark.parametrize("type_id", KNOWN_TYPES)
def test_ids_names_and_sizes_are_ggml_s(type_id):
    known = KNOWN_TYPES[type_id]
    kind = gguf.GGMLQuantizationType(type_id)
    assert known.name == kind.name
    if known.name == "Q8_1":  # the package still counts two float32; ggml's block has had two float16 since 2023
        assert (known.block_elements, known.block_bytes) == (32, 36)
    else:
        assert (known.block_elements, known.block_bytes) == gguf.GGML_QUANT_SIZES[kind]


def test_every_type_of_the_package_is_known():
    assert {int(kind) for kind in gguf.GGMLQuantizationType} <= set(KNOWN_TYPES)


@pytest.mark.parametrize("fmt", FORMATS.values(), ids=lambda fmt: fmt.name)
def test_format(fmt):
    assert format_by_id(fmt.id) is fmt
    assert format_by_name(fmt.name) is format_by_name(fmt.name.lower()) is fmt
    assert CODECS[fmt.name].layout.itemsize == fmt.block_bytes
    assert fmt.activation == {1: "f32", 32: "q8_0", 256: "q8_k"}[fmt.block_elements]
    assert fmt.row_bytes(3 * fmt.block_elements) == 3 * fmt.block_bytes
    assert fmt.row_elements(3 * fmt.block_bytes) == 3 * fmt.block_elements
    assert fmt.row_bytes(0) == fmt.row_elements(0) == 0


def test_rows_must_be_whole_blocks():
    q4_k = format_by_name("Q4_K")
    for bad in (1, 255, 257, -256):
        with pytest.raises(ValueError, match=f"{bad} elements cannot be Q4_K: its blocks hold 256"):
            q4_k.row_bytes(bad)
    with pytest.raises(ValueError, match="143 bytes cannot be Q4_K: its blocks take 144 bytes"):
        q4_k.row_elements(143)


def test_bits_per_weight():
    assert format_by_name("Q4_K").bits_per_weight == 4.5
    assert format_by_name("Q8_0").bits_per_weight == 8.5


@pytest.mark.parametrize(
    ("type_id", "sentence"),
    [
        (16, r"type 16 \(IQ2_XXS\) is not supported; supported: F32, .*IQ4_XS"),
        (39, r"type 39 \(MXFP4\) is not supported"),
        (15, r"type 15 \(Q8_K\) is not supported"),
        (4, r"type 4 \(Q4_2\) was removed from GGML"),
        (31, r"type 31 \(Q4_0_4_4\) was removed from GGML"),
        (99, "type 99 is not a GGML type"),
        (-1, "type -1 is not a GGML type"),
        (2**32 - 1, "type 4294967295 is not a GGML type"),
    ],
)
def test_unreadable_type_is_refused_by_name(type_id, sentence):
    with pytest.raises(UnknownFormat, match=sentence):
        format_by_id(type_id)


def test_unknown_name_is_refused():
    with pytest.raises(UnknownFormat, match="'Q4_K_M' is not a format; supported: F32"):
        format_by_name("Q4_K_M")
    with pytest.raises(UnknownFormat, match=r"type 40 \(NVFP4\) is not supported"):
        format_by_name("nvfp4")

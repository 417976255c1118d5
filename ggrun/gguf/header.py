"""The header of one file: version, metadata, tensor descriptions, all checked against the file's size.

Knows GGUF's layout; must not know about other files of a split, nor how the bytes got into memory.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass

from ggrun.gguf.cursor import Cursor
from ggrun.gguf.error import GgufError, quoted
from ggrun.gguf.metadata import Value, read_value
from ggrun.gguf.sniff import describe
from quant.format import FORMATS, KNOWN_TYPES, Format, UnknownFormat, format_by_id

MAGIC = b"GGUF"
VERSIONS = (2, 3)
ALIGNMENT_KEY = "general.alignment"
DEFAULT_ALIGNMENT = 32
MAX_ALIGNMENT = 1 << 20
MAX_KEY_BYTES = 65535  # the specification's own limit
MAX_NAME_BYTES = 1024  # llama.cpp stops at 63
MAX_DIMS = 4
MAX_ENTRIES = 1 << 16  # metadata keys, or tensors, of one file
MAX_ELEMENTS = (1 << 63) - 1

_LEAST_PAIR_BYTES = 8 + 1 + 4 + 1
_LEAST_TENSOR_BYTES = 8 + 1 + 4 + 8 + 4 + 8


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """One tensor as its header describes it; `offset` counts from the start of the file."""

    name: str
    dims: tuple[int, ...]
    format: Format
    offset: int
    n_bytes: int


@dataclass(frozen=True, slots=True)
class Header:
    """What one file says of itself. `data_start` is where its tensors' bytes begin, `data_end` where the last of them ends."""

    version: int
    alignment: int
    metadata: Mapping[str, Value]
    tensors: tuple[TensorInfo, ...]
    data_start: int
    data_end: int


def read_header(buffer: memoryview, path: str) -> Header:
    """Read and check the header of the file whose bytes are `buffer`. GgufError names the first field that is wrong."""
    cursor = Cursor(buffer, path)
    version = _read_version(cursor)
    n_tensors = _read_count(cursor, "the number of tensors", _LEAST_TENSOR_BYTES)
    n_pairs = _read_count(cursor, "the number of metadata keys", _LEAST_PAIR_BYTES)
    metadata, alignment = _read_metadata(cursor, n_pairs)
    described = [_read_tensor(cursor, i, n_tensors) for i in range(n_tensors)]
    data_start = -(-cursor.position // alignment) * alignment
    tensors = tuple(_place(cursor, info, data_start, alignment) for info in described)
    _check_names_and_overlaps(cursor, tensors)
    data_end = max((t.offset + t.n_bytes for t in tensors), default=min(data_start, cursor.size))
    return Header(version, alignment, metadata, tensors, min(data_start, cursor.size), data_end)


def valid_alignment(value: int) -> bool:
    """Whether tensors may be aligned to `value` bytes: a power of two of at most a megabyte."""
    return 0 < value <= MAX_ALIGNMENT and value & (value - 1) == 0


def _read_version(cursor: Cursor) -> int:
    magic = bytes(cursor.buffer[:4])
    if magic != MAGIC:
        raise GgufError(f"{cursor.path} is not a GGUF file: {describe(bytes(cursor.buffer[:512]))}")
    cursor.skip(4, "the magic")
    version = cursor.u32("the version")
    if version in VERSIONS:
        return version
    swapped = int.from_bytes(version.to_bytes(4, "little"), "big")
    if 1 <= swapped <= 0xFFFF < version:
        raise cursor.error(
            f"the file is big-endian (version {swapped} with its bytes swapped); convert it to little-endian with gguf_convert_endian.py"
        )
    if version == 1:
        raise cursor.error("this is GGUF version 1, which is no longer read; convert the model again with a current tool")
    raise cursor.error(f"GGUF version {version} is unknown; versions {' and '.join(map(str, VERSIONS))} are read")


def _read_count(cursor: Cursor, what: str, least_bytes: int) -> int:
    n = cursor.count(what, least_bytes)
    if n > MAX_ENTRIES:
        raise cursor.error(f"{what} is {n}; no more than {MAX_ENTRIES} are accepted")
    return n


def _read_metadata(cursor: Cursor, n_pairs: int) -> tuple[dict[str, Value], int]:
    metadata: dict[str, Value] = {}
    alignment = DEFAULT_ALIGNMENT
    for i in range(n_pairs):
        cursor.context = f"metadata key {i} of {n_pairs}"
        key = cursor.name("the key", MAX_KEY_BYTES)
        cursor.context = f"metadata key {quoted(key)}"
        if key in metadata:
            raise cursor.error("the key occurs twice")
        value, type_ = read_value(cursor)
        metadata[key] = value
        if key == ALIGNMENT_KEY:
            if type_.name != "uint32" or not isinstance(value, int):
                raise cursor.error(f"the alignment must be a uint32, this one is a {type_.name}")
            if not valid_alignment(value):
                raise cursor.error(f"the alignment must be a power of two up to {MAX_ALIGNMENT}, this one is {value}")
            alignment = value
    return metadata, alignment


def _read_tensor(cursor: Cursor, i: int, n_tensors: int) -> TensorInfo:
    """The next tensor description; its offset still counts from the start of the data."""
    cursor.context = f"tensor {i} of {n_tensors}"
    name = cursor.name("the name", MAX_NAME_BYTES)
    cursor.context = f"tensor {quoted(name)}"
    n_dims = cursor.u32("the number of dimensions")
    if not 1 <= n_dims <= MAX_DIMS:
        raise cursor.error(f"the number of dimensions must be 1 to {MAX_DIMS}, this one is {n_dims}")
    dims = tuple(cursor.u64(f"dimension {d}") for d in range(n_dims))
    n_elements = 1
    for d, dim in enumerate(dims):
        n_elements *= dim
        if dim == 0:
            raise cursor.error(f"dimension {d} is 0")
        if n_elements > MAX_ELEMENTS:
            raise cursor.error(f"the dimensions {' x '.join(map(str, dims))} make more elements than a file can hold")
    fmt = _format(cursor, cursor.u32("the type"))
    try:
        n_bytes = fmt.row_bytes(dims[0]) * (n_elements // dims[0])
    except ValueError as error:
        raise cursor.error(str(error)) from None
    return TensorInfo(name, dims, fmt, cursor.u64("the offset"), n_bytes)


def _format(cursor: Cursor, type_id: int) -> Format:
    """The format with GGML's number `type_id`, also of types that can be described but not computed with."""
    if type_id in KNOWN_TYPES and type_id not in FORMATS:
        return Format(type_id, *KNOWN_TYPES[type_id], activation=None)
    try:
        return format_by_id(type_id)
    except UnknownFormat as error:
        raise cursor.error(str(error)) from None


def _place(cursor: Cursor, info: TensorInfo, data_start: int, alignment: int) -> TensorInfo:
    """`info` with its offset counted from the start of the file, once its bytes are known to lie inside it."""
    cursor.context = f"tensor {quoted(info.name)}"
    if info.offset % alignment:
        raise cursor.error(f"the offset {info.offset} is not a multiple of the file's alignment, {alignment}")
    room = max(cursor.size - data_start, 0)
    if info.offset + info.n_bytes > room:
        raise cursor.error(
            f"its {info.n_bytes} bytes at offset {info.offset} end outside the file, which has {room} bytes of tensor data: "
            "it is cut short or damaged; download it again"
        )
    return TensorInfo(info.name, info.dims, info.format, data_start + info.offset, info.n_bytes)


def _check_names_and_overlaps(cursor: Cursor, tensors: tuple[TensorInfo, ...]) -> None:
    names: set[str] = set()
    for info in tensors:
        if info.name in names:
            cursor.context = f"tensor {quoted(info.name)}"
            raise cursor.error("the name occurs twice")
        names.add(info.name)
    in_order = sorted(tensors, key=lambda info: info.offset)
    for before, info in itertools.pairwise(in_order):
        if before.offset + before.n_bytes > info.offset:
            cursor.context = f"tensor {quoted(info.name)}"
            raise cursor.error(f"its bytes overlap those of tensor {quoted(before.name)}")

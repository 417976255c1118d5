"""Writing GGUF files, tensor data streamed in chunks: what is written may be far larger than memory.

Knows GGUF's layout; must not know how weights are made or quantized.
"""

from __future__ import annotations

import math
import os
import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO, TypeAlias

import numpy as np

from ggrun.gguf.error import GgufError, quoted
from ggrun.gguf.header import ALIGNMENT_KEY, DEFAULT_ALIGNMENT, MAGIC, valid_alignment
from ggrun.gguf.metadata import MetadataArray
from ggrun.gguf.value import ARRAY, BOOL, STRING, VALUE_TYPES, ValueType
from quant.format import Format

Chunk: TypeAlias = "bytes | bytearray | memoryview | np.ndarray[Any, np.dtype[Any]]"

_VERSION = 3
_BY_NAME = {type_.name: type_ for type_ in VALUE_TYPES.values()}
_BY_DTYPE = {np.dtype(type_.dtype): type_ for type_ in VALUE_TYPES.values() if type_.dtype and type_.id != BOOL}
_BY_DTYPE[np.dtype(bool)] = VALUE_TYPES[BOOL]
# The integer types in the order they are tried: one number, and the numbers of a list.
_INTEGERS = {
    "uint32": (0, (1 << 32) - 1),
    "int32": (-(1 << 31), (1 << 31) - 1),
    "uint64": (0, (1 << 64) - 1),
    "int64": (-(1 << 63), (1 << 63) - 1),
}
_IN_SCALARS = ("uint32", "int32", "uint64", "int64")
_IN_LISTS = ("int32", "uint32", "uint64", "int64")


@dataclass(frozen=True, slots=True)
class _Pending:
    name: str
    dims: tuple[int, ...]
    format: Format
    n_bytes: int
    chunks: Iterable[Chunk]


class GgufWriter:
    """Collects metadata and tensors, then writes one GGUF file of version 3.

        writer = GgufWriter("model.gguf")
        writer.add("general.architecture", "llama")
        writer.add_tensor("output.weight", (2048, 32000), format_by_name("Q6_K"), chunks)
        writer.write()

    The file appears under its name only when it is complete.
    """

    def __init__(self, path: str | os.PathLike[str], alignment: int = DEFAULT_ALIGNMENT) -> None:
        self.path = os.fspath(path)
        self.alignment = alignment
        self._pairs: dict[str, bytes] = {}
        self._tensors: dict[str, _Pending] = {}
        if alignment != DEFAULT_ALIGNMENT:
            self.add(ALIGNMENT_KEY, alignment)

    def add(self, key: str, value: object, type_name: str | None = None) -> None:
        """Set metadata `key`. `type_name` ("uint32", "float64" ...; of an array: of its elements) where the usual one will not do.

        Usual: bool, string, float32, and of the integers the first that fits of uint32, int32, uint64, int64 (in lists int32 first); an
        ndarray keeps its own. GgufError when a value does not fit its type.
        """
        if key == ALIGNMENT_KEY:
            if not isinstance(value, int) or not valid_alignment(value):
                raise GgufError(f"{self.path}: the alignment must be a power of two, not {value}")
            self.alignment = value
        wanted = _BY_NAME[type_name] if type_name else None
        try:
            self._pairs[key] = _encode_typed(value, wanted)
        except (struct.error, TypeError, OverflowError) as error:
            raise GgufError(f"{self.path}: metadata key {quoted(key)} cannot hold its value: {error}") from None

    def add_tensor(self, name: str, dims: Sequence[int], fmt: Format, chunks: Chunk | Iterable[Chunk]) -> None:
        """Add a tensor of `dims` (GGUF order: row length first), its bytes already in `fmt`.

        `chunks` is the data itself, or an iterable of pieces of it that is consumed while writing, one piece in memory at a time.
        ValueError when a row is not a whole number of blocks.
        """
        if name in self._tensors:
            raise GgufError(f"{self.path}: tensor {quoted(name)} was added before")
        n_bytes = fmt.row_bytes(dims[0]) * math.prod(dims[1:])
        pieces = (chunks,) if isinstance(chunks, bytes | bytearray | memoryview | np.ndarray) else chunks
        self._tensors[name] = _Pending(name, tuple(int(d) for d in dims), fmt, n_bytes, pieces)

    def write(self) -> None:
        """Write the file. GgufError when a tensor's data is not as long as its dimensions say."""
        unfinished = f"{self.path}.unfinished"
        try:
            with open(unfinished, "wb") as out:
                self._write_header(out)
                for tensor in self._tensors.values():
                    self._write_tensor(out, tensor)
            os.replace(unfinished, self.path)
        except BaseException:
            if os.path.exists(unfinished):
                os.unlink(unfinished)
            raise

    def _write_header(self, out: BinaryIO) -> None:
        out.write(MAGIC + struct.pack("<IQQ", _VERSION, len(self._tensors), len(self._pairs)))
        for key, value in self._pairs.items():
            out.write(_encode_string(key) + value)
        offset = 0
        for tensor in self._tensors.values():
            n_dims = len(tensor.dims)
            out.write(_encode_string(tensor.name))
            out.write(struct.pack(f"<I{n_dims}QIQ", n_dims, *tensor.dims, tensor.format.id, offset))
            offset += -(-tensor.n_bytes // self.alignment) * self.alignment
        self._pad(out)

    def _write_tensor(self, out: BinaryIO, tensor: _Pending) -> None:
        written = 0
        for chunk in tensor.chunks:
            written += out.write(np.ascontiguousarray(chunk).data if isinstance(chunk, np.ndarray) else chunk)
        if written != tensor.n_bytes:
            raise GgufError(f"{self.path}: tensor {quoted(tensor.name)} needs {tensor.n_bytes} bytes of data and got {written}")
        self._pad(out)

    def _pad(self, out: BinaryIO) -> None:
        out.write(bytes(-out.tell() % self.alignment))


def _encode_typed(value: object, wanted: ValueType | None) -> bytes:
    """A value with its type number in front."""
    if isinstance(value, list | tuple | np.ndarray | MetadataArray):
        return struct.pack("<I", ARRAY) + _encode_array(value, wanted)
    type_ = wanted or _usual_type([value], in_list=False)
    return struct.pack("<I", type_.id) + _encode_scalar(value, type_)


def _encode_array(values: Any, wanted: ValueType | None) -> bytes:
    """An array with its element type and length in front. Nested lists become arrays of arrays."""
    if isinstance(values, MetadataArray) and values.element_type != VALUE_TYPES[ARRAY].name:
        wanted = wanted or _BY_NAME[values.element_type]
    if isinstance(values, MetadataArray):
        values = values.tolist()
    if isinstance(values, np.ndarray):
        type_ = wanted or _BY_DTYPE[values.dtype]
        return struct.pack("<IQ", type_.id, len(values)) + values.astype(type_.dtype).tobytes()
    if values and isinstance(values[0], list | tuple | np.ndarray | MetadataArray):
        return struct.pack("<IQ", ARRAY, len(values)) + b"".join(_encode_array(inner, wanted) for inner in values)
    type_ = wanted or _usual_type(values, in_list=True)
    return struct.pack("<IQ", type_.id, len(values)) + b"".join(_encode_scalar(v, type_) for v in values)


def _encode_scalar(value: Any, type_: ValueType) -> bytes:
    if type_.id == STRING:
        return _encode_string(value)
    if not type_.layout:
        raise TypeError("an array is needed here")
    return type_.layout.pack(bool(value) if type_.id == BOOL else value)


def _encode_string(text: str | bytes) -> bytes:
    if not isinstance(text, str | bytes):
        raise TypeError("a string is needed here")
    raw = text if isinstance(text, bytes) else text.encode("utf-8", "surrogateescape")
    return struct.pack("<Q", len(raw)) + raw


def _usual_type(values: Sequence[object], in_list: bool) -> ValueType:
    """The type that values of these kinds usually have in GGUF files."""
    if not values or all(isinstance(v, str | bytes) for v in values):
        return VALUE_TYPES[STRING]
    if all(isinstance(v, bool) for v in values):
        return VALUE_TYPES[BOOL]
    if all(isinstance(v, int | np.integer) for v in values):
        low, high = min(int(v) for v in values), max(int(v) for v in values)  # type: ignore[call-overload]
        for name in _IN_LISTS if in_list else _IN_SCALARS:
            if _INTEGERS[name][0] <= low and high <= _INTEGERS[name][1]:
                return _BY_NAME[name]
        raise OverflowError("no integer type holds all of its values")
    if all(isinstance(v, int | float | np.number) for v in values):
        return _BY_NAME["float32"]
    raise TypeError("values of these kinds have no GGUF type")

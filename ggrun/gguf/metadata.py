"""Metadata values: scalars are read at once, arrays stay where they are until somebody asks.

Knows how values are laid out; must not know what any key means.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from typing import Any, TypeAlias, overload

import numpy as np
from numpy.typing import NDArray

from ggrun.gguf.cursor import NESTED_ARRAY_COST, Cursor
from ggrun.gguf.strings import decode_all
from ggrun.gguf.value import ARRAY, BOOL, STRING, VALUE_TYPES, ValueType

MAX_DEPTH = 4
_LENGTH = struct.Struct("<Q")
_ARRAY_HEAD = struct.Struct("<IQ")


class MetadataArray(Sequence[Any]):
    """An array of a header, decoded when asked for.

    Elements are int, float, bool, str (UTF-8, undecodable bytes as lone surrogates) or MetadataArray. The extent was checked when the
    file was opened, so reading cannot leave it. `element_type` is GGUF's name of the type ("string", "int32", ...).
    """

    __slots__ = ("_buffer", "_end", "_n", "_start", "_starts", "_type")

    def __init__(
        self, buffer: memoryview, element_type: ValueType, n: int, start: int, end: int, starts: NDArray[np.int64] | None = None
    ) -> None:
        self._buffer = buffer
        self._type = element_type
        self._n = n
        self._start = start
        self._end = end
        self._starts = starts  # of strings, and of nested arrays once one is asked for by index

    @property
    def element_type(self) -> str:
        """GGUF's name of the elements' type."""
        return self._type.name

    def __len__(self) -> int:
        return self._n

    def __repr__(self) -> str:
        return f"<MetadataArray of {self._n} {self._type.name}>"

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Sequence) or isinstance(other, str):
            return NotImplemented
        return len(other) == self._n and self.tolist() == (other.tolist() if isinstance(other, MetadataArray) else list(other))

    __hash__ = None  # type: ignore[assignment]  # compares like a list

    @overload
    def __getitem__(self, index: int) -> Any: ...
    @overload
    def __getitem__(self, index: slice) -> list[Any]: ...
    def __getitem__(self, index: int | slice) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(self._n))]
        i = index + self._n if index < 0 else index
        if not 0 <= i < self._n:
            raise IndexError(f"index {index} is outside an array of {self._n}")
        if self._type.layout:
            value = self._type.layout.unpack_from(self._buffer, self._start + i * self._type.layout.size)[0]
            return bool(value) if self._type.id == BOOL else value
        return self._element(int(self._all_starts()[i]))

    def __iter__(self) -> Iterator[Any]:
        return iter(self.tolist())

    def tolist(self) -> list[Any]:
        """All elements, decoded, as a new list; nested arrays stay MetadataArray."""
        if self._type.layout:
            return self.numpy().tolist()  # type: ignore[no-any-return]
        if self._type.id == ARRAY:
            return [self._element(start) for start in self._element_starts()]
        if self._n and (decoded := decode_all(self._buffer, self._all_starts(), self._end)) is not None:
            return decoded
        raw = bytes(self._buffer[self._start : self._end])  # slices of bytes are cheaper than of a mapping
        unpack, position, strings = _LENGTH.unpack_from, 0, []
        for _ in range(self._n):
            start = position + 8
            position = start + unpack(raw, position)[0]
            strings.append(raw[start:position].decode("utf-8", "surrogateescape"))
        return strings

    def numpy(self) -> np.ndarray[Any, np.dtype[Any]]:
        """All elements of an array of numbers or booleans as a new ndarray [n]. TypeError for strings and nested arrays."""
        if not self._type.layout:
            raise TypeError(f"an array of {self._type.name} has no NumPy form")
        values = np.frombuffer(self._buffer, self._type.dtype, self._n, self._start) if self._n else np.empty(0, self._type.dtype)
        return values != 0 if self._type.id == BOOL else values.copy()

    def packed(self) -> tuple[NDArray[np.uint8], NDArray[np.int64], NDArray[np.int64]]:
        """Strings as they lie in the file: bytes, not copied, and where each string starts and ends in them."""
        starts = self._all_starts()
        return (
            np.frombuffer(self._buffer[self._start : self._end], np.uint8),
            starts + 8 - self._start,
            np.append(starts[1:], self._end) - self._start,
        )

    def _all_starts(self) -> NDArray[np.int64]:
        if self._starts is None:
            self._starts = np.fromiter(self._element_starts(), np.int64, self._n)
        return self._starts

    def _element(self, start: int) -> Any:
        if self._type.id == STRING:
            return str(self._buffer[start + 8 : _element_end(self._buffer, self._type, start)], "utf-8", "surrogateescape")
        type_id, n = _ARRAY_HEAD.unpack_from(self._buffer, start)
        return MetadataArray(self._buffer, VALUE_TYPES[type_id], n, start + _ARRAY_HEAD.size, _element_end(self._buffer, self._type, start))

    def _element_starts(self) -> Iterator[int]:
        position = self._start
        for _ in range(self._n):
            yield position
            position = _element_end(self._buffer, self._type, position)


def _element_end(buffer: memoryview, type_: ValueType, start: int) -> int:
    """Where the string or nested array that begins at `start`, checked before, ends."""
    if type_.id == STRING:
        length: int = _LENGTH.unpack_from(buffer, start)[0]
        return start + 8 + length
    type_id, n = _ARRAY_HEAD.unpack_from(buffer, start)
    inner, end = VALUE_TYPES[type_id], start + _ARRAY_HEAD.size
    if inner.layout:
        return end + n * inner.layout.size  # type: ignore[no-any-return]
    for _ in range(n):
        end = _element_end(buffer, inner, end)
    return end


Value: TypeAlias = int | float | bool | str | MetadataArray


def read_value(cursor: Cursor) -> tuple[Value, ValueType]:
    """The next typed value of a header and its type. GgufError when any part of it does not fit the file."""
    type_ = _read_type(cursor, "the value's type")
    if type_.id == ARRAY:
        return _read_array(cursor, 1), type_
    if type_.id == STRING:
        return cursor.string("the value").decode("utf-8", "surrogateescape"), type_
    assert type_.layout
    value = cursor.fixed(type_.layout, f"the {type_.name} value")
    if type_.id != BOOL:
        return value, type_
    if value not in (0, 1):
        raise cursor.error(f"a bool must be 0 or 1, this one is {value}")
    return bool(value), type_


def _read_type(cursor: Cursor, what: str) -> ValueType:
    type_id = cursor.u32(what)
    try:
        return VALUE_TYPES[type_id]
    except KeyError:
        raise cursor.error(f"{what} is {type_id}, which GGUF does not define: the file is damaged or newer than this program") from None


def _read_array(cursor: Cursor, depth: int) -> MetadataArray:
    if depth > MAX_DEPTH:
        raise cursor.error(f"arrays are nested more than {MAX_DEPTH} deep")
    type_ = _read_type(cursor, "the array's element type")
    n = cursor.count("the array's length", type_.least_bytes)
    start, starts = cursor.position, None
    if type_.layout:
        cursor.skip(n * type_.layout.size, "the array")
    elif type_.id == STRING:
        starts = cursor.skip_strings(n, "the array")
    else:
        cursor.walk(n, "the array", NESTED_ARRAY_COST)
        for _ in range(n):
            _read_array(cursor, depth + 1)
    return MetadataArray(cursor.buffer, type_, n, start, cursor.position, starts)

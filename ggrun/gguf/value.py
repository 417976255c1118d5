"""The table of GGUF's value types.

Knows numbers, names and layouts of the types; must not know how a value is read or kept.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType


@dataclass(frozen=True, slots=True)
class ValueType:
    """One type a metadata value can have: GGUF's number, its name and, where it has a fixed size, its layout."""

    id: int
    name: str
    layout: struct.Struct | None = None
    dtype: str = ""  # NumPy's name of the same layout; empty where there is no fixed size

    @property
    def least_bytes(self) -> int:
        """The fewest bytes one value takes: a string has its length, an array its type and length."""
        return self.layout.size if self.layout else 8 if self.id == STRING else 12


BOOL, STRING, ARRAY = 7, 8, 9

# (id, name, struct code, NumPy dtype); everything is little-endian.
_ROWS = (
    (0, "uint8", "B", "u1"),
    (1, "int8", "b", "i1"),
    (2, "uint16", "H", "u2"),
    (3, "int16", "h", "i2"),
    (4, "uint32", "I", "u4"),
    (5, "int32", "i", "i4"),
    (6, "float32", "f", "f4"),
    (BOOL, "bool", "B", "u1"),
    (STRING, "string", "", ""),
    (ARRAY, "array", "", ""),
    (10, "uint64", "Q", "u8"),
    (11, "int64", "q", "i8"),
    (12, "float64", "d", "f8"),
)

VALUE_TYPES: Mapping[int, ValueType] = MappingProxyType(
    {id: ValueType(id, name, struct.Struct("<" + code) if code else None, "<" + dtype if dtype else "") for id, name, code, dtype in _ROWS}
)

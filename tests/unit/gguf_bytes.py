"""GGUF files put together byte by byte, so that tests can write what no writer would."""

import struct
from collections.abc import Sequence

from quant.format import KNOWN_TYPES

F32 = 0
U8, I8, U16, I16, U32, I32, FLOAT32, BOOL, STRING, ARRAY, U64, I64, FLOAT64 = range(13)


def string(text: bytes | str, length: int | None = None) -> bytes:
    """A string as GGUF stores it; `length` is the lie to tell about its length."""
    raw = text.encode() if isinstance(text, str) else text
    return struct.pack("<Q", len(raw) if length is None else length) + raw


def pair(key: bytes | str, type_id: int, payload: bytes) -> bytes:
    """A metadata key with its value."""
    return string(key) + struct.pack("<I", type_id) + payload


def array(type_id: int, n: int, payload: bytes = b"") -> bytes:
    """An array's payload."""
    return struct.pack("<IQ", type_id, n) + payload


def tensor(name: bytes | str, dims: Sequence[int] = (32,), type_id: int = F32, offset: int = 0, n_dims: int | None = None) -> bytes:
    """A tensor's description."""
    return string(name) + struct.pack(f"<I{len(dims)}QIQ", len(dims) if n_dims is None else n_dims, *dims, type_id, offset)


def gguf(
    pairs: Sequence[bytes] = (),
    tensors: Sequence[bytes] = (),
    data: bytes = b"",
    *,
    magic: bytes = b"GGUF",
    version: int = 3,
    n_tensors: int | None = None,
    n_pairs: int | None = None,
    alignment: int = 32,
) -> bytes:
    """A whole file: header, padding, data. The counts can be lied about."""
    counts = (len(tensors) if n_tensors is None else n_tensors, len(pairs) if n_pairs is None else n_pairs)
    header = magic + struct.pack("<IQQ", version, *counts) + b"".join(pairs) + b"".join(tensors)
    return header + bytes(-len(header) % alignment) + data if data else header


def swapped(raw: bytes) -> bytes:
    """The start of a big-endian file: version and counts with their bytes in the other order."""
    return raw[:4] + raw[4:8][::-1] + raw[8:16][::-1] + raw[16:24][::-1] + raw[24:]


def block_bytes(type_id: int) -> tuple[int, int]:
    """Elements and bytes of a block of a GGML type."""
    known = KNOWN_TYPES[type_id]
    return known.block_elements, known.block_bytes

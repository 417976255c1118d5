"""Small integers packed into bytes: the one packing scheme that every format's quants, high bits and scales use.

A *plane* is the same bit field of a run of `width` neighbouring bytes. Every GGML format stores a run of elements plane by
plane: with 4 bits and width 16, byte i of a group holds element i in its low nibble and element 16 + i in its high one.

    width 16, 4 bits:  byte 0 .. 15 = [e16 | e0] .. [e31 | e15]
    width  1, 1 bit:   byte 0       = [e7 e6 e5 e4 e3 e2 e1 e0]     (plain little-endian bits)

Knows nothing of formats.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Bytes = NDArray[np.uint8]


def unpack_planes(packed: Bytes, width: int, bits: int) -> Bytes:
    """uint8[n, bytes] -> uint8[n, bytes * 8 // bits] of values below 2**bits, in element order; `width` divides bytes."""
    n, n_bytes = packed.shape
    shifts = np.arange(0, 8, bits, dtype=np.uint8).reshape(1, 1, -1, 1)
    planes = packed.reshape(n, n_bytes // width, 1, width) >> shifts
    planes &= np.uint8((1 << bits) - 1)
    return planes.reshape(n, n_bytes * 8 // bits)


def pack_planes(values: Bytes, width: int, bits: int) -> Bytes:
    """The inverse of `unpack_planes`: uint8[n, m] of values below 2**bits -> uint8[n, m * bits // 8]."""
    n, n_values = values.shape
    shifts = np.arange(0, 8, bits, dtype=np.uint8).reshape(1, 1, -1, 1)
    planes = values.reshape(n, -1, 8 // bits, width) << shifts
    packed: Bytes = np.bitwise_or.reduce(planes, axis=2)
    return packed.reshape(n, n_values * bits // 8)


def split_at(values: Bytes, bit: int) -> tuple[Bytes, Bytes]:
    """Each byte's bits below `bit`, and those from `bit` up as a number of their own."""
    return values & np.uint8((1 << bit) - 1), values >> np.uint8(bit)


def join_at(low: Bytes, high: Bytes, bit: int) -> Bytes:
    """The inverse of `split_at`: low | high << bit."""
    return low | (high << np.uint8(bit))

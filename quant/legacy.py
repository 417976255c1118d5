"""The plain types F32, F16 and BF16, and the 32-element block formats Q4_0, Q4_1, Q5_0, Q5_1 and Q8_0.

One float16 scale `d` (and in the `_1` formats a float16 minimum `m`) serves 32 neighbouring elements:

    Q4_0  d, 16 bytes of nibbles                       x = d * (q - 8)
    Q4_1  d, m, 16 bytes of nibbles                    x = d * q + m
    Q5_0  d, 4 bytes of fifth bits, 16 of nibbles      x = d * (q - 16)
    Q5_1  d, m, 4 bytes of fifth bits, 16 of nibbles   x = d * q + m
    Q8_0  d, 32 signed bytes                           x = q * d

Nibbles lie in planes of 16 (`bits`): elements 0..15 low, 16..31 high. Fifth bits are plain little-endian bits. All products
and sums are single-precision and unfused, which is what makes kernels comparable with this file bit for bit. Encoding takes
the same decisions as GGML's reference quantizers.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from quant.bits import Bytes, join_at, pack_planes, split_at, unpack_planes
from quant.codec import Blocks, Codec, Floats, inverse, pack_fields

_F32 = np.dtype([("x", "<f4")])
_F16 = np.dtype([("x", "<f2")])
_BF16 = np.dtype([("x", "<u2")])
_Q4_0 = np.dtype([("d", "<f2"), ("qs", "u1", 16)])
_Q4_1 = np.dtype([("d", "<f2"), ("m", "<f2"), ("qs", "u1", 16)])
_Q5_0 = np.dtype([("d", "<f2"), ("qh", "u1", 4), ("qs", "u1", 16)])
_Q5_1 = np.dtype([("d", "<f2"), ("m", "<f2"), ("qh", "u1", 4), ("qs", "u1", 16)])
_Q8_0 = np.dtype([("d", "<f2"), ("qs", "i1", 32)])


def _decode_float(blocks: Blocks) -> Floats:
    return blocks["x"].astype(np.float32)[:, None]


def _encode_f32(x: Floats) -> Blocks:
    return pack_fields(_F32, x=x[:, 0])


def _encode_f16(x: Floats) -> Blocks:
    with np.errstate(over="ignore"):  # beyond 65504 becomes infinity, as in GGML
        return pack_fields(_F16, x=x[:, 0].astype(np.float16))


def _decode_bf16(blocks: Blocks) -> Floats:
    return (blocks["x"].astype(np.uint32) << np.uint32(16)).view(np.float32)[:, None]


def _encode_bf16(x: Floats) -> Blocks:
    bits = np.ascontiguousarray(x[:, 0]).view(np.uint32)
    rounded = bits + (np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1)))
    quiet_nan = bits | np.uint32(0x400000)  # rounding a NaN could carry into infinity
    return pack_fields(_BF16, x=(np.where(np.isnan(x[:, 0]), quiet_nan, rounded) >> np.uint32(16)).astype(np.uint16))


def scale_of(blocks: Blocks, field: str = "d") -> Floats:
    """A float16 field of every block as float32[n, 1]."""
    return blocks[field].astype(np.float32)[:, None]


def half(x: Floats) -> NDArray[np.float16]:
    """float32[n, 1] -> float16[n] for a scale field; a block of enormous values gets an infinite scale, as in GGML."""
    with np.errstate(over="ignore"):
        return x[:, 0].astype(np.float16)


def _five_bits(blocks: Blocks) -> Bytes:
    return join_at(unpack_planes(blocks["qs"], 16, 4), unpack_planes(blocks["qh"], 1, 1), 4)


def _decode_q4_0(blocks: Blocks) -> Floats:
    return scale_of(blocks) * (unpack_planes(blocks["qs"], 16, 4).view(np.int8) - np.int8(8))


def _decode_q4_1(blocks: Blocks) -> Floats:
    return scale_of(blocks) * unpack_planes(blocks["qs"], 16, 4) + scale_of(blocks, "m")


def _decode_q5_0(blocks: Blocks) -> Floats:
    return scale_of(blocks) * (_five_bits(blocks).view(np.int8) - np.int8(16))


def _decode_q5_1(blocks: Blocks) -> Floats:
    return scale_of(blocks) * _five_bits(blocks) + scale_of(blocks, "m")


def _decode_q8_0(blocks: Blocks) -> Floats:
    return blocks["qs"] * scale_of(blocks)


def _symmetric(x: Floats, levels: int) -> tuple[Floats, Bytes]:
    """Scale and quants 0..levels-1 (zero at levels / 2) with the largest magnitude at the bottom level."""
    largest = np.take_along_axis(x, np.abs(x).argmax(axis=1)[:, None], axis=1)
    d = largest / np.float32(-levels // 2)
    q = np.trunc(x * inverse(d) + np.float32(levels / 2 + 0.5))
    return d, np.minimum(q, levels - 1).astype(np.uint8)


def _affine(x: Floats, levels: int) -> tuple[Floats, Floats, Bytes]:
    """Scale, minimum and quants 0..levels-1 that span the block exactly."""
    m = x.min(axis=1, keepdims=True)
    d = (x.max(axis=1, keepdims=True) - m) / np.float32(levels - 1)
    q = np.trunc((x - m) * inverse(d) + np.float32(0.5))
    return d, m, np.minimum(q, levels - 1).astype(np.uint8)


def _split_five_bits(q: Bytes) -> dict[str, Bytes]:
    nibbles, fifth = split_at(q, 4)
    return {"qs": pack_planes(nibbles, 16, 4), "qh": pack_planes(fifth, 1, 1)}


def _encode_q4_0(x: Floats) -> Blocks:
    d, q = _symmetric(x, 16)
    return pack_fields(_Q4_0, d=half(d), qs=pack_planes(q, 16, 4))


def _encode_q4_1(x: Floats) -> Blocks:
    d, m, q = _affine(x, 16)
    return pack_fields(_Q4_1, d=half(d), m=half(m), qs=pack_planes(q, 16, 4))


def _encode_q5_0(x: Floats) -> Blocks:
    d, q = _symmetric(x, 32)
    return pack_fields(_Q5_0, d=half(d), **_split_five_bits(q))


def _encode_q5_1(x: Floats) -> Blocks:
    d, m, q = _affine(x, 32)
    return pack_fields(_Q5_1, d=half(d), m=half(m), **_split_five_bits(q))


def _encode_q8_0(x: Floats) -> Blocks:
    d = np.abs(x).max(axis=1, keepdims=True) / np.float32(127)
    scaled = x * inverse(d)
    magnitude = np.abs(scaled)
    whole = np.floor(magnitude)
    rounded = np.copysign(whole + (magnitude - whole >= np.float32(0.5)), scaled)  # halves away from zero
    return pack_fields(_Q8_0, d=half(d), qs=rounded.astype(np.int8))


CODECS: Mapping[str, Codec] = {
    "F32": Codec(_F32, _decode_float, _encode_f32),
    "F16": Codec(_F16, _decode_float, _encode_f16),
    "BF16": Codec(_BF16, _decode_bf16, _encode_bf16),
    "Q4_0": Codec(_Q4_0, _decode_q4_0, _encode_q4_0),
    "Q4_1": Codec(_Q4_1, _decode_q4_1, _encode_q4_1),
    "Q5_0": Codec(_Q5_0, _decode_q5_0, _encode_q5_0),
    "Q5_1": Codec(_Q5_1, _decode_q5_1, _encode_q5_1),
    "Q8_0": Codec(_Q8_0, _decode_q8_0, _encode_q8_0),
}

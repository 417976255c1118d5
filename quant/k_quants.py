"""The 256-element super-block formats Q2_K, Q3_K, Q4_K, Q5_K and Q6_K, and their activation partner Q8_K.

Small integer scales serve sub-blocks of 16 or 32 elements; one or two float16 numbers scale the scales.

    Q2_K  16 sub-blocks of 16: scale and minimum 4 bits each                  x = (d * s) * q - (dmin * m)
    Q3_K  16 sub-blocks of 16: scale 6 bits, signed by an offset of 32        x = (d * (s - 32)) * (q - 4)
    Q4_K   8 sub-blocks of 32: scale and minimum 6 bits each                  x = (d * s) * q - (dmin * m)
    Q5_K   8 sub-blocks of 32: as Q4_K with a fifth bit                       x = (d * s) * q - (dmin * m)
    Q6_K  16 sub-blocks of 16: scale 8 bits, signed                           x = (d * s) * (q - 32)

The parentheses are the order of the single-precision operations; nothing is fused. Bit fields lie in planes (`bits`) of 32
bytes, those of Q6_K's low nibbles in planes of 64. Six-bit scales have two packings:

    Q3_K, 12 bytes:   0..7   low nibbles of scales 0..7 (low) and 8..15 (high)
                      8..11  high two bits: of scale j in byte 8 + j % 4, bits 2 * (j // 4)
    Q4_K and Q5_K:    0..3   scale j (low six bits); top two bits: bits 4, 5 of scale j + 4
                      4..7   minimum j likewise
                      8..11  low nibble of scale j + 4 (low) and of minimum j + 4 (high)           j = 0..3
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from quant.bits import Bytes, join_at, pack_planes, split_at, unpack_planes
from quant.codec import Blocks, Codec, Floats, inverse, pack_fields
from quant.fit import best_scale, best_scale_and_minimum, half_scale_from_largest, largest
from quant.legacy import scale_of

_Q2_K = np.dtype([("scales", "u1", 16), ("qs", "u1", 64), ("d", "<f2"), ("dmin", "<f2")])
_Q3_K = np.dtype([("hmask", "u1", 32), ("qs", "u1", 64), ("scales", "u1", 12), ("d", "<f2")])
_Q4_K = np.dtype([("d", "<f2"), ("dmin", "<f2"), ("scales", "u1", 12), ("qs", "u1", 128)])
_Q5_K = np.dtype([("d", "<f2"), ("dmin", "<f2"), ("scales", "u1", 12), ("qh", "u1", 32), ("qs", "u1", 128)])
_Q6_K = np.dtype([("ql", "u1", 128), ("qh", "u1", 64), ("scales", "i1", 16), ("d", "<f2")])


def _affine_values(blocks: Blocks, scales: Bytes, minima: Bytes, q: Bytes) -> Floats:
    """(d * s) * q - (dmin * m) per sub-block: scales, minima [n, sub-blocks], q [n, 256] -> float32[n, 256]."""
    step = (scale_of(blocks) * scales)[:, :, None]
    offset = (scale_of(blocks, "dmin") * minima)[:, :, None]
    return (step * q.reshape(len(q), scales.shape[1], -1) - offset).reshape(-1, 256)


def _signed_values(blocks: Blocks, scales: NDArray[np.int8], q: NDArray[np.int8]) -> Floats:
    """(d * s) * q per sub-block of 16."""
    return ((scale_of(blocks) * scales)[:, :, None] * q.reshape(-1, 16, 16)).reshape(-1, 256)


def unpack_scales_and_minima(scales: Bytes) -> tuple[Bytes, Bytes]:
    """Q4_K's and Q5_K's 12 bytes -> eight scales and eight minima below 64: uint8[n, 12] -> uint8[n, 8] twice."""
    first_scales, scale_tops = split_at(scales[:, 0:4], 6)
    first_minima, minimum_tops = split_at(scales[:, 4:8], 6)
    scale_nibbles, minimum_nibbles = split_at(scales[:, 8:12], 4)
    return (
        np.concatenate([first_scales, join_at(scale_nibbles, scale_tops, 4)], axis=1),
        np.concatenate([first_minima, join_at(minimum_nibbles, minimum_tops, 4)], axis=1),
    )


def pack_scales_and_minima(scales: Bytes, minima: Bytes) -> Bytes:
    """The inverse of `unpack_scales_and_minima`."""
    scale_nibbles, scale_tops = split_at(scales[:, 4:], 4)
    minimum_nibbles, minimum_tops = split_at(minima[:, 4:], 4)
    return np.concatenate(
        [join_at(scales[:, :4], scale_tops, 6), join_at(minima[:, :4], minimum_tops, 6), join_at(scale_nibbles, minimum_nibbles, 4)],
        axis=1,
    )


def _decode_q2_k(blocks: Blocks) -> Floats:
    return _affine_values(blocks, *split_at(blocks["scales"], 4), unpack_planes(blocks["qs"], 32, 2))


def _decode_q3_k(blocks: Blocks) -> Floats:
    low, high = blocks["scales"][:, :8], blocks["scales"][:, 8:]
    scales = join_at(unpack_planes(low, 8, 4), unpack_planes(high, 4, 2), 4)
    q = join_at(unpack_planes(blocks["qs"], 32, 2), unpack_planes(blocks["hmask"], 32, 1), 2)
    return _signed_values(blocks, scales.view(np.int8) - np.int8(32), q.view(np.int8) - np.int8(4))


def _decode_q4_k(blocks: Blocks) -> Floats:
    return _affine_values(blocks, *unpack_scales_and_minima(blocks["scales"]), unpack_planes(blocks["qs"], 32, 4))


def _decode_q5_k(blocks: Blocks) -> Floats:
    q = join_at(unpack_planes(blocks["qs"], 32, 4), unpack_planes(blocks["qh"], 32, 1), 4)
    return _affine_values(blocks, *unpack_scales_and_minima(blocks["scales"]), q)


def _decode_q6_k(blocks: Blocks) -> Floats:
    q = join_at(unpack_planes(blocks["ql"], 64, 4), unpack_planes(blocks["qh"], 32, 2), 4)
    return _signed_values(blocks, blocks["scales"], q.view(np.int8) - np.int8(32))


def _fit_signed(x: Floats, scale_top: int, top: int) -> tuple[NDArray[np.float16], Floats, Floats]:
    """d [n], integer scales [n, 16] in -scale_top..scale_top-1 and quants [n, 256] in -top..top-1 for sub-blocks of 16."""
    rows = x.reshape(-1, 16)
    ends = [-top + step / 10 for step in range(-9, 10, 2)]
    scales = best_scale(rows, lambda scaled: np.clip(np.rint(scaled), -top, top - 1), ends).reshape(-1, 16)
    d = half_scale_from_largest(scales, -scale_top)
    wide = d.astype(np.float32)[:, None]
    s = np.clip(np.rint(scales * inverse(wide)), -scale_top, scale_top - 1)
    q = np.clip(np.rint(rows * inverse((wide * s).reshape(-1, 1))), -top, top - 1)
    return d, s, q.reshape(-1, 256)


def _encode_q3_k(x: Floats) -> Blocks:
    d, s, q = _fit_signed(x, 32, 4)
    low, high = split_at((q + 4).astype(np.uint8), 2)
    scale_nibbles, scale_tops = split_at((s + 32).astype(np.uint8), 4)
    scales = np.concatenate([pack_planes(scale_nibbles, 8, 4), pack_planes(scale_tops, 4, 2)], axis=1)
    return pack_fields(_Q3_K, d=d, scales=scales, hmask=pack_planes(high, 32, 1), qs=pack_planes(low, 32, 2))


def _encode_q6_k(x: Floats) -> Blocks:
    d, s, q = _fit_signed(x, 128, 32)
    low, high = split_at((q + 32).astype(np.uint8), 4)
    return pack_fields(_Q6_K, d=d, scales=s.astype(np.int8), ql=pack_planes(low, 64, 4), qh=pack_planes(high, 32, 2))


def _fit_affine(x: Floats, n_sub: int, scale_top: int, top: int) -> tuple[dict[str, NDArray[np.float16]], Bytes, Bytes, Bytes]:
    """{d, dmin} [n], scales and minima [n, n_sub] up to scale_top and quants [n, 256] up to top."""
    rows = x.reshape(-1, 256 // n_sub)
    step, offset = best_scale_and_minimum(rows, top, [top + step / 5 for step in range(-5, 6)])
    step, offset = step.reshape(-1, n_sub), offset.reshape(-1, n_sub)
    d, dmin = half_scale_from_largest(step, scale_top), half_scale_from_largest(offset, scale_top)
    wide_d, wide_dmin = d.astype(np.float32)[:, None], dmin.astype(np.float32)[:, None]
    s = np.minimum(np.rint(step * inverse(wide_d)), scale_top)
    m = np.minimum(np.rint(offset * inverse(wide_dmin)), scale_top)
    q = np.clip(np.rint((rows + (wide_dmin * m).reshape(-1, 1)) * inverse((wide_d * s).reshape(-1, 1))), 0, top)
    return {"d": d, "dmin": dmin}, s.astype(np.uint8), m.astype(np.uint8), q.astype(np.uint8).reshape(-1, 256)


def _encode_q2_k(x: Floats) -> Blocks:
    scale, s, m, q = _fit_affine(x, 16, 15, 3)
    return pack_fields(_Q2_K, **scale, scales=join_at(s, m, 4), qs=pack_planes(q, 32, 2))


def _encode_q4_k(x: Floats) -> Blocks:
    scale, s, m, q = _fit_affine(x, 8, 63, 15)
    return pack_fields(_Q4_K, **scale, scales=pack_scales_and_minima(s, m), qs=pack_planes(q, 32, 4))


def _encode_q5_k(x: Floats) -> Blocks:
    scale, s, m, q = _fit_affine(x, 8, 63, 31)
    low, high = split_at(q, 4)
    return pack_fields(_Q5_K, **scale, scales=pack_scales_and_minima(s, m), qs=pack_planes(low, 32, 4), qh=pack_planes(high, 32, 1))


def quantize_q8_k(x: Floats) -> tuple[NDArray[np.int8], Floats, NDArray[np.int16]]:
    """Activations as super-blocks of signed bytes, the partner of the K formats.

    float32[..., n], n a multiple of 256 -> quants int8[..., n/256, 256], scales float32[..., n/256] with x ~ d * q, and sums of
    each 16 quants int16[..., n/256, 16]. The largest magnitude becomes -127; halves round to even.
    """
    blocks = np.ascontiguousarray(x, np.float32).reshape(-1, 256)
    to_integer = np.float32(-127) * inverse(largest(blocks))
    q = np.minimum(np.rint(blocks * to_integer), 127).astype(np.int8)
    shape = (*x.shape[:-1], x.shape[-1] // 256)
    sums = q.reshape(-1, 16, 16).sum(axis=2, dtype=np.int16)
    return q.reshape(*shape, 256), inverse(to_integer).reshape(shape), sums.reshape(*shape, 16)


CODECS: Mapping[str, Codec] = {
    "Q2_K": Codec(_Q2_K, _decode_q2_k, _encode_q2_k),
    "Q3_K": Codec(_Q3_K, _decode_q3_k, _encode_q3_k),
    "Q4_K": Codec(_Q4_K, _decode_q4_k, _encode_q4_k),
    "Q5_K": Codec(_Q5_K, _decode_q5_k, _encode_q5_k),
    "Q6_K": Codec(_Q6_K, _decode_q6_k, _encode_q6_k),
}

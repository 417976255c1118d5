"""The non-linear 4-bit formats: quants are indices into a table of 16 levels that are denser around zero.

    IQ4_NL  d float16, 16 bytes of nibbles per 32 elements                      x = d * LEVELS[q]
    IQ4_XS  d float16, 8 six-bit scales, 128 bytes of nibbles per 256 elements  x = (d * (s - 32)) * LEVELS[q]

Nibbles lie in planes of 16 within each 32 elements. A six-bit scale of IQ4_XS has its low nibble in `scales_l` and its two
high bits in `scales_h`, both in plain little-endian bit order.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from quant.bits import Bytes, join_at, pack_planes, split_at, unpack_planes
from quant.codec import Blocks, Codec, Floats, inverse, pack_fields
from quant.fit import best_scale, half_scale_from_largest, saturated_half
from quant.legacy import scale_of

LEVELS: NDArray[np.int8] = np.array([-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113], np.int8)
"""The 16 values a 4-bit index stands for, before scaling."""

_MIDPOINTS = (LEVELS[1:].astype(np.float32) + LEVELS[:-1].astype(np.float32)) / np.float32(2)
_FLOAT_LEVELS = LEVELS.astype(np.float32)

_IQ4_NL = np.dtype([("d", "<f2"), ("qs", "u1", 16)])
_IQ4_XS = np.dtype([("d", "<f2"), ("scales_h", "u1", 2), ("scales_l", "u1", 4), ("qs", "u1", 128)])


def _decode_iq4_nl(blocks: Blocks) -> Floats:
    return scale_of(blocks) * _FLOAT_LEVELS[unpack_planes(blocks["qs"], 16, 4)]


def _decode_iq4_xs(blocks: Blocks) -> Floats:
    scales = join_at(unpack_planes(blocks["scales_l"], 1, 4), unpack_planes(blocks["scales_h"], 1, 2), 4)
    sub_scale = scale_of(blocks) * (scales.view(np.int8) - np.int8(32))
    levels = _FLOAT_LEVELS[unpack_planes(blocks["qs"], 16, 4)].reshape(-1, 8, 32)
    return (sub_scale[:, :, None] * levels).reshape(-1, 256)


def _nearest(scaled: Floats) -> Bytes:
    """Index of the level nearest to each value."""
    return np.searchsorted(_MIDPOINTS, scaled).astype(np.uint8)


def _level(scaled: Floats) -> Floats:
    return _FLOAT_LEVELS[_nearest(scaled)]


def _scales(x: Floats) -> Floats:
    """Least-squares scale float32[n, 1] of each row. The largest value may map to either end of the table or beyond it."""
    return best_scale(x, _level, [float(level) for level in (-127 - 12, -127 - 5, -127, -127 + 7, -127 + 13, 113 + 6, 113, 113 - 7)])


def _encode_iq4_nl(x: Floats) -> Blocks:
    d = saturated_half(_scales(x))
    return pack_fields(_IQ4_NL, d=d, qs=pack_planes(_nearest(x * inverse(d.astype(np.float32)[:, None])), 16, 4))


def _encode_iq4_xs(x: Floats) -> Blocks:
    rows = x.reshape(-1, 32)
    scales = _scales(rows).reshape(-1, 8)
    d = half_scale_from_largest(scales, -32)
    wide = d.astype(np.float32)[:, None]
    s = np.clip(np.rint(scales * inverse(wide)), -32, 31)
    q = _nearest(rows * inverse((wide * s).reshape(-1, 1)))
    low, high = split_at((s + 32).astype(np.uint8), 4)
    return pack_fields(
        _IQ4_XS,
        d=d,
        scales_h=pack_planes(high, 1, 2),
        scales_l=pack_planes(low, 1, 4),
        qs=pack_planes(q.reshape(-1, 256), 16, 4),
    )


CODECS: Mapping[str, Codec] = {
    "IQ4_NL": Codec(_IQ4_NL, _decode_iq4_nl, _encode_iq4_nl),
    "IQ4_XS": Codec(_IQ4_XS, _decode_iq4_xs, _encode_iq4_xs),
}

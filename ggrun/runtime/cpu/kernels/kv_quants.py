"""Keys and values kept as q8_0 or q4_0: encoding a token's group of 32, and widening a block to float32 (exact: scale times quant).

Quants lie like float16 keys and values do, so that a vector is tokens of keys or dimensions of values. keys: q8_0 [dim][BLOCK] int8; q4_0
[dim / 2][BLOCK], the low half of a byte being dimension 2i, the high one 2i + 1; then scales, float16 [dim / 32][BLOCK]. values: q8_0
[BLOCK][dim] int8; q4_0 [BLOCK][dim / 2], byte i of a group's 16 being its dimensions i and 16 + i; then scales [BLOCK][dim / 32].
"""

from __future__ import annotations

import numpy as np
from numba import njit

from ggrun.plan.device import KV_BLOCK_TOKENS
from ggrun.runtime.cpu.sizes import KV_GROUP, LANES
from ggrun.runtime.cpu.vectors import narrow_half, vector_code
from ggrun.runtime.cpu.words import load_f32, store_i8
from quant.simd import I8, I16, I32, Emitter, Value, vec

BLOCK = KV_BLOCK_TOKENS
_BYTES = vec(I8, LANES)


# -- encoding, as quant's reference does ---------------------------------------------------------------------------------------


@vector_code("fi")
def _store_half(e: Emitter, x: Value, y: Value) -> None:
    """float32 to float16 at an address."""
    e.store(narrow_half(e, x), y)


@njit
def _inverse(d):
    return np.float32(1.0) / d if d != 0.0 else np.float32(0.0)


@njit
def _encode8(x, y, stride, scale):
    """A group as int8, `stride` bytes apart; halves are rounded away from zero."""
    top = np.float32(0.0)
    for i in range(KV_GROUP):
        top = max(top, abs(load_f32(x + 4 * i)))
    d = top / np.float32(127.0)
    _store_half(d, scale)
    inverse = _inverse(d)
    for i in range(KV_GROUP):
        v = load_f32(x + 4 * i) * inverse
        size = abs(v)
        whole = np.int32(size)
        whole += size - np.float32(whole) >= np.float32(0.5)
        store_i8(y + stride * i, np.int8(-whole if v < 0.0 else whole))


@njit
def _encode4(x, y, stride, step, far, scale):
    """A group as 16 bytes, `stride` bytes apart: byte i holds elements step * i and step * i + far."""
    top = np.float32(0.0)
    for i in range(KV_GROUP):
        v = load_f32(x + 4 * i)
        if abs(v) > abs(top):
            top = v
    d = top / np.float32(-8.0)
    _store_half(d, scale)
    inverse = _inverse(d)
    for i in range(KV_GROUP // 2):
        a = min(np.int32(load_f32(x + 4 * step * i) * inverse + np.float32(8.5)), 15)
        b = min(np.int32(load_f32(x + 4 * (step * i + far)) * inverse + np.float32(8.5)), 15)
        store_i8(y + stride * i, np.int8(a | b << 4))  # type: ignore[operator]


@njit
def store_key(x, dim, bits, keys, place):
    """A token's key x [dim] to column `place` of a block's keys."""
    scales = keys + BLOCK * dim * bits // 8
    for group in range(dim // KV_GROUP):
        at = keys + group * KV_GROUP * bits // 8 * BLOCK + place
        scale = scales + 2 * (group * BLOCK + place)
        if bits == 8:
            _encode8(x + 4 * KV_GROUP * group, at, BLOCK, scale)
        else:
            _encode4(x + 4 * KV_GROUP * group, at, BLOCK, 2, 1, scale)


@njit
def store_value(x, dim, bits, values, place):
    """A token's value x [dim] to row `place` of a block's values."""
    scales = values + BLOCK * dim * bits // 8
    for group in range(dim // KV_GROUP):
        at = values + (place * dim + group * KV_GROUP) * bits // 8
        scale = scales + 2 * (place * (dim // KV_GROUP) + group)
        if bits == 8:
            _encode8(x + 4 * KV_GROUP * group, at, 1, scale)
        else:
            _encode4(x + 4 * KV_GROUP * group, at, 1, 1, KV_GROUP // 2, scale)


# -- widening ------------------------------------------------------------------------------------------------------------------


def _signed(e: Emitter, quants: Value) -> Value:
    """int8 to float32."""
    return e.to_float(e.b.sext(quants, vec(I32, LANES)))


def _nibbles(e: Emitter, pairs: Value) -> tuple[Value, Value]:
    """The low and the high halves of bytes, less 8, as float32."""
    low, high = e.b.and_(pairs, e.const(15, _BYTES)), e.b.lshr(pairs, e.const(4, _BYTES))
    first, second = (_signed(e, e.b.sub(part, e.const(8, _BYTES))) for part in (low, high))
    return first, second


def _group(e: Emitter, index: Value) -> Value:
    return e.b.sdiv(index, e.const(KV_GROUP))


def _key_scales(e: Emitter, scales: Value, index: Value) -> list[Value]:
    """The scales of a block's tokens for the group of dimension `index`."""
    line = e.at(scales, _group(e, index), 2 * BLOCK)
    return [e.widen_half(e.load(line, vec(I16, LANES), 2 * first)) for first in range(0, BLOCK, LANES)]


@vector_code("iii")
def widen_keys8(e: Emitter, keys: Value, dim: Value, y: Value) -> None:
    """A block's q8_0 keys to float32 [dim][BLOCK]."""
    scales = e.at(keys, dim, BLOCK)

    def one(i: Value) -> None:
        for j, scale in enumerate(_key_scales(e, scales, i)):
            quants = e.load(e.at(keys, i, BLOCK), _BYTES, j * LANES)
            e.store(e.b.fmul(_signed(e, quants), scale), e.at(y, i, 4 * BLOCK), 4 * j * LANES)

    e.range(e.const(0), dim, one)


@vector_code("iii")
def widen_keys4(e: Emitter, keys: Value, dim: Value, y: Value) -> None:
    """A block's q4_0 keys to float32 [dim][BLOCK]."""
    scales = e.at(keys, dim, BLOCK // 2)

    def one(i: Value) -> None:
        for j, scale in enumerate(_key_scales(e, scales, i)):
            pairs = e.load(e.at(keys, i, BLOCK // 2), _BYTES, j * LANES)
            for k, part in enumerate(_nibbles(e, pairs)):
                e.store(e.b.fmul(part, scale), e.at(y, i, 4 * BLOCK), 4 * (k * BLOCK + j * LANES))

    e.range(e.const(0), dim, one, step=2)


def _widen_values(e: Emitter, scales: Value, tokens: Value, dim: Value, y: Value, parts) -> None:
    """parts(number of a group): its 32 quants as two vectors of float32."""
    groups = _group(e, dim)

    def one(index: Value) -> None:
        scale = e.splat(e.widen_half(e.load(e.at(scales, index, 2), I16)), LANES)
        for j, part in enumerate(parts(index)):
            e.store(e.b.fmul(part, scale), e.at(y, index, 4 * KV_GROUP), 4 * j * LANES)

    e.range(e.const(0), e.b.mul(tokens, groups), one)


@vector_code("iiii")
def widen_values8(e: Emitter, values: Value, tokens: Value, dim: Value, y: Value) -> None:
    """The first tokens of a block's q8_0 values to float32 [tokens][dim]."""

    def parts(index: Value) -> list[Value]:
        at = e.at(values, index, KV_GROUP)
        return [_signed(e, e.load(at, _BYTES, first)) for first in range(0, KV_GROUP, LANES)]

    _widen_values(e, e.at(values, dim, BLOCK), tokens, dim, y, parts)


@vector_code("iiii")
def widen_values4(e: Emitter, values: Value, tokens: Value, dim: Value, y: Value) -> None:
    """The first tokens of a block's q4_0 values to float32 [tokens][dim]."""
    _widen_values(
        e, e.at(values, dim, BLOCK // 2), tokens, dim, y, lambda index: _nibbles(e, e.load(e.at(values, index, KV_GROUP // 2), _BYTES))
    )

"""Keys and values kept as q8_0 or q4_0: encoding a token's group of 32, reading vectors of float32 (exact: scale times quant), and
widening a block.

Quants lie like float16 keys and values do, so that a vector is tokens of keys or dimensions of values. keys: q8_0 [dim][BLOCK] int8; q4_0
[dim / 2][BLOCK], the low half of a byte being dimension 2i, the high one 2i + 1; then scales, float16 [dim / 32][BLOCK]. values: q8_0
[BLOCK][dim] int8; q4_0 [BLOCK][dim / 2], byte i of a group's 16 being its dimensions i and 16 + i; then scales [BLOCK][dim / 32].
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from llvmlite.ir import Type
from numba import njit

from ggrun.plan.device import KV_BLOCK_TOKENS
from ggrun.runtime.cpu.sizes import KV_GROUP
from ggrun.runtime.cpu.vectors import narrow_half, vector_code
from ggrun.runtime.cpu.words import load_f32, store_i8
from quant.simd import F32, I8, I16, I32, Emitter, Value, vec

BLOCK = KV_BLOCK_TOKENS


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


# -- reading -------------------------------------------------------------------------------------------------------------------


def _signed(e: Emitter, quants: Value) -> Value:
    """int8 to float32."""
    return e.to_float(e.b.sext(quants, vec(I32, quants.type.count)))


def _nibbles(e: Emitter, pairs: Value) -> tuple[Value, Value]:
    """The low and the high halves of bytes, less 8, as float32."""
    low, high = e.b.and_(pairs, e.const(15, pairs.type)), e.b.lshr(pairs, e.const(4, pairs.type))
    first, second = (_signed(e, e.b.sub(part, e.const(8, pairs.type))) for part in (low, high))
    return first, second


def _group(e: Emitter, index: Value) -> Value:
    return e.b.sdiv(index, e.const(KV_GROUP))


def _vectors(e: Emitter, line: Value, type_: Type, n: int) -> list[Value]:
    """n vectors of such elements, side by side."""
    size = 4 if type_ == F32 else type_.width // 8
    return [e.load(line, vec(type_, e.target.lanes), size * e.target.lanes * j) for j in range(n)]


def key_scales(e: Emitter, bits: int, keys: Value, dim: Value, group: Value, first: Value, n: int) -> list[Value]:
    """The scales of a group of dimensions for n vectors of a block's tokens, from token `first` on."""
    scales = e.at(keys, dim, BLOCK * bits // 8)
    return [e.widen_half(half) for half in _vectors(e, e.at(e.at(scales, group, 2 * BLOCK), first, 2), I16, n)]


def key_lines(e: Emitter, bits: int, line: Value, n: int, scales: list[Value]) -> list[list[Value]]:
    """Keys of one dimension, of two for q4_0, for n vectors of tokens: float32 of what has so many bits an element."""
    if bits == 32:
        return [_vectors(e, line, F32, n)]
    if bits == 16:
        return [[e.widen_half(half) for half in _vectors(e, line, I16, n)]]
    quants = _vectors(e, line, I8, n)
    dims = [[_signed(e, part) for part in quants]] if bits == 8 else list(zip(*(_nibbles(e, pairs) for pairs in quants)))
    return [[e.b.fmul(part, scale) for part, scale in zip(parts, scales)] for parts in dims]


def value_reader(e: Emitter, bits: int, values: Value, dim: Value, index: Value, n: int) -> Callable[[Value], list[Value]]:
    """read(token): n vectors of its value from dimension `index` on, which lie in one group: float32 of so many bits an element."""
    row_bytes = e.b.lshr(e.b.mul(dim, e.const(bits)), e.const(3))
    lanes = e.target.lanes
    group = _group(e, index)
    scales = e.at(e.at(values, row_bytes, BLOCK), group, 2)

    def nibbles(row: Value, j: int) -> Value:
        within = e.b.and_(e.offset(index, j * lanes), e.const(KV_GROUP - 1))
        byte = e.b.add(e.at(row, group, KV_GROUP // 2), e.b.and_(within, e.const(KV_GROUP // 2 - 1)))
        shift = e.splat(e.b.trunc(e.b.and_(e.b.lshr(within, e.const(2)), e.const(4)), I32), lanes)  # the group's second half is high
        pairs = e.b.zext(e.load(byte, vec(I8, lanes)), vec(I32, lanes))
        return e.to_float(e.b.sub(e.b.and_(e.b.lshr(pairs, shift), e.const(15, pairs.type)), e.const(8, pairs.type)))

    def read(token: Value) -> list[Value]:
        row = e.at(values, token, row_bytes)
        if bits > 8:
            return key_lines(e, bits, e.at(row, index, bits // 8), n, [])[0]
        scale = e.splat(e.widen_half(e.load(e.at(scales, token, e.b.lshr(dim, e.const(4))), I16)), lanes)
        if bits == 8:
            return key_lines(e, bits, e.offset(row, index), n, [scale] * n)[0]
        return [e.b.fmul(nibbles(row, j), scale) for j in range(n)]

    return read


# -- widening ------------------------------------------------------------------------------------------------------------------


def _widen_keys(bits: int):
    def body(e: Emitter, keys: Value, dim: Value, y: Value) -> None:
        """A block's quantized keys to float32 [dim][BLOCK]."""
        n, dims = BLOCK // e.target.lanes, 8 // bits

        def one(i: Value) -> None:
            scales = key_scales(e, bits, keys, dim, _group(e, e.b.mul(i, e.const(dims))), e.const(0), n)
            for k, columns in enumerate(key_lines(e, bits, e.at(keys, i, BLOCK), n, scales)):
                for j, column in enumerate(columns):
                    e.store(column, e.at(y, i, 4 * BLOCK * dims), 4 * (k * BLOCK + j * e.target.lanes))

        e.range(e.const(0), e.b.sdiv(dim, e.const(dims)), one)

    return vector_code("iii")(body)


widen_keys8 = _widen_keys(8)
widen_keys4 = _widen_keys(4)


def _widen_values(bits: int):
    def body(e: Emitter, values: Value, tokens: Value, dim: Value, y: Value) -> None:
        """The first tokens of a block's quantized values to float32 [tokens][dim]."""
        lanes = e.target.lanes
        n = KV_GROUP // lanes

        def columns(index: Value) -> None:
            read = value_reader(e, bits, values, dim, index, n)

            def one(token: Value) -> None:
                for j, column in enumerate(read(token)):
                    e.store(column, e.at(y, e.b.add(e.b.mul(token, dim), index), 4), 4 * lanes * j)

            e.count(tokens, one)

        e.range(e.const(0), dim, columns, step=KV_GROUP)

    return vector_code("iiii")(body)


widen_values8 = _widen_values(8)
widen_values4 = _widen_values(4)

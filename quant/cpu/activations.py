"""Activations as kernels read them: layouts, and the kernels that quantize float32 rows into them.

Three kinds, named by `Format.activation`:

    f32    float32 rows, padded with zeros to a multiple of 32 elements
    q8_0   signed bytes, one float32 scale per 32 elements, grouped by 8 blocks (256 elements; the last group may be shorter)
    q8_k   signed bytes, one float32 scale per 256 elements

The byte kinds interleave `tokens` = T tokens of a tile, in groups of 256 elements, [group][tile]:

    bytes            [64][T][4]   quants: four neighbouring elements of a token side by side
    q8_k:  sums16    [8][T][2]    i16 sums of quants per 16 elements, in pairs
           sums32    [4][T][2]    i16 sums per 32 elements, in pairs
           scale     [T]          f32
    q8_0:  scale     [8][T]       f32
           offset    [8][T]       f32 scale * sum of quants: what a weight's minimum is multiplied with
           sums      [8][T]       i32 sums of quants per 32 elements

With T = 1 everything is contiguous: the layout of a single token. With more, where VNNI multiplies bytes, quants are stored 128 too
large, as unsigned bytes; their sums are not. A scale is max|x| / 127 and quants round to nearest even, the same for every T, so a
token's numbers never depend on its neighbours. NaN or infinity in x makes the scale NaN or infinite and the quants harmless. Knows
nothing of weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np

from quant.cpu.arguments import Source
from quant.simd import F32, I8, I16, I32, I64, Emitter, Value, vec

GROUP = 256
"""Elements between two float additions to a result: a super-block, or eight blocks of 32."""


@dataclass(frozen=True, slots=True)
class Layout:
    """Byte offsets within one group of T tokens, for the byte kinds."""

    tokens: int
    fields: Mapping[str, int]
    n_bytes: int

    def __getitem__(self, field: str) -> int:
        return self.fields[field]


_FIELDS = {
    "q8_k": (("quants", 256), ("sums16", 32), ("sums32", 16), ("scale", 4)),
    "q8_0": (("quants", 256), ("scale", 32), ("offset", 32), ("sums", 32)),
}


def layout(kind: str, tokens: int) -> Layout:
    """Where things are in a group of `tokens` interleaved tokens of kind "q8_k" or "q8_0"."""
    at, fields = 0, {}
    for name, n_bytes in _FIELDS[kind]:
        fields[name] = at
        at += n_bytes * tokens
    return Layout(tokens, MappingProxyType(fields), -(-at // 64) * 64)


def padded(k: int) -> int:
    """Elements of an f32 row of k elements with its padding."""
    return -(-k // 32) * 32


def activation_bytes(kind: str, k: int, n_tokens: int, tile: int) -> int:
    """Bytes of n_tokens rows of k elements."""
    if kind == "f32":
        return 4 * n_tokens * padded(k)
    tokens = 1 if n_tokens == 1 else tile
    return -(-k // GROUP) * -(-n_tokens // tokens) * layout(kind, tokens).n_bytes


def emit_f32(e: Emitter, a: Source) -> None:
    """Copies rows t0..t1-1 and zeroes their padding."""
    b, k = e.b, a.k
    row_bytes = b.mul(b.ashr(b.add(k, e.const(31)), e.const(5)), e.const(128))
    wide = vec(F32, 8)

    def row(t: Value) -> None:
        source, target = _row(e, a, t), e.at(a.dst, t, row_bytes)
        e.count(b.ashr(k, e.const(3)), lambda i: e.store(e.load(e.at(source, i, 32), wide), e.at(target, i, 32)))
        whole = b.and_(k, e.const(-8))
        e.range(whole, k, lambda i: e.store(e.load(e.at(source, i, 4), F32), e.at(target, i, 4)))
        e.range(k, b.ashr(row_bytes, e.const(2)), lambda i: e.store(e.zero(F32), e.at(target, i, 4)))

    e.range(a.t0, a.t1, row)


def emit_bytes(e: Emitter, kind: str, a: Source) -> None:
    """Quantizes rows t0..t1-1, in the layout of a single token or of tiles by n_tokens."""
    with e.b.if_else(e.b.icmp_signed("==", a.n_tokens, e.const(1))) as (single, tiled):
        with single:
            _emit_tiles(e, kind, 1, a)
        with tiled:
            _emit_tiles(e, kind, e.target.tile_tokens, a)


def _emit_tiles(e: Emitter, kind: str, tokens: int, a: Source) -> None:
    b, k, place = e.b, a.k, layout(kind, tokens)
    n_tiles = b.sdiv(b.add(a.n_tokens, e.const(tokens - 1)), e.const(tokens))
    n_groups = b.ashr(k, e.const(8))
    n_rest = b.ashr(b.and_(k, e.const(GROUP - 1)), e.const(5))  # blocks of 32 beyond the whole groups
    group_bytes = b.mul(n_tiles, e.const(place.n_bytes))
    end = b.mul(b.sdiv(b.add(a.t1, e.const(tokens - 1)), e.const(tokens)), e.const(tokens))

    def token(t: Value) -> None:
        # Padding tokens repeat the last one: their results are not used, but their numbers are numbers.
        row = _row(e, a, e.minimum(t, b.sub(a.n_tokens, e.const(1))))
        tile, slot = b.sdiv(t, e.const(tokens)), b.srem(t, e.const(tokens))
        base = e.at(a.dst, tile, place.n_bytes)

        def group(i: Value) -> None:
            source, target = e.at(row, i, 4 * GROUP), e.at(base, i, group_bytes)
            if kind == "q8_k":
                _quantize_super_block(e, place, source, target, slot)
            else:
                e.count(8, lambda j: _quantize_block(e, place, e.at(source, j, 128), target, slot, j))

        e.count(n_groups, group)
        if kind == "q8_0":
            source, target = e.at(row, n_groups, 4 * GROUP), e.at(base, n_groups, group_bytes)
            e.count(n_rest, lambda j: _quantize_block(e, place, e.at(source, j, 128), target, slot, j))

    e.range(a.t0, end, token)


def _row(e: Emitter, a: Source, t: Value) -> Value:
    """Address of the source row of token t: index[t] when there is an index."""
    b = e.b
    before = b.block
    with b.if_then(b.icmp_signed("!=", a.index, e.const(0))):
        picked = b.sext(e.load(e.at(a.index, t, 4), I32), I64)
        inside = b.block
    return e.at(a.src, e.merge([(picked, inside), (t, before)]), a.stride)


def _largest(e: Emitter, parts: list[Value]) -> Value:
    """max |x| over float vectors, as f32. Compared as integers: the order is the same, and NaN is above everything."""
    wide = vec(I32, parts[0].type.count)
    best = None
    for part in parts:
        bits = e.b.and_(e.cast(part, wide), e.const(0x7FFFFFFF, wide))
        best = bits if best is None else e.overloaded("umax", [best, bits])
    n = wide.count
    return e.cast(e.call(f"llvm.vector.reduce.umax.v{n}i32", I32, [best]), F32)


def _scale_and_inverse(e: Emitter, largest: Value) -> tuple[Value, Value]:
    b = e.b
    scale = b.fmul(largest, e.const(float(np.float32(1 / 127)), F32))
    # 127 / largest overflows below 2**-121: such a block counts as zeros.
    tiny = b.fcmp_ordered("<", largest, e.const(2.0**-120, F32))
    return scale, b.select(tiny, e.const(0.0, F32), b.fdiv(e.const(127.0, F32), largest))


def _round(e: Emitter, x: Value, inverse: Value) -> Value:
    """Nearest integers of x * inverse within -127..127, NaN to -127: <n x f32> -> <n x i32>."""
    b, n = e.b, x.type.count
    scaled = b.fmul(x, e.splat(inverse, n))
    low, high = e.const(-127.0, x.type), e.const(127.0, x.type)
    scaled = b.select(b.fcmp_ordered(">", scaled, low), scaled, low)
    scaled = b.select(b.fcmp_ordered("<", scaled, high), scaled, high)
    # Adding 1.5 * 2**23 leaves the rounded integer in the low bits: rounding without an instruction for it.
    magic = b.fadd(scaled, e.const(12582912.0, x.type))
    return b.sub(e.cast(magic, vec(I32, n)), e.const(0x4B400000, vec(I32, n)))


def _store_quants(e: Emitter, place: Layout, target: Value, slot: Value, first: Value | int, q: Value) -> None:
    """Stores 4n quants of one token from dword `first` of the group on."""
    words = e.cast(e.b.trunc(q, vec(I8, q.type.count)), vec(I32, q.type.count // 4))
    if place.tokens == 1:
        e.store(words, e.at(target, e.const(first) if isinstance(first, int) else first, 4))
        return
    if e.target.vnni:
        words = e.b.xor(words, e.const(-0x7F7F7F80, words.type))  # 0x80 in every byte: unsigned, 128 too large
    base = e.at(target, slot, 4)
    if not isinstance(first, int):
        base, first = e.at(base, first, 4 * place.tokens), 0
    for i in range(words.type.count):
        e.store(e.lane(words, i), base, 4 * place.tokens * (first + i))


def _quantize_super_block(e: Emitter, place: Layout, source: Value, target: Value, slot: Value) -> None:
    b, tokens, wide = e.b, place.tokens, vec(F32, 16)
    parts = [e.load(source, wide, 64 * i) for i in range(16)]
    scale, inverse = _scale_and_inverse(e, _largest(e, parts))
    e.store(scale, e.at(target, slot, 4), place["scale"])
    pairs = e.at(target, slot, 4)
    sums = []
    for i, part in enumerate(parts):
        q = _round(e, part, inverse)
        _store_quants(e, place, target, slot, 4 * i, q)
        sums.append(b.trunc(e.call("llvm.vector.reduce.add.v16i32", I32, [q]), I16))
        e.store(sums[i], pairs, place["sums16"] + 4 * tokens * (i // 2) + 2 * (i % 2))
    for i in range(8):
        e.store(b.add(sums[2 * i], sums[2 * i + 1]), pairs, place["sums32"] + 4 * tokens * (i // 2) + 2 * (i % 2))


def _quantize_block(e: Emitter, place: Layout, source: Value, target: Value, slot: Value, j: Value) -> None:
    tokens, wide = place.tokens, vec(F32, 16)
    parts = [e.load(source, wide, 64 * i) for i in range(2)]
    scale, inverse = _scale_and_inverse(e, _largest(e, parts))
    low, high = (_round(e, part, inverse) for part in parts)
    first = e.b.mul(j, e.const(8))
    _store_quants(e, place, target, slot, first, low)
    _store_quants(e, place, target, slot, e.b.add(first, e.const(4)), high)
    total = e.call("llvm.vector.reduce.add.v16i32", I32, [e.b.add(low, high)])
    at = e.at(e.at(target, slot, 4), j, 4 * tokens)
    e.store(scale, at, place["scale"])
    e.store(e.b.fmul(scale, e.to_float(total)), at, place["offset"])
    e.store(total, at, place["sums"])

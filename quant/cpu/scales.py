"""The five packings of a super-block's sub-block scales, each read in two ways: of one row, and of a vector of rows.

    row      (emitter, block address) -> scales and minima, each <n_sub x i8>; minima is None where the format has none
    columns  (columns of a block) -> the same as lists of dwords of four bytes, a lane a row (`quant.cpu.columns`)

Minima, and scales that come with minima, are below 64. The definition is `quant.reference`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from quant.simd import I8, I16, I32, Emitter, Value, vec

if TYPE_CHECKING:
    from quant.cpu.columns import Columns


@dataclass(frozen=True, slots=True)
class Scales:
    """A packing."""

    row: Callable[[Emitter, Value], tuple[Value, Value | None]]
    columns: Callable[[Columns], tuple[list[Value], list[Value]]]


def _shift(e: Emitter, words: Value, by: list[int], mask: int) -> Value:
    return e.b.and_(e.b.lshr(words, e.table(words.type, by)), e.const(mask, words.type))


# -- Q2_K: a byte is a scale and, in its high half, a minimum -----------------------------------------------------------------------


def _q2_k_row(e: Emitter, block: Value) -> tuple[Value, Value]:
    both = e.load(block, vec(I8, 16))
    return e.b.and_(both, e.const(15, both.type)), e.b.lshr(both, e.const(4, both.type))


def _q2_k_columns(c: Columns) -> tuple[list[Value], list[Value]]:
    words = c.quad(0)
    return [c.masked(word, 0, 15) for word in words], [c.masked(word, 4, 15) for word in words]


# -- Q3_K: eight bytes of low halves, then four of two high bits each; 32 too large --------------------------------------------------


def _q3_k_row(e: Emitter, block: Value) -> tuple[Value, None]:
    nibbles = e.shuffle(e.load(block, vec(I32, 2), 96), [0, 1, 0, 1])
    tops = e.splat(e.load(block, I32, 104), 4)
    low, high = _shift(e, nibbles, [0, 0, 4, 4], 0x0F0F0F0F), _shift(e, tops, [0, 2, 4, 6], 0x03030303)
    joined = e.cast(e.b.or_(low, e.b.shl(high, e.const(4, high.type))), vec(I8, 16))
    return e.b.sub(joined, e.const(32, joined.type)), None


def _q3_k_columns(c: Columns) -> tuple[list[Value], list[Value]]:
    b, (_, first, second, tops) = c.e.b, c.quad(92)
    words = []
    for i, (nibbles, shift) in enumerate(((first, 0), (second, 0), (first, 4), (second, 4))):
        high = c.shifted(c.masked(tops, 2 * i, 3), -4)
        joined = c.e.cast(b.or_(c.masked(nibbles, shift, 15), high), vec(I8, 4 * len(c.blocks)))
        words.append(c.e.cast(b.sub(joined, c.e.const(32, joined.type)), c.type))
    return words, []


# -- Q4_K and Q5_K: eight scales and eight minima of six bits in twelve bytes, after d and dmin ---------------------------------------


def _q4_k_row(e: Emitter, block: Value) -> tuple[Value, Value]:
    words = e.load(block, vec(I32, 4))  # d and dmin, then the twelve bytes
    low = e.b.lshr(e.shuffle(words, [1, 3, 2, 3]), e.table(vec(I32, 4), [0, 0, 0, 4]))
    low = e.b.and_(low, e.table(low.type, [0x3F3F3F3F, 0x0F0F0F0F, 0x3F3F3F3F, 0x0F0F0F0F]))
    high = e.b.lshr(e.shuffle(words, [1, 1, 2, 2]), e.const(2, low.type))
    high = e.b.and_(high, e.table(high.type, [0, 0x30303030, 0, 0x30303030]))
    both = e.cast(e.b.or_(low, high), vec(I8, 16))
    return e.part(both, 0, 8), e.part(both, 8, 8)


def _q4_k_columns(c: Columns) -> tuple[list[Value], list[Value]]:
    _, scales, minima, rest = c.quad(0)
    return (
        [c.masked(scales, 0, 0x3F), c.e.b.or_(c.masked(rest, 0, 0x0F), c.masked(scales, 2, 0x30))],
        [c.masked(minima, 0, 0x3F), c.e.b.or_(c.masked(rest, 4, 0x0F), c.masked(minima, 2, 0x30))],
    )


# -- Q6_K: signed bytes ---------------------------------------------------------------------------------------------------------------


def _q6_k_row(e: Emitter, block: Value) -> tuple[Value, None]:
    return e.load(block, vec(I8, 16), 192), None


def _q6_k_columns(c: Columns) -> tuple[list[Value], list[Value]]:
    return c.quad(192), []


# -- IQ4_XS: eight low halves in one dword, eight pairs of high bits in 16; 32 too large ------------------------------------------------


def _iq4_xs_row(e: Emitter, block: Value) -> tuple[Value, None]:
    nibbles = e.splat(e.load(block, I32, 4), 8)
    tops = e.splat(e.b.zext(e.load(block, I16, 2), I32), 8)
    low, high = _shift(e, nibbles, list(range(0, 32, 4)), 15), _shift(e, tops, list(range(0, 16, 2)), 3)
    joined = e.b.or_(low, e.b.shl(high, e.const(4, high.type)))
    return e.b.trunc(e.b.sub(joined, e.const(32, joined.type)), vec(I8, 8)), None


def _iq4_xs_columns(c: Columns) -> tuple[list[Value], list[Value]]:
    b, (head, nibbles, *_) = c.e.b, c.quad(0)

    def spread(word: Value, bits: int) -> Value:
        """Four neighbouring fields of `bits` bits, from the low end, to a byte each."""
        for parts, mask in ((2, (1 << 2 * bits) - 1), (1, (1 << bits) - 1)):
            lanes = mask * (0x00010001 if parts == 2 else 0x01010101)
            word = b.and_(b.or_(word, c.shifted(word, -parts * (8 - bits))), c.e.const(lanes, c.type))
        return word

    words = []
    for i in range(2):
        low, high = c.shifted(nibbles, 16 * i), c.shifted(head, 16 + 8 * i)
        low = spread(b.and_(low, c.e.const(0xFFFF, c.type)), 4)
        high = c.shifted(spread(b.and_(high, c.e.const(0xFF, c.type)), 2), -4)
        joined = c.e.cast(b.or_(low, high), vec(I8, 4 * len(c.blocks)))
        words.append(c.e.cast(b.sub(joined, c.e.const(32, joined.type)), c.type))
    return words, []


Q2_K = Scales(_q2_k_row, _q2_k_columns)
Q3_K = Scales(_q3_k_row, _q3_k_columns)
Q4_K = Scales(_q4_k_row, _q4_k_columns)
Q6_K = Scales(_q6_k_row, _q6_k_columns)
IQ4_XS = Scales(_iq4_xs_row, _iq4_xs_columns)

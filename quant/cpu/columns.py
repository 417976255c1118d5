"""The same block of L rows at once, a lane a row: how a panel is unpacked.

Bytes are transposed as the file has them, sixteen of each row to four columns, and decoded afterwards: a shift or mask then works
on a full vector of rows, and a packed byte is moved once for all the quants it holds. Column `at` is the dword at byte `at` of every
row's block, <L x i32>. Knows the bytes of a block (`blocks`), not where a panel keeps what they hold.
"""

from __future__ import annotations

from collections.abc import Sequence

from quant.cpu.blocks import BlockFormat, Plane, level
from quant.simd import I8, I16, I32, Emitter, Value, vec

UNIT = 16
"""Neighbouring elements that are decoded together: four columns of four bytes."""


class Columns:
    """One block of each of L rows; remembers the columns it has made."""

    def __init__(self, e: Emitter, fmt: BlockFormat, blocks: Sequence[Value]) -> None:
        self.e, self.fmt, self.blocks = e, fmt, blocks
        self.type = vec(I32, len(blocks))
        self.made: dict[int, Value] = {}

    def quad(self, at: int) -> list[Value]:
        """Columns at, at + 4, at + 8 and at + 12."""
        places = range(at, at + 16, 4)
        if not all(place in self.made for place in places):
            self.made.update(zip(places, self.e.transpose4([self.e.load(block, vec(I32, 4), at) for block in self.blocks])))
        return [self.made[place] for place in places]

    def word(self, at: int) -> Value:
        """Column `at`."""
        if at not in self.made:
            self.made[at] = self._gathered(at, I32)
        return self.made[at]

    def half(self, at: int) -> Value:
        """The float16 at byte `at`, as <L x f32>."""
        e, halves = self.e, vec(I16, len(self.blocks))
        for column, shift in ((at, 0), (at - 2, 16)):
            if column in self.made:
                return e.widen_half(e.b.trunc(self.shifted(self.made[column], shift), halves))
        return e.widen_half(self._gathered(at, I16))

    def _gathered(self, at: int, element: object) -> Value:
        column = self.e.zero(vec(element, len(self.blocks)))
        for i, block in enumerate(self.blocks):
            column = self.e.b.insert_element(column, self.e.load(block, element, at), self.e.const(i, I32))
        return column

    def shifted(self, column: Value, by: int) -> Value:
        """column >> by, or << -by."""
        if by == 0:
            return column
        shift = self.e.b.lshr if by > 0 else self.e.b.shl
        return shift(column, self.e.const(abs(by), self.type))

    def masked(self, column: Value, by: int, mask: int) -> Value:
        """(column >> by) & mask, the mask's byte in every byte."""
        return self.e.b.and_(self.shifted(column, by), self.e.const(mask * 0x01010101, self.type))

    def units(self) -> list[int]:
        """The block's units of 16 elements, those that share bytes next to each other."""
        return sorted(range(self.fmt.n_elements // UNIT), key=lambda unit: _place(self.fmt.planes[0], unit))

    def quants(self, unit: int) -> list[Value]:
        """Elements 16 * unit .. + 15: four columns of four quants of every row, as bytes."""
        e, joined, at = self.e, [self.e.zero(self.type)] * 4, 0
        for plane in self.fmt.planes:
            field = (self._bits if plane.width == 1 else self._field)(plane, unit)
            joined = [e.b.or_(low, self.shifted(high, -at)) for low, high in zip(joined, field)] if at else field
            at += plane.bits
        if self.fmt.levels:
            joined = [e.cast(level(e, e.cast(column, vec(I8, 4 * len(self.blocks)))), self.type) for column in joined]
        return joined

    def _field(self, plane: Plane, unit: int) -> list[Value]:
        at, shift = _place(plane, unit)
        if plane.bits == 8:
            return self.quad(at)
        return [self.masked(column, shift, (1 << plane.bits) - 1) for column in self.quad(at)]

    def _bits(self, plane: Plane, unit: int) -> list[Value]:
        """One bit of every element, from plain little-endian bits: four neighbours multiplied to where their bytes are."""
        b, word = self.e.b, self.word(plane.at + UNIT // 8 * unit // 4 * 4)
        fours = [b.and_(self.shifted(word, UNIT * unit % 32 + 4 * i), self.e.const(15, self.type)) for i in range(4)]
        spread = [b.mul(four, self.e.const(1 | 1 << 7 | 1 << 14 | 1 << 21, self.type)) for four in fours]
        return [b.and_(column, self.e.const(0x01010101, self.type)) for column in spread]

    def scales(self) -> tuple[list[Value], list[Value]]:
        """Sub-block scales and minima (none: an empty list) of a super-block, each <L x i32>."""
        assert self.fmt.scales is not None
        scales, minima = self.fmt.scales.columns(self)
        return [number for word in scales for number in self._numbers(word)], [number for word in minima for number in self._numbers(word)]

    def _numbers(self, word: Value) -> list[Value]:
        """The four signed bytes of a column."""
        b, top = self.e.b, self.e.const(24, self.type)
        return [b.ashr(self.shifted(word, 8 * i - 24), top) for i in range(4)]


def _place(plane: Plane, unit: int) -> tuple[int, int]:
    """First byte and shift of a unit in a plane."""
    group, within = divmod(UNIT * unit, plane.width * 8 // plane.bits)
    index, first = divmod(within, plane.width)
    return plane.at + group * plane.width + first, index * plane.bits

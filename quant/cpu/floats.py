"""Products with weights stored as F32, F16 or BF16: any number of tokens, any row length.

A result is two vectors of running sums (element i goes to lane i mod 2L, in ascending order), added to one and then halved
down; the tail of a row is padded with zeros. That one fixed order serves single tokens and tiles alike. Weights are converted
as they are read, so nothing is unpacked or repeated in memory.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from quant.cpu.arguments import Product
from quant.simd import F32, I16, Emitter, Target, Value, vec

K_BLOCK = 1024
"""Elements of a tile's tokens that stay in the first-level cache while a block of rows passes."""
ROWS_BYTES = 256 << 10
"""About how much of the weights passes before the next tile of tokens: it stays in the second-level cache."""
MAX_TILES = 8
"""Row tiles in a block at most: their running sums live in scratch."""
TAIL_BYTES = 128
"""Scratch for the padded tail of one row."""


def tile_shape(target: Target) -> tuple[int, int]:
    """Rows and tokens of the register tile; each cell is two vectors of running sums."""
    return {16: (3, 4), 8: (3, 2)}.get(target.lanes, (2, 2))


def scratch_bytes(target: Target) -> int:
    """Bytes of scratch: running sums of a block, and tails."""
    rows, cols = tile_shape(target)
    return MAX_TILES * rows * cols * 8 * target.lanes + rows * TAIL_BYTES


@dataclass(frozen=True, slots=True)
class FloatFormat:
    """`n_bytes` an element; `widen` loads <n x element> at an address as float32."""

    name: str
    n_bytes: int
    widen: Callable[[Emitter, Value, int], Value]


FLOAT_FORMATS: Mapping[str, FloatFormat] = MappingProxyType(
    {
        fmt.name: fmt
        for fmt in (
            FloatFormat("F32", 4, lambda e, at, n: e.load(at, vec(F32, n))),
            FloatFormat("F16", 2, lambda e, at, n: e.widen_half(e.load(at, vec(I16, n)))),
            FloatFormat("BF16", 2, lambda e, at, n: e.widen_bfloat(e.load(at, vec(I16, n)))),
        )
    }
)
"""Formats that are one number an element, by name."""


def emit(e: Emitter, fmt: FloatFormat, p: Product) -> None:
    """out[t][r] = W[r] . x[t] for rows r0..r1-1 and all tokens."""
    with e.b.if_else(e.b.icmp_signed("==", p.n_tokens, e.const(1))) as (single, several):
        with single:
            e.range(p.r0, p.r1, lambda r: _row_times_token(e, fmt, p, r))
        with several:
            _Walk(e, fmt, p).emit()


def _row_times_token(e: Emitter, fmt: FloatFormat, p: Product, r: Value) -> None:
    """One row, one token: a single stream over the weights."""
    row, zero = e.at(p.w, r, p.row_bytes), e.zero(vec(F32, e.target.lanes))
    whole = _whole(e, p.k)
    sums = e.loop(
        e.const(0), whole, lambda i, sums: _step(e, fmt, [e.at(row, i, fmt.n_bytes)], [p.x], i, sums), [zero] * 2, 2 * e.target.lanes
    )
    e.store(_finish(e, fmt, [row], [p.x], p, p.scratch, sums)[0], e.at(p.out, r, 4))


def _whole(e: Emitter, k: Value) -> Value:
    """k without its incomplete last step."""
    return e.b.and_(k, e.const(-2 * e.target.lanes))


def _step(e: Emitter, fmt: FloatFormat, ws: list[Value], xs: list[Value], i: Value, sums: list[Value]) -> list[Value]:
    """Adds the 2L elements at addresses ws times elements i .. i + 2L - 1 of tokens xs. Cells are row-major, two vectors each."""
    sums, lanes = list(sums), e.target.lanes
    for half in range(2):
        wide = [fmt.widen(e, e.offset(at, half * lanes * fmt.n_bytes), lanes) for at in ws]
        for c, at in enumerate(xs):
            x = e.load(e.at(at, i, 4), vec(F32, lanes), 4 * lanes * half)
            for r, weights in enumerate(wide):
                cell = 2 * (r * len(xs) + c) + half
                sums[cell] = e.fma(weights, x, sums[cell])
    return sums


def _finish(e: Emitter, fmt: FloatFormat, rows: list[Value], xs: list[Value], p: Product, tails: Value, sums: list[Value]) -> list[Value]:
    """Adds the incomplete step, from copies of the rows' ends with zeros behind them, and reduces every cell to a number."""
    whole, lanes = _whole(e, p.k), e.target.lanes

    def tail(i: Value, sums: list[Value]) -> list[Value]:
        copies = [e.offset(tails, TAIL_BYTES * r) for r in range(len(rows))]
        for row, copy in zip(rows, copies):
            for j in range(TAIL_BYTES // (4 * lanes)):
                e.store(e.zero(vec(F32, lanes)), copy, 4 * lanes * j)
            _copy(e, fmt, row, copy, i, p.k)
        return _step(e, fmt, copies, xs, i, sums)

    sums = e.loop(whole, p.k, tail, sums, 2 * lanes)
    return [e.sum(e.b.fadd(sums[i], sums[i + 1])) for i in range(0, len(sums), 2)]


class _Walk:
    """Many tokens: block of rows > tile of tokens > block of k > tile of rows, with running sums in scratch between blocks of k.

    Beyond the end, the last row or token stands in and is stored again.
    """

    def __init__(self, e: Emitter, fmt: FloatFormat, p: Product) -> None:
        self.e, self.fmt, self.p = e, fmt, p
        self.n_rows, self.n_cols = tile_shape(e.target)
        self.cells = 2 * self.n_rows * self.n_cols
        self.line = 4 * e.target.lanes
        self.tails = e.offset(p.scratch, MAX_TILES * self.cells * self.line)
        self.x_bytes = e.b.mul(e.b.ashr(e.b.add(p.k, e.const(31)), e.const(5)), e.const(128))

    def emit(self) -> None:
        e, b, p = self.e, self.e.b, self.p
        fitting = b.sdiv(e.const(ROWS_BYTES // self.n_rows), p.row_bytes)
        tiles = e.minimum(b.add(fitting, e.const(1)), e.const(MAX_TILES))
        step = b.mul(tiles, e.const(self.n_rows))
        blocks = b.sdiv(b.add(b.sub(p.r1, p.r0), b.sub(step, e.const(1))), step)
        e.count(blocks, lambda i: self._block_of_rows(b.add(p.r0, b.mul(i, step)), step))

    def _block_of_rows(self, first: Value, step: Value) -> None:
        e, b, p = self.e, self.e.b, self.p
        present = e.minimum(b.sub(p.r1, first), step)
        n_tiles = b.sdiv(b.add(present, e.const(self.n_rows - 1)), e.const(self.n_rows))
        e.range(e.const(0), p.n_tokens, lambda t: self._tile_of_tokens(first, n_tiles, t), self.n_cols)

    def _tile_of_tokens(self, first: Value, n_tiles: Value, t: Value) -> None:
        e, b, p = self.e, self.e.b, self.p
        tokens = [e.minimum(b.add(t, e.const(c)), b.sub(p.n_tokens, e.const(1))) for c in range(self.n_cols)]
        xs = [e.at(p.x, token, self.x_bytes) for token in tokens]
        zero = e.zero(vec(F32, e.target.lanes))
        e.count(b.mul(n_tiles, e.const(self.cells)), lambda i: e.store(zero, e.at(p.scratch, i, self.line)))

        def block_of_k(k0: Value) -> None:
            k1 = e.minimum(b.add(k0, e.const(K_BLOCK)), _whole(e, p.k))

            def tile(i: Value) -> None:
                rows, sums_at = self._rows(first, i)[1], e.at(p.scratch, i, self.cells * self.line)
                sums = [e.load(sums_at, zero.type, self.line * cell) for cell in range(self.cells)]
                sums = e.loop(k0, k1, lambda k, sums: self._step(rows, xs, k, sums), sums, 2 * e.target.lanes)
                for cell, value in enumerate(sums):
                    e.store(value, sums_at, self.line * cell)

            e.count(n_tiles, tile)

        e.range(e.const(0), _whole(e, p.k), block_of_k, K_BLOCK)

        def finish(i: Value) -> None:
            (numbers, rows), sums_at = self._rows(first, i), e.at(p.scratch, i, self.cells * self.line)
            sums = [e.load(sums_at, zero.type, self.line * cell) for cell in range(self.cells)]
            results = _finish(e, self.fmt, rows, xs, p, self.tails, sums)
            for (row, token), value in zip([(row, token) for row in numbers for token in tokens], results):
                e.store(value, e.at(e.at(p.out, token, p.stride), row, 4))

        e.count(n_tiles, finish)

    def _rows(self, first: Value, tile: Value) -> tuple[list[Value], list[Value]]:
        """Numbers and addresses of a tile's rows."""
        e, b, p = self.e, self.e.b, self.p
        base = b.add(first, b.mul(tile, e.const(self.n_rows)))
        numbers = [e.minimum(b.add(base, e.const(r)), b.sub(p.r1, e.const(1))) for r in range(self.n_rows)]
        return numbers, [e.at(p.w, number, p.row_bytes) for number in numbers]

    def _step(self, rows: list[Value], xs: list[Value], k: Value, sums: list[Value]) -> list[Value]:
        return _step(self.e, self.fmt, [self.e.at(row, k, self.fmt.n_bytes) for row in rows], xs, k, sums)


def _copy(e: Emitter, fmt: FloatFormat, row: Value, dst: Value, start: Value, stop: Value) -> None:
    """Elements start..stop-1 of a row, as they are."""
    bits = e.element(fmt.n_bytes)
    e.range(start, stop, lambda j: e.store(e.load(e.at(row, j, fmt.n_bytes), bits), e.at(dst, e.b.sub(j, start), fmt.n_bytes)))

"""Products with weights stored as F32, F16 or BF16: any number of tokens, any row length.

A result is two vectors of running sums (element i goes to lane i mod 2L, in ascending order), added to one and then halved
down; the tail of a row is padded with zeros. That one fixed order serves single tokens and tiles alike. Weights are converted
as they are read, so nothing is unpacked or repeated in memory. Tokens are walked in blocks that fit the cache.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from quant.cpu.arguments import Product
from quant.simd import F32, I16, Emitter, Value, vec

TOKENS_PER_BLOCK = 32
ROW_TILE = 2
TAIL_BYTES = ROW_TILE * 128
"""Scratch: room for the padded tails of a tile's rows."""


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
            _walk(e, fmt, 1, 1, p)
        with several:
            _walk(e, fmt, ROW_TILE, e.target.tile_tokens, p)


def _walk(e: Emitter, fmt: FloatFormat, n_rows: int, n_cols: int, p: Product) -> None:
    """Tiles of n_rows rows by n_cols tokens; beyond the end, the last row or token stands in and is stored again."""
    b, one = e.b, e.const(1)
    x_bytes = b.mul(b.ashr(b.add(p.k, e.const(31)), e.const(5)), e.const(128))

    def tokens(first: Value) -> None:
        end = e.minimum(b.add(first, e.const(TOKENS_PER_BLOCK)), p.n_tokens)

        def rows(r: Value) -> None:
            rs = [e.minimum(b.add(r, e.const(i)), b.sub(p.r1, one)) for i in range(n_rows)]

            def tile(t: Value) -> None:
                ts = [e.minimum(b.add(t, e.const(i)), b.sub(end, one)) for i in range(n_cols)]
                sums = _dots(e, fmt, [e.at(p.w, row, p.row_bytes) for row in rs], [e.at(p.x, token, x_bytes) for token in ts], p)
                for (row, token), value in zip([(row, token) for row in rs for token in ts], sums):
                    e.store(value, e.at(e.at(p.out, token, p.stride), row, 4))

            e.range(first, end, tile, n_cols)

        e.range(p.r0, p.r1, rows, n_rows)

    e.range(e.const(0), p.n_tokens, tokens, TOKENS_PER_BLOCK)


def _dots(e: Emitter, fmt: FloatFormat, rows: list[Value], xs: list[Value], p: Product) -> list[Value]:
    """The dot product of every row with every token, row-major."""
    b, lanes, k = e.b, e.target.lanes, p.k
    zero = e.zero(vec(F32, lanes))

    def step(ws: list[Value], i: Value, sums: list[Value]) -> list[Value]:
        """Adds elements i .. i + 2L - 1 of the rows, which are at addresses ws."""
        sums = list(sums)
        for half in range(2):
            wide = [fmt.widen(e, e.offset(at, half * lanes * fmt.n_bytes), lanes) for at in ws]
            for c, at in enumerate(xs):
                x = e.load(e.at(at, i, 4), vec(F32, lanes), 4 * lanes * half)
                for r, weights in enumerate(wide):
                    cell = 2 * (r * len(xs) + c) + half
                    sums[cell] = e.fma(weights, x, sums[cell])
        return sums

    def whole_step(i: Value, sums: list[Value]) -> list[Value]:
        return step([e.at(row, i, fmt.n_bytes) for row in rows], i, sums)

    def tail(i: Value, sums: list[Value]) -> list[Value]:
        """The last, incomplete step: rows copied to scratch with zeros behind them."""
        copies = [e.offset(p.scratch, 128 * r) for r in range(len(rows))]
        for row, copy in zip(rows, copies):
            for j in range(128 // (4 * lanes)):
                e.store(zero, copy, 4 * lanes * j)
            _copy(e, fmt, row, copy, i, k)
        return step(copies, i, sums)

    span = 2 * lanes
    whole = b.and_(k, e.const(-span))
    sums = e.loop(e.const(0), whole, whole_step, [zero] * (2 * len(rows) * len(xs)), span)
    sums = e.loop(whole, k, tail, sums, span)
    return [e.sum(b.fadd(sums[i], sums[i + 1])) for i in range(0, len(sums), 2)]


def _copy(e: Emitter, fmt: FloatFormat, row: Value, dst: Value, start: Value, stop: Value) -> None:
    """Elements start..stop-1 of a row, as they are."""
    bits = e.element(fmt.n_bytes)
    e.range(start, stop, lambda j: e.store(e.load(e.at(row, j, fmt.n_bytes), bits), e.at(dst, e.b.sub(j, start), fmt.n_bytes)))

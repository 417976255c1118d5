"""Register tiles of attention: rows of queries times a block of keys, and rows of weights times a block of values.

Keys and values are as they lie in the KV cache or [dim_k][BLOCK] and [BLOCK][dim_v] of float32; `bits` says which. A score is one chain of
fused multiply-adds in rising dimension, an output one in rising token: how many rows and columns a tile has does not show in the bits, nor
where quants become numbers, for scale times quant is exact.
"""

from __future__ import annotations

from numba import njit

from ggrun.plan.device import KV_BLOCK_TOKENS
from ggrun.runtime.cpu.kernels.kv_quants import key_lines, key_scales, value_reader
from ggrun.runtime.cpu.sizes import KV_GROUP, LANES, SCORE_BYTES, TILE_ROWS
from ggrun.runtime.cpu.vectors import target, vector_code
from quant.simd import F32, Emitter, Value, vec

BLOCK = KV_BLOCK_TOKENS
MANY = {16: 12, 8: 6, 4: 4}[target().lanes]  # rows of the large tile: with two vectors of columns it fills the registers
FEW = TILE_ROWS  # rows of the small one
_VECTORS = 2  # columns of a tile
_F16C = target().f16c
_CONVERTED = {MANY: (16,), FEW: (16, 8, 4), 1: (16, 8, 4)} if _F16C else {}  # rows: what a tile reads besides float32, in bits


@njit
def tile_rows(left):
    """Rows of the next tile when `left`, at first a multiple of FEW, are left."""
    return MANY if left >= 12 or left % FEW != 0 else FEW


@njit
def reads(bits, rows):
    """Whether the tiles of so many rows read such elements; many rows are quicker with what was widened once for all."""
    return _F16C and (bits == 16 or rows <= 2 * FEW)


def _by_bits(e: Emitter, rows: int, bits: Value, body) -> None:
    """body(bits) for what `bits` is."""
    for kind in (32, *_CONVERTED.get(rows, ())):
        with e.b.if_then(e.b.icmp_signed("==", bits, e.const(kind))):
            body(kind)


def _scores(rows: int):
    def body(e: Emitter, queries: Value, stride: Value, dim: Value, keys: Value, bits: Value, ahead: Value, scores: Value) -> None:
        """scores[r][0:BLOCK] = queries . keys; queries [dim][rows], `stride` bytes from one dimension to the next.

        ahead: the keys or values that are read next, fetched on the way.
        """
        lanes = e.target.lanes
        n = _VECTORS

        def pass_(bits: int) -> None:
            size = max(bits // 8, 1)
            dims = 2 if bits == 4 else 1  # of a line

            def part(first: Value) -> None:
                start = e.at(keys, first, size)

                def lines(begin: Value, end: Value, scales: list[Value], sums: list[Value]) -> list[Value]:
                    def step(i: Value, sums: list[Value]) -> list[Value]:
                        if bits < 32:
                            e.prefetch(e.at(ahead, i, size * BLOCK))
                        for k, columns in enumerate(key_lines(e, bits, e.at(start, i, size * BLOCK), n, scales)):
                            line = e.at(queries, e.offset(e.b.mul(i, e.const(dims)), k), stride)
                            q = [e.splat(e.load(line, F32, 4 * r), lanes) for r in range(rows)]
                            sums = [e.fma(q[r], columns[j], sums[r * n + j]) for r in range(rows) for j in range(n)]
                        return sums

                    return e.loop(begin, end, step, sums)

                def group(i: Value, sums: list[Value]) -> list[Value]:
                    begin = e.b.mul(i, e.const(KV_GROUP // dims))
                    return lines(begin, e.offset(begin, KV_GROUP // dims), key_scales(e, bits, keys, dim, i, first, n), sums)

                zeros = [e.const(0.0, vec(F32, lanes))] * (rows * n)
                groups = e.b.sdiv(dim, e.const(KV_GROUP))
                sums = e.loop(e.const(0), groups, group, zeros) if bits <= 8 else lines(e.const(0), dim, [], zeros)
                for i, value in enumerate(sums):
                    e.store(value, e.at(scores, first, 4), SCORE_BYTES * (i // n) + 4 * lanes * (i % n))

            e.range(e.const(0), e.const(BLOCK), part, step=n * lanes)

        _by_bits(e, rows, bits, pass_)

    return vector_code("iiiiiii")(body)


scores_many = _scores(MANY)
scores_few = _scores(FEW)


def _weigh(rows: int):
    def body(
        e: Emitter, weights: Value, values: Value, bits: Value, ahead: Value, low: Value, high: Value, dim: Value, outputs: Value
    ) -> None:
        """outputs[r] += weights[r][t] * values[t] for low <= t < high, rising; dim: a multiple of LANES.

        ahead: the keys or values that are read next, fetched on the way.
        """
        lanes = e.target.lanes
        wide = vec(F32, lanes)

        def columns(start: Value, stop: Value, n: int, bits: int) -> None:
            def column(index: Value) -> None:
                at = e.b.shl(index, e.const(2))
                ys = [e.b.add(e.at(outputs, e.b.mul(dim, e.const(r)), 4), at) for r in range(rows)]
                read = value_reader(e, bits, values, dim, index, n)
                following = e.b.add(ahead, e.b.lshr(e.b.mul(index, e.const(bits)), e.const(3)))
                row_bytes = e.b.lshr(e.b.mul(dim, e.const(bits)), e.const(3))

                def token(t: Value, sums: list[Value]) -> list[Value]:
                    if bits < 32:
                        e.prefetch(e.at(following, t, row_bytes))
                    vs = read(t)
                    ws = [e.splat(e.load(e.at(weights, t, 4), F32, SCORE_BYTES * r), lanes) for r in range(rows)]
                    return [e.fma(ws[r], vs[j], sums[r * n + j]) for r in range(rows) for j in range(n)]

                sums = e.loop(low, high, token, [e.load(y, wide, 4 * lanes * j) for y in ys for j in range(n)])
                for i, value in enumerate(sums):
                    e.store(value, ys[i // n], 4 * lanes * (i % n))

            e.range(start, stop, column, step=n * lanes)

        def pass_(bits: int) -> None:
            n = _VECTORS
            pairs = e.b.and_(dim, e.const(-n * lanes))
            columns(e.const(0), pairs, n, bits)
            if n * lanes > LANES:
                columns(pairs, dim, 1, bits)

        _by_bits(e, rows, bits, pass_)

    return vector_code("iiiiiiii")(body)


weigh_many = _weigh(MANY)
weigh_few = _weigh(FEW)
weigh_one = _weigh(1)

"""Register tiles of attention: rows of queries times a block of keys, and rows of weights times a block of values.

Keys are [dim_k][BLOCK] and values [BLOCK][dim_v], float16 as they lie in the KV cache, or float32 (`half` is 0). A score is one chain of
fused multiply-adds in rising dimension, an output one in rising token: how many rows and columns a tile has does not show in the bits.
"""

from __future__ import annotations

from numba import njit

from ggrun.plan.device import KV_BLOCK_TOKENS
from ggrun.runtime.cpu.sizes import LANES, SCORE_BYTES, TILE_ROWS
from ggrun.runtime.cpu.vectors import target, vector_code
from quant.simd import F32, I16, Emitter, Value, vec

BLOCK = KV_BLOCK_TOKENS
MANY = {16: 12, 8: 6, 4: 4}[target().lanes]  # rows of the large tile: with two vectors of columns it fills the registers
FEW = TILE_ROWS  # rows of the small one
_VECTORS = 2  # columns of a tile


@njit
def tile_rows(left):
    """Rows of the next tile when `left`, at first a multiple of FEW, are left."""
    return MANY if left >= 12 or left % FEW != 0 else FEW


def _columns(e: Emitter, line: Value, n: int, half: bool) -> list[Value]:
    """n vectors of float32 from a line of float16 or float32."""
    lanes = e.target.lanes
    if half:
        return [e.widen_half(e.load(line, vec(I16, lanes), 2 * lanes * j)) for j in range(n)]
    return [e.load(line, vec(F32, lanes), 4 * lanes * j) for j in range(n)]


def _either(e: Emitter, half: Value, body) -> None:
    """body(True) for float16, body(False) for float32; only float32 where the processor does not convert float16."""
    if not e.target.f16c:
        body(False)
        return
    with e.b.if_else(e.b.icmp_signed("!=", half, e.const(0))) as (then, otherwise):
        with then:
            body(True)
        with otherwise:
            body(False)


def _scores(rows: int):
    def body(e: Emitter, queries: Value, stride: Value, dim: Value, keys: Value, half: Value, ahead: Value, scores: Value) -> None:
        """scores[r][0:BLOCK] = queries . keys; queries [dim][rows], `stride` bytes from one dimension to the next.

        ahead: the keys or values that are read next, fetched on the way.
        """
        lanes = e.target.lanes
        n = _VECTORS

        def pass_(half: bool) -> None:
            size = 2 if half else 4

            def part(first: Value) -> None:
                start = e.at(keys, first, size)

                def step(i: Value, sums: list[Value]) -> list[Value]:
                    if half:
                        e.prefetch(e.at(ahead, i, size * BLOCK))
                    columns = _columns(e, e.at(start, i, size * BLOCK), n, half)
                    line = e.at(queries, i, stride)
                    q = [e.splat(e.load(line, F32, 4 * r), lanes) for r in range(rows)]
                    return [e.fma(q[r], columns[j], sums[r * n + j]) for r in range(rows) for j in range(n)]

                sums = e.loop(e.const(0), dim, step, [e.const(0.0, vec(F32, lanes))] * (rows * n))
                for i, value in enumerate(sums):
                    e.store(value, e.at(scores, first, 4), SCORE_BYTES * (i // n) + 4 * lanes * (i % n))

            e.range(e.const(0), e.const(BLOCK), part, step=n * lanes)

        _either(e, half, pass_)

    return vector_code("iiiiiii")(body)


scores_many = _scores(MANY)
scores_few = _scores(FEW)


def _weigh(rows: int):
    def body(
        e: Emitter, weights: Value, values: Value, half: Value, ahead: Value, low: Value, high: Value, dim: Value, outputs: Value
    ) -> None:
        """outputs[r] += weights[r][t] * values[t] for low <= t < high, rising; dim: a multiple of LANES.

        ahead: the keys or values that are read next, fetched on the way.
        """
        lanes = e.target.lanes
        wide = vec(F32, lanes)

        def columns(start: Value, stop: Value, n: int, half: bool) -> None:
            size = 2 if half else 4

            def column(index: Value) -> None:
                at = e.b.shl(index, e.const(2))
                ys = [e.b.add(e.at(outputs, e.b.mul(dim, e.const(r)), 4), at) for r in range(rows)]
                start = e.at(values, index, size)
                following = e.at(ahead, index, size)
                row_bytes = e.b.mul(dim, e.const(size))

                def token(t: Value, sums: list[Value]) -> list[Value]:
                    if half:
                        e.prefetch(e.at(following, t, row_bytes))
                    vs = _columns(e, e.at(start, t, row_bytes), n, half)
                    ws = [e.splat(e.load(e.at(weights, t, 4), F32, SCORE_BYTES * r), lanes) for r in range(rows)]
                    return [e.fma(ws[r], vs[j], sums[r * n + j]) for r in range(rows) for j in range(n)]

                sums = e.loop(low, high, token, [e.load(y, wide, 4 * lanes * j) for y in ys for j in range(n)])
                for i, value in enumerate(sums):
                    e.store(value, ys[i // n], 4 * lanes * (i % n))

            e.range(start, stop, column, step=n * lanes)

        def pass_(half: bool) -> None:
            n = _VECTORS
            pairs = e.b.and_(dim, e.const(-n * lanes))
            columns(e.const(0), pairs, n, half)
            if n * lanes > LANES:
                columns(pairs, dim, 1, half)

        _either(e, half, pass_)

    return vector_code("iiiiiiii")(body)


weigh_many = _weigh(MANY)
weigh_few = _weigh(FEW)
weigh_one = _weigh(1)

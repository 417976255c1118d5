"""Softmax over a partition of a row's tokens, and how partitions add up.

A partition's result is (maximum, sum of weights, sum of weights times values), its weights being exp(score - maximum). Two add up to the
larger maximum, each one's sums times exp(its maximum - the larger). Partitions are added in rising order, whoever computed them.
"""

from __future__ import annotations

from ggrun.runtime.cpu.sizes import LANES
from ggrun.runtime.cpu.vectors import exp, tanh, vector_code
from quant.simd import F32, I32, Emitter, Value, vec

_VECTORS = 4  # running maxima and sums of a row: enough for the processor to do something while it waits
STEP = _VECTORS * LANES  # scores are read in whole steps


def _larger(e: Emitter, a: Value, b: Value) -> Value:
    return e.b.select(e.b.fcmp_ordered(">", a, b), a, b)


@vector_code("iiif")
def cap(e: Emitter, scores: Value, low: Value, high: Value, most: Value) -> None:
    """Scores low..high-1, and some beside them, become most * tanh(score / most)."""
    wide = vec(F32, LANES)
    limit = e.splat(most, LANES)

    def one(index: Value) -> None:
        at = e.at(scores, index, 4)
        e.store(e.b.fmul(limit, tanh(e, e.b.fdiv(e.load(at, wide), limit))), at)

    e.range(e.b.and_(low, e.const(-LANES)), high, one, step=LANES)


@vector_code("iiii")
def softmax(e: Emitter, scores: Value, low: Value, high: Value, state: Value) -> None:
    """A row's scores low..high-1 of a partition become weights, those beside them 0; state: float32 maximum and sum.

    Weight i is added to lane i mod STEP, in rising order; then these by halves.
    """
    b = e.b
    wide, whole = vec(F32, LANES), vec(I32, LANES)
    lows, highs = (e.splat(b.trunc(value, I32), LANES) for value in (low, high))
    least = e.const(float("-inf"), wide)
    begin = b.and_(low, e.const(-STEP))

    def largest_seen(index: Value, tops: list[Value]) -> list[Value]:
        """Running maxima; what the row does not see becomes -inf."""
        at = e.at(scores, index, 4)
        first = e.splat(b.trunc(index, I32), LANES)
        result = []
        for j, top in enumerate(tops):
            token = b.add(first, e.table(whole, range(j * LANES, (j + 1) * LANES)))
            seen = b.and_(b.icmp_signed(">=", token, lows), b.icmp_signed("<", token, highs))
            part = b.select(seen, e.load(at, wide, 4 * LANES * j), least)
            e.store(part, at, 4 * LANES * j)
            result.append(_larger(e, part, top))
        return result

    def largest(index: Value, tops: list[Value]) -> list[Value]:
        """Running maxima where the row sees all."""
        at = e.at(scores, index, 4)
        return [_larger(e, e.load(at, wide, 4 * LANES * j), top) for j, top in enumerate(tops)]

    whole_low, whole_high = b.and_(e.offset(low, STEP - 1), e.const(-STEP)), b.and_(high, e.const(-STEP))
    tops = e.loop(begin, whole_low, largest_seen, [least] * _VECTORS, step=STEP)
    tops = e.loop(whole_low, whole_high, largest, tops, step=STEP)
    rest = b.select(b.icmp_signed(">", whole_low, whole_high), whole_low, whole_high)
    tops = e.loop(rest, high, largest_seen, tops, step=STEP)
    top = _larger(e, _larger(e, tops[0], tops[1]), _larger(e, tops[2], tops[3]))
    while top.type.count > 1:
        half = top.type.count // 2
        top = _larger(e, e.part(top, 0, half), e.part(top, half, half))
    maximum = e.lane(top, 0)
    maxima = e.splat(maximum, LANES)

    def weigh(index: Value, sums: list[Value]) -> list[Value]:
        at = e.at(scores, index, 4)
        weights = [exp(e, b.fsub(e.load(at, wide, 4 * LANES * j), maxima)) for j in range(_VECTORS)]
        for j, weight in enumerate(weights):
            e.store(weight, at, 4 * LANES * j)
        return [b.fadd(*pair) for pair in zip(sums, weights)]

    sums = e.loop(begin, high, weigh, [e.const(0.0, wide)] * _VECTORS, step=STEP)
    e.store(maximum, state)
    e.store(e.sum(b.fadd(b.fadd(sums[0], sums[1]), b.fadd(sums[2], sums[3]))), state, 4)


@vector_code("iiiii")
def add_partition(e: Emitter, total: Value, outputs: Value, state: Value, partial: Value, dim: Value) -> None:
    """(total, outputs[0:dim]) += (state, partial[0:dim]); total and state: float32 maximum and sum; dim: a multiple of LANES."""
    b = e.b
    wide = vec(F32, LANES)
    before, here = e.load(total, F32), e.load(state, F32)
    maximum = _larger(e, before, here)
    shrink, join = (exp(e, b.fsub(value, maximum)) for value in (before, here))
    e.store(maximum, total)
    e.store(e.fma(e.load(total, F32, 4), shrink, b.fmul(e.load(state, F32, 4), join)), total, 4)
    shrinks, joins = e.splat(shrink, LANES), e.splat(join, LANES)

    def one(index: Value) -> None:
        at = b.shl(index, e.const(2))
        e.store(e.fma(e.load(outputs, wide, at), shrinks, b.fmul(e.load(partial, wide, at), joins)), outputs, at)

    e.range(e.const(0), dim, one, step=LANES)

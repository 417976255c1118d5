"""One row as float32, for embedding look-ups: the same operations in the same order as `quant.reference`, bit for bit."""

from __future__ import annotations

from quant.cpu.blocks import BlockFormat, quants
from quant.cpu.floats import FloatFormat
from quant.simd import I16, I32, Emitter, Value, vec


def emit_floats(e: Emitter, fmt: FloatFormat, row: Value, k: Value, dst: Value) -> None:
    """Converts k numbers."""
    whole = e.b.and_(k, e.const(-8))
    e.range(e.const(0), whole, lambda i: e.store(fmt.widen(e, e.at(row, i, fmt.n_bytes), 8), e.at(dst, i, 4)), 8)
    e.range(whole, k, lambda i: e.store(e.lane(fmt.widen(e, e.at(row, i, fmt.n_bytes), 1), 0), e.at(dst, i, 4)))


def emit_blocks(e: Emitter, fmt: BlockFormat, row: Value, k: Value, dst: Value) -> None:
    """Decodes k numbers, a multiple of the block."""
    n_blocks = e.b.sdiv(k, e.const(fmt.n_elements))
    e.count(n_blocks, lambda i: _block(e, fmt, e.at(row, i, fmt.n_bytes), e.at(dst, i, 4 * fmt.n_elements)))


def _block(e: Emitter, fmt: BlockFormat, block: Value, dst: Value) -> None:
    b = e.b
    d = e.widen_half(e.load(block, I16, fmt.d_at))
    m = e.widen_half(e.load(block, I16, fmt.m_at)) if fmt.m_at is not None else None
    if not fmt.scales:
        _segment(e, fmt, quants(e, fmt, [(block, 0)]), [d], [m], b.fadd, dst)
        return
    scales, minima = fmt.scales.row(e, block)
    steps = [b.fmul(d, _number(e, scales, j)) for j in range(fmt.n_sub)]
    offsets = [b.fmul(m, _number(e, minima, j)) if m is not None else None for j in range(fmt.n_sub)]
    each = fmt.n_sub // 8
    for segment in range(8):
        chosen = slice(segment * each, (segment + 1) * each)
        _segment(e, fmt, quants(e, fmt, [(block, segment)]), steps[chosen], offsets[chosen], b.fsub, e.offset(dst, 128 * segment))


def _number(e: Emitter, values: Value, j: int) -> Value:
    return e.to_float(e.b.sext(e.lane(values, j), I32))


def _segment(e: Emitter, fmt: BlockFormat, q: Value, steps: list[Value], offsets: list[Value], combine: object, dst: Value) -> None:
    """step * (q - offset), then combined with the sub-block's minimum, for 32 elements."""
    signed = e.b.sub(q, e.const(fmt.offset, q.type)) if fmt.offset else q
    widen = e.b.sext if fmt.signed or fmt.offset else e.b.zext
    for i in range(4):
        which = i * len(steps) // 4
        part = e.to_float(widen(e.part(signed, 8 * i, 8), vec(I32, 8)))
        value = e.b.fmul(part, e.splat(steps[which], 8))
        if offsets[which] is not None:
            value = combine(value, e.splat(offsets[which], 8))  # type: ignore[operator]
        e.store(value, dst, 32 * i)

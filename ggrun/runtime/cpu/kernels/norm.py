"""Root mean square norm of each group of a row."""

from __future__ import annotations

import math

import numpy as np

from ggrun.runtime.cpu.kernels.rows import chunk_rows, row_chunks
from ggrun.runtime.cpu.vectors import each, spread, vector_code
from ggrun.runtime.cpu.words import field, real
from quant.simd import F32, Emitter, Value, vec


@vector_code("ii", "f")
def _sum_squares(e: Emitter, x: Value, n: Value) -> Value:
    """The squares of x[0:n] added in a fixed order: 16 running sums, then these by halves, then what is left over."""
    lanes = 16
    whole = e.b.and_(n, e.const(-lanes))

    def step(type_):
        def body(index, carried):
            value = e.load(x, type_, e.b.shl(index, e.const(2)))
            return [e.fma(value, value, carried[0])]

        return body

    (sums,) = e.loop(e.const(0), whole, step(vec(F32, lanes)), [e.const(0.0, vec(F32, lanes))], step=lanes)
    (rest,) = e.loop(whole, n, step(F32), [e.const(0.0, F32)])
    return e.b.fadd(e.sum(sums), rest)


@vector_code("iiifi")
def _scaled(e: Emitter, x: Value, w: Value, n: Value, factor: Value, y: Value) -> None:
    """y = x * factor * w."""

    def body(at, type_):
        value = e.b.fmul(e.load(x, type_, at), spread(e, factor, type_))
        e.store(e.b.fmul(value, e.load(w, type_, at)), y, at)

    each(e, n, body)


def rms_norm(step, control, thread, chunk):
    """x, y: [rows, heads * n]; w: [n]; heads: groups of a row; f0: eps; tile: rows of a chunk."""
    if chunk < 0:
        return row_chunks(step, control)
    n = field(step, "n")
    groups = field(step, "heads")
    eps = real(step, "f0")
    for row in chunk_rows(step, control, chunk):
        x = field(step, "x") + row * field(step, "x_stride")
        y = field(step, "y") + row * field(step, "y_stride")
        for _ in range(groups):
            mean = np.float64(_sum_squares(x, n)) / n
            _scaled(x, field(step, "w"), n, np.float32(1.0 / math.sqrt(mean + eps)), y)
            x += 4 * n
            y += 4 * n
    return 0

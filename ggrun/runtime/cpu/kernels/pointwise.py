"""Ops that compute each element from the same element of two inputs: the residual's addition and the gated activation."""

from __future__ import annotations

from ggrun.runtime.cpu.kernels.rows import chunk_rows, row_chunks
from ggrun.runtime.cpu.vectors import each, silu, vector_code
from ggrun.runtime.cpu.words import field
from quant.simd import Emitter, Value


@vector_code("iiii")
def _add(e: Emitter, x: Value, z: Value, n: Value, y: Value) -> None:
    """y = x + z."""
    each(e, n, lambda at, type_: e.store(e.b.fadd(e.load(x, type_, at), e.load(z, type_, at)), y, at))


@vector_code("iiii")
def _glu_silu(e: Emitter, x: Value, z: Value, n: Value, y: Value) -> None:
    """y = silu(x) * z."""
    each(e, n, lambda at, type_: e.store(e.b.fmul(silu(e, e.load(x, type_, at)), e.load(z, type_, at)), y, at))


def add(step, control, thread, chunk):
    """y = x + z; n: row length; tile: rows of a chunk."""
    if chunk < 0:
        return row_chunks(step, control)
    for row in chunk_rows(step, control, chunk):
        _add(
            field(step, "x") + row * field(step, "x_stride"),
            field(step, "z") + row * field(step, "z_stride"),
            field(step, "n"),
            field(step, "y") + row * field(step, "y_stride"),
        )
    return 0


def glu_silu(step, control, thread, chunk):
    """y = silu(x) * z; n: row length; tile: rows of a chunk."""
    if chunk < 0:
        return row_chunks(step, control)
    for row in chunk_rows(step, control, chunk):
        _glu_silu(
            field(step, "x") + row * field(step, "x_stride"),
            field(step, "z") + row * field(step, "z_stride"),
            field(step, "n"),
            field(step, "y") + row * field(step, "y_stride"),
        )
    return 0

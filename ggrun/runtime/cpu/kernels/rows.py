"""How many rows a step has, and the ops that move whole rows: embedding look-up and the choice of logit rows."""

from __future__ import annotations

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic

from ggrun.runtime.cpu.vectors import each, spread, vector_code
from ggrun.runtime.cpu.words import control_field, field, load_i32, real
from quant.simd import I64, Emitter, Value


@njit
def row_count(step, control):
    """Rows of this step in this batch."""
    return control_field(control, "n_logits") if field(step, "per_logit") else control_field(control, "n_tokens")


@njit
def row_chunks(step, control):
    """Chunks of a step that hands out `tile` rows at once."""
    tile = field(step, "tile")
    return (row_count(step, control) + tile - 1) // tile


@njit
def chunk_rows(step, control, chunk):
    """The rows of a chunk of such a step."""
    tile = field(step, "tile")
    return range(chunk * tile, min((chunk + 1) * tile, row_count(step, control)))


@intrinsic
def _get_row(typingctx, function, source, n, target):
    """Call a format's get_row(source, n, target)."""

    def codegen(context, builder, signature, args):
        signature_ = ir.FunctionType(ir.VoidType(), [I64, I64, I64])
        builder.call(builder.inttoptr(args[0], signature_.as_pointer()), args[1:])
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, types.int64, types.int64), codegen


@vector_code("iifi")
def _scaled(e: Emitter, x: Value, n: Value, factor: Value, y: Value) -> None:
    """y = x * factor."""
    each(e, n, lambda at, type_: e.store(e.b.fmul(e.load(x, type_, at), spread(e, factor, type_)), y, at))


@vector_code("iii")
def copy_row(e: Emitter, x: Value, n: Value, y: Value) -> None:
    """y = x, n float32."""
    each(e, n, lambda at, type_: e.store(e.load(x, type_, at), y, at))


def embed(step, control, thread, chunk):
    """y[t] = table row ids[t], dequantized by `call`, times f0. w: the table; n: row length; tile: tokens of a chunk."""
    if chunk < 0:
        return row_chunks(step, control)
    n = field(step, "n")
    ids = control_field(control, "ids")
    factor = np.float32(real(step, "f0"))
    for row in chunk_rows(step, control, chunk):
        y = field(step, "y") + row * field(step, "y_stride")
        _get_row(field(step, "call"), field(step, "w") + np.int64(load_i32(ids + 4 * row)) * field(step, "w_stride"), n, y)
        if factor != 1.0:
            _scaled(y, n, factor, y)
    return 0


def take_rows(step, control, thread, chunk):
    """y[r] = x[out_rows[r]]; n: row length; tile: rows of a chunk."""
    if chunk < 0:
        return row_chunks(step, control)
    out_rows = control_field(control, "out_rows")
    for row in chunk_rows(step, control, chunk):
        x = field(step, "x") + np.int64(load_i32(out_rows + 4 * row)) * field(step, "x_stride")
        copy_row(x, field(step, "n"), field(step, "y") + row * field(step, "y_stride"))
    return 0

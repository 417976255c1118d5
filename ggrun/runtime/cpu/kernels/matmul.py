"""Drivers of quant.cpu's functions: quantizing rows once for all that multiply with them, and matrix products in chunks of rows."""

from __future__ import annotations

from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic

from ggrun.runtime.cpu.kernels.rows import row_chunks, row_count
from ggrun.runtime.cpu.vectors import each, vector_code
from ggrun.runtime.cpu.words import control_field, field
from quant.simd import I64, Emitter, Value

CHUNK_BYTES = 64 << 10  # of weights: a chunk is worth the claim, and a stream long enough for the prefetcher
CHUNK_PRODUCTS = 1 << 25  # of weights times tokens: tens of milliseconds on a slow core, so that an abort is seen soon
CHUNKS_A_THREAD = 8  # a thread that is held up leaves most of its share to the others


def _caller(n: int):
    @intrinsic
    def call(typingctx, function, *args):
        def codegen(context, builder, signature, values):
            signature_ = ir.FunctionType(ir.VoidType(), [I64] * n)
            packed = [builder.extract_value(values[1], i) for i in range(n)]
            builder.call(builder.inttoptr(values[0], signature_.as_pointer()), packed)
            return context.get_dummy_value()

        return types.void(types.int64, types.StarArgTuple([types.int64] * n)), codegen

    return call


call_quantize = _caller(8)  # (function, src, stride, index, t0, t1, k, n_tokens, dst)
call_rows = _caller(10)  # (function, w, row_bytes, r0, r1, k, x, n_tokens, out, out_stride, scratch)


@vector_code("iii")
def add_to(e: Emitter, y: Value, bias: Value, n: Value) -> None:
    """y += bias."""
    each(e, n, lambda at, type_: e.store(e.b.fadd(e.load(y, type_, at), e.load(bias, type_, at)), y, at))


@njit
def thread_scratch(control, thread):
    """Address of the thread's private memory."""
    return control_field(control, "scratch") + thread * control_field(control, "scratch_stride")


@njit
def _shared_rows(n, row_bytes, k, tokens, tile, active):
    """Rows of a matrix product handed out at once, a multiple of `tile`."""
    fair = n // (active * CHUNKS_A_THREAD) if active > 1 else n
    most = CHUNK_PRODUCTS // (k * tokens)
    rows = min(max(fair, CHUNK_BYTES // row_bytes), most)
    return max((rows + tile - 1) // tile, 1) * tile


@njit
def place(chunk, chunks, active):
    """Which part of a matrix the chunk handed out as number `chunk` is: every thread gets neighbours as long as all are equally fast."""
    share, more = chunks // active, chunks % active
    first = chunk % active
    return first * share + min(first, more) + chunk // active


def quantize(step, control, thread, chunk):
    """y = the rows of x in the activation layout of `call`. k: row length; tile: tokens that layout keeps together."""
    if chunk < 0:
        return row_chunks(step, control)
    rows = row_count(step, control)
    first = chunk * field(step, "tile")
    stop = min(first + field(step, "tile"), rows)
    x, y = field(step, "x"), field(step, "y")
    call_quantize(field(step, "call"), x, field(step, "x_stride"), 0, first, stop, field(step, "k"), rows, y)
    return 0


def matmul(step, control, thread, chunk):
    """y[t, r] = dot(w[r], x[t]) + bias[r] by `call`; x: quantized; w: [n, k]; bias: float32 [n] or 0; tile: rows kept together."""
    tokens = row_count(step, control)
    if tokens == 0:
        return 0
    n = field(step, "n")
    k = field(step, "k")
    row_bytes = field(step, "w_stride")
    active = control_field(control, "active")
    rows = _shared_rows(n, row_bytes, k, tokens, field(step, "tile"), active)
    chunks = (n + rows - 1) // rows
    if chunk < 0:
        return chunks
    first = place(chunk, chunks, active) * rows
    stop = min(first + rows, n)
    y = field(step, "y")
    y_stride = field(step, "y_stride")
    scratch = thread_scratch(control, thread)
    call_rows(field(step, "call"), field(step, "w"), row_bytes, first, stop, k, field(step, "x"), tokens, y, y_stride, scratch)
    bias = field(step, "bias")
    if bias:
        for token in range(tokens):
            add_to(y + token * y_stride + 4 * first, bias + 4 * first, stop - first)
    return 0

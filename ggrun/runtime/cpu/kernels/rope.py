"""Rotary position embedding: one table of cosines and sines per batch, shared by all layers, and the rotation itself."""

from __future__ import annotations

import math

import numpy as np

from ggrun.runtime.cpu.kernels.rows import chunk_rows, copy_row, row_chunks
from ggrun.runtime.cpu.vectors import vector_code
from ggrun.runtime.cpu.words import control_field, field, load_f64, load_i32, real, store_f32
from quant.simd import F32, Emitter, Value, vec


def rope_table(step, control, thread, chunk):
    """y[t] = cosines, then sines, of position * frequency, times f0.

    w: float64 [n] frequencies (angle per position); the angle is a float64 product, so that far positions keep their digits.
    """
    if chunk < 0:
        return row_chunks(step, control)
    positions = control_field(control, "positions")
    pairs = field(step, "n")
    magnitude = real(step, "f0")
    for token in chunk_rows(step, control, chunk):
        position = np.float64(load_i32(positions + 4 * token))
        y = field(step, "y") + token * field(step, "y_stride")
        for i in range(pairs):
            angle = position * load_f64(field(step, "w") + 8 * i)
            store_f32(y + 4 * i, np.float32(math.cos(angle) * magnitude))
            store_f32(y + 4 * (pairs + i), np.float32(math.sin(angle) * magnitude))
    return 0


def _turn(e: Emitter, a: Value, b: Value, cos: Value, sin: Value) -> tuple[Value, Value]:
    """The pair (a, b) turned by an angle."""
    return (
        e.b.fsub(e.b.fmul(a, cos), e.b.fmul(b, sin)),
        e.b.fadd(e.b.fmul(a, sin), e.b.fmul(b, cos)),
    )


@vector_code("iiii")
def _rotate_halves(e: Emitter, x: Value, pairs: Value, table: Value, y: Value) -> None:
    """Pairs (i, i + pairs): the neox style."""
    lanes = e.target.lanes
    half = e.b.shl(pairs, e.const(2))
    whole = e.b.and_(pairs, e.const(-lanes))
    for start, stop, type_, step in ((e.const(0), whole, vec(F32, lanes), lanes), (whole, pairs, F32, 1)):

        def one(index, _, type_=type_):
            at = e.b.shl(index, e.const(2))
            far = e.b.add(at, half)
            low, high = _turn(e, e.load(x, type_, at), e.load(x, type_, far), e.load(table, type_, at), e.load(table, type_, far))
            e.store(low, y, at)
            e.store(high, y, far)
            return ()

        e.loop(start, stop, one, step=step)


@vector_code("iiii")
def _rotate_neighbours(e: Emitter, x: Value, pairs: Value, table: Value, y: Value) -> None:
    """Pairs (2i, 2i + 1): the norm style."""
    lanes = e.target.lanes
    half = e.b.shl(pairs, e.const(2))
    whole = e.b.and_(pairs, e.const(-lanes))

    def many(index, _):
        at = e.b.shl(index, e.const(2))
        both = e.load(x, vec(F32, 2 * lanes), e.b.add(at, at))
        cos, sin = e.load(table, vec(F32, lanes), at), e.load(table, vec(F32, lanes), e.b.add(at, half))
        even, odd = _turn(e, e.shuffle(both, range(0, 2 * lanes, 2)), e.shuffle(both, range(1, 2 * lanes, 2)), cos, sin)
        e.store(e.shuffle(even, [i // 2 + lanes * (i % 2) for i in range(2 * lanes)], odd), y, e.b.add(at, at))
        return ()

    def single(index, _):
        at = e.b.shl(index, e.const(2))
        first = e.b.add(at, at)
        second = e.b.add(first, e.const(4))
        even, odd = _turn(e, e.load(x, F32, first), e.load(x, F32, second), e.load(table, F32, at), e.load(table, F32, e.b.add(at, half)))
        e.store(even, y, first)
        e.store(odd, y, second)
        return ()

    e.loop(e.const(0), whole, many, step=lanes)
    e.loop(whole, pairs, single)


def rope(step, control, thread, chunk):
    """x, y: [rows, heads * dim_k]; z: the table [rows, 2 * n]; n: pairs; flags: 1 for pairs half a rotation apart (neox).

    What a head has beyond 2n elements is copied. y may be x. tile: tokens of a chunk.
    """
    if chunk < 0:
        return row_chunks(step, control)
    pairs = field(step, "n")
    dim = field(step, "dim_k")
    for token in chunk_rows(step, control, chunk):
        x = field(step, "x") + token * field(step, "x_stride")
        y = field(step, "y") + token * field(step, "y_stride")
        table = field(step, "z") + token * field(step, "z_stride")
        for _ in range(field(step, "heads")):
            if field(step, "flags"):
                _rotate_halves(x, pairs, table, y)
            else:
                _rotate_neighbours(x, pairs, table, y)
            copy_row(x + 8 * pairs, dim - 2 * pairs, y + 8 * pairs)
            x += 4 * dim
            y += 4 * dim
    return 0

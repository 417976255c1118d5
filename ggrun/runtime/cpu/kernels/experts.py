"""Mixtures of experts: choosing experts, grouping tokens by expert, and products of each group with its expert's matrix.

A token and one of its slots are an entry, numbered token * used + slot. The lists of a batch, int32:

    [0]                 active: how many experts have entries
    [1 ... E]           active experts in rising order
    [1 + E ... 2E]      where an active expert's entries start; one more at the end
    [2 + 2E ...]        entries, expert by expert, rising within each
    [... + T * used]    the token of each of these entries
"""

from __future__ import annotations

import numpy as np
from numba import njit

from ggrun.runtime.cpu.kernels.matmul import call_quantize, call_rows, place, thread_scratch
from ggrun.runtime.cpu.kernels.rows import chunk_rows, copy_row, row_chunks
from ggrun.runtime.cpu.sizes import EXPERT_ROWS
from ggrun.runtime.cpu.vectors import each, exp1, spread, vector_code
from ggrun.runtime.cpu.words import control_field, field, load_f32, load_i32, real, store_f32, store_i32
from quant.simd import Emitter, Value


@njit
def _active(lists, index):
    return np.int64(load_i32(lists + 4 * (1 + index)))


@njit
def _start(lists, experts, index):
    return np.int64(load_i32(lists + 4 * (1 + experts + index)))


@njit
def _entries(lists, experts):
    return lists + 4 * (2 + 2 * experts)


_CHOSEN = np.float32(-2.0)  # in place of the probability of an expert that has its slot


@njit
def _unchosen(p):
    i = 0
    while load_f32(p + 4 * i) == _CHOSEN:
        i += 1
    return i


def route(step, control, thread, chunk):
    """y[t]: ids (int32) of the `used` highest of softmax(x[t]), ties to the lower id; v[t]: their weights.

    flags: 1 to make the weights sum to one; f0: factor of the weights.
    """
    if chunk < 0:
        return row_chunks(step, control)
    experts = field(step, "experts")
    used = field(step, "used")
    p = thread_scratch(control, thread)
    for token in chunk_rows(step, control, chunk):
        x = field(step, "x") + token * field(step, "x_stride")
        ids = field(step, "y") + token * field(step, "y_stride")
        weights = field(step, "v") + token * field(step, "v_stride")
        highest = load_f32(x)
        for i in range(1, experts):
            highest = max(highest, load_f32(x + 4 * i))
        total = np.float32(0.0)
        for i in range(experts):
            value = exp1(load_f32(x + 4 * i) - highest)
            store_f32(p + 4 * i, value)
            total += value
        chosen = np.float32(0.0)
        for slot in range(used):
            best = -1
            best_p = np.float32(-1.0)
            for i in range(experts):
                value = load_f32(p + 4 * i)
                if value > best_p:
                    best = i
                    best_p = value
            if best < 0:  # only NaN is left: any expert will do, but one that the token does not use yet
                best = _unchosen(p)
                best_p = np.float32(np.nan)
            store_i32(ids + 4 * slot, np.int32(best))
            store_f32(p + 4 * best, _CHOSEN)
            store_f32(weights + 4 * slot, best_p / total)
            chosen += best_p / total
        factor = np.float32(real(step, "f0"))
        if field(step, "flags"):
            factor = factor / chosen
        for slot in range(used):
            store_f32(weights + 4 * slot, load_f32(weights + 4 * slot) * factor)
    return 0


def group_experts(step, control, thread, chunk):
    """y = the lists of this batch, from x: expert ids int32 [T, used]. A stable counting sort in one chunk."""
    if chunk < 0:
        return 1
    tokens = control_field(control, "n_tokens")
    experts = field(step, "experts")
    used = field(step, "used")
    lists = field(step, "y")
    entries = _entries(lists, experts)
    token_of = entries + 4 * field(step, "n")
    n = tokens * used
    counts = thread_scratch(control, thread)
    for expert in range(experts):
        store_i32(counts + 4 * expert, np.int32(0))
    for token in range(tokens):
        for slot in range(used):
            at = counts + 4 * np.int64(load_i32(field(step, "x") + token * field(step, "x_stride") + 4 * slot))
            store_i32(at, np.int32(load_i32(at) + 1))
    active = np.int64(0)
    start = np.int64(0)
    for expert in range(experts):
        count = np.int64(load_i32(counts + 4 * expert))
        store_i32(counts + 4 * expert, np.int32(start))
        if count:
            store_i32(lists + 4 * (1 + active), np.int32(expert))
            store_i32(lists + 4 * (1 + experts + active), np.int32(start))
            active += 1
        start += count
    store_i32(lists, np.int32(active))
    store_i32(lists + 4 * (1 + experts + active), np.int32(n))
    for token in range(tokens):
        for slot in range(used):
            at = counts + 4 * np.int64(load_i32(field(step, "x") + token * field(step, "x_stride") + 4 * slot))
            place = np.int64(load_i32(at))
            store_i32(at, np.int32(place + 1))
            store_i32(entries + 4 * place, np.int32(token * used + slot))
            store_i32(token_of + 4 * place, np.int32(token))
    return 0


@njit
def _tile_of(start, index, tile):
    """The first tile of the active expert number `index`, whose entries begin at `start`: tiles of experts never overlap."""
    return start // tile + index


def quantize_experts(step, control, thread, chunk):
    """y = each active expert's rows of x in the activation layout of `call`, one after the other.

    flags: 1 when x has one row a token, 0 when one an entry; k: row length; tile, tile_bytes: of the layout.
    """
    lists = field(step, "lists")
    if chunk < 0:
        return np.int64(load_i32(lists))
    experts = field(step, "experts")
    index_of = _entries(lists, experts)
    if field(step, "flags"):
        index_of += 4 * field(step, "n")
    start = _start(lists, experts, chunk)
    count = _start(lists, experts, chunk + 1) - start
    target = field(step, "y") + _tile_of(start, chunk, field(step, "tile")) * field(step, "tile_bytes")
    x = field(step, "x")
    call_quantize(field(step, "call"), x, field(step, "x_stride"), index_of + 4 * start, 0, count, field(step, "k"), count, target)
    return 0


def expert_matmul(step, control, thread, chunk):
    """y[t, slot] = w[expert of the slot] @ its row of x (quantized by quantize_experts); w: [experts, n, k]; y: [T, used * n].

    tile, tile_bytes: of x's layout. A group's products go through the thread's scratch, because its rows of y are not evenly spaced.
    """
    lists = field(step, "lists")
    n = field(step, "n")
    parts = (n + EXPERT_ROWS - 1) // EXPERT_ROWS
    chunks = np.int64(load_i32(lists)) * parts
    if chunk < 0:
        return chunks
    chunk = place(chunk, chunks, control_field(control, "active"))
    experts = field(step, "experts")
    k = field(step, "k")
    entries = _entries(lists, experts)
    stage = thread_scratch(control, thread)
    scratch = stage + field(step, "stage")
    index = chunk // parts
    first = chunk % parts * EXPERT_ROWS
    stop = min(first + EXPERT_ROWS, n)
    start = _start(lists, experts, index)
    count = _start(lists, experts, index + 1) - start
    w = field(step, "w") + _active(lists, index) * n * field(step, "w_stride")
    x = field(step, "x") + _tile_of(start, index, field(step, "tile")) * field(step, "tile_bytes")
    if count == 1:
        y = field(step, "y") + np.int64(load_i32(entries + 4 * start)) * 4 * n
        call_rows(field(step, "call"), w, field(step, "w_stride"), first, stop, k, x, count, y, 4 * n, scratch)
        return 0
    out = stage - 4 * first
    call_rows(field(step, "call"), w, field(step, "w_stride"), first, stop, k, x, count, out, 4 * EXPERT_ROWS, scratch)
    for i in range(count):
        y = field(step, "y") + np.int64(load_i32(entries + 4 * (start + i))) * 4 * n
        copy_row(stage + i * 4 * EXPERT_ROWS, stop - first, y + 4 * first)
    return 0


@vector_code("iifi")
def _accumulate(e: Emitter, x: Value, n: Value, weight: Value, y: Value) -> None:
    """y += weight * x."""

    def body(at, type_):
        e.store(e.b.fadd(e.load(y, type_, at), e.b.fmul(spread(e, weight, type_), e.load(x, type_, at))), y, at)

    each(e, n, body)


@vector_code("iifi")
def _weighted(e: Emitter, x: Value, n: Value, weight: Value, y: Value) -> None:
    """y = weight * x."""
    each(e, n, lambda at, type_: e.store(e.b.fmul(spread(e, weight, type_), e.load(x, type_, at)), y, at))


def expert_sum(step, control, thread, chunk):
    """y[t] = sum over slots, in order, of z[t, slot] * x[t, slot]; n: row length; tile: tokens of a chunk."""
    if chunk < 0:
        return row_chunks(step, control)
    n = field(step, "n")
    for token in chunk_rows(step, control, chunk):
        x = field(step, "x") + token * field(step, "x_stride")
        z = field(step, "z") + token * field(step, "z_stride")
        y = field(step, "y") + token * field(step, "y_stride")
        _weighted(x, n, load_f32(z), y)
        for slot in range(1, field(step, "used")):
            _accumulate(x + 4 * n * slot, n, load_f32(z + 4 * slot), y)
    return 0

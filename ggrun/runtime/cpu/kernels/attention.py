"""Causal attention over the paged KV cache: storing a batch's keys and values, and reading them block by block.

A layer's arena is [block][KV head]{keys [dim_k][32 tokens], values [32 tokens][dim_v padded to 16]}, float16: keys are transposed
so that the lanes of a score vector are tokens, values lie so that lanes are dimensions of the output.

Work is handed out as (tile of consecutive tokens of one sequence, KV head); a row is a query head of a token of the tile. What is added in
which order is defined in docs/cpu-runtime.md and does not depend on the tile, the batch or the thread. Cells beyond a row's position are
computed with as keys (their scores are discarded) and never read as values: they may hold anything.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from ggrun.plan.device import KV_BLOCK_TOKENS
from ggrun.runtime.cpu import atomics
from ggrun.runtime.cpu.kernels.attention_tiles import FEW, MANY, reads, scores_few, scores_many, tile_rows, weigh_few, weigh_many, weigh_one
from ggrun.runtime.cpu.kernels.kv_quants import store_key, store_value, widen_keys4, widen_keys8, widen_values4, widen_values8
from ggrun.runtime.cpu.kernels.matmul import thread_scratch
from ggrun.runtime.cpu.kernels.softmax import add_partition, cap, softmax
from ggrun.runtime.cpu.sizes import LANES, PARTITION, SCORE_BYTES, STATE_BYTES, TILE_TOKENS
from ggrun.runtime.cpu.vectors import each, narrow_half, spread, vector_code
from ggrun.runtime.cpu.words import control_field, field, load_f32, load_i32, real, store_f32, store_i32, word
from quant.simd import F32, I16, I32, Emitter, Value, vec

BLOCK = KV_BLOCK_TOKENS
_MINUS_INF = np.float32(-np.inf)


def query_tiles(step, control, thread, chunk):
    """y = int32 [count, 0, (first token, tokens) ...]: runs of at most TILE_TOKENS tokens of one sequence. In one chunk."""
    if chunk < 0:
        return 1
    tokens = control_field(control, "n_tokens")
    seqs = control_field(control, "seqs")
    y = field(step, "y")
    count = 0
    first = 0
    for token in range(1, tokens + 1):
        if token == tokens or token - first == TILE_TOKENS or load_i32(seqs + 4 * token) != load_i32(seqs + 4 * first):
            store_i32(y + 8 + 8 * count, np.int32(first))
            store_i32(y + 12 + 8 * count, np.int32(token - first))
            count += 1
            first = token
    store_i32(y, np.int32(count))
    return 0


@njit
def _cell(step, control, token):
    """Address of the block a token's position lies in, and its place in the block."""
    position = np.int64(load_i32(control_field(control, "positions") + 4 * token))
    return _block(step, control, token, position // BLOCK), position % BLOCK


@njit
def _block(step, control, token, index):
    """Address of block number `index` of a token's sequence."""
    seq = np.int64(load_i32(control_field(control, "seqs") + 4 * token))
    table = control_field(control, "tables") + seq * control_field(control, "tables_stride")
    return field(step, "kv") + np.int64(load_i32(table + 4 * index)) * field(step, "kv_stride")


@vector_code("iii")
def _store_key(e: Emitter, x: Value, n: Value, y: Value) -> None:
    """float32 x[0:n] to float16, one element every 2 * BLOCK bytes: a column of the transposed keys."""
    lanes = e.target.lanes
    whole = e.b.and_(n, e.const(-lanes))

    def many(index, _):
        halves = narrow_half(e, e.load(x, vec(F32, lanes), e.b.shl(index, e.const(2))))
        for lane in range(lanes):
            e.store(e.lane(halves, lane), e.at(y, index, 2 * BLOCK), 2 * BLOCK * lane)
        return ()

    def single(index, _):
        e.store(narrow_half(e, e.load(x, F32, e.b.shl(index, e.const(2)))), e.at(y, index, 2 * BLOCK))
        return ()

    e.loop(e.const(0), whole, many, step=lanes)
    e.loop(whole, n, single)


@vector_code("iii")
def _store_value(e: Emitter, x: Value, n: Value, y: Value) -> None:
    """float32 x[0:n] to float16, side by side."""
    each(e, n, lambda at, type_: e.store(narrow_half(e, e.load(x, type_, at)), y, e.b.lshr(at, e.const(1))))


@vector_code("ii")
def _clear(e: Emitter, y: Value, n: Value) -> None:
    """y[0:n] = 0."""
    each(e, n, lambda at, type_: e.store(e.const(0.0, type_), y, at))


def kv_store(step, control, thread, chunk):
    """Write the batch's keys x [rows, kv_heads * dim_k] and values z [rows, kv_heads * dim_v] to their cells.

    A chunk is one KV head of a run of tokens, so that two threads seldom write to the same line.
    """
    tokens = control_field(control, "n_tokens")
    heads = field(step, "kv_heads")
    if chunk < 0:
        return (tokens + BLOCK - 1) // BLOCK * heads
    dim_k = field(step, "dim_k")
    dim_v = field(step, "dim_v")
    bits_k = field(step, "bits_k")
    bits_v = field(step, "bits_v")
    row_bytes = 2 * ((dim_v + LANES - 1) // LANES * LANES)
    head = chunk % heads
    first = chunk // heads * BLOCK
    for token in range(first, min(first + BLOCK, tokens)):
        block, place = _cell(step, control, token)
        keys = block + head * field(step, "n")
        values = keys + field(step, "values_at")
        x = field(step, "x") + token * field(step, "x_stride") + 4 * head * dim_k
        z = field(step, "z") + token * field(step, "z_stride") + 4 * head * dim_v
        if bits_k == 16:
            _store_key(x, dim_k, keys + 2 * place)
        else:
            store_key(x, dim_k, bits_k, keys, place)
        if bits_v == 16:
            _store_value(z, dim_v, values + place * row_bytes)
        else:
            store_value(z, dim_v, bits_v, values, place)
    return 0


# -- attention -------------------------------------------------------------------------------------------------------------------


@vector_code("iii")
def _widen(e: Emitter, x: Value, n: Value, y: Value) -> None:
    """n float16 (a multiple of LANES) to float32."""

    def body(index: Value) -> None:
        halves = e.load(x, vec(I16, LANES), e.b.shl(index, e.const(1)))
        e.store(e.widen_half(halves), y, e.b.shl(index, e.const(2)))

    e.range(e.const(0), n, body, step=LANES)


@vector_code("iifi")
def _scaled(e: Emitter, x: Value, n: Value, factor: Value, y: Value) -> None:
    """y = x * factor."""
    each(e, n, lambda at, type_: e.store(e.b.fmul(e.load(x, type_, at), spread(e, factor, type_)), y, at))


@njit
def _padded(rows):
    return (rows + FEW - 1) // FEW * FEW


@njit
def _position(control, token):
    return np.int64(load_i32(control_field(control, "positions") + 4 * token))


@njit
def _seen(step, control, token, start, n):
    """Which of the n positions from `start` on a token sees: (first, end), first >= end for none."""
    position = _position(control, token)
    window = field(step, "window")
    low = max(position - window + 1 - start, 0) if window > 0 else 0
    return low, min(position + 1 - start, n)


@njit
def _keys(step, control, first, block, head):
    """Address of a block's keys of a KV head; its values follow."""
    return _block(step, control, first, block) + head * field(step, "n")


@njit
def _score_block(step, scratch, keys, ahead, padded, column):
    """Scores of all rows with a block of keys, from `column` of the partition on."""
    dim = field(step, "dim_k")
    bits = field(step, "bits_k")
    if not reads(bits, padded):
        wide = scratch + field(step, "keys")
        if bits == 16:
            _widen(keys, dim * BLOCK, wide)
        elif bits == 8:
            widen_keys8(keys, dim, wide)
        else:
            widen_keys4(keys, dim, wide)
        keys, bits = wide, 32
    queries = scratch + field(step, "queries")
    scores = scratch + field(step, "scores") + 4 * column
    row = 0
    while row < padded:
        n = tile_rows(padded - row)
        if n == MANY:
            scores_many(queries + 4 * row, 4 * padded, dim, keys, bits, ahead, scores + SCORE_BYTES * row)
        else:
            scores_few(queries + 4 * row, 4 * padded, dim, keys, bits, ahead, scores + SCORE_BYTES * row)
        row += n


@njit
def _weigh_block(step, control, scratch, first, rows, group, values, ahead, start, block):
    """Add a block of values to all rows' partial outputs. A row reads exactly the values it may see; the others may be anything."""
    dim = _padded_dim(step)
    bits = field(step, "bits_v")
    at = block * BLOCK
    padded = _padded(rows)
    if not reads(bits, padded):
        wide = scratch + field(step, "values")
        _, most = _seen(step, control, first + (rows - 1) // group, at, BLOCK)
        if bits == 16:
            _widen(values, most * dim, wide)
        elif bits == 8:
            widen_values8(values, most, dim, wide)
        else:
            widen_values4(values, most, dim, wide)
        values, bits = wide, 32
    weights = scratch + field(step, "scores") + 4 * (at - start)
    partial = scratch + field(step, "partial")
    row = 0
    while row < padded:
        n = tile_rows(padded - row)
        stop = min(row + n, rows)
        # what all rows of the register tile see goes in at once, what only some see before and after that
        first_low, high = _seen(step, control, first + row // group, at, BLOCK)
        low, last_high = _seen(step, control, first + (stop - 1) // group, at, BLOCK)
        common = low < high
        if not common:
            low = high = last_high
        if first_low < low:
            for r in range(row, stop):
                r_low, r_high = _seen(step, control, first + r // group, at, BLOCK)
                weigh_one(weights + SCORE_BYTES * r, values, bits, ahead, r_low, min(low, r_high), dim, partial + 4 * dim * r)
        if common:
            if n == MANY:
                weigh_many(weights + SCORE_BYTES * row, values, bits, ahead, low, high, dim, partial + 4 * dim * row)
            else:
                weigh_few(weights + SCORE_BYTES * row, values, bits, ahead, low, high, dim, partial + 4 * dim * row)
        if high < last_high:
            for r in range(row, stop):
                _, r_high = _seen(step, control, first + r // group, at, BLOCK)
                weigh_one(weights + SCORE_BYTES * r, values, bits, ahead, high, r_high, dim, partial + 4 * dim * r)
        row += n


@njit
def _padded_dim(step):
    return (field(step, "dim_v") + LANES - 1) // LANES * LANES


@njit
def _attend(step, control, scratch, first, rows, group, head, begin, start, end):
    """Add the partition that starts at `start` to all rows of a tile, whose positions see begin..end-1."""
    dim = _padded_dim(step)
    padded = _padded(rows)
    blocks = max(start, begin) // BLOCK, (min(end, start + PARTITION) + BLOCK - 1) // BLOCK
    key_bytes = field(step, "values_at")
    for block in range(blocks[0], blocks[1]):
        keys = _keys(step, control, first, block, head)
        ahead = _keys(step, control, first, block + 1, head) if block + 1 < blocks[1] else keys
        _score_block(step, scratch, keys, ahead, padded, block * BLOCK - start)
    scores = scratch + field(step, "scores")
    states = scratch + field(step, "partial_state")
    softcap = np.float32(real(step, "f1"))
    for row in range(rows):
        low, high = _seen(step, control, first + row // group, start, PARTITION)
        if low < high:
            if softcap > 0.0:
                cap(scores + SCORE_BYTES * row, low, high, softcap)
            softmax(scores + SCORE_BYTES * row, low, high, states + STATE_BYTES * row)
    partial = scratch + field(step, "partial")
    _clear(partial, padded * dim)
    for block in range(blocks[0], blocks[1]):
        values = _keys(step, control, first, block, head) + key_bytes
        ahead = _keys(step, control, first, block + 1, head) + key_bytes if block + 1 < blocks[1] else values
        _weigh_block(step, control, scratch, first, rows, group, values, ahead, start, block)
    totals = scratch + field(step, "state")
    outputs = scratch + field(step, "outputs")
    for row in range(rows):
        low, high = _seen(step, control, first + row // group, start, PARTITION)
        if low < high:
            add_partition(totals + STATE_BYTES * row, outputs + 4 * dim * row, states + STATE_BYTES * row, partial + 4 * dim * row, dim)


@vector_code("iiiiifii")
def _pack_few(e: Emitter, x0: Value, x1: Value, x2: Value, x3: Value, dim: Value, factor: Value, y: Value, stride: Value) -> None:
    """FEW rows times factor as [dim][FEW] of float32, `stride` bytes from one dimension to the next."""
    xs = (x0, x1, x2, x3)
    wide, whole = vec(F32, FEW), e.b.and_(dim, e.const(-4))

    def four(index: Value) -> None:
        scaled = [e.b.fmul(e.load(x, wide, e.b.shl(index, e.const(2))), e.splat(factor, FEW)) for x in xs]
        for i, column in enumerate(e.transpose4([e.cast(row, vec(I32, FEW)) for row in scaled])):
            e.store(column, e.at(y, e.offset(index, i), stride))

    def one(index: Value) -> None:
        for r, x in enumerate(xs):
            e.store(e.b.fmul(e.load(x, F32, e.b.shl(index, e.const(2))), factor), e.at(y, index, stride), 4 * r)

    e.range(e.const(0), whole, four, step=4)
    e.range(whole, dim, one)


@njit
def _query(step, first, row, group, head):
    """Address of a row's query."""
    return field(step, "x") + (first + row // group) * field(step, "x_stride") + 4 * (head * group + row % group) * field(step, "dim_k")


@njit
def _pack_queries(step, scratch, first, rows, group, head):
    """The rows' queries, scaled, as [dim_k][rows]."""
    padded = _padded(rows)
    scale = np.float32(real(step, "f0"))
    queries = scratch + field(step, "queries")
    last = rows - 1  # stands in for rows that are not there: what comes of them is not read
    for row in range(0, padded, FEW):
        x0 = _query(step, first, row, group, head)
        x1 = _query(step, first, min(row + 1, last), group, head)
        x2 = _query(step, first, min(row + 2, last), group, head)
        x3 = _query(step, first, min(row + 3, last), group, head)
        _pack_few(x0, x1, x2, x3, field(step, "dim_k"), scale, queries + 4 * row, 4 * padded)


def attention(step, control, thread, chunk):
    """y [rows, heads * dim_v] = attention of queries x [rows, heads * dim_k] over the arena at `kv`.

    lists: the tiles; n: bytes of one KV head of a block; f0: scale; f1: softcap or 0; window: tokens seen or 0 for all.
    """
    tiles = field(step, "lists")
    kv_heads = field(step, "kv_heads")
    chunks = np.int64(load_i32(tiles)) * kv_heads
    if chunk < 0:
        return chunks
    group = field(step, "heads") // kv_heads
    dim_v = field(step, "dim_v")
    padded = _padded_dim(step)
    window = field(step, "window")
    scratch = thread_scratch(control, thread)
    states = scratch + field(step, "state")
    outputs = scratch + field(step, "outputs")
    index = chunks - 1 - chunk  # late tiles see more: the long ones first
    head = index % kv_heads
    tile = tiles + 8 + 8 * (index // kv_heads)
    first = np.int64(load_i32(tile))
    rows = np.int64(load_i32(tile + 4)) * group
    _pack_queries(step, scratch, first, rows, group, head)
    for row in range(rows):
        store_f32(states + STATE_BYTES * row, _MINUS_INF)
        store_f32(states + STATE_BYTES * row + 4, np.float32(0.0))
    _clear(outputs, rows * padded)
    end = _position(control, first + rows // group - 1) + 1
    begin = max(_position(control, first) - window + 1, 0) if window > 0 else 0
    for partition in range(begin // PARTITION, (end + PARTITION - 1) // PARTITION):
        if atomics.load_relaxed(word(control, "abort")) != 0:  # a long context takes long
            return 0
        _attend(step, control, scratch, first, rows, group, head, begin, partition * PARTITION, end)
    for row in range(rows):
        total = load_f32(states + STATE_BYTES * row + 4)
        y = field(step, "y") + (first + row // group) * field(step, "y_stride") + 4 * (head * group + row % group) * dim_v
        _scaled(outputs + 4 * row * padded, dim_v, np.float32(1.0) / total, y)
    return 0

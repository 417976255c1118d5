"""Causal attention over the paged KV cache: storing a batch's keys and values, and reading them block by block.

A layer's arena is [block][KV head]{keys [dim_k][32 tokens], values [32 tokens][dim_v padded to 16]}, float16: keys are transposed
so that the lanes of a score vector are tokens, values lie so that lanes are dimensions of the output.

Work is handed out as (tile of consecutive tokens of one sequence, KV head): a block is converted to float32 once for all rows
(query heads of tokens) of the tile. A row sees its blocks in rising order with a running maximum and sum, and per block only the
tokens it may see, so its bits do not depend on the tile, the batch or the thread. Cells beyond a row's position are computed with
as keys (their scores are discarded) and never read as values: they may hold anything.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from ggrun.plan.device import KV_BLOCK_TOKENS
from ggrun.runtime.cpu import atomics
from ggrun.runtime.cpu.kernels.matmul import thread_scratch
from ggrun.runtime.cpu.sizes import LANES, STATE_BYTES, TILE_TOKENS
from ggrun.runtime.cpu.vectors import each, exp, narrow_half, spread, tanh, target, vector_code
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
    row_bytes = 2 * ((dim_v + LANES - 1) // LANES * LANES)
    head = chunk % heads
    first = chunk // heads * BLOCK
    for token in range(first, min(first + BLOCK, tokens)):
        block, place = _cell(step, control, token)
        keys = block + head * field(step, "n")
        values = keys + 2 * BLOCK * dim_k
        _store_key(field(step, "x") + token * field(step, "x_stride") + 4 * head * dim_k, dim_k, keys + 2 * place)
        _store_value(field(step, "z") + token * field(step, "z_stride") + 4 * head * dim_v, dim_v, values + place * row_bytes)
    return 0


# -- parts of attention ----------------------------------------------------------------------------------------------------------


@vector_code("iii")
def _widen(e: Emitter, x: Value, n: Value, y: Value) -> None:
    """n float16 (a multiple of LANES) to float32."""

    def body(index, _):
        halves = e.load(x, vec(I16, LANES), e.b.shl(index, e.const(1)))
        e.store(e.widen_half(halves), y, e.b.shl(index, e.const(2)))
        return ()

    e.loop(e.const(0), n, body, step=LANES)


@vector_code("iifi")
def _scaled(e: Emitter, x: Value, n: Value, factor: Value, y: Value) -> None:
    """y = x * factor."""
    each(e, n, lambda at, type_: e.store(e.b.fmul(e.load(x, type_, at), spread(e, factor, type_)), y, at))


ROWS = max(1, target().lanes // 4)  # of the register tiles: 8 accumulators of the target's width


def _scores(rows: int):
    def body(e: Emitter, queries: Value, keys: Value, dim: Value, scores: Value) -> None:
        """scores[r][0:BLOCK] = queries[r] . keys for `rows` rows that follow one another; added in rising dimension."""
        wide = vec(F32, e.target.lanes)
        n = BLOCK // e.target.lanes

        def step(i, sums):
            line = e.at(keys, i, 4 * BLOCK)
            columns = [e.load(line, wide, 4 * e.target.lanes * j) for j in range(n)]
            q = [e.load(e.at(e.at(queries, e.b.mul(dim, e.const(r)), 4), i, 4), F32) for r in range(rows)]
            return [e.fma(e.splat(q[r], e.target.lanes), columns[j], sums[r * n + j]) for r in range(rows) for j in range(n)]

        sums = e.loop(e.const(0), dim, step, [e.const(0.0, wide)] * (rows * n))
        for i, value in enumerate(sums):
            e.store(value, scores, 4 * e.target.lanes * i)

    return vector_code("iiii")(body)


_scores_one = _scores(1)
_scores_many = _scores(ROWS)


@vector_code("iiiif")
def _softmax(e: Emitter, scores: Value, state: Value, low: Value, high: Value, softcap: Value) -> None:
    """One row's scores of a block become weights; tokens low..high-1 are seen, at least one.

    state: float32 running maximum, running sum, and the factor by which what was summed before shrinks.
    """
    b = e.b
    wide = vec(F32, LANES)
    with b.if_then(b.fcmp_ordered(">", softcap, e.const(0.0, F32))):
        cap = e.splat(softcap, LANES)
        for at in range(0, 4 * BLOCK, 4 * LANES):
            e.store(b.fmul(cap, tanh(e, b.fdiv(e.load(scores, wide, at), cap))), scores, at)
    lows, highs = (e.splat(b.trunc(value, I32), LANES) for value in (low, high))
    parts = []
    for j in range(0, BLOCK, LANES):
        token = e.table(vec(I32, LANES), range(j, j + LANES))
        seen = b.and_(b.icmp_signed(">=", token, lows), b.icmp_signed("<", token, highs))
        parts.append(b.select(seen, e.load(scores, wide, 4 * j), e.const(float("-inf"), wide)))
    old = e.load(state, F32)
    top = e.overloaded("maxnum", parts)
    while top.type.count > 2:
        half = top.type.count // 2
        top = e.overloaded("maxnum", [e.part(top, 0, half), e.part(top, half, half)])
    new = e.overloaded("maxnum", [e.overloaded("maxnum", [e.lane(top, 0), e.lane(top, 1)]), old])
    weights = [exp(e, b.fsub(part, e.splat(new, LANES))) for part in parts]
    factor = exp(e, b.fsub(old, new))
    total = e.fma(e.load(state, F32, 4), factor, e.sum(b.fadd(*weights)))
    for j, weight in enumerate(weights):
        e.store(weight, scores, 4 * LANES * j)
    for i, value in enumerate((new, total, factor)):
        e.store(value, state, 4 * i)


def _weigh(rows: int):
    def body(e: Emitter, scores: Value, state: Value, values: Value, low: Value, high: Value, dim: Value, outputs: Value) -> None:
        """outputs[r] = outputs[r] * factor[r] + sum of weights[r][t] * values[t] over low <= t < high, rising; dim: of LANES."""
        lanes = e.target.lanes

        def columns(start: Value, stop: Value, width: int) -> None:
            n = width // lanes
            wide = vec(F32, lanes)

            def column(index, _):
                at = e.b.shl(index, e.const(2))
                ys = [e.b.add(e.at(outputs, e.b.mul(dim, e.const(r)), 4), at) for r in range(rows)]
                factors = [e.splat(e.load(state, F32, STATE_BYTES * r + 8), lanes) for r in range(rows)]
                sums = [e.b.fmul(e.load(ys[r], wide, 4 * lanes * j), factors[r]) for r in range(rows) for j in range(n)]

                def token(t, sums):
                    line = e.b.add(e.at(values, e.b.mul(t, dim), 4), at)
                    vs = [e.load(line, wide, 4 * lanes * j) for j in range(n)]
                    ws = [e.splat(e.load(e.at(scores, t, 4), F32, 4 * BLOCK * r), lanes) for r in range(rows)]
                    return [e.fma(ws[r], vs[j], sums[r * n + j]) for r in range(rows) for j in range(n)]

                sums = e.loop(low, high, token, sums)
                for i, value in enumerate(sums):
                    e.store(value, ys[i // n], 4 * lanes * (i % n))
                return ()

            e.loop(start, stop, column, step=width)

        pairs = e.b.and_(dim, e.const(-2 * LANES))
        columns(e.const(0), pairs, 2 * LANES)
        columns(pairs, dim, LANES)

    return vector_code("iiiiiii")(body)


_weigh_one = _weigh(1)
_weigh_many = _weigh(ROWS)


@njit
def _lowest(position, window, block):
    """The first place in the block that a token at `position` sees."""
    return max(position - window + 1 - block * BLOCK, 0) if window > 0 else 0


@njit
def _position(control, token):
    return np.int64(load_i32(control_field(control, "positions") + 4 * token))


@njit
def _attend_block(step, control, scratch, first, rows, group, block):
    """All rows of a tile over one block whose keys and values lie widened in scratch."""
    dim_k = field(step, "dim_k")
    dim_v = (field(step, "dim_v") + LANES - 1) // LANES * LANES
    window = field(step, "window")
    softcap = np.float32(real(step, "f1"))
    keys = scratch + field(step, "keys")
    values = scratch + field(step, "values")
    queries = scratch + field(step, "queries")
    scores = scratch + field(step, "scores")
    states = scratch + field(step, "state")
    outputs = scratch + field(step, "outputs")
    row = 0
    while row + ROWS <= rows:
        _scores_many(queries + 4 * row * dim_k, keys, dim_k, scores + 4 * BLOCK * row)
        row += ROWS
    while row < rows:
        _scores_one(queries + 4 * row * dim_k, keys, dim_k, scores + 4 * BLOCK * row)
        row += 1
    for row in range(rows):
        position = _position(control, first + row // group)
        low = _lowest(position, window, block)
        high = min(position + 1 - block * BLOCK, BLOCK)
        if low < high:
            _softmax(scores + 4 * BLOCK * row, states + STATE_BYTES * row, low, high, softcap)
    row = 0
    while row < rows:
        position = _position(control, first + row // group)
        low = _lowest(position, window, block)
        high = min(position + 1 - block * BLOCK, BLOCK)
        if low >= high:
            row += 1
            continue
        at = scores + 4 * BLOCK * row
        state = states + STATE_BYTES * row
        output = outputs + 4 * row * dim_v
        if row + ROWS <= rows:
            last = _position(control, first + (row + ROWS - 1) // group)
            if _lowest(last, window, block) == low and min(last + 1 - block * BLOCK, BLOCK) == high:
                _weigh_many(at, state, values, low, high, dim_v, output)
                row += ROWS
                continue
        _weigh_one(at, state, values, low, high, dim_v, output)
        row += 1


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
    dim_k = field(step, "dim_k")
    dim_v = field(step, "dim_v")
    padded = (dim_v + LANES - 1) // LANES * LANES
    window = field(step, "window")
    scale = np.float32(real(step, "f0"))
    scratch = thread_scratch(control, thread)
    states = scratch + field(step, "state")
    outputs = scratch + field(step, "outputs")
    index = chunks - 1 - chunk  # late tiles see more: the long ones first
    head = index % kv_heads
    tile = tiles + 8 + 8 * (index // kv_heads)
    first = np.int64(load_i32(tile))
    rows = np.int64(load_i32(tile + 4)) * group
    for row in range(rows):
        x = field(step, "x") + (first + row // group) * field(step, "x_stride") + 4 * (head * group + row % group) * dim_k
        _scaled(x, dim_k, scale, scratch + field(step, "queries") + 4 * row * dim_k)
        store_f32(states + STATE_BYTES * row, _MINUS_INF)
        store_f32(states + STATE_BYTES * row + 4, np.float32(0.0))
        _clear(outputs + 4 * row * padded, padded)
    end = _position(control, first + rows // group - 1) + 1
    begin = max(_position(control, first) - window + 1, 0) // BLOCK if window > 0 else 0
    for block in range(begin, (end + BLOCK - 1) // BLOCK):
        if atomics.load_relaxed(word(control, "abort")) != 0:  # a long context takes long
            return 0
        keys = _block(step, control, first, block) + head * field(step, "n")
        _widen(keys, dim_k * BLOCK, scratch + field(step, "keys"))
        _widen(keys + 2 * BLOCK * dim_k, min(end - block * BLOCK, BLOCK) * padded, scratch + field(step, "values"))
        _attend_block(step, control, scratch, first, rows, group, block)
    for row in range(rows):
        total = load_f32(states + STATE_BYTES * row + 4)
        y = field(step, "y") + (first + row // group) * field(step, "y_stride") + 4 * (head * group + row % group) * dim_v
        _scaled(outputs + 4 * row * padded, dim_v, np.float32(1.0) / total, y)
    return 0

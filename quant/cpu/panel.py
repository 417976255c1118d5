"""Many tokens times the rows of a block format: unpack a panel of rows, multiply it by tiles of tokens.

A panel is M vectors of L rows (a lane a row) by one group of 256 elements, rebuilt in scratch from the file's bytes for every
group; nothing of it outlives the call. Its fields, each [..][M][L lanes]:

    quants   [64]         four neighbouring elements of every row in a lane, as bytes
    super-blocks:  scales [n_sub]      integer sub-block scales, i32 (VNNI) or the same i16 twice
                   pairs  [n_sub / 2]  i16 pairs of minima; without VNNI, of scales where quants have an offset
                   start               VNNI: what the integer sum begins with, i32
                   d, -dmin            f32
    blocks:        start  [8]          likewise
                   d, m   [8]          f32

With VNNI the tokens' bytes are unsigned, 128 too large, and the panel's signed, their offset taken off. What 128 adds to a sum
depends on the row alone, so it is known when the panel is unpacked: sums begin with less.

For every tile of T tokens the register tile M x T runs over the panel and adds to the results in scratch: DESIGN's rule 11,
formula in docs/kernels.md. Rows beyond the last are clamped to it, so nothing is read beyond the tensor, and are not written.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from quant.cpu.activations import GROUP, Layout, layout
from quant.cpu.arguments import Product
from quant.cpu.blocks import BlockFormat
from quant.cpu.columns import Columns
from quant.simd import F32, I8, I16, I32, I64, Emitter, Target, Value, vec

STEPS = GROUP // 4


@dataclass(frozen=True, slots=True)
class Panel:
    """Byte offsets of a panel's fields and of what follows it in scratch: row addresses, then results."""

    fields: Mapping[str, int]
    vectors: int
    rows: int
    n_bytes: int

    def __getitem__(self, field: str) -> int:
        return self.fields[field]


def panel(fmt: BlockFormat, target: Target) -> Panel:
    """The panel of a format on a target."""
    # Without VNNI, signed products need registers of their own.
    vectors = 1 if fmt.signed and not target.vnni else target.panel_vectors
    line = 4 * target.lanes * vectors
    if fmt.scales:
        counts = {"quants": STEPS, "scales": fmt.n_sub, "pairs": fmt.n_sub // 2, "start": 1, "d": 1, "m": 1}
    else:
        counts = {"quants": STEPS, "start": 8, "d": 8, "m": 8}
    at, fields = 0, {}
    for name, count in counts.items():
        fields[name] = at
        at += count * line
    rows = target.lanes * vectors
    return Panel(MappingProxyType({**fields, "addresses": at, "results": at + 8 * rows}), vectors, rows, at + 8 * rows)


def scratch_bytes(fmt: BlockFormat, target: Target, n_tokens: int) -> int:
    """Bytes of scratch: the panel and its results."""
    shape = panel(fmt, target)
    tiles = -(-n_tokens // target.tile_tokens)
    return shape.n_bytes + 4 * shape.rows * target.tile_tokens * tiles


def emit(e: Emitter, fmt: BlockFormat, p: Product) -> None:
    """out[t][r] = W[r] . x[t] for rows r0..r1-1 and all tokens."""
    b, target, shape = e.b, e.target, panel(fmt, e.target)
    acts = layout("q8_k" if fmt.scales else "q8_0", target.tile_tokens)
    n_tiles = b.sdiv(b.add(p.n_tokens, e.const(acts.tokens - 1)), e.const(acts.tokens))
    results, tile_bytes = e.offset(p.scratch, shape["results"]), 4 * shape.rows * acts.tokens
    group_blocks = GROUP // fmt.n_elements
    n_blocks = b.sdiv(p.k, e.const(fmt.n_elements))
    n_groups = b.sdiv(b.add(n_blocks, e.const(group_blocks - 1)), e.const(group_blocks))
    last = b.sub(p.r1, e.const(1))
    multiply = _multiply_super_block if fmt.scales else _multiply_blocks

    def panel_of_rows(first: Value) -> None:
        for i in range(shape.rows):
            row = e.minimum(b.add(first, e.const(i)), last)
            e.store(e.at(p.w, row, p.row_bytes), p.scratch, shape["addresses"] + 8 * i)
        zero = e.zero(vec(F32, target.lanes))
        e.count(b.mul(n_tiles, e.const(tile_bytes // (4 * target.lanes))), lambda i: e.store(zero, e.at(results, i, 4 * target.lanes)))

        def group(g: Value) -> None:
            present = e.minimum(b.sub(n_blocks, b.mul(g, e.const(group_blocks))), e.const(group_blocks))
            skip = b.mul(g, e.const(group_blocks * fmt.n_bytes))
            vector_bytes = target.lanes * group_blocks * fmt.n_bytes
            ahead = e.at(e.at(p.w, b.add(first, e.const(shape.rows)), p.row_bytes), g, shape.vectors * vector_bytes)
            e.count(shape.vectors, lambda m: _unpack(e, fmt, shape, p.scratch, m, skip, present, e.at(ahead, m, vector_bytes)))
            tiles = e.at(p.x, b.mul(g, n_tiles), acts.n_bytes)

            def tile(i: Value) -> None:
                multiply(e, fmt, shape, acts, p.scratch, e.at(tiles, i, acts.n_bytes), e.at(results, i, tile_bytes), present)

            e.count(n_tiles, tile)

        e.count(n_groups, group)
        _write(e, shape, results, first, p)

    e.range(p.r0, p.r1, panel_of_rows, shape.rows)


def _write(e: Emitter, shape: Panel, results: Value, first: Value, p: Product) -> None:
    """Copies a panel's results [token][row] to the output, without the rows and tokens that are only padding."""
    b, line = e.b, vec(F32, e.target.lanes)
    n_rows = e.minimum(b.sub(p.r1, first), e.const(shape.rows))
    whole = b.icmp_signed("==", n_rows, e.const(shape.rows))

    def token(t: Value) -> None:
        source = e.at(results, t, 4 * shape.rows)
        target = e.at(e.at(p.out, t, p.stride), first, 4)
        with b.if_else(whole) as (full, partial):
            with full:
                for m in range(shape.vectors):
                    e.store(e.load(source, line, 4 * e.target.lanes * m), target, 4 * e.target.lanes * m)
            with partial:
                e.count(n_rows, lambda i: e.store(e.load(e.at(source, i, 4), F32), e.at(target, i, 4)))

    e.count(p.n_tokens, token)


def _unpack(e: Emitter, fmt: BlockFormat, shape: Panel, scratch: Value, m: Value, skip: Value, present: Value, ahead: Value) -> None:
    """Fills vector m of the panel from `present` blocks that lie `skip` bytes into each of its rows.

    What lies at `ahead`, as many bytes as are read here, is fetched meanwhile in the order of the file.
    """
    lanes, line = e.target.lanes, 4 * e.target.lanes * shape.vectors
    pointers = e.offset(e.at(scratch, m, 8 * lanes), shape["addresses"])
    rows = [e.offset(e.load(pointers, I64, 8 * i), skip) for i in range(lanes)]
    dst = e.at(scratch, m, 4 * lanes)

    def block(j: Value) -> None:
        columns = Columns(e, fmt, [e.at(row, j, fmt.n_bytes) for row in rows])
        scales = _unpack_scales(e, fmt, shape, columns, dst) if fmt.scales else []
        start = e.zero(columns.type)
        fetch = iter(range(0, lanes * fmt.n_bytes, 64))
        units = columns.units()
        for unit in units:
            for by in itertools.islice(fetch, -(-lanes * fmt.n_bytes // (64 * len(units)))):
                e.prefetch(e.at(ahead, j, lanes * fmt.n_bytes), by)
            quants = columns.quants(unit)
            if e.target.vnni:
                quants = [_signed(e, fmt, column) for column in quants]
                excess = _excess(e, fmt, quants)
                start = e.b.sub(start, e.b.mul(excess, scales[unit * fmt.n_sub // 16]) if scales else excess)
            for i, column in enumerate(quants):
                e.store(column, e.at(dst, j, 8 * line), shape["quants"] + line * (4 * unit + i))
        at = e.at(dst, j, line)
        if e.target.vnni:
            e.store(start, at, shape["start"])
        e.store(columns.half(fmt.d_at), at, shape["d"])
        if fmt.m_at is not None:
            minimum = columns.half(fmt.m_at)
            e.store(e.b.fneg(minimum) if fmt.scales else minimum, at, shape["m"])

    if fmt.scales:
        block(e.const(0))
    else:
        e.count(present, block)


def _signed(e: Emitter, fmt: BlockFormat, column: Value) -> Value:
    """A column of quants with their offset taken off."""
    if not fmt.offset:
        return column
    quants = vec(I8, 4 * e.target.lanes)
    return e.cast(e.b.sub(e.cast(column, quants), e.const(fmt.offset, quants)), column.type)


def _excess(e: Emitter, fmt: BlockFormat, quants: Sequence[Value]) -> Value:
    """128 times the sums of a unit's quants: what activations that are 128 too large add to their products."""
    total, bytes_ = e.zero(vec(I32, e.target.lanes)), vec(I8, 4 * e.target.lanes)
    columns = [e.cast(column, bytes_) for column in quants]
    if not fmt.signed:  # four of -32..31 fit a byte
        columns = [e.sum_of(columns)]
    for column in columns:
        total = e.dot4(total, e.const(-128, bytes_), column)
    return total


def _unpack_scales(e: Emitter, fmt: BlockFormat, shape: Panel, columns: Columns, dst: Value) -> list[Value]:
    """Stores integer scales and pairs of a super-block; returns the scales."""
    b, line = e.b, 4 * e.target.lanes * shape.vectors
    sixteen, low = e.const(16, columns.type), e.const(0xFFFF, columns.type)
    scales, minima = columns.scales()
    for i, scale in enumerate(scales):
        if not e.target.vnni:
            scale = b.or_(b.shl(scale, sixteen), b.and_(scale, low))
        e.store(scale, dst, shape["scales"] + i * line)
    paired = minima or scales
    for i in range(fmt.n_sub // 2 if minima or not e.target.vnni else 0):
        e.store(b.or_(b.shl(paired[2 * i + 1], sixteen), b.and_(paired[2 * i], low)), dst, shape["pairs"] + i * line)
    return scales


class _Tile:
    """The M x T register tile: values per token and panel vector, token-major."""

    def __init__(self, e: Emitter, fmt: BlockFormat, shape: Panel) -> None:
        self.e, self.fmt = e, fmt
        self.tokens, self.vectors = e.target.tile_tokens, shape.vectors
        self.bytes, self.pairs = vec(I8, 4 * e.target.lanes), vec(I16, 2 * e.target.lanes)
        self.ints, self.floats = vec(I32, e.target.lanes), vec(F32, e.target.lanes)
        self.size = self.tokens * self.vectors
        self.line = 4 * e.target.lanes

    @property
    def offset(self) -> int:
        """What a quant in the panel is too large by."""
        return 0 if self.e.target.vnni else self.fmt.offset

    def start(self, w: Value) -> list[Value]:
        """What integer sums begin with: with VNNI, less what 128 too much in the tokens' bytes will add."""
        if not self.e.target.vnni:
            return [self.e.zero(self.ints)] * self.size
        return [self.vector(w, self.ints, m) for _, _, m in self.cells()]

    def cells(self) -> Sequence[tuple[int, int, int]]:
        """(index, token, vector) of every value."""
        return [(t * self.vectors + m, t, m) for t in range(self.tokens) for m in range(self.vectors)]

    def vector(self, at: Value, type_: object, m: int, by: int = 0) -> Value:
        return self.e.load(at, type_, by + m * self.line)

    def broadcast(self, at: Value, type_: object, t: int, by: int = 0) -> Value:
        """The 32 bits of token t in every lane."""
        lanes = self.e.splat(self.e.load(at, I32, by + 4 * t), self.e.target.lanes)
        return self.e.cast(lanes, type_)

    def operands(self, w: Value, x: Value, steps: int) -> Iterator[list[tuple[int, Value, Value]]]:
        """For each of `steps` panel lines from w and activation lines from x: (index, weights, activations) of every value."""
        for step in range(steps):
            ws = [self.vector(w, self.bytes, m, step * self.vectors * self.line) for m in range(self.vectors)]
            xs = [self.broadcast(x, self.bytes, t, 4 * step * self.tokens) for t in range(self.tokens)]
            yield [(i, ws[m], xs[t]) for i, t, m in self.cells()]

    def sub_block(self, w: Value, x: Value, steps: int, start: list[Value], scales: list[Value] | None) -> list[Value]:
        """start + scale * (the dot product over `steps` lines from w and x); no scales: 1."""
        multiply = self._by_fours if self.e.target.vnni else self._by_pairs
        return multiply(w, x, steps, start, scales)

    def _by_fours(self, w: Value, x: Value, steps: int, start: list[Value], scales: list[Value] | None) -> list[Value]:
        e, b = self.e, self.e.b
        totals = [e.zero(self.ints)] * self.size if scales else list(start)
        for operands in self.operands(w, x, steps):
            for i, weights, tokens in operands:
                totals[i] = e.dot4(totals[i], tokens, weights)
        return [b.add(start[i], b.mul(totals[i], scales[m])) for i, _, m in self.cells()] if scales else totals

    def _by_pairs(self, w: Value, x: Value, steps: int, start: list[Value], scales: list[Value] | None) -> list[Value]:
        """Sums of pairs stay in 16 bits for as many lines as fit, then are widened and scaled in one instruction."""
        e, b = self.e, self.e.b
        depth = 1 if self.fmt.signed else 32767 // (2 * 127 * self.fmt.top)
        totals, partial, held = list(start), [e.zero(self.pairs)] * self.size, 0
        for step, operands in enumerate(self.operands(w, x, steps)):
            for i, weights, tokens in operands:
                pair = e.pair_dot(weights, tokens, self.fmt.signed)
                partial[i] = b.add(partial[i], pair) if held else pair
            held = (held + 1) % depth
            if held == 0 or step == steps - 1:
                for i, _, m in self.cells():
                    factor = e.cast(scales[m], self.pairs) if scales else e.const(1, self.pairs)
                    totals[i] = b.add(totals[i], e.madd(partial[i], factor))
        return totals


def _multiply_super_block(e: Emitter, fmt: BlockFormat, shape: Panel, acts: Layout, w: Value, x: Value, results: Value, _: Value) -> None:
    """result = fma(isum, d * da, result); then result = fma(msum, -dmin * da, result) where there are minima."""
    b, tile = e.b, _Tile(e, fmt, shape)
    steps = STEPS // fmt.n_sub
    row = tile.vectors * tile.line  # bytes of one line of the panel

    def two_sub_blocks(i: Value, sums: list[Value]) -> list[Value]:
        ws, xs = e.at(w, i, 2 * steps * row), e.at(x, i, 2 * steps * 4 * tile.tokens)
        scale_at = e.offset(e.at(w, i, 2 * row), shape["scales"])
        for j in range(2):
            scales = [tile.vector(scale_at, tile.ints, m, j * row) for m in range(tile.vectors)]
            sums = tile.sub_block(e.offset(ws, j * steps * row), e.offset(xs, j * steps * 4 * tile.tokens), steps, sums, scales)
        return sums

    sums = e.loop(e.const(0), e.const(fmt.n_sub // 2), two_sub_blocks, tile.start(e.offset(w, shape["start"])))
    if tile.offset or fmt.m_at is not None:
        products = [e.zero(tile.ints)] * tile.size
        field = acts["sums16" if fmt.n_sub == 16 else "sums32"]
        for j in range(fmt.n_sub // 2):
            pairs = [tile.vector(w, tile.pairs, m, shape["pairs"] + j * row) for m in range(tile.vectors)]
            for t in range(tile.tokens):
                xt = tile.broadcast(x, tile.pairs, t, field + 4 * j * tile.tokens)
                for m in range(tile.vectors):
                    i = t * tile.vectors + m
                    products[i] = e.dot2(products[i], pairs[m], xt)
    for i, t, m in tile.cells():
        at = e.offset(results, (t * tile.vectors + m) * tile.line)
        da = tile.broadcast(x, tile.floats, t, acts["scale"])
        total = e.load(at, tile.floats)
        if tile.offset:
            sums[i] = b.sub(sums[i], b.mul(products[i], e.const(tile.offset, tile.ints)))
        total = e.fma(e.to_float(sums[i]), b.fmul(tile.vector(w, tile.floats, m, shape["d"]), da), total)
        if fmt.m_at is not None:
            total = e.fma(e.to_float(products[i]), b.fmul(tile.vector(w, tile.floats, m, shape["m"]), da), total)
        e.store(total, at)


def _multiply_blocks(e: Emitter, fmt: BlockFormat, shape: Panel, acts: Layout, w: Value, x: Value, results: Value, present: Value) -> None:
    """Per block part = fma(isum * d, da, part), part = fma(m, da * sum, part); then result = result + part."""
    b, tile = e.b, _Tile(e, fmt, shape)
    row = tile.vectors * tile.line

    def block(j: Value, parts: list[Value]) -> list[Value]:
        at, xs = e.at(w, j, row), e.at(x, j, 4 * tile.tokens)
        start = tile.start(e.offset(at, shape["start"]))
        if tile.offset:
            for t in range(tile.tokens):
                excess = b.mul(e.load(xs, I32, acts["sums"] + 4 * t), e.const(-tile.offset, I32))
                start[t * tile.vectors : (t + 1) * tile.vectors] = [e.splat(excess, e.target.lanes)] * tile.vectors
        sums = tile.sub_block(e.at(w, j, 8 * row), e.at(x, j, 32 * tile.tokens), 8, start, None)
        for i, t, m in tile.cells():
            scaled = b.fmul(e.to_float(sums[i]), tile.vector(at, tile.floats, m, shape["d"]))
            parts[i] = e.fma(scaled, tile.broadcast(xs, tile.floats, t, acts["scale"]), parts[i])
            if fmt.m_at is not None:
                offset = tile.broadcast(xs, tile.floats, t, acts["offset"])
                parts[i] = e.fma(tile.vector(at, tile.floats, m, shape["m"]), offset, parts[i])
        return parts

    parts = e.loop(e.const(0), present, block, [e.zero(tile.floats)] * tile.size)
    for i, _, _ in tile.cells():
        at = e.offset(results, i * tile.line)
        e.store(b.fadd(e.load(at, tile.floats), parts[i]), at)

"""One token times the rows of a block format: a single stream over the weights, read as the file has them.

Each row is a loop over groups of 256 elements: quants by the 32, integer sums within a group, reduced to one integer and turned
into a float by exactly the formula of `quant.cpu.panel`, so that a lone token gets the bits it would get among others.
"""

from __future__ import annotations

from collections.abc import Sequence

from quant.cpu.activations import GROUP, Layout, layout
from quant.cpu.arguments import Product
from quant.cpu.blocks import BlockFormat, quants
from quant.simd import F32, I8, I16, I32, Emitter, Value, vec

AHEAD = 8192
"""Bytes between what is read and what is fetched meanwhile; processors by themselves look less far, and not over a page's end."""


def emit(e: Emitter, fmt: BlockFormat, p: Product) -> None:
    """out[r] = W[r] . x for rows r0..r1-1."""
    dot = _dot_super_blocks if fmt.scales else _dot_blocks

    def row(r: Value) -> None:
        e.store(dot(e, fmt, e.at(p.w, r, p.row_bytes), p.k, p.x), e.at(p.out, r, 4))

    e.range(p.r0, p.r1, row)


def _fetch(e: Emitter, address: Value, n_bytes: int) -> None:
    """Ask for the n_bytes that lie AHEAD of an address."""
    for line in range(0, n_bytes, 64):
        e.prefetch(address, AHEAD + line)


def _dot_super_blocks(e: Emitter, fmt: BlockFormat, row: Value, k: Value, x: Value) -> Value:
    """total = fma(isum, d * da, total), then fma(msum, -dmin * da, total), super-block by super-block.

    Lanes are reduced and added one super-block late: a processor's window is too short to wait for it in the same iteration.
    """
    b, acts = e.b, layout("q8_k", 1)
    zero, none = e.const(0.0, F32), e.zero(vec(I32, 4))
    pending = [none, e.zero(vec(F32, 2)), none] if fmt.m_at is not None else [none, zero]

    def super_block(i: Value, carried: list[Value]) -> list[Value]:
        block, xs = e.at(row, i, fmt.n_bytes), e.at(x, i, acts.n_bytes)
        _fetch(e, block, fmt.n_bytes)
        return [_finish(e, *carried), *_super_block_sums(e, fmt, acts, block, xs)]

    return _finish(e, *e.loop(e.const(0), b.sdiv(k, e.const(GROUP)), super_block, [zero, *pending]))


def _super_block_sums(e: Emitter, fmt: BlockFormat, acts: Layout, block: Value, xs: Value) -> list[Value]:
    """Scaled integer sums as <4 x i32>, their scale, and with minima the sums of minima likewise."""
    b = e.b
    assert fmt.scales is not None
    scales, minima = fmt.scales.row(e, block)
    wide, width = vec(I16, fmt.n_sub), _units(e)
    products = []
    for first in range(0, 8, width):
        q = quants(e, fmt, [(block, segment) for segment in range(first, first + width)])
        pairs = e.pair_dot(q, e.load(xs, q.type, acts["quants"] + 32 * first), fmt.signed)
        factors = e.spread(scales, [(first * 32 + 2 * lane) * fmt.n_sub // GROUP for lane in range(16 * width)], minima is None)
        products.append(e.madd(pairs, factors))
    total = e.halved(e.sum_of(products), 8)
    sums = e.load(xs, wide, acts["sums16" if fmt.n_sub == 16 else "sums32"])
    if fmt.offset:
        excess = e.madd(b.sext(scales, wide), sums)
        total = b.sub(total, b.mul(excess, e.const(fmt.offset, excess.type)))
    da = e.load(xs, F32, acts["scale"])
    if minima is None:
        return [e.halved(total, 4), b.fmul(e.widen_half(e.load(block, I16, fmt.d_at)), da)]
    assert fmt.m_at == fmt.d_at + 2  # both scales in one load
    both = b.fmul(e.widen_half(e.load(block, vec(I16, 2), fmt.d_at)), e.splat(da, 2))
    return [e.halved(total, 4), both, e.halved(e.madd(b.sext(minima, wide), sums), 4)]


def _finish(e: Emitter, total: Value, isum: Value, scale: Value, msum: Value | None = None) -> Value:
    """total with one super-block's sums added."""
    b = e.b
    if msum is None:
        return e.fma(e.to_float(e.sum(isum)), scale, total)
    low, high = e.shuffle(isum, [0, 4, 1, 5], msum), e.shuffle(isum, [2, 6, 3, 7], msum)
    both = b.add(low, high)
    both = e.to_float(b.add(both, e.shuffle(both, [2, 3, 2, 3])))
    total = e.fma(e.lane(both, 0), e.lane(scale, 0), total)
    return e.fma(e.lane(both, 1), b.fneg(e.lane(scale, 1)), total)


def _units(e: Emitter) -> int:
    """Segments of 32 elements handled at once: as many as fill a vector."""
    return 2 if e.target.lanes == 16 else 1


def _dot_blocks(e: Emitter, fmt: BlockFormat, row: Value, k: Value, x: Value) -> Value:
    """Per group part = fma(isum * d, da, part), part = fma(m, da * sum, part) over its blocks; then total = total + part."""
    b, acts = e.b, layout("q8_0", 1)
    n_groups, zero = b.ashr(k, e.const(8)), e.const(0.0, F32)

    def group(i: Value, carried: list[Value]) -> list[Value]:
        blocks = e.at(row, i, 8 * fmt.n_bytes)
        _fetch(e, blocks, 8 * fmt.n_bytes)
        part = _eight_blocks(e, fmt, acts, blocks, e.at(x, i, acts.n_bytes))
        return [b.fadd(carried[0], part)]

    (total,) = e.loop(e.const(0), n_groups, group, [zero])
    rest = b.and_(b.ashr(k, e.const(5)), e.const(7))
    block, xs = e.at(row, n_groups, 8 * fmt.n_bytes), e.at(x, n_groups, acts.n_bytes)

    def one(j: Value, carried: list[Value]) -> list[Value]:
        at, numbers = e.at(block, j, fmt.n_bytes), e.at(xs, j, 4)
        isum = e.sum(_block_dot(e, fmt, at, e.load(e.at(xs, j, 32), vec(I8, 32), acts["quants"])))
        if fmt.offset:
            isum = b.sub(isum, b.mul(e.load(numbers, I32, acts["sums"]), e.const(fmt.offset, I32)))
        scaled = b.fmul(e.to_float(isum), e.widen_half(e.load(at, I16, fmt.d_at)))
        part = e.fma(scaled, e.load(numbers, F32, acts["scale"]), carried[0])
        if fmt.m_at is not None:
            part = e.fma(e.widen_half(e.load(at, I16, fmt.m_at)), e.load(numbers, F32, acts["offset"]), part)
        return [part]

    (part,) = e.loop(e.const(0), rest, one, [zero])
    return b.select(b.icmp_signed(">", rest, e.const(0)), b.fadd(total, part), total)


def _block_dot(e: Emitter, fmt: BlockFormat, block: Value, x: Value) -> Value:
    """Sums of a block's products, <8 x i32>, without the offset."""
    return e.madd(e.pair_dot(quants(e, fmt, [(block, 0)]), x, fmt.signed), e.const(1, vec(I16, 16)))


def _eight_dots(e: Emitter, fmt: BlockFormat, acts: Layout, at: list[Value], xs: Value) -> Value:
    """The integer dot products of eight blocks, <8 x i32>."""
    b, offset = e.b, fmt.offset
    if e.target.vnni:
        dots, width = [], _units(e)
        for j in range(0, 8, width):
            q = quants(e, fmt, [(block, 0) for block in at[j : j + width]])
            if fmt.signed:
                q, offset = b.xor(q, e.const(-128, q.type)), 128
            dots.append(e.dot4(e.zero(vec(I32, 8 * width)), q, e.load(xs, q.type, acts["quants"] + 32 * j)))
        sums = _sum_pairs8(e, dots) if width == 2 else _sum_rows8(e, dots)
    else:
        sums = _sum_rows8(e, [_block_dot(e, fmt, at[j], e.load(xs, vec(I8, 32), acts["quants"] + 32 * j)) for j in range(8)])
    if offset:
        sums = b.sub(sums, b.mul(e.load(xs, sums.type, acts["sums"]), e.const(offset, sums.type)))
    return sums


def _sum_rows8(e: Emitter, rows: Sequence[Value]) -> Value:
    """Eight <8 x i32> -> <8 x i32> of their totals."""
    pairs = [e.fold(rows[i], rows[i + 1]) for i in range(0, 8, 2)]
    low, high = e.fold(pairs[0], pairs[1]), e.fold(pairs[2], pairs[3])
    return e.b.add(e.shuffle(low, [0, 1, 2, 3, 8, 9, 10, 11], high), e.shuffle(low, [4, 5, 6, 7, 12, 13, 14, 15], high))


def _sum_pairs8(e: Emitter, pairs: Sequence[Value]) -> Value:
    """Four <16 x i32>, each two rows of eight lanes -> <8 x i32> of the rows' totals, in order."""
    quarters = e.fold(e.fold(pairs[0], pairs[1]), e.fold(pairs[2], pairs[3]))
    first, second = e.shuffle(quarters, [0, 8, 1, 9, 2, 10, 3, 11]), e.shuffle(quarters, [4, 12, 5, 13, 6, 14, 7, 15])
    return e.b.add(first, second)


def _eight_blocks(e: Emitter, fmt: BlockFormat, acts: Layout, blocks: Value, xs: Value) -> Value:
    """The part of a whole group, its eight blocks side by side until they are added in order."""
    at = [e.offset(blocks, j * fmt.n_bytes) for j in range(8)]
    scaled = e.b.fmul(e.to_float(_eight_dots(e, fmt, acts, at, xs)), _halves(e, at, fmt.d_at))
    minima = _halves(e, at, fmt.m_at) if fmt.m_at is not None else None
    part = e.const(0.0, F32)
    for j in range(8):
        part = e.fma(e.lane(scaled, j), e.load(xs, F32, acts["scale"] + 4 * j), part)
        if minima is not None:
            part = e.fma(e.lane(minima, j), e.load(xs, F32, acts["offset"] + 4 * j), part)
    return part


def _halves(e: Emitter, blocks: list[Value], by: int) -> Value:
    """One float16 of each of eight blocks as <8 x f32>."""
    bits = e.zero(vec(I16, 8))
    for j, block in enumerate(blocks):
        bits = e.b.insert_element(bits, e.load(block, I16, by), e.const(j, I32))
    return e.widen_half(bits)

"""A batch as the block of int32 that travels to the device in one copy.

    ids[T] positions[T] seqs[T] out_rows[R] tables[n_seqs + 1][blocks of a sequence] tiles[n][2]

Rows beyond the batch's (a graph is captured for 1, 2, 4 or 8) are tokens of an extra sequence whose table is all zero: they write
to the null block. Tiles are (first token, tokens): tokens of one sequence at consecutive positions. Knows no driver.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate

import numpy as np
from numpy.typing import NDArray

from ggrun.plan.device import KV_BLOCK_TOKENS, Shape
from ggrun.runtime.executor import Batch

BUCKETS = (1, 2, 4, 8)  # rows of captured graphs; batches of up to so many tokens are padded to one


@dataclass(frozen=True, slots=True)
class Counts:
    """What launches depend on: tokens (padded), wanted logit rows, query tiles; no tiles: each token attends on its own."""

    n_tokens: int
    n_rows: int
    n_tiles: int = 0


@dataclass(frozen=True, slots=True)
class Places:
    """Byte offsets in the block, and its size."""

    ids: int
    positions: int
    seqs: int
    out_rows: int
    tables: int
    tiles: int
    n_bytes: int


def table_blocks(shape: Shape) -> int:
    """Entries of a sequence's table."""
    return -(-shape.n_ctx // KV_BLOCK_TOKENS)


def places(counts: Counts, shape: Shape) -> Places:
    """Where everything lies in the block of a batch of these counts."""
    n = counts.n_tokens
    sizes = (n, n, n, counts.n_rows, (shape.n_seqs + 1) * table_blocks(shape), 2 * counts.n_tiles)
    ids, positions, seqs, out_rows, tables, tiles, end = accumulate((4 * size for size in sizes), initial=0)
    return Places(ids, positions, seqs, out_rows, tables, tiles, end)


def block_bytes(shape: Shape) -> int:
    """Enough for any batch: at worst every token is a tile."""
    return places(Counts(shape.n_ubatch, shape.n_logits, shape.n_ubatch), shape).n_bytes


def buckets(shape: Shape) -> dict[int, int]:
    """The rows of the graph that runs so many tokens; none for more tokens than there are graphs for."""
    return {n: b for b in reversed(BUCKETS) if b <= shape.n_ubatch for n in range(1, b + 1)}


def check(batch: Batch, shape: Shape, n_vocab: int) -> None:
    """AssertionError for a batch whose numbers would lead the kernels astray: a mistake of the program, not of its user."""
    n, (n_tables, blocks) = len(batch.ids), batch.tables.shape
    assert 0 < n <= shape.n_ubatch, f"{n} tokens in a batch laid out for {shape.n_ubatch}"
    assert len(batch.out_rows) <= shape.n_logits, f"{len(batch.out_rows)} logit rows in a batch laid out for {shape.n_logits}"
    assert batch.positions.shape == batch.seqs.shape == (n,), "an id, a position and a sequence for each token"
    assert n_tables <= shape.n_seqs, f"{n_tables} block tables in a batch laid out for {shape.n_seqs}"
    assert blocks <= table_blocks(shape), f"block tables of {blocks} in a batch laid out for {table_blocks(shape)}"
    for what, values, limit in (
        ("a token id is outside the vocabulary", batch.ids, n_vocab),
        ("a sequence has no block table", batch.seqs, n_tables),
        ("a position is outside its sequence's block table", batch.positions, blocks * KV_BLOCK_TOKENS),
        ("a block id is outside the KV arena", batch.tables, shape.n_kv_blocks),
        ("a logit row is outside the batch", batch.out_rows, n),
    ):
        assert values.size == 0 or (values.min() >= 0 and values.max() < limit), what
    if n > 1:
        same = batch.seqs[1:] == batch.seqs[:-1]
        assert (batch.positions[1:][same] > batch.positions[:-1][same]).all(), "the positions of a sequence must rise"
        assert n - same.sum() == len(np.unique(batch.seqs)), "a sequence's tokens must follow one another"


def query_tiles(batch: Batch, most: int) -> list[tuple[int, int]]:
    """(first token, tokens) of tiles of at most `most` tokens of one sequence at consecutive positions."""
    n = len(batch.ids)
    breaks = np.flatnonzero((np.diff(batch.seqs) != 0) | (np.diff(batch.positions) != 1)) + 1
    ends = [*breaks.tolist(), n]
    return [(at, min(most, end - at)) for start, end in zip([0, *ends[:-1]], ends) for at in range(start, end, most)]


def pack(batch: Batch, counts: Counts, tiles: list[tuple[int, int]], shape: Shape, block: NDArray[np.int32]) -> int:
    """Write a checked batch to a block; returns the bytes to copy."""
    at, n, width = places(counts, shape), len(batch.ids), table_blocks(shape)

    def part(offset: int, n_words: int) -> NDArray[np.int32]:
        return block[offset // 4 : offset // 4 + n_words]

    for offset, values, padding in ((at.ids, batch.ids, 0), (at.positions, batch.positions, 0), (at.seqs, batch.seqs, shape.n_seqs)):
        target = part(offset, counts.n_tokens)
        target[:n] = values
        target[n:] = padding
    rows = part(at.out_rows, counts.n_rows)
    rows[: len(batch.out_rows)] = batch.out_rows
    rows[len(batch.out_rows) :] = 0
    tables = part(at.tables, (shape.n_seqs + 1) * width).reshape(-1, width)
    tables[: len(batch.tables), : batch.tables.shape[1]] = batch.tables
    tables[shape.n_seqs] = 0
    if tiles:
        part(at.tiles, 2 * len(tiles))[:] = np.asarray(tiles, np.int32).reshape(-1)
    return at.n_bytes

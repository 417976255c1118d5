"""Byte-pair merging: join neighbouring symbols, best rank first, until none may be joined.

Knows ranks only through a function; must not know where they come from, nor what a symbol spells.
"""

from __future__ import annotations

from collections.abc import Callable
from heapq import heapify, heappop, heappush
from math import inf

Rank = Callable[[str, str], float]  # of joining two neighbours; inf: never

_SHORT = 64  # symbols; up to here scanning the list beats keeping a heap


def merge(symbols: list[str], rank: Rank) -> list[str]:
    """`symbols` joined: always the pair of the lowest rank, of equal ranks the leftmost. O(n log n) calls of `rank` at worst."""
    return _merge_short(symbols, rank) if len(symbols) <= _SHORT else _merge_long(symbols, rank)


def _merge_short(symbols: list[str], rank: Rank) -> list[str]:
    ranks = [rank(left, right) for left, right in zip(symbols, symbols[1:])]
    while ranks:
        best = min(ranks)
        if best == inf:
            break
        i = ranks.index(best)
        symbols[i : i + 2] = [symbols[i] + symbols[i + 1]]
        del ranks[i]
        if i:
            ranks[i - 1] = rank(symbols[i - 1], symbols[i])
        if i < len(ranks):
            ranks[i] = rank(symbols[i], symbols[i + 1])
    return symbols


def _merge_long(symbols: list[str], rank: Rank) -> list[str]:
    n = len(symbols)
    after = list(range(1, n + 1))  # position of the next symbol that is left
    before = list(range(-1, n - 1))
    # An entry is outdated when its left symbol is gone or the pair has another length: symbols only ever grow.
    heap = []
    for i, (left, right) in enumerate(zip(symbols, symbols[1:])):
        if (value := rank(left, right)) != inf:
            heap.append((value, i, len(left) + len(right)))
    heapify(heap)
    while heap:
        _, i, length = heappop(heap)
        left, j = symbols[i], after[i]
        if not left or j == n or len(left) + len(symbols[j]) != length:
            continue
        joined = symbols[i] = left + symbols[j]
        symbols[j] = ""
        k = after[i] = after[j]
        if k < n:
            before[k] = i
            if (value := rank(joined, symbols[k])) != inf:
                heappush(heap, (value, i, length + len(symbols[k])))
        h = before[i]
        if h >= 0 and (value := rank(symbols[h], joined)) != inf:
            heappush(heap, (value, h, length + len(symbols[h])))
    return [symbol for symbol in symbols if symbol]

"""Byte-pair merging: join neighbouring symbols, best rank first, until none may be joined.

Knows ranks only through a function; must not know where they come from, nor what a symbol spells.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from heapq import heappop, heappush
from itertools import pairwise
from math import inf

Rank = Callable[[str, str], float]  # of joining two neighbours; inf: never

_SHORT = 64  # symbols; up to here scanning the list beats keeping a heap


def merge(symbols: list[str], rank: Rank) -> list[str]:
    """`symbols` joined: always the pair of the lowest rank, of equal ranks the leftmost. O(n log n) calls of `rank` at worst."""
    return _merge_short(symbols, rank) if len(symbols) <= _SHORT else _merge_long(symbols, rank)


def merged_ids(word: str, rank: Rank, ids: Mapping[str, int], fall_back: Callable[[str], list[int]]) -> list[int]:
    """The ids of a word's merged symbols; `fall_back` gives those of a symbol that has none."""
    found: list[int] = []
    for symbol in merge(list(word), rank):
        id_ = ids.get(symbol)
        found += fall_back(symbol) if id_ is None else (id_,)
    return found


def _merge_short(symbols: list[str], rank: Rank) -> list[str]:
    ranks = [rank(left, right) for left, right in pairwise(symbols)]
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
    """Keeps a heap of positions for each rank instead of one of pairs: few ranks occur however long the text, and integers compare fast."""
    n = len(symbols)
    after = list(range(1, n + 1))  # position of the next symbol that is left
    before = list(range(-1, n - 1))
    waiting: dict[float, list[int]] = {}  # rank -> heap of left positions of pairs that had it when noted
    ranks: list[float] = []  # heap of waiting's keys

    def note(value: float, i: int) -> None:
        positions = waiting.get(value)
        if positions is None:
            waiting[value] = [i]
            heappush(ranks, value)
        else:
            heappush(positions, i)

    for i, (left, right) in enumerate(pairwise(symbols)):
        if (value := rank(left, right)) != inf:
            note(value, i)
    while ranks:
        current = ranks[0]
        positions = waiting[current]
        while positions and ranks[0] == current:
            i = heappop(positions)
            left, j = symbols[i], after[i]
            if not left or j == n or rank(left, symbols[j]) != current:
                continue  # outdated
            joined = symbols[i] = left + symbols[j]
            symbols[j] = ""
            k = after[i] = after[j]
            if k < n:
                before[k] = i
                if (value := rank(joined, symbols[k])) != inf:
                    note(value, i)
            h = before[i]
            if h >= 0 and (value := rank(symbols[h], joined)) != inf:
                note(value, h)
        if ranks[0] == current:
            del waiting[heappop(ranks)]
    return [symbol for symbol in symbols if symbol]

"""A vocabulary's merges: ranks of pairs, found where the file has them.

A model has up to half a million, of which a text needs some hundreds. Strings are made only of those that have a length and a first
byte in common with a pair that is asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from math import inf
from typing import Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ggrun.text.characters import raw_bytes

_Packed: TypeAlias = tuple[NDArray[np.uint8], NDArray[np.int64], NDArray[np.int64]]
"""Bytes of strings, and where each starts and ends in them."""

_MAX_REMEMBERED: Final = 1 << 18
_LONGEST: Final = 255


class Merges:
    """`pairs`: "left right", best first; of equal ones the first counts."""

    def __init__(self, pairs: Sequence[str]) -> None:
        self.pairs = pairs
        packed: Callable[[], _Packed] = getattr(pairs, "packed", partial(_pack, pairs))
        self._bytes, self._starts, self._ends = packed()
        self._buckets: dict[int, dict[bytes, int]] = {}
        self._known: dict[str, float] = {}
        if not len(pairs):
            return
        lengths = np.minimum(self._ends - self._starts, _LONGEST)
        keys = (lengths << 8 | self._bytes[np.minimum(self._starts, len(self._bytes) - 1)]).astype(np.uint16)
        self._order = np.argsort(keys, kind="stable").astype(np.uint32)  # ranks, by length and first byte
        self._edges = np.concatenate(([0], np.cumsum(np.bincount(keys, minlength=1 << 16))))

    def malformed(self) -> int | None:
        """The first entry that is not two symbols with a space between them."""
        spaces = np.append(np.flatnonzero(self._bytes == ord(" ")), len(self._bytes) + 1)
        parted = spaces[np.searchsorted(spaces, self._starts + 1)] < self._ends
        return None if parted.all() else int(parted.argmin())

    def rank(self, left: str, right: str) -> float:
        """The rank of joining two neighbours; inf when no entry says so."""
        pair = f"{left} {right}"
        rank = self._known.get(pair)
        if rank is None:
            if len(self._known) >= _MAX_REMEMBERED:
                self._known.clear()
            rank = self._known[pair] = self._find(raw_bytes(pair))
        return rank

    def _find(self, pair: bytes) -> float:
        if not len(self.pairs):
            return inf
        key = min(len(pair), _LONGEST) << 8 | pair[0]
        bucket = self._buckets.get(key)
        if bucket is None:
            ranks = self._order[self._edges[key] : self._edges[key + 1]][::-1]  # the lowest last, so that it wins
            content, starts, ends = self._bytes.data, self._starts[ranks].tolist(), self._ends[ranks].tolist()
            bucket = {bytes(content[start:end]): rank for start, end, rank in zip(starts, ends, ranks.tolist())}
            self._buckets[key] = bucket
        return bucket.get(pair, inf)


def _pack(strings: Sequence[str]) -> _Packed:
    parts = [raw_bytes(string) for string in strings]
    lengths = np.array([len(part) for part in parts], np.int64)
    ends = np.cumsum(lengths)
    return np.frombuffer(b"".join(parts) + b"\0", np.uint8), ends - lengths, ends

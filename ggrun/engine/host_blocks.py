"""Blocks that had to leave the pool, in host memory of a fixed size (-cram): found again by the tokens that lead to them. Least recently
used first out. Knows no executor; belongs to the engine's thread.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from collections.abc import Sequence as Seq
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ggrun.engine.kv import common
from ggrun.plan.memory import promise
from ggrun.runtime.cpu.memory import Memory

Tokens = tuple[int, ...]
Name = tuple[bytes, Tokens]  # the key of what comes before, see `chain`, and its own tokens
LEAST = 8  # tokens of a begun block that are worth a place


@dataclass(slots=True)
class Kept:
    """Where a block lies, and how often it was found."""

    place: int
    uses: int


class HostBlocks:
    """As many blocks of block_bytes as n_bytes hold; the memory is reserved at once and takes pages as it fills."""

    def __init__(self, n_bytes: int, block_bytes: int) -> None:
        self.block_bytes = block_bytes
        self.n_blocks = n_bytes // block_bytes
        self._memory: Memory | None = Memory(self.n_blocks * block_bytes, "blocks that leave the KV cache", "a smaller -cram")
        self._free = list(range(self.n_blocks))
        self._most_used = 0
        promise(self)
        self._kept: OrderedDict[Name, Kept] = OrderedDict()  # the least recently used first
        self._children: dict[bytes, list[Tokens]] = {}

    @property
    def n_bytes(self) -> int:
        """Reserved: what the ledger lists."""
        return self._memory.n_bytes if self._memory else 0

    @property
    def unfilled_bytes(self) -> int:
        """Of places that no block has had yet: the system has given them no memory."""
        return (self.n_blocks - self._most_used) * self.block_bytes

    @property
    def n_used(self) -> int:
        """Blocks that are kept now."""
        return len(self._kept)

    def find(self, parent: bytes, tokens: Seq[int], at: int, limit: int) -> tuple[Tokens, int] | None:
        """Of the blocks behind `parent`, the one that shares most with tokens[at:limit], and how many tokens it shares."""
        best, most = None, 0
        for held in self._children.get(parent, ()):
            n = common(held, tokens, at, limit)
            if n > most:
                best, most = held, n
        return None if best is None else (best, most)

    def has(self, parent: bytes, tokens: Tokens) -> bool:
        return (parent, tokens) in self._kept

    def take(self, parent: bytes, tokens: Tokens) -> tuple[NDArray[np.uint8], int] | None:
        """A kept block's bytes, good until the next `put`, and how often it was found before; None when it is gone."""
        kept = self._kept.get((parent, tokens))
        if kept is None:
            return None
        self.touch(parent, tokens)
        kept.uses += 1
        return self._view(kept.place), kept.uses - 1

    def touch(self, parent: bytes, tokens: Tokens) -> None:
        """It was used just now."""
        if (parent, tokens) in self._kept:
            self._kept.move_to_end((parent, tokens))

    def put(self, parent: bytes, tokens: Tokens, uses: int, fill: Callable[[NDArray[np.uint8]], None]) -> None:
        """Keep a block, `fill`ing its place, unless one that begins alike is here; a begun one that it continues goes."""
        siblings = self._children.get(parent, [])
        for held in list(siblings):
            if held[: len(tokens)] == tokens:
                self._kept[parent, held].uses = max(uses, self._kept[parent, held].uses)
                return self.touch(parent, held)
            if tokens[: len(held)] == held:
                self.drop(parent, held)
        if len(tokens) < LEAST or not self.n_blocks:
            return
        if not self._free:
            self.drop(*next(iter(self._kept)))
        fill(self._view(self._free[-1]))
        place = self._free.pop()
        self._kept[parent, tokens] = Kept(place, uses)
        self._most_used = max(self._most_used, len(self._kept))
        self._children.setdefault(parent, []).append(tokens)

    def drop(self, parent: bytes, tokens: Tokens) -> None:
        """Forget a block, if it is here."""
        kept = self._kept.pop((parent, tokens), None)
        if kept is None:
            return
        self._free.append(kept.place)
        siblings = self._children[parent]
        siblings.remove(tokens)
        if not siblings:
            del self._children[parent]

    def close(self) -> None:
        """Free the memory; nothing is found or kept from now on."""
        self._kept.clear()
        self._children.clear()
        self._free.clear()
        self.n_blocks = self._most_used = 0
        self._memory = None

    def _view(self, place: int) -> NDArray[np.uint8]:
        assert self._memory is not None, "a block after close"
        return self._memory.view(place * self.block_bytes, self.block_bytes)

"""KV blocks: who uses which, and what tokens each holds, so that sequences with the same prefix share them.

A tree of blocks, each node reached from its parent by the tokens it holds. Full blocks are shared (reference counted); of a partly
matching block the common cells are copied. Knows ids only: one id indexes every layer's arena, which the executor owns.
"""

from __future__ import annotations

from collections.abc import Sequence as Seq
from dataclasses import dataclass, field
from heapq import heapify, heappop, heappush

from ggrun.plan.device import KV_BLOCK_TOKENS

NULL_BLOCK = 0  # padding rows of a batch write here


@dataclass(eq=False, slots=True)
class Block:
    """One block: its arena index and, once published, the tokens whose keys and values it holds."""

    id: int
    parent: Block | None = None
    tokens: tuple[int, ...] = ()
    published: bool = False
    refs: int = 0
    used: int = 0  # clock of the last release, for eviction
    children: list[Block] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Match:
    """Blocks that hold a prompt's beginning (references taken), and a block whose first n_copy cells continue it."""

    blocks: list[Block]
    source: Block | None
    n_copy: int


class BlockPool:
    """All blocks of an arena of n_blocks, block 0 being the null block."""

    def __init__(self, n_blocks: int) -> None:
        self.n_blocks = n_blocks - 1  # that can be had
        self.n_cached = 0  # published and referenced by nobody
        self._free = [Block(i) for i in range(n_blocks - 1, NULL_BLOCK, -1)]
        self._root = Block(NULL_BLOCK, published=True, refs=1)
        self._clock = 0
        self._leaves: list[tuple[int, int, Block]] = []  # a heap of what may be evicted by its last use; some entries no longer hold

    @property
    def n_free(self) -> int:
        """Blocks nobody references, cached ones included."""
        return len(self._free) + self.n_cached

    def match(self, tokens: Seq[int]) -> Match:
        """Longest cached prefix of tokens, at most len(tokens) - 1 of them: the last one must be computed for its logits."""
        blocks: list[Block] = []
        node, limit, at = self._root, len(tokens) - 1, 0
        while True:
            best, n_best = None, 0
            for child in node.children:
                n = _common(child.tokens, tokens, at, limit)
                if n > n_best:
                    best, n_best = child, n
            if best is None or n_best < KV_BLOCK_TOKENS:
                return Match(blocks, best, n_best)
            self.hold(best)
            blocks.append(best)
            node, at = best, at + KV_BLOCK_TOKENS

    def allocate(self, parent: Block | None) -> Block | None:
        """A block for the tokens after `parent` (None: the first); evicts the least recently used cached one. None when all are in use."""
        if not self._free and not self._evict():
            return None
        block = self._free.pop()
        block.parent, block.tokens, block.published, block.refs = parent or self._root, (), False, 1
        return block

    def hold(self, block: Block) -> None:
        """Take one more reference."""
        self.n_cached -= block.published and block.refs == 0
        block.refs += 1

    def publish(self, block: Block, tokens: tuple[int, ...]) -> None:
        """Make a computed block findable. Nothing happens when its parent is not, or when an equal one already is."""
        parent = block.parent or self._root
        if block.published or not tokens or not parent.published or any(c.tokens[: len(tokens)] == tokens for c in parent.children):
            return
        block.tokens, block.published = tokens, True
        parent.children.append(block)

    def release(self, block: Block) -> None:
        """Give a reference back; an unpublished block is free at once, a published one stays cached until it is evicted."""
        assert block.refs > 0, f"block {block.id} released twice"
        block.refs -= 1
        self._clock += 1
        block.used = self._clock
        if block.refs == 0 and block.published:
            self.n_cached += 1
            self._offer(block)
        elif block.refs == 0:
            self._free.append(block)

    def _offer(self, block: Block) -> None:
        """Note that a block may be evicted, if it is so."""
        if _evictable(block):
            heappush(self._leaves, (block.used, block.id, block))
            if len(self._leaves) > 4 * self.n_blocks + 64:
                self._leaves = [entry for entry in self._leaves if _evictable(entry[2]) and entry[0] == entry[2].used]
                heapify(self._leaves)

    def _evict(self) -> bool:
        """Free the least recently used cached block that no sequence and no other block builds on."""
        while self._leaves:
            used, _, block = heappop(self._leaves)
            if used != block.used or not _evictable(block):
                continue
            assert block.parent is not None
            block.parent.children.remove(block)
            block.published = False
            self.n_cached -= 1
            self._free.append(block)
            self._offer(block.parent)
            return True
        return False


def _evictable(block: Block) -> bool:
    return block.published and block.refs == 0 and not block.children


def _common(held: tuple[int, ...], tokens: Seq[int], at: int, limit: int) -> int:
    """How many of `held` equal tokens[at:limit]."""
    n = 0
    for a, b in zip(held, tokens[at : min(limit, at + len(held))]):
        if a != b:
            break
        n += 1
    return n

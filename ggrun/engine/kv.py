"""KV blocks: who uses which, and what tokens each holds, so that sequences with the same prefix share them.

A tree of blocks, each node reached from its parent by the tokens it holds. Full blocks are shared (reference counted); of a partly
matching block the common cells are copied. Knows ids only: one id indexes every layer's arena, which the executor owns.
"""

from __future__ import annotations

from collections.abc import Callable
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
    key: bytes = b""  # its name outside of the pool, see `chain`; empty until it is asked for
    uses: int = 0  # how often it was found after it had been computed


@dataclass(frozen=True, slots=True)
class Match:
    """Blocks that hold what comes next (references taken), and a block whose first n_copy cells continue it."""

    blocks: list[Block]
    source: Block | None
    n_copy: int


class BlockPool:
    """All blocks of an arena of n_blocks, block 0 being the null block."""

    def __init__(self, n_blocks: int) -> None:
        self.n_blocks = n_blocks - 1  # that can be had
        self.n_cached = 0  # published and referenced by nobody
        self.evicting: Callable[[Block], None] = lambda block: None  # told of a cached block just before it is lost
        self._free = [Block(i) for i in range(n_blocks - 1, NULL_BLOCK, -1)]
        self._root = Block(NULL_BLOCK, published=True, refs=1)
        self._clock = 0
        self._leaves: list[tuple[int, int, Block]] = []  # a heap of what may be evicted by its last use; some entries no longer hold

    @property
    def n_free(self) -> int:
        """Blocks nobody references, cached ones included."""
        return len(self._free) + self.n_cached

    @property
    def n_used(self) -> int:
        """Blocks somebody references."""
        return self.n_blocks - self.n_free

    def match(self, tokens: Seq[int], held: Seq[Block] = ()) -> Match:
        """Longest cached prefix of tokens, at most len(tokens) - 1 of them: the last one must be computed for its logits.

        held: full blocks that hold its beginning; only what comes after them is looked for.
        """
        blocks: list[Block] = []
        node, limit, at = held[-1] if held else self._root, len(tokens) - 1, len(held) * KV_BLOCK_TOKENS
        while True:
            best, n_best = None, 0
            for child in node.children:
                n = common(child.tokens, tokens, at, limit)
                if n > n_best:
                    best, n_best = child, n
            if best is None or n_best < KV_BLOCK_TOKENS:
                return Match(blocks, best, n_best)
            self.hold(best)
            blocks.append(best)
            node, at = best, at + KV_BLOCK_TOKENS

    def path(self, tokens: Seq[int]) -> list[Block]:
        """The published full blocks that tokens begin with; no references are taken."""
        node, found = self._root, list[Block]()
        for at in range(0, len(tokens) - KV_BLOCK_TOKENS + 1, KV_BLOCK_TOKENS):
            wanted = tuple(tokens[at : at + KV_BLOCK_TOKENS])
            child = next((child for child in node.children if child.tokens == wanted), None)
            if child is None:
                break
            found.append(child)
            node = child
        return found

    def forget(self, block: Block) -> bool:
        """Free a cached block at once, without telling `evicting`; False when a sequence or another block builds on it."""
        if not _evictable(block):
            return False
        self._drop(block)
        return True

    def allocate(self, parent: Block | None) -> Block | None:
        """A block for the tokens after `parent` (None: the first); evicts the least recently used cached one. None when all are in use."""
        if not self._free and not self._evict():
            return None
        block = self._free.pop()
        block.parent, block.tokens, block.published, block.refs = parent or self._root, (), False, 1
        block.key, block.uses = b"", 0
        return block

    def hold(self, block: Block) -> None:
        """Take one more reference."""
        self.n_cached -= block.published and block.refs == 0
        block.refs += 1

    def publish(self, block: Block, tokens: tuple[int, ...]) -> Block:
        """Make a computed block findable; returns the block to use from now on.

        That is another where one already holds the same tokens: the reference moves to it, and this block is given back.
        """
        parent = block.parent or self._root
        if block.published or not tokens or not parent.published:
            return block
        for twin in parent.children:
            if twin.tokens == tokens:
                self.hold(twin)
                self.release(block)
                return twin
        if any(c.tokens[: len(tokens)] == tokens for c in parent.children):
            return block
        block.tokens, block.published = tokens, True
        parent.children.append(block)
        return block

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
            self.evicting(block)
            self._drop(block)
            return True
        return False

    def _drop(self, block: Block) -> None:
        assert block.parent is not None
        block.parent.children.remove(block)
        block.published = False
        self.n_cached -= 1
        self._free.append(block)
        self._offer(block.parent)


def _evictable(block: Block) -> bool:
    return block.published and block.refs == 0 and not block.children


def common(held: tuple[int, ...], tokens: Seq[int], at: int, limit: int) -> int:
    """How many of `held` equal tokens[at:limit]."""
    n = 0
    for a, b in zip(held, tokens[at : min(limit, at + len(held))]):
        if a != b:
            break
        n += 1
    return n

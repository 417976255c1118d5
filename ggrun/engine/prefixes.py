"""The longest beginning of a prompt that need not be computed: blocks of the pool, then those in host memory, then those on disk.

Moves blocks between the three by way of the executor. Belongs to the engine's thread.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from collections.abc import Sequence as Seq
from time import perf_counter, sleep

import numpy as np
from numpy.typing import NDArray

from ggrun.engine.chain import key_after, key_of
from ggrun.engine.disk_blocks import Named
from ggrun.engine.disk_thread import DiskThread, Send
from ggrun.engine.host_blocks import HostBlocks
from ggrun.engine.kv import Block, BlockPool
from ggrun.plan.device import KV_BLOCK_TOKENS
from ggrun.runtime.executor import Executor

LAST_SECONDS = 1.0  # for what is still to be written when the engine closes
MOST_WANTED = 4096  # blocks that wait for being written; more are wanted again when they are found again
SHARE = 0.02  # of the time in which others compute that may go to reading blocks for the disk


class Prefixes:
    """What is kept of earlier sequences. Without host memory and disk: what the pool has not yet evicted."""

    def __init__(self, pool: BlockPool, executor: Executor, host: HostBlocks | None = None, disk: DiskThread | None = None) -> None:
        self._pool, self._executor, self._host, self._disk = pool, executor, host, disk
        if host:
            pool.evicting = self._spill
        self._wanted: deque[tuple[Block, bytes]] = deque()  # blocks to write to disk, with their keys
        self._queued: set[bytes] = set()
        self._began, self._spent = perf_counter(), 0.0

    def take(self, tokens: Seq[int], counts: bool = True) -> tuple[list[Block], int]:
        """`extend` and `begin`: blocks that hold the beginning of tokens, and how many of these need no computing."""
        blocks: list[Block] = []
        self.extend(tokens, blocks, counts)
        n_full = len(blocks)
        return blocks, KV_BLOCK_TOKENS * n_full + self.begin(tokens, blocks)

    def extend(self, tokens: Seq[int], blocks: list[Block], counts: bool = True) -> None:
        """Add the full blocks that tokens go on with behind the blocks they have, references taken.

        The last token is left to be computed. counts: being found is a use, see `_used`.
        """
        before = len(blocks)
        blocks += self._pool.match(tokens, blocks).blocks
        while self._restore(tokens, blocks, KV_BLOCK_TOKENS):
            pass
        if self._host:
            for index in range(len(blocks) - 1, before - 1, -1):  # what a path begins with is the last of it to go
                self._host.touch(key_of(blocks[index].parent), blocks[index].tokens)
        if counts:
            self._used(blocks[before:])

    def begin(self, tokens: Seq[int], blocks: list[Block]) -> int:
        """Add a block of the caller's own whose first cells tokens go on with, as far as any has them; returns how many cells."""
        match = self._pool.match(tokens, blocks)
        assert not match.blocks, "extend has taken them"
        source = match.source
        if source is not None:
            self._pool.hold(source)
        n = self._restore(tokens, blocks, match.n_copy + 1)
        if source is not None:
            block = None if n else self._pool.allocate(blocks[-1] if blocks else None)
            if block is not None:
                self._executor.copy_block(source.id, block.id)
                blocks.append(block)
                n = match.n_copy
            self._pool.release(source)
        return n

    def _restore(self, tokens: Seq[int], blocks: list[Block], least: int) -> int:
        """Bring the next block back from host memory when it shares at least so many tokens; returns how many it shares."""
        if self._host is None:
            return 0
        parent = blocks[-1] if blocks else None
        key = key_of(parent)
        found = self._host.find(key, tokens, KV_BLOCK_TOKENS * len(blocks), len(tokens) - 1)
        if found is None or found[1] < least:
            return 0
        held, n = found
        block = self._pool.allocate(parent)
        if block is None:
            return 0
        kept = self._host.take(key, held)
        if kept is None:  # allocating has pushed it out
            self._pool.release(block)
            return 0
        data, uses = kept
        self._executor.write_block(block.id, data)
        if n == KV_BLOCK_TOKENS:
            block = self._pool.publish(block, held)
            block.uses = uses
        blocks.append(block)
        return n

    def _spill(self, block: Block) -> None:
        """The pool needs the block's place."""
        assert self._host is not None
        self._host.put(key_of(block.parent), block.tokens, block.uses, lambda into: self._executor.read_block(block.id, into))

    def forget(self, tokens: Seq[int]) -> int:
        """Free the blocks of a path that nobody uses and nothing else builds on, the last first; returns how many tokens they held."""
        match = self._pool.match([*tokens, -1])
        blocks = [*match.blocks, *([match.source] if match.source is not None and match.n_copy == len(match.source.tokens) else [])]
        for block in match.blocks:
            self._pool.release(block)
        n_tokens = 0
        for block in reversed(blocks):
            name = key_of(block.parent), block.tokens
            if not self._pool.forget(block):
                break
            n_tokens += len(name[1])
            if self._host:
                self._host.drop(*name)
        return n_tokens

    def adopt(self, tokens: Seq[int], index: int, data: NDArray[np.uint8], n_tokens: int = KV_BLOCK_TOKENS) -> Block | None:
        """Make block number `index` of tokens findable, with these bytes (`runtime.kv_form`) and n_tokens tokens; a reference is taken.

        None when the blocks before it are not in the pool, or nothing there is free.
        """
        at = index * KV_BLOCK_TOKENS
        path = self._pool.path(tokens[: at + n_tokens])
        if len(path) > index:
            self._pool.hold(path[index])
            return path[index]
        if len(path) < index:
            return None
        block = self._pool.allocate(path[-1] if path else None)
        if block is not None:
            self._executor.write_block(block.id, data)
            block = self._pool.publish(block, tuple(tokens[at : at + n_tokens]))
        return block

    def read(self, block: Block, into: NDArray[np.uint8]) -> None:
        """A block's bytes, in the form of `runtime.kv_form`."""
        self._executor.read_block(block.id, into)

    # ---- the disk

    def fetch(self, tokens: Seq[int], stop: Callable[[], bool], send: Send, done: Callable[[], None]) -> None:
        """Bring what only the disk has of a prompt's beginning to the pool, then call `done` on the engine's thread.

        At once, when that is nothing. send: gives the engine's thread something to do. stop: whether nobody waits for it any more.
        """
        first, missing = self._on_disk(tokens)
        if not missing or not self._disk:
            return done()
        held: list[Block] = []

        def arrived(blocks: Seq[NDArray[np.uint8]]) -> bool:
            for data in blocks:
                block = self.adopt(tokens, first + len(held), data)
                if block is None:
                    return False
                block.uses += 1
                held.append(block)
            return True

        def finish() -> None:
            done()
            for block in reversed(held):
                self._pool.release(block)

        self._disk.fetch(missing, stop, send, arrived, finish)

    def _on_disk(self, tokens: Seq[int]) -> tuple[int, list[Named]]:
        """The blocks of a prompt's beginning that are on disk and nowhere else, one behind the other, and the number of the first."""
        found: list[Named] = []
        if self._disk is None:
            return 0, found
        path = self._pool.path(tokens[: len(tokens) - 1])
        key = key_of(path[-1] if path else None)
        for index in range(len(path), (len(tokens) - 1) // KV_BLOCK_TOKENS):
            own = tuple(tokens[index * KV_BLOCK_TOKENS : (index + 1) * KV_BLOCK_TOKENS])
            parent, key = key, key_after(key, own)
            if self._host and not found and self._host.has(parent, own):
                break  # it comes from there
            if not self._disk.has(key):
                break
            found.append(Named(key, own))
        return len(path), found

    def _used(self, blocks: Seq[Block]) -> None:
        """Each was found once more: what is found again is worth a place on the disk."""
        for block in blocks:
            block.uses += 1
        if self._disk is None or not blocks:
            return
        key_of(blocks[-1])
        for block in blocks:
            if len(self._wanted) < MOST_WANTED and block.key not in self._queued and not self._disk.has(block.key):
                self._queued.add(block.key)
                self._wanted.append((block, block.key))
        self._disk.used([block.key for block in blocks])

    @property
    def pending(self) -> bool:
        """Whether `store` has something to do now."""
        return bool(self._wanted) and self._disk is not None and self._disk.ready

    def store(self, busy: bool) -> None:
        """Hand the next wanted block to the disk's thread; while the engine is busy in a small share of the time only."""
        if self._disk and self._disk.full:
            self._wanted.clear()
            self._queued.clear()
        if not self.pending:
            return
        began = perf_counter()
        if busy and self._spent > SHARE * (began - self._began):
            return
        assert self._disk is not None
        block, key = self._wanted.popleft()
        self._queued.discard(key)
        if block.published and block.key == key:  # else it was evicted meanwhile
            self._disk.store(Named(key, block.tokens), lambda into: self._executor.read_block(block.id, into))
        self._spent += perf_counter() - began

    def close(self) -> None:
        """Write what was about to be, for a second; end the disk's thread, free the memory. The pool is all there is from now on."""
        if self._disk:
            end = perf_counter() + LAST_SECONDS
            while self._wanted and not self._disk.full and perf_counter() < end:
                if self.pending:
                    self.store(busy=False)
                else:
                    sleep(0.001)
            self._disk.close()
            self._disk = None
        if self._host:
            self._host.close()



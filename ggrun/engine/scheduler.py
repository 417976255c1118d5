"""Continuous batching: which tokens of which sequences the next step computes.

Every running sequence that generates gets its one token; what is left of the micro-batch goes to chunks of prompts, oldest first.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

import numpy as np

from ggrun.engine.kv import Block, BlockPool
from ggrun.engine.sequence import Sequence
from ggrun.plan.device import KV_BLOCK_TOKENS, Shape
from ggrun.runtime.executor import Batch, Executor


@dataclass(frozen=True, slots=True)
class Work:
    """n tokens of a sequence from n_computed on; row is its index in the batch's logits, -1 when none are wanted yet."""

    sequence: Sequence
    n: int
    row: int


class Scheduler:
    """Owns the slots, the block tables and the batch's arrays, all allocated once."""

    def __init__(self, shape: Shape, pool: BlockPool, executor: Executor) -> None:
        self.waiting: deque[Sequence] = deque()
        self.running: list[Sequence] = []
        self._shape = shape
        self._pool = pool
        self._executor = executor
        self._slots = list(range(shape.n_seqs - 1, -1, -1))
        self._tables = np.zeros((shape.n_seqs, -(-shape.n_ctx // KV_BLOCK_TOKENS)), np.int32)
        self._ids, self._positions, self._seqs = (np.zeros(shape.n_ubatch, np.int32) for _ in range(3))
        self._out = np.zeros(shape.n_logits, np.int32)

    @property
    def busy(self) -> bool:
        return bool(self.waiting or self.running)

    def submit(self, sequence: Sequence) -> None:
        self.waiting.append(sequence)

    def next(self) -> tuple[Batch, list[Work]]:
        """Admit waiting sequences and build the next batch; every running sequence has at least one pending token."""
        while self.waiting and self._slots:
            self._admit(self.waiting.popleft())
        left, n_rows, work = self._shape.n_ubatch, 0, []
        for sequence in sorted(self.running, key=lambda s: s.n_pending > 1):  # stable: generating ones first
            n = min(sequence.n_pending, left)
            wants = n == sequence.n_pending and n_rows < self._shape.n_logits
            if n == 0 or (n == sequence.n_pending and not wants):
                continue
            work.append(Work(sequence, n, n_rows if wants else -1))
            left, n_rows = left - n, n_rows + wants
        return self._batch(work), work

    def remove(self, sequence: Sequence) -> None:
        """Take a sequence out; its blocks stay cached."""
        if sequence.slot >= 0:
            self.running.remove(sequence)
            self._slots.append(sequence.slot)
            sequence.slot = sequence.generation.slot = -1
            sequence.drop_blocks(self._pool)
        else:
            self.waiting.remove(sequence)

    def reuse_prefix(self, sequence: Sequence) -> int:
        """Point a sequence without blocks at the cached ones its tokens begin with; returns how many tokens need no computing."""
        if not sequence.cache_prompt:
            return 0
        match = self._pool.match(sequence.tokens)
        sequence.blocks = match.blocks
        sequence.n_computed = len(match.blocks) * KV_BLOCK_TOKENS
        if match.source is not None:
            self._pool.hold(match.source)
            block = self._pool.allocate(sequence.blocks[-1] if sequence.blocks else None)
            if block is not None:
                self._executor.copy_block(match.source.id, block.id)
                sequence.blocks.append(block)
                sequence.n_computed += match.n_copy
            self._pool.release(match.source)
        for index, block in enumerate(sequence.blocks):
            self._tables[sequence.slot, index] = block.id
        return sequence.n_computed

    def forward_batch(self, slot: int, tokens: list[int], blocks: list[Block], start: int, n: int) -> Batch:
        """A batch of n tokens of one bare list from position start, every row's logits wanted."""
        self._grow(slot, blocks, start + n)
        self._ids[:n] = tokens[start : start + n]
        self._positions[:n] = np.arange(start, start + n)
        self._seqs[:n] = slot
        self._out[:n] = np.arange(n)
        return Batch(self._ids[:n], self._positions[:n], self._seqs[:n], self._tables, self._out[:n])

    def _admit(self, sequence: Sequence) -> None:
        sequence.slot = sequence.generation.slot = self._slots.pop()
        sequence.generation.state = "prompt"
        sequence.generation.timings.cache_n = self.reuse_prefix(sequence)
        self.running.append(sequence)

    def _grow(self, slot: int, blocks: list[Block], n_tokens: int) -> None:
        """Make sure that blocks cover n_tokens positions. The plan has enough for every slot at full length."""
        while len(blocks) * KV_BLOCK_TOKENS < n_tokens:
            block = self._pool.allocate(blocks[-1] if blocks else None)
            assert block is not None, "the plan holds blocks for every slot at full length"
            self._tables[slot, len(blocks)] = block.id
            blocks.append(block)

    def _batch(self, work: list[Work]) -> Batch:
        at = n_rows = 0
        for item in work:
            s, n = item.sequence, item.n
            self._grow(s.slot, s.blocks, s.n_computed + n)
            self._ids[at : at + n] = s.tokens[s.n_computed : s.n_computed + n]
            self._positions[at : at + n] = np.arange(s.n_computed, s.n_computed + n)
            self._seqs[at : at + n] = s.slot
            at += n
            if item.row >= 0:
                self._out[item.row] = at - 1
                n_rows += 1
        return Batch(self._ids[:at], self._positions[:at], self._seqs[:at], self._tables, self._out[:n_rows])

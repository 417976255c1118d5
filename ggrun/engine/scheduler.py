"""Continuous batching: who runs, and which tokens of which sequences the next step computes.

First come, first served: sequences are admitted in the order they arrived, and when the pool has no block left, the newest one that runs
gives its blocks back and waits again, at the head of the queue. Every running sequence that answers gets its one token in every step;
what is left of it goes to chunks of prompts. A sequence whose prompt begins like an older one's that is just being computed waits for
that one's blocks.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from ggrun.engine.kv import Block, BlockPool
from ggrun.engine.pace import Pace
from ggrun.engine.prefixes import Prefixes
from ggrun.engine.sequence import Sequence
from ggrun.errors import GgrunError
from ggrun.plan.device import KV_BLOCK_TOKENS, Shape
from ggrun.runtime.executor import Batch

_PIECE = 1024  # tokens that are compared at once


@dataclass(frozen=True, slots=True)
class Work:
    """n tokens of a sequence from n_computed on; row is the last one's index in the batch's logits, -1 when it is not wanted yet.

    scored: of the rows that its scores take.
    """

    sequence: Sequence
    n: int
    row: int
    scored: range = range(0)


class Scheduler:
    """Owns the slots, the block tables and the batch's arrays, all allocated once.

    waiting and running are in the order of arrival, and who runs arrived before who waits.
    """

    def __init__(self, shape: Shape, pool: BlockPool, prefixes: Prefixes, pace: Pace | None = None) -> None:
        self.waiting: deque[Sequence] = deque()
        self.running: list[Sequence] = []
        self.n_preempted = 0
        self.n_careful = 0  # steps that are to be short whoever runs
        self.pace = pace or Pace(0)
        self._n_submitted = 0
        self._shape = shape
        self._pool = pool
        self._prefixes = prefixes
        self.held: list[list[int]] = [[] for _ in range(shape.n_seqs)]  # tokens computed of who was last in each slot
        self._slots = list(range(shape.n_seqs - 1, -1, -1))
        self._tables = np.zeros((shape.n_seqs, -(-shape.n_ctx // KV_BLOCK_TOKENS)), np.int32)
        self._ids, self._positions, self._seqs = (np.zeros(shape.n_ubatch, np.int32) for _ in range(3))
        self._out = np.zeros(shape.n_logits, np.int32)

    @property
    def busy(self) -> bool:
        return bool(self.waiting or self.running)

    def submit(self, sequence: Sequence) -> None:
        """Put it at the end of the queue."""
        sequence.number = self._n_submitted
        self._n_submitted += 1
        self.waiting.append(sequence)

    def next(self) -> tuple[Batch, list[Work]]:
        """Admit waiting sequences and build the next batch; every running sequence has at least one pending token.

        The batch is empty only when the oldest sequence runs alone and even so finds no block: what holds them is no sequence.
        """
        while self.waiting and self._slots and self._has_room(self.waiting[0]):
            self._admit(self.waiting.popleft())
        for sequence in self.running:
            if sequence.leader:
                self._follow(sequence)
        chosen = self._chosen()
        chosen.sort(key=lambda pair: pair[0].number)  # who is older takes blocks first
        fitting = [(sequence, n) for sequence, n in chosen if self._reserve(sequence, n)]
        return self._batch([(sequence, n) for sequence, n in fitting if sequence.slot >= 0])

    def remove(self, sequence: Sequence) -> None:
        """Take a sequence out; its blocks stay cached."""
        if sequence.slot >= 0:
            self._stop(sequence)
        else:
            self.waiting.remove(sequence)

    def advance(self, work: Work) -> int:
        """Book what a batch computed for a sequence; returns how many tokens of its prompt that were, which it never had before."""
        sequence = work.sequence
        if sequence.advance(work.n, self._pool):
            self._point(sequence)
        return sequence.seen()

    def shift(self, sequence: Sequence) -> int:
        """Make room in a sequence's full context; returns how many tokens were dropped."""
        n_dropped = sequence.shift(self._pool)
        self._abandon(sequence)
        self._find(sequence)
        return n_dropped

    def forward_batch(self, slot: int, tokens: list[int], blocks: list[Block], start: int, n: int) -> Batch:
        """A batch of n tokens of one bare list from position start, every row's logits wanted."""
        if not self._grow(slot, blocks, start + n):
            raise GgrunError(f"{len(tokens)} tokens do not fit the KV cache beside what else is computed")
        self._ids[:n] = tokens[start : start + n]
        self._positions[:n] = np.arange(start, start + n)
        self._seqs[:n] = slot
        self._out[:n] = np.arange(n)
        return Batch(self._ids[:n], self._positions[:n], self._seqs[:n], self._tables, self._out[:n])

    # ---- who runs

    def _has_room(self, sequence: Sequence) -> bool:
        """Whether the pool can hold its tokens beside what those that run will need for theirs, and one more block of each."""
        if not self.running:
            return True
        shared = max(_common(s.tokens, sequence.tokens) for s in self.running) if sequence.cache_prompt else 0
        promised = sum(1 + max(0, s.n_needed - len(s.blocks)) for s in self.running)
        return sequence.n_needed - shared // KV_BLOCK_TOKENS + promised <= self._pool.n_free

    def _admit(self, sequence: Sequence) -> None:
        sequence.slot = sequence.generation.slot = self._slots.pop()
        sequence.generation.enter("prompt")
        self._find(sequence)
        self.running.append(sequence)

    def _stop(self, sequence: Sequence) -> None:
        self.running.remove(sequence)
        self._slots.append(sequence.slot)
        self.held[sequence.slot] = sequence.tokens[: sequence.n_computed]
        sequence.slot = -1
        sequence.leader = None
        sequence.drop_blocks(self._pool)
        self._abandon(sequence)

    def _preempt(self, sequence: Sequence) -> None:
        """Back to the head of the queue: its tokens so far are computed again when there is room."""
        self._stop(sequence)
        sequence.generation.slot = -1
        sequence.generation.enter("waiting")
        self.waiting.appendleft(sequence)
        self.n_preempted += 1

    # ---- what is there already

    def _find(self, sequence: Sequence) -> None:
        """Point a sequence at the cached blocks its tokens go on with, and choose whom it waits for."""
        if not sequence.cache_prompt:
            return
        self._prefixes.extend(sequence.tokens, sequence.blocks)
        sequence.n_computed = len(sequence.blocks) * KV_BLOCK_TOKENS
        self._choose_leader(sequence)
        if not sequence.leader:
            sequence.n_computed += self._prefixes.begin(sequence.tokens, sequence.blocks)
        self._point(sequence)
        sequence.generation.timings.cache_n += sequence.seen()

    def _choose_leader(self, sequence: Sequence) -> None:
        """The older sequence that is computing most of what this one needs next, in whole blocks; None where nobody is."""
        sequence.leader, sequence.n_shared = None, sequence.n_computed
        if not sequence.cache_prompt:
            return
        for other in self.running:
            if other.number < sequence.number and other.n_pending > 1:
                n = _common(other.tokens, sequence.tokens) // KV_BLOCK_TOKENS * KV_BLOCK_TOKENS
                if n > max(sequence.n_shared, other.n_computed):
                    sequence.leader, sequence.n_shared = other, n

    def _follow(self, sequence: Sequence) -> None:
        """Take what the leader has computed since; go on alone once that is all."""
        leader = sequence.leader
        if leader and (leader.n_computed >= sequence.n_shared or leader.n_computed - sequence.n_computed >= KV_BLOCK_TOKENS):
            self._find(sequence)

    def _abandon(self, leader: Sequence) -> None:
        """Those that waited for a sequence's blocks choose again."""
        for sequence in self.running:
            if sequence.leader is leader:
                self._find(sequence)

    # ---- the next step

    def _chosen(self) -> list[tuple[Sequence, int]]:
        """Sequences and how many tokens of each: one of everyone that answers, then chunks of prompts."""
        ready = [s for s in self.running if not s.leader]
        single = [(s, 1) for s in ready if s.n_pending == 1][: self._shape.n_ubatch]
        prompts = [s for s in ready if s.n_pending > 1]
        left = self._shape.n_ubatch - len(single)
        if self.n_careful or (self.pace.target and any(s.generation.state == "answer" for s, _ in single)):
            left = self.pace.room(left)
        self.n_careful = max(0, self.n_careful - 1)
        return single + _shares(prompts, left, self._most(prompts))

    def _most(self, prompts: list[Sequence]) -> dict[Sequence, int]:
        """How many tokens of each prompt a step may carry: logits are wanted of some, and a step has only so many rows of them.

        Everyone that runs may want one row. What is over is for the oldest that wants more.
        """
        most = {}
        spare = self._shape.n_logits - len(self.running)
        for sequence in prompts:
            most[sequence] = sequence.n_pending
            if wanted := sequence.unscored:
                most[sequence] = min(sequence.n_pending, wanted.start - sequence.n_computed + 1 + spare)
                spare = 0
        return most

    def _reserve(self, sequence: Sequence, n: int) -> bool:
        """Blocks for n more tokens, taken from the newest sequences where none are left; False when its own had to go, or nobody else's."""
        while sequence.slot >= 0 and not self._grow(sequence.slot, sequence.blocks, sequence.n_computed + n):
            newest = self.running[-1]
            if newest is sequence and len(self.running) == 1:
                return False
            self._preempt(newest)
        return sequence.slot >= 0

    def _grow(self, slot: int, blocks: list[Block], n_tokens: int) -> bool:
        """Make blocks cover n_tokens positions; False when there are not enough."""
        while len(blocks) * KV_BLOCK_TOKENS < n_tokens:
            block = self._pool.allocate(blocks[-1] if blocks else None)
            if block is None:
                return False
            self._tables[slot, len(blocks)] = block.id
            blocks.append(block)
        return True

    def _point(self, sequence: Sequence) -> None:
        self._tables[sequence.slot, : len(sequence.blocks)] = [block.id for block in sequence.blocks]

    def _batch(self, chosen: list[tuple[Sequence, int]]) -> tuple[Batch, list[Work]]:
        work: list[Work] = []
        at = n_rows = 0
        for s, n in chosen:
            wanted = s.unscored
            wanted = wanted[: max(0, s.n_computed + n - wanted.start)]
            scored = range(n_rows, n_rows + len(wanted))
            self._out[n_rows : n_rows + len(wanted)] = np.arange(wanted.start, wanted.stop) - s.n_computed + at
            n_rows += len(wanted)
            row = -1
            if n == s.n_pending:
                row, n_rows = n_rows, n_rows + 1
                self._out[row] = at + n - 1
            self._ids[at : at + n] = s.tokens[s.n_computed : s.n_computed + n]
            self._positions[at : at + n] = np.arange(s.n_computed, s.n_computed + n)
            self._seqs[at : at + n] = s.slot
            at += n
            work.append(Work(s, n, row, scored))
        return Batch(self._ids[:at], self._positions[:at], self._seqs[:at], self._tables, self._out[:n_rows]), work


def _shares(prompts: list[Sequence], room: int, limits: Mapping[Sequence, int]) -> list[tuple[Sequence, int]]:
    """Chunks of prompts, which are in the order of arrival, each within its limit.

    Half of the room is the oldest's, so that none waits for ever; half is for whichever has the least left, so that a short one does not
    wait for a long one. What they do not need goes to the others, the oldest first.
    """
    if not prompts or room <= 0:
        return []
    shortest = min(prompts, key=lambda s: limits[s])
    shares = dict.fromkeys(prompts, 0)
    for sequence, most in ((prompts[0], (room + 1) // 2), (shortest, room), *((s, room) for s in prompts)):
        n = min(limits[sequence] - shares[sequence], most, room)
        shares[sequence] += n
        room -= n
    return [(sequence, n) for sequence, n in shares.items() if n]


def _common(a: list[int], b: list[int]) -> int:
    """With how many equal tokens both begin, less than all of b: the last one must be computed for its logits."""
    limit = min(len(a), len(b) - 1)
    for start in range(0, limit, _PIECE):
        stop = min(start + _PIECE, limit)
        if a[start:stop] != b[start:stop]:
            return next(i for i in range(start, stop) if a[i] != b[i])
    return limit

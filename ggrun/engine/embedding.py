"""Embeddings: a text's hidden rows after the model's last norm, pooled to one. Computed in chunks between the steps of others.

Belongs to the engine's thread but for what an `Embedding` says. Blocks come from the pool; what a text shares with earlier ones is reused
where pooling needs only its last row.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from collections.abc import Sequence as Seq
from threading import Event
from time import perf_counter, sleep

import numpy as np
from numpy.typing import NDArray

from ggrun.engine.kv import Block, BlockPool
from ggrun.engine.prefixes import Prefixes
from ggrun.errors import GgrunError
from ggrun.plan.device import KV_BLOCK_TOKENS, Shape
from ggrun.runtime.executor import Batch, Cancelled, Executor

Rows = NDArray[np.float32]
BESIDE_SECONDS = 0.06  # a chunk's, while others wait for their tokens
WAIT_SECONDS = 0.002  # between two looks for room, when there is nothing else to do
FIRST_CHUNK = 32  # tokens, before it is known how long they take

# Which hidden rows of n tokens each pooling needs, first and last: the model looks back only, so that the first row needs the first token.
POOLING: Mapping[str, Callable[[int], tuple[int, int]]] = {
    "mean": lambda n: (0, n),
    "last": lambda n: (n - 1, n),
    "cls": lambda n: (0, 1),
}
TYPES = ("none", "mean", "cls", "last", "rank")  # `pooling_type` of GGUF, by number


def default_pooling(metadata: Mapping[str, object], architecture: str) -> str:
    """What the file says of itself, else "last": a model that looks back only knows the whole text at its end."""
    kind = metadata.get(f"{architecture}.pooling_type")
    name = TYPES[kind] if isinstance(kind, int) and 0 <= kind < len(TYPES) else ""
    return name if name in POOLING else "last"


class Embedding:
    """One text under way. Any thread may read `done` and set `cancelled`."""

    def __init__(self, tokens: Seq[int], pooling: str) -> None:
        if pooling not in POOLING:
            raise GgrunError(f"pooling {pooling!r} is not known; choose one of {', '.join(POOLING)}")
        self.first, self.last = POOLING[pooling](len(tokens))
        self.tokens = list(tokens[: self.last])
        self.blocks: list[Block] = []
        self.n_computed = 0
        self.sum: NDArray[np.float64] | None = None
        self.cancelled = False
        self.error: BaseException | None = None
        self.done = Event()

    @property
    def result(self) -> Rows:
        """The pooled row, float32 [n_embd], once it is done."""
        assert self.sum is not None
        return (self.sum / (self.last - self.first)).astype(np.float32)


class Embedder:
    """Computes embeddings, several in one batch when they are short. norm: what the head does to hidden rows."""

    def __init__(self, executor: Executor, shape: Shape, pool: BlockPool, prefixes: Prefixes, norm: Callable[[Rows], Rows]) -> None:
        self._executor, self._shape, self._pool, self._prefixes, self._norm = executor, shape, pool, prefixes, norm
        self.queue: deque[Embedding] = deque()
        self._tables = np.zeros((shape.n_seqs, -(-shape.n_ctx // KV_BLOCK_TOKENS)), np.int32)
        self._token_seconds = 0.0

    @property
    def holds(self) -> bool:
        """Whether texts under way have blocks of the pool; they soon give them back."""
        return any(job.blocks for job in self.queue)

    def step(self, busy: bool) -> None:
        """Compute the next chunk, a short one while others are busy."""
        for job in [job for job in self.queue if job.cancelled]:
            self._end(job, None)
        try:
            chosen = self._chosen(self._chunk(busy))
        except Exception as error:
            return self._end(self.queue[0], error)
        if not chosen:
            return self._wait(busy)
        try:
            self._compute(chosen)
        except Cancelled:  # one of them, or meant for another: what was not booked is computed again
            return
        except Exception as error:
            for job, _ in chosen:
                self._end(job, error)
            return
        for job, _ in chosen:
            if job.n_computed == len(job.tokens):
                self._end(job, None)

    def close(self) -> None:
        """Nobody computes any more."""
        while self.queue:
            self._end(self.queue[0], GgrunError("the engine is closed"))

    def _chosen(self, room: int) -> list[tuple[Embedding, int]]:
        """The texts of the next batch, the oldest first, and how many tokens of each; as many as have room in the pool."""
        chosen: list[tuple[Embedding, int]] = []
        for job in list(self.queue)[: self._shape.n_seqs]:
            if not room or not (job.blocks or self._begin(job)):
                break
            n = min(room, len(job.tokens) - job.n_computed)
            chosen.append((job, n))
            room -= n
        return chosen

    def _wait(self, busy: bool) -> None:
        """There is no room for the oldest. Whoever holds blocks gives them back; if nobody does, there will never be."""
        if not self.queue or busy:
            return
        if self._pool.n_used:
            return sleep(WAIT_SECONDS)
        self._end(self.queue[0], GgrunError(f"{len(self.queue[0].tokens)} tokens do not fit the KV cache"))

    def _begin(self, job: Embedding) -> bool:
        """Take all blocks at once, so that a text under way always comes to its end."""
        if job.first:  # rows before that are not looked at
            job.blocks, job.n_computed = self._prefixes.take(job.tokens)
        while len(job.blocks) * KV_BLOCK_TOKENS < len(job.tokens):
            block = self._pool.allocate(job.blocks[-1] if job.blocks else None)
            if block is None:
                self._release(job)
                return False
            job.blocks.append(block)
        return True

    def _chunk(self, busy: bool) -> int:
        if not busy:
            return self._shape.n_ubatch
        wanted = int(BESIDE_SECONDS / self._token_seconds) if self._token_seconds else FIRST_CHUNK
        return min(self._shape.n_ubatch, max(1, wanted))

    def _compute(self, chosen: list[tuple[Embedding, int]]) -> None:
        ids: list[int] = []
        spans = []
        for seq, (job, n) in enumerate(chosen):
            self._tables[seq, : len(job.blocks)] = [block.id for block in job.blocks]
            ids += job.tokens[job.n_computed : job.n_computed + n]
            spans.append(np.arange(job.n_computed, job.n_computed + n, dtype=np.int32))
        seqs = np.repeat(np.arange(len(chosen), dtype=np.int32), [n for _, n in chosen])
        batch = Batch(np.array(ids, np.int32), np.concatenate(spans), seqs, self._tables, np.zeros(0, np.int32))
        began = perf_counter()
        hidden = self._executor.run_hidden(batch)
        at = 0
        for job, n in chosen:
            self._book(job, hidden[at : at + n])
            at += n
        self._token_seconds = (perf_counter() - began) / at

    def _book(self, job: Embedding, hidden: Rows) -> None:
        """Add the rows that are wanted, one after the other whatever the chunks are, and publish the blocks that are full."""
        start, end = job.n_computed, job.n_computed + len(hidden)
        if (first := max(start, job.first)) < end:
            rows = self._norm(hidden[first - start :]).astype(np.float64)
            job.sum = (rows if job.sum is None else np.concatenate((job.sum[None], rows))).sum(0)
        job.n_computed = end
        for index in range(start // KV_BLOCK_TOKENS, end // KV_BLOCK_TOKENS):
            own = job.tokens[index * KV_BLOCK_TOKENS : (index + 1) * KV_BLOCK_TOKENS]
            block = job.blocks[index] = self._pool.publish(job.blocks[index], tuple(own))
            if index + 1 < len(job.blocks):
                job.blocks[index + 1].parent = block

    def _release(self, job: Embedding) -> None:
        for block in reversed(job.blocks):
            self._pool.release(block)
        job.blocks, job.n_computed = [], 0

    def _end(self, job: Embedding, error: BaseException | None) -> None:
        self.queue.remove(job)
        self._release(job)
        job.error = error
        job.done.set()

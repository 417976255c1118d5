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
    """Computes embeddings one after the other. norm: what the head does to hidden rows."""

    def __init__(self, executor: Executor, shape: Shape, pool: BlockPool, prefixes: Prefixes, norm: Callable[[Rows], Rows]) -> None:
        self._executor, self._shape, self._pool, self._prefixes, self._norm = executor, shape, pool, prefixes, norm
        self.queue: deque[Embedding] = deque()
        self._table = np.zeros((1, -(-shape.n_ctx // KV_BLOCK_TOKENS)), np.int32)
        self._token_seconds = 0.0

    @property
    def holds(self) -> bool:
        """Whether a text under way has blocks of the pool; it soon gives them back."""
        return bool(self.queue and self.queue[0].blocks)

    def step(self, busy: bool) -> bool:
        """Compute the next chunk, a short one while others are busy; False when there was nothing to do, or no room for it now."""
        while self.queue and self.queue[0].cancelled:
            self._end(self.queue[0], None)
        if not self.queue:
            return False
        job = self.queue[0]
        try:
            if not job.blocks and not self._begin(job):
                if busy:
                    return False
                if self._pool.n_used:  # whoever holds blocks gives them back
                    sleep(WAIT_SECONDS)
                    return False
                raise GgrunError(f"{len(job.tokens)} tokens do not fit the KV cache")
            self._compute(job, self._chunk(busy))
        except Cancelled:  # itself, or meant for another
            return True
        except Exception as error:
            self._end(job, error)
            return True
        if job.n_computed == len(job.tokens):
            self._end(job, None)
        return True

    def close(self) -> None:
        """Nobody computes any more."""
        while self.queue:
            self._end(self.queue[0], GgrunError("the engine is closed"))

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

    def _compute(self, job: Embedding, most: int) -> None:
        start = job.n_computed
        end = min(len(job.tokens), start + most)
        self._table[0, : len(job.blocks)] = [block.id for block in job.blocks]
        ids, positions = np.array(job.tokens[start:end], np.int32), np.arange(start, end, dtype=np.int32)
        batch = Batch(ids, positions, np.zeros(end - start, np.int32), self._table, np.zeros(0, np.int32))
        began = perf_counter()
        hidden = self._executor.run_hidden(batch)
        if (first := max(start, job.first)) < end:
            rows = self._norm(hidden[first - start :]).sum(0, dtype=np.float64)
            job.sum = rows if job.sum is None else job.sum + rows
        self._token_seconds = (perf_counter() - began) / (end - start)
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

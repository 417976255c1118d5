"""The engine's thread: takes messages, runs batch after batch, and hands every sequence its tokens.

Sequences, KV blocks and the executor belong to it. Other threads send messages and read `status`.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import astuple
from queue import Empty, SimpleQueue
from time import perf_counter
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from ggrun.engine.generation import Finished, FinishReason, Generation, TokenEvent
from ggrun.engine.kv import Block, BlockPool
from ggrun.engine.sampling import SampledToken, Sampler
from ggrun.engine.scheduler import Scheduler, Work
from ggrun.engine.sequence import Sequence
from ggrun.engine.status import EngineStatus, SlotState, SlotStatus, Totals
from ggrun.errors import GgrunError
from ggrun.plan.device import KV_BLOCK_TOKENS, Shape
from ggrun.runtime.executor import Batch, Cancelled, Executor, Highest

T = TypeVar("T")


class Loop:
    """Starts at once; `close` ends it and what runs. The executor stays the caller's to close."""

    def __init__(self, executor: Executor, shape: Shape, n_vocab: int) -> None:
        self._executor, self._shape, self._n_vocab = executor, shape, n_vocab
        self._pool = BlockPool(shape.n_kv_blocks)
        self._scheduler = Scheduler(shape, self._pool, executor)
        self._totals = Totals()
        self._inbox: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="ggrun-engine", daemon=True)
        self._thread.start()

    # ---- callers' threads

    def submit(self, sequence: Sequence) -> None:
        """Put a sequence at the end of the queue."""
        self._send(lambda: self._scheduler.submit(sequence))

    def cancel(self, generation: Generation) -> None:
        """Stop a generation whose `cancelled` is set."""
        if not self._closed:
            self._inbox.put(lambda: None)  # wakes the thread, which looks at the flags
            if any(s.generation is generation for s in tuple(self._scheduler.running)):
                self._executor.abort()

    def call(self, work: Callable[[], T]) -> T:
        """Do something on the engine's thread, between two batches, and wait for its result; what it raises is raised here."""
        result: SimpleQueue[tuple[T | None, BaseException | None]] = SimpleQueue()

        def run() -> None:
            try:
                result.put((work(), None))
            except BaseException as error:
                result.put((None, error))

        self._send(run)
        answer, error = result.get()
        if error is not None:
            raise error
        return answer  # type: ignore[return-value]  # T, when there is no error

    def forward(self, tokens: list[int]) -> NDArray[np.float32]:
        """Logits float32 [len(tokens), n_vocab] of every position."""
        return self.call(lambda: self._forward(tokens))

    def status(self) -> EngineStatus:
        """What goes on now, from any thread; figures of several sequences may lie a step apart."""
        pool, scheduler = self._pool, self._scheduler
        slots = [SlotStatus(i, "idle", self._shape.n_ctx) for i in range(self._shape.n_seqs)]
        for s in tuple(scheduler.running):
            state: SlotState = "answer" if s.generation.state == "answer" else "prompt"
            n_tokens, n_computed, n_predicted = len(s.tokens), s.n_computed, s.generation.timings.predicted_n
            n_prompt = n_tokens if state == "prompt" else n_tokens - n_predicted
            done = min(n_computed, n_prompt)
            if (slot := s.slot) >= 0:
                slots[slot] = SlotStatus(slot, state, self._shape.n_ctx, n_tokens, n_prompt, done, n_predicted)
        cached = pool.n_cached
        used = pool.n_blocks - pool.n_free
        blocks = (KV_BLOCK_TOKENS * n for n in (pool.n_blocks, used, cached))
        return EngineStatus(tuple(slots), len(scheduler.waiting), *blocks, *astuple(self._totals))

    def close(self) -> None:
        """Cancel what runs and stop the thread."""
        if not self._closed:
            self._closed = True
            self._inbox.put(None)
            self._executor.abort()
            self._thread.join()

    def _send(self, message: Callable[[], None]) -> None:
        if self._closed or not self._thread.is_alive():
            raise GgrunError("the engine is closed")
        self._inbox.put(message)

    # ---- the engine's thread

    def _run(self) -> None:
        while self._read_inbox():
            self._drop_cancelled()
            if not self._scheduler.busy:
                continue
            try:
                self._step()
            except Cancelled:
                continue  # whoever was cancelled is dropped above; the others' tokens are computed again
            except Exception as error:
                for sequence in (*self._scheduler.running, *self._scheduler.waiting):
                    self._fail(sequence, error)
        while not self._inbox.empty():  # sent while close() was under way: whoever waits for an answer gets one
            if message := self._inbox.get():
                message()
        for sequence in (*self._scheduler.running, *self._scheduler.waiting):
            self._finish(sequence, "cancelled")

    def _read_inbox(self) -> bool:
        """Carry out all messages, waiting for one when there is nothing to compute; False after close."""
        try:
            message = self._inbox.get(block=not self._scheduler.busy)
            while message is not None:
                message()
                message = self._inbox.get_nowait()
        except Empty:
            return True
        return False

    def _drop_cancelled(self) -> None:
        for sequence in (*self._scheduler.running, *self._scheduler.waiting):
            if sequence.generation.cancelled:
                self._finish(sequence, "cancelled")

    def _step(self) -> None:
        """Compute one batch and hand out what came of it."""
        batch, work = self._scheduler.next()
        began = perf_counter()
        for item in work:
            item.sequence.started = item.sequence.started or began
        logits = self._compute(batch, work)
        n_predicted, n_prompt = self._totals.predicted_tokens, self._totals.prompt_tokens
        for item in work:
            try:
                self._advance(item, logits)
            except Exception as error:
                self._fail(item.sequence, error)
        seconds = perf_counter() - began
        self._totals.n_steps += 1
        self._totals.prompt_seconds += seconds * (self._totals.prompt_tokens > n_prompt)
        self._totals.predicted_seconds += seconds * (self._totals.predicted_tokens > n_predicted)

    def _compute(self, batch: Batch, work: list[Work]) -> NDArray[np.float32] | Highest:
        """The batch's logits, or just the highest of them when no sampler looks at others."""
        wanted = [item.sequence.sampler.n_highest for item in work if item.row >= 0]
        if wanted and min(wanted) > 0:
            return self._executor.run_highest(batch, min(max(wanted), self._n_vocab))
        return self._executor.run(batch)

    def _advance(self, item: Work, logits: NDArray[np.float32] | Highest) -> None:
        """Book what a batch computed for a sequence and, when its prompt is through, choose the next token."""
        s, timings = item.sequence, item.sequence.generation.timings
        s.advance(item.n, self._pool)
        if not s.prompt_done:
            timings.prompt_n += item.n
            self._totals.prompt_tokens += item.n
        if item.row < 0:
            return
        if not s.prompt_done:
            s.prompt_done = perf_counter()
            timings.prompt_ms = 1e3 * (s.prompt_done - s.started)
            self._totals.cached_tokens += timings.cache_n
        s.generation.state = "answer"
        if s.n_predict == 0:
            return self._finish(s, "length")
        constraint = s.sampler.constraint
        if constraint is not None:
            constraint.mask()  # waits, so that `done` is known
            if constraint.done:
                return self._finish(s, "stop")
        token = _sample(s.sampler, logits, item.row)
        if token.id in s.end_of_generation:
            return self._finish(s, "stop")
        s.sampler.accept(token.id)
        if constraint is not None:
            constraint.accept(token.id)
        s.tokens.append(token.id)
        timings.predicted_n += 1
        self._totals.predicted_tokens += 1
        timings.predicted_ms = 1e3 * (perf_counter() - s.prompt_done)
        text = s.stops.push(s.decoder.push(token.id))
        s.generation.put(TokenEvent(token.id, text, token.logprob, token.top))
        if s.stops.found is not None or (constraint is not None and constraint.done):
            self._finish(s, "stop")
        elif timings.predicted_n == s.n_predict:
            self._finish(s, "length")
        elif len(s.tokens) >= self._shape.n_ctx:
            self._overflow(s)

    def _overflow(self, sequence: Sequence) -> None:
        """The context is full: end the generation, or make room in the middle and go on."""
        if sequence.on_overflow == "stop":
            return self._finish(sequence, "context_full")
        sequence.generation.n_shifted += sequence.shift(self._pool)
        self._scheduler.reuse_prefix(sequence)

    def _finish(self, s: Sequence, reason: FinishReason) -> None:
        self._scheduler.remove(s)
        held = s.stops.push(s.decoder.finish()) + s.stops.finish()
        s.generation.put(Finished(reason, held, s.stops.found))

    def _fail(self, sequence: Sequence, error: Exception) -> None:
        """Something broke: the caller who waits for this sequence gets the exception."""
        self._scheduler.remove(sequence)
        sequence.generation.put(error)

    def _forward(self, tokens: list[int]) -> NDArray[np.float32]:
        if self._scheduler.running:
            raise GgrunError("logits of a whole sequence are computed only while nothing else runs")
        out = np.empty((len(tokens), self._n_vocab), np.float32)
        blocks: list[Block] = []
        step = min(self._shape.n_ubatch, self._shape.n_logits)
        try:
            for start in range(0, len(tokens), step):
                n = min(step, len(tokens) - start)
                batch = self._scheduler.forward_batch(0, tokens, blocks, start, n)
                try:
                    out[start : start + n] = self._executor.run(batch)
                except Cancelled:  # meant for a generation that had just ended
                    out[start : start + n] = self._executor.run(batch)
        finally:
            for block in reversed(blocks):
                self._pool.release(block)
        return out


def _sample(sampler: Sampler, logits: NDArray[np.float32] | Highest, row: int) -> SampledToken:
    if not isinstance(logits, Highest):
        return sampler.sample(logits[row])
    k = min(sampler.n_highest, logits.ids.shape[1])
    return sampler.sample_highest(logits.ids[row, :k], logits.logits[row, :k], float(logits.log_totals[row]))

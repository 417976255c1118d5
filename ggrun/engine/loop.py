"""The engine's thread: takes messages, runs batch after batch, and hands every sequence its tokens.

Sequences, KV blocks and the executor belong to it. Other threads send messages and read `status`.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import astuple
from queue import Empty, SimpleQueue
from time import perf_counter, sleep
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from ggrun.engine.embedding import WAIT_SECONDS, Embedder, Embedding
from ggrun.engine.generation import Finished, FinishReason, Generation, TokenEvent
from ggrun.engine.kv import Block, BlockPool
from ggrun.engine.kv_file import Origin
from ggrun.engine.pace import Pace
from ggrun.engine.prefixes import Prefixes
from ggrun.engine.sampling import SampledToken, Sampler
from ggrun.engine.scheduler import Scheduler, Work
from ggrun.engine.sequence import Sequence
from ggrun.engine.slots import Slots
from ggrun.engine.status import EngineStatus, SlotState, SlotStatus, Totals
from ggrun.engine.tiers import Tiers
from ggrun.errors import GgrunError
from ggrun.plan.device import KV_BLOCK_TOKENS, Shape
from ggrun.runtime.executor import Batch, Cancelled, Executor, Highest
from ggrun.runtime.kv_form import KvForm

T = TypeVar("T")
LONG = 0.15  # seconds; a step that takes less is not aborted for one who was cancelled
CAREFUL_STEPS = 20  # after an abort that others suffered from
Rows = NDArray[np.float32]
POLL_SECONDS = 0.05  # between two looks whether a caller still wants its embedding


class Loop:
    """Starts at once; `close` ends it and what runs. The executor stays the caller's to close.

    step_seconds: about how long a step may take that computes prompts beside answers; 0: as long as it takes. norm: of the head, for
    embeddings. tiers: where blocks are kept beside the pool.
    """

    def __init__(
        self,
        executor: Executor,
        shape: Shape,
        n_vocab: int,
        step_seconds: float = 0,
        norm: Callable[[Rows], Rows] = lambda rows: rows,
        tiers: Tiers | None = None,
    ) -> None:
        self._executor, self._shape, self._n_vocab = executor, shape, n_vocab
        self._pool = BlockPool(shape.n_kv_blocks)
        tiers = tiers or Tiers()
        self._prefixes = Prefixes(self._pool, executor, tiers.host, tiers.disk)
        self._scheduler = Scheduler(shape, self._pool, self._prefixes, Pace(step_seconds))
        self._embedder = Embedder(executor, shape, self._pool, self._prefixes, norm)
        self._totals = Totals()
        self._inbox: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._work: list[Work] = []  # of the batch that is being computed
        self._abortable = True
        self._spared = False  # whether the next step has to be finished
        self._closed = False
        if tiers.disk:
            tiers.disk.on_ready = lambda: self._inbox.put(lambda: None)
        self._sending = threading.Lock()  # so that nothing is sent after the last message
        self._thread = threading.Thread(target=self._run, name="ggrun-engine", daemon=True)
        self._thread.start()

    # ---- callers' threads

    def submit(self, sequence: Sequence) -> None:
        """Put a sequence at the end of the queue."""
        self._send(lambda: self._accept(sequence))

    def cancel(self, generation: Generation) -> None:
        """Stop a generation whose `cancelled` is set."""
        if not self._closed:
            self._inbox.put(lambda: None)  # wakes the thread, which looks at the flags
            aboard = any(item.sequence.generation is generation for item in self._work)
            preempted = generation.state == "waiting"  # and has said something: what is held back of it only the thread can tell
            if self._abortable and (aboard or preempted):
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

    def embed(self, job: Embedding, cancelled: Callable[[], bool] | None = None) -> Rows:
        """Wait for an embedding, float32 [n_embd]. Raises Cancelled within 200 ms after `cancelled` says so."""
        self._send(lambda: self._embedder.queue.append(job))
        while not job.done.wait(POLL_SECONDS if cancelled else None):
            if cancelled and cancelled() and not job.cancelled:
                job.cancelled = True
                self._inbox.put(lambda: None)
                if job.blocks:
                    self._executor.abort()
        if job.error:
            raise job.error
        if job.cancelled:
            raise Cancelled
        return job.result

    def slots(self, form: KvForm, origin: Origin) -> Slots:
        """What saves and restores slots."""

        def held(slot: int) -> tuple[list[int], bool]:
            for s in self._scheduler.running:
                if s.slot == slot:
                    return s.tokens[: s.n_computed], True
            return self._scheduler.held[slot], False

        def hold(slot: int, tokens: list[int]) -> None:
            self._scheduler.held[slot] = tokens

        n_seqs, n_ctx = self._shape.n_seqs, self._shape.n_ctx
        return Slots(self.call, self._prefixes, self._pool, form, origin, n_seqs, n_ctx, held, hold)

    def forward(self, tokens: list[int]) -> NDArray[np.float32]:
        """Logits float32 [len(tokens), n_vocab] of every position."""
        return self.call(lambda: self._forward(tokens))

    def status(self) -> EngineStatus:
        """What goes on now, from any thread; figures of several sequences may lie a step apart."""
        pool, scheduler = self._pool, self._scheduler
        slots = [SlotStatus(i, "idle", self._shape.n_ctx) for i in range(self._shape.n_seqs)]
        for s in tuple(scheduler.running):
            state: SlotState = "answer" if s.generation.state == "answer" else "prompt"
            n_prompt = len(s.generation.prompt_ids) - s.generation.n_cut
            done = n_prompt if state == "answer" else min(s.n_computed, n_prompt)
            if (slot := s.slot) >= 0:
                n_predicted = s.generation.timings.predicted_n
                slots[slot] = SlotStatus(slot, state, self._shape.n_ctx, len(s.tokens), n_prompt, done, n_predicted)
        cached = pool.n_cached
        used = pool.n_used
        blocks = (KV_BLOCK_TOKENS * n for n in (pool.n_blocks, used, cached))
        return EngineStatus(tuple(slots), len(scheduler.waiting), *blocks, *astuple(self._totals))

    def close(self) -> None:
        """Cancel what runs and stop the thread."""
        if not self._closed:
            with self._sending:
                self._closed = True
                self._inbox.put(None)
            self._executor.abort()
            self._thread.join()

    def _send(self, message: Callable[[], None]) -> None:
        with self._sending:
            if self._closed or not self._thread.is_alive():
                raise GgrunError("the engine is closed")
            self._inbox.put(message)

    # ---- the engine's thread

    def _run(self) -> None:
        while self._read_inbox():
            self._drop_cancelled()
            busy = self._scheduler.busy
            try:
                self._prefixes.store(busy)
                self._embedder.step(busy)
                if busy:
                    self._step()
            except Cancelled:  # whoever was cancelled is dropped above; the others' tokens are computed again
                self._aborted()
            except Exception as error:
                for sequence in (*self._scheduler.running, *self._scheduler.waiting):
                    self._fail(sequence, error)
        self._prefixes.close()
        while not self._inbox.empty():  # sent while close() was under way: whoever waits for an answer gets one
            if message := self._inbox.get():
                message()
        for sequence in (*self._scheduler.running, *self._scheduler.waiting):
            self._finish(sequence, "cancelled")
        self._embedder.close()

    def _read_inbox(self) -> bool:
        """Carry out all messages, waiting for one when there is nothing to compute; False after close."""
        try:
            message = self._inbox.get(block=not (self._scheduler.busy or self._embedder.queue or self._prefixes.pending))
            while message is not None:
                message()
                message = self._inbox.get_nowait()
        except Empty:
            return True
        return False

    def _accept(self, sequence: Sequence) -> None:
        """Queue a sequence when the beginning of its prompt has come from the disk, if it is there."""
        generation = sequence.generation

        def submit() -> None:
            try:
                self._scheduler.submit(sequence)
            except Exception as error:  # the thread goes on for the others
                generation.put(error)

        if not sequence.cache_prompt:
            return submit()
        try:
            self._prefixes.fetch(sequence.tokens, lambda: generation.cancelled, self._inbox.put, submit)
        except Exception as error:
            generation.put(error)

    def _drop_cancelled(self) -> None:
        for sequence in (*self._scheduler.running, *self._scheduler.waiting):
            if sequence.generation.cancelled:
                self._finish(sequence, "cancelled")

    def _step(self) -> None:
        """Compute one batch and hand out what came of it."""
        began = perf_counter()
        batch, work = self._scheduler.next()
        if not work:
            if len(self._scheduler.running) == 1:
                self._no_room(self._scheduler.running[0])
            return
        n_chunks = sum(item.n for item in work if item.sequence.generation.state != "answer")
        self._abortable = not self._spared and self._scheduler.pace.seconds(n_chunks) > LONG
        self._work = work
        if any(item.sequence.generation.cancelled for item in work):  # who cancels from now on sees the batch
            self._work = []
            return
        self._spared = False
        for item in work:
            item.sequence.started = item.sequence.started or began
        logits = self._compute(batch, work)
        self._work = []
        n_predicted, n_prompt = self._totals.predicted_tokens, self._totals.prompt_tokens
        for item in work:
            try:
                self._advance(item, logits)
            except Exception as error:
                self._fail(item.sequence, error)
        seconds = perf_counter() - began
        self._scheduler.pace.note(n_chunks, seconds)
        self._totals.n_steps += 1
        self._totals.n_preempted = self._scheduler.n_preempted
        self._totals.prompt_seconds += seconds * (self._totals.prompt_tokens > n_prompt)
        self._totals.predicted_seconds += seconds * (self._totals.predicted_tokens > n_predicted)

    def _aborted(self) -> None:
        """Others' tokens were lost with a cancelled one's: see to it that many who cancel do not keep them from going on."""
        if any(not item.sequence.generation.cancelled for item in self._work):
            self._spared = True
            self._scheduler.n_careful = CAREFUL_STEPS
        self._work = []

    def _compute(self, batch: Batch, work: list[Work]) -> NDArray[np.float32] | Highest:
        """The batch's logits, or just the highest of them when no sampler looks at others."""
        wanted = [item.sequence.sampler.n_highest for item in work if item.row >= 0]
        if wanted and min(wanted) > 0 and not any(item.scored for item in work):
            return self._executor.run_highest(batch, min(max(wanted), self._n_vocab))
        return self._executor.run(batch)

    def _advance(self, item: Work, logits: NDArray[np.float32] | Highest) -> None:
        """Book what a batch computed for a sequence and, when its prompt is through, choose the next token."""
        s, timings = item.sequence, item.sequence.generation.timings
        n_new = self._scheduler.advance(item)
        timings.prompt_n += n_new
        self._totals.prompt_tokens += n_new
        if s.scores and item.scored:
            assert not isinstance(logits, Highest)
            s.scores.add(logits[item.scored.start : item.scored.stop])
        if item.row < 0:
            return
        if not s.prompt_done:
            s.prompt_done = perf_counter()
            timings.prompt_ms = 1e3 * (s.prompt_done - s.started)
            self._totals.cached_tokens += timings.cache_n
        s.generation.enter("answer")
        if s.n_predict == 0:
            return self._finish(s, "length")
        constraint = s.sampler.constraint
        if constraint is not None:
            constraint.mask()  # waits, so that `done` is known
            if constraint.done:
                return self._finish(s, "stop")
        forced = s.sampler.forced
        token = _sample(s.sampler, logits, item.row)
        if token.id in s.end_of_generation and token.id != forced:
            if s.scores:  # who measures a text wants to know how likely its end is
                timings.predicted_n += 1
                s.generation.put(TokenEvent(token.id, "", token.logprob, token.top))
            return self._finish(s, "stop")
        s.sampler.accept(token.id)
        if s.sampler.budget is not None:
            s.sampler.budget.accept(token.id)
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

    def _no_room(self, sequence: Sequence) -> None:
        """Not even alone it finds a block: others than sequences hold some for a while, or its context is full."""
        if self._pool.n_used > len(sequence.blocks):
            sleep(WAIT_SECONDS)
        else:
            self._overflow(sequence)

    def _overflow(self, sequence: Sequence) -> None:
        """The context is full: end the generation, or make room in the middle and go on."""
        if sequence.unscored:
            return self._fail(sequence, GgrunError(f"{len(sequence.tokens)} tokens do not fit the KV cache"))
        if sequence.on_overflow == "stop":
            return self._finish(sequence, "context_full")
        sequence.generation.n_shifted += self._scheduler.shift(sequence)

    def _finish(self, s: Sequence, reason: FinishReason) -> None:
        self._scheduler.remove(s)
        held = s.stops.push(s.decoder.finish()) + s.stops.finish()
        s.generation.put(Finished(reason, held, s.stops.found))

    def _fail(self, sequence: Sequence, error: Exception) -> None:
        """Something broke: the caller who waits for this sequence gets the exception."""
        self._scheduler.remove(sequence)
        sequence.generation.put(error)

    def _forward(self, tokens: list[int]) -> NDArray[np.float32]:
        if self._scheduler.running or self._embedder.holds:
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

"""Engine: open a model, submit token ids or conversations, read what comes.

One thread owns sequences, KV blocks and the executor; callers' threads only send messages (submit, cancel, forward, close).
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Container, Mapping
from collections.abc import Sequence as Seq
from pathlib import Path
from queue import Empty, SimpleQueue
from time import perf_counter
from types import TracebackType

import numpy as np
from numpy.typing import NDArray

from ggrun.engine.generation import Finished, FinishReason, Generation, TokenEvent
from ggrun.engine.kv import Block, BlockPool
from ggrun.engine.loading import Options, Planned, load, plan_model
from ggrun.engine.sampling import SampledToken, Sampler, Sampling
from ggrun.engine.scheduler import Scheduler, Work
from ggrun.engine.sequence import Overflow, Sequence
from ggrun.engine.stops import StopMatcher
from ggrun.errors import GgrunError
from ggrun.runtime.executor import Batch, Cancelled, Highest, Progress
from ggrun.text import ChatTemplate, Tokenizer, chat_template, load_tokenizer

Message = Mapping[str, object]


class ContextExceeded(GgrunError):
    """A prompt that leaves no room in its sequence's context."""


class Engine:
    """An opened model. Use `Engine.open`, as a context manager."""

    def __init__(self, planned: Planned, options: Options, progress: Progress | None = None, template: str | None = None) -> None:
        planned, self._executor = load(planned, options, progress)  # first: its pages fill while the vocabulary is read
        self.file, self.spec, self.plan = planned.file, planned.spec, planned.plan
        self.n_threads = planned.n_threads
        try:
            self.tokenizer: Tokenizer = load_tokenizer(self.file.metadata)
            self.chat_template: ChatTemplate = chat_template(self.file.metadata, self.tokenizer, template)
        except BaseException:
            self._executor.close()
            raise
        self._pool = BlockPool(self.plan.shape.n_kv_blocks)
        self._scheduler = Scheduler(self.plan.shape, self._pool, self._executor)
        self._inbox: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._closed = False
        self._thread = threading.Thread(target=self._loop, name="ggrun-engine", daemon=True)
        self._thread.start()

    @classmethod
    def open(
        cls,
        model: str | Path | None = None,
        *,
        progress: Progress | None = None,
        chat_template: str | None = None,
        **options: object,
    ) -> Engine:
        """Open a GGUF file (None: the embedded model). Options: see `loading.Options`. Raises GgrunError with a sentence.

        progress(stage, done, total) is told of "load" and, on first use, "compile". chat_template replaces the file's own.
        """
        chosen = Options(**options)  # type: ignore[arg-type]  # the names and types are checked by Options itself
        planned = plan_model(model, chosen)
        try:
            return cls(planned, chosen, progress, chat_template)
        except BaseException:
            planned.file.close()
            raise

    @property
    def notes(self) -> list[str]:
        """Sentences for the user about how the model was opened, and what became of it since."""
        return [*self.plan.notes, *self.file.notes, *self._executor.notes]

    @property
    def n_ctx(self) -> int:
        """Tokens one sequence may hold."""
        return self.plan.shape.n_ctx

    def submit(
        self,
        prompt_ids: Seq[int],
        sampling: Sampling | None = None,
        *,
        n_predict: int = -1,
        stop: Seq[str] = (),
        keep: int = 0,
        on_overflow: Overflow = "stop",
        show_special: bool = False,
        shown: Container[int] = (),
        strip_space: bool = False,
    ) -> Generation:
        """Continue token ids: up to n_predict tokens (-1: until the model ends or the context is full).

        on_overflow "shift" drops the older half of what follows the first `keep` tokens when the context is full (keep < 0: the whole
        prompt) and counts it in Generation.n_shifted. show_special: also the text of special tokens; shown: of these. strip_space: the text
        answers a chat, so drop the space that SentencePiece vocabularies put before it. Raises ContextExceeded, or GgrunError for ids that
        cannot be run.
        """
        ids = self._checked(prompt_ids, on_overflow)
        sampling = sampling or Sampling()
        sampler = Sampler(sampling, self.spec.n_vocab, self.tokenizer)
        ends = frozenset() if sampling.ignore_eos else self.tokenizer.end_of_generation
        generation = Generation(ids, sampler.seed, self._request_cancel)
        keep = len(ids) if keep < 0 else min(keep, len(ids))
        keep = min(keep, self.n_ctx // 2)
        sequence = Sequence(
            generation,
            sampler,
            self.tokenizer.decoder(not show_special, strip_space, shown),
            StopMatcher(stop),
            ends,
            n_predict,
            keep,
            on_overflow,
        )
        if len(ids) >= self.n_ctx:
            generation.n_shifted = _cut_middle(sequence.tokens, keep, self.n_ctx)
        self._send(lambda: self._accept(sequence))
        return generation

    def chat_ids(self, messages: Seq[Message], tools: Seq[Message] | None = None, **variables: object) -> tuple[list[int], tuple[str, ...]]:
        """Render a conversation with the model's template and tokenize it; also what the template could not do, as sentences."""
        rendered = self.chat_template.render(messages, tools=tools, variables=variables or None)
        tokenizer = self.tokenizer
        ids = tokenizer.encode(rendered.text, add_special=False, parse_special=True)
        if tokenizer.add_bos and tokenizer.bos_id is not None and ids[:1] != [tokenizer.bos_id]:
            ids.insert(0, tokenizer.bos_id)  # most templates write it themselves; twice would be wrong
        return ids, rendered.notes

    def chat(
        self, messages: Seq[Message], sampling: Sampling | None = None, tools: Seq[Message] | None = None, **options: object
    ) -> Generation:
        """Answer a conversation ([{"role": "user", "content": "..."}]); options as `submit`'s."""
        ids, _ = self.chat_ids(messages, tools)
        return self.submit(ids, sampling, strip_space=True, **options)  # type: ignore[arg-type]

    def complete(self, text: str, sampling: Sampling | None = None, **options: object) -> str:
        """The model's continuation of a text, all at once."""
        ids = self.tokenizer.encode(text)
        return self.submit(ids, sampling, **options).wait().text  # type: ignore[arg-type]

    def forward(self, ids: Seq[int]) -> NDArray[np.float32]:
        """Logits float32 [len(ids), n_vocab] of every position of one sequence."""
        tokens = self._checked(ids, "stop", room=0)
        result: SimpleQueue[NDArray[np.float32] | BaseException] = SimpleQueue()

        def run() -> None:
            try:
                result.put(self._forward(tokens))
            except BaseException as error:
                result.put(error)

        self._send(run)
        answer = result.get()
        if isinstance(answer, BaseException):
            raise answer
        return answer

    def close(self) -> None:
        """Cancel what runs, stop the thread, free everything. May be called twice."""
        if not self._closed:
            self._closed = True
            self._inbox.put(None)
            self._executor.abort()
            self._thread.join()
            self._executor.close()
            self.file.close()

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    # ---- callers' threads, continued

    def _checked(self, ids: Seq[int], on_overflow: Overflow, room: int = 1) -> list[int]:
        tokens = [int(i) for i in ids]
        if not tokens:
            raise GgrunError("the prompt is empty: there is no token to continue from")
        bad = next((i for i in tokens if not 0 <= i < self.spec.n_vocab), None)
        if bad is not None:
            raise GgrunError(f"token id {bad} is outside the model's vocabulary of {self.spec.n_vocab}")
        if len(tokens) + room > self.n_ctx and on_overflow != "shift":
            raise ContextExceeded(
                f"the prompt has {len(tokens)} tokens and the context holds {self.n_ctx}; shorten it or open the model with a larger -c"
            )
        return tokens

    def _send(self, message: Callable[[], None]) -> None:
        if self._closed or not self._thread.is_alive():
            raise GgrunError("the engine is closed")
        self._inbox.put(message)

    def _request_cancel(self, generation: Generation) -> None:
        if not self._closed:
            self._inbox.put(lambda: None)  # wakes the loop, which looks at the flags
            if any(s.generation is generation for s in tuple(self._scheduler.running)):
                self._executor.abort()

    # ---- the engine thread

    def _loop(self) -> None:
        while self._read_inbox():
            self._drop_cancelled()
            if not self._scheduler.busy:
                continue
            try:
                batch, work = self._scheduler.next()
                now = perf_counter()
                for item in work:
                    item.sequence.started = item.sequence.started or now
                logits = self._run(batch, work)
            except Cancelled:
                continue  # whoever was cancelled is dropped above; the others' tokens are computed again
            except Exception as error:
                for sequence in (*self._scheduler.running, *self._scheduler.waiting):
                    self._fail(sequence, error)
                continue
            for item in work:
                try:
                    self._advance(item, logits)
                except Exception as error:
                    self._fail(item.sequence, error)
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

    def _accept(self, sequence: Sequence) -> None:
        for token in sequence.tokens:
            sequence.sampler.accept(token)
        self._scheduler.waiting.append(sequence)

    def _drop_cancelled(self) -> None:
        for sequence in (*self._scheduler.running, *self._scheduler.waiting):
            if sequence.generation.cancelled:
                self._finish(sequence, "cancelled")

    def _fail(self, sequence: Sequence, error: Exception) -> None:
        """Something broke: the caller who waits for this sequence gets the exception."""
        self._scheduler.remove(sequence)
        sequence.generation.events.put(error)

    def _run(self, batch: Batch, work: list[Work]) -> NDArray[np.float32] | Highest:
        """The batch's logits, or just the highest of them when no sampler looks at others."""
        wanted = [item.sequence.sampler.n_highest for item in work if item.row >= 0]
        if wanted and min(wanted) > 0:
            return self._executor.run_highest(batch, min(max(wanted), self.spec.n_vocab))
        return self._executor.run(batch)

    def _advance(self, item: Work, logits: NDArray[np.float32] | Highest) -> None:
        """Book what a batch computed for a sequence and, when its prompt is through, choose the next token."""
        s, timings = item.sequence, item.sequence.generation.timings
        s.advance(item.n, self._pool)
        if not s.prompt_done:
            timings.prompt_n += item.n
        if item.row < 0:
            return
        if not s.prompt_done:
            s.prompt_done = perf_counter()
            timings.prompt_ms = 1e3 * (s.prompt_done - s.started)
        if s.n_predict == 0:
            return self._finish(s, "length")
        token = _sample(s.sampler, logits, item.row)
        if token.id in s.end_of_generation:
            return self._finish(s, "stop")
        s.sampler.accept(token.id)
        s.tokens.append(token.id)
        timings.predicted_n += 1
        timings.predicted_ms = 1e3 * (perf_counter() - s.prompt_done)
        text = s.stops.push(s.decoder.push(token.id))
        s.generation.events.put(TokenEvent(token.id, text, token.logprob))
        if s.stops.found is not None:
            self._finish(s, "stop")
        elif timings.predicted_n == s.n_predict:
            self._finish(s, "length")
        elif len(s.tokens) >= self.n_ctx:
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
        s.generation.events.put(Finished(reason, held, s.stops.found))

    def _forward(self, tokens: list[int]) -> NDArray[np.float32]:
        shape = self.plan.shape
        if self._scheduler.running:
            raise GgrunError("logits of a whole sequence are computed only while nothing else runs")
        out = np.empty((len(tokens), self.spec.n_vocab), np.float32)
        blocks: list[Block] = []
        step = min(shape.n_ubatch, shape.n_logits)
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


def _cut_middle(tokens: list[int], keep: int, n_ctx: int) -> int:
    """Leave the first `keep` tokens and the newest that fill half of the rest of the context; returns how many were dropped."""
    n_tail = (n_ctx - keep) // 2
    n_drop = len(tokens) - keep - n_tail
    del tokens[keep : keep + n_drop]
    return n_drop

"""A Generation: the caller's end of one submitted sequence. Events arrive from the engine thread through a queue."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from queue import SimpleQueue
from threading import Lock
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from ggrun.engine.sampling import SampledToken

FinishReason = Literal["stop", "length", "context_full", "cancelled"]
State = Literal["waiting", "prompt", "answer", "done"]


@dataclass(frozen=True, slots=True)
class TokenEvent:
    """One generated token. text may be empty (an unfinished character or a possible stop word is held back); logprob is natural.

    id is None for what was still held back when the generation ended. top: the likeliest tokens of the model alone, as many as were
    asked for, (id, logprob) in falling order.
    """

    id: int | None
    text: str
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


@dataclass(slots=True)
class Timings:
    """Counts and milliseconds under llama.cpp's names. cache_n prompt tokens were found in the KV cache, prompt_n were computed."""

    cache_n: int = 0
    prompt_n: int = 0
    prompt_ms: float = 0.0
    predicted_n: int = 0
    predicted_ms: float = 0.0

    @property
    def prompt_per_second(self) -> float:
        return 1e3 * self.prompt_n / self.prompt_ms if self.prompt_ms else 0.0

    @property
    def predicted_per_second(self) -> float:
        return 1e3 * self.predicted_n / self.predicted_ms if self.predicted_ms else 0.0

    def as_dict(self) -> dict[str, float | int]:
        """All fields and rates, for --json."""
        return {
            "cache_n": self.cache_n,
            "prompt_n": self.prompt_n,
            "prompt_ms": self.prompt_ms,
            "prompt_per_second": self.prompt_per_second,
            "predicted_n": self.predicted_n,
            "predicted_ms": self.predicted_ms,
            "predicted_per_second": self.predicted_per_second,
        }


@dataclass(frozen=True, slots=True)
class Finished:
    """The last message of a generation; `text` is what was still held back."""

    reason: FinishReason
    text: str
    stop_word: str | None = None


class Generation:
    """Iterate for TokenEvents as they come; afterwards the fields hold the whole. Iterating twice yields nothing more.

    state: in the queue (again, after it was preempted), its prompt being computed, answering, or done. slot: which it has, or had last
    when it is done; -1 for none. n_cut: tokens of the prompt that `truncate` dropped. prompt_scores: what the model thought of the prompt's
    second and later tokens, where that was asked for; complete once the first event has come. listener: called after each event, by
    whichever thread puts it; one that raises is not called again.
    """

    def __init__(
        self,
        prompt_ids: list[int],
        seed: int,
        cancel: Callable[[Generation], None],
        listener: Callable[[Generation], None] | None = None,
    ) -> None:
        self.prompt_ids = prompt_ids
        self.seed = seed
        self.timings = Timings()
        self.finish_reason: FinishReason | None = None
        self.stop_word: str | None = None
        self.ids: list[int] = []
        self.text = ""
        self.state: State = "waiting"
        self.slot = -1
        self.n_cut = 0
        self.prompt_scores: list[SampledToken] = []
        self.n_shifted = 0  # tokens dropped from the middle of the context because it was full
        self.events: SimpleQueue[TokenEvent | Finished | BaseException] = SimpleQueue()
        self.cancelled = False
        self._cancel = cancel
        self._listener = listener
        self._lock = Lock()  # an event comes from the engine's thread, or from one that cancels what still waits

    def __iter__(self) -> Iterator[TokenEvent]:
        while self.finish_reason is None:
            event = self.events.get()
            if isinstance(event, BaseException):
                self.finish_reason = "cancelled"
                raise event
            if isinstance(event, Finished):
                self.finish_reason, self.stop_word = event.reason, event.stop_word
                if event.text:
                    self.text += event.text
                    yield TokenEvent(None, event.text, 0.0)
                return
            if event.id is not None:
                self.ids.append(event.id)
            self.text += event.text
            yield event

    def wait(self) -> Generation:
        """Read all events; returns itself."""
        for _ in self:
            pass
        return self

    def put(self, event: TokenEvent | Finished | BaseException) -> bool:
        """Hand an event to whoever reads; all but a TokenEvent is the last. False when the last one came before it."""
        with self._lock:
            if self.state == "done":
                return False
            if not isinstance(event, TokenEvent):
                self.state = "done"
            self.events.put(event)
        if self._listener is not None:
            try:
                self._listener(self)
            except Exception:  # its reader is gone
                self._listener = None
        return True

    def enter(self, state: State) -> None:
        """For the engine's thread: what becomes of it now, unless it is done."""
        with self._lock:
            if self.state != "done":
                self.state = state

    def cancel(self) -> None:
        """Stop it, from any thread, within 200 ms; what was generated stays. A finished generation is left alone."""
        self.cancelled = True
        if not self.timings.predicted_n:
            self.put(Finished("cancelled", ""))  # at once, as nothing of it is held back: the engine may be busy with others for long
        self._cancel(self)

"""Several generations of one request, read as one stream of pieces on the event loop.

The engine's thread wakes the loop when there is something to read; no thread waits for a request. Must not know any API's shapes.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final

from ggrun.engine.generation import Finished
from ggrun.server.errors import ApiError
from ggrun.server.task import Call, End, FinishReason, Piece, Text, Thought, Usage

if TYPE_CHECKING:
    from collections.abc import Awaitable

    from ggrun.engine.generation import Generation, TokenEvent
    from ggrun.server.answering import Prepared
    from ggrun.server.logprobs import TokenLogs
    from ggrun.server.reading import Part, Reader
    from ggrun.server.shelf import OpenModel

MAX_UNREAD: Final = 8192  # events of a generation that may wait for a client; beyond it the client counts as gone
_AT_ONCE: Final = 64  # events read of one choice before the others get their turn

_REASONS: Final[dict[str, FinishReason]] = {"stop": "stop", "length": "length", "context_full": "length"}


class Choice:
    """One generation and what its events become."""

    def __init__(self, number: int, prepared: Prepared, reader: Reader, logs: TokenLogs) -> None:
        self.number = number
        self.prepared = prepared
        self.generation: Generation | None = None
        self.finished = False
        self.too_slow = False
        self._enough = False
        self.n_read = 0
        self.has_new_line = False
        self._reader = reader
        self._logs = logs
        self._n_thought = 0
        self._thinking = False
        self._called = False

    def read(self, n: int) -> list[Piece]:
        """What up to n waiting events say. Raises what broke the generation."""
        assert self.generation is not None
        pieces: list[Piece] = []
        events = self.generation.events
        for _ in range(n):
            if self.finished or events.empty():
                break
            event = events.get_nowait()
            if isinstance(event, BaseException):
                self.finished = True
                raise event
            if isinstance(event, Finished):
                self.finished = True
                pieces += self._end(event)
            else:
                pieces += self._token(event)
        return pieces

    @property
    def slot(self) -> int:
        """Which it has or had, -1 while it waits."""
        return -1 if self.generation is None else self.generation.slot

    def cancel(self) -> None:
        """Stop the generation, if it runs."""
        if self.generation is not None and not self.finished:
            self.finished = True
            self.generation.cancel()

    def _token(self, event: TokenEvent) -> list[Piece]:
        self._logs.add(event)
        assert self.generation is not None
        self.n_read += event.id is not None
        self.has_new_line = self.has_new_line or "\n" in event.text
        parts: Sequence[Part] = self._reader.push(event.text) if event.text and not self._enough else ()
        if not self._enough and self._reader.done:
            self._enough = True
            self.generation.cancel()
        if parts:
            self._thinking = isinstance(parts[-1], Thought)
        self._n_thought += self._thinking
        return self._logged(parts)

    def _logged(self, parts: Sequence[Part]) -> list[Piece]:
        self._called = self._called or any(isinstance(part, Call) and part.state == "done" for part in parts)
        return [
            type(part)(part.choice, part.text, self._logs.take(part.text)) if isinstance(part, (Text, Thought)) else part for part in parts
        ]

    def _end(self, event: Finished) -> list[Piece]:
        generation = self.generation
        assert generation is not None
        generation.finish_reason, generation.stop_word = event.reason, event.stop_word
        if event.reason == "cancelled" and not self._enough:
            if self.too_slow:
                raise ApiError(408, f"the answer was stopped: {MAX_UNREAD} pieces of it waited and nobody read them", type="timeout_error")
            raise ApiError(503, "the answer was stopped: the server is shutting down or unloads this model", type="unavailable_error")
        pieces = [] if self._enough else self._logged([*self._reader.push(event.text), *self._reader.finish()])
        if event.stop_word is None and not self._called and (rest := self._logs.rest()):
            pieces.append(Text(self.number, "", rest))
        reason: FinishReason = "stop" if self._enough else _REASONS[event.reason]
        pieces.append(
            End(
                self.number,
                "tool_calls" if self._called and reason == "stop" else reason,
                usage_of(generation, self._n_thought),
                timings_of(generation),
                event.stop_word,
                generation.n_shifted + getattr(generation, "n_cut", 0),
                generation.seed,
            )
        )
        return pieces


class _Bell:
    """Wakes the event loop from the engine's thread, once for all that comes before it looks."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._event = asyncio.Event()
        self._rung = False

    def ring(self) -> None:
        if not self._rung:
            self._rung = True
            with suppress(RuntimeError):  # the loop is closed: nobody is left to read
                self._loop.call_soon_threadsafe(self._event.set)

    def reset(self) -> None:
        self._rung = False
        self._event.clear()

    async def wait(self) -> None:
        await self._event.wait()


class Answer(AsyncIterator[Piece]):
    """The pieces of all choices as they come, each choice's in order and the last of each an End.

    Use it with `async with`, or call `aclose`: that cancels what still runs and lets go of the model. What fails raises from the
    iteration. A client that reads slowly holds nobody up: events wait, MAX_UNREAD of each choice at most, and then it is cancelled.
    """

    def __init__(self, model: OpenModel, release: Callable[[], Awaitable[object]]) -> None:
        self.model = model
        self.choices: list[Choice] = []
        self._release = release
        self._bell = _Bell()
        self._ready: deque[Piece] = deque()
        self._closed = False

    def start(self, choice: Choice, submit: Callable[..., Generation]) -> None:
        """Submit a choice's generation: submit(listener=...)."""
        bell = self._bell  # not self: an Answer that is dropped has to go, while its generations are still heard
        watch = self.model.metrics.watch(self.model.name) if self.model.metrics else None

        def listener(generation: Generation) -> None:
            if watch:
                watch.seen(generation)
            if generation.events.qsize() > MAX_UNREAD and not choice.too_slow:
                choice.too_slow = True
                generation.cancel()
            bell.ring()

        choice.generation = submit(listener=listener)
        self.choices.append(choice)

    @property
    def prompt_ids(self) -> list[int]:
        """Of the first choice."""
        return self.generation(0).prompt_ids

    def generation(self, choice: int) -> Generation:
        """The generation behind a choice."""
        generation = self.choices[choice].generation
        assert generation is not None
        return generation

    def timings(self, choice: int) -> dict[str, float | int]:
        """A choice's timings as they are now, under llama.cpp's names."""
        return timings_of(self.generation(choice))

    async def __anext__(self) -> Piece:
        try:
            while not self._ready:
                if all(choice.finished for choice in self.choices):
                    raise StopAsyncIteration
                self._bell.reset()  # before reading: what comes from here on rings again
                more = self._read()
                if not self._ready and not more:
                    await self._bell.wait()
                elif not self._ready:
                    await asyncio.sleep(0)
        except BaseException:
            await self.aclose()
            raise
        return self._ready.popleft()

    async def aclose(self) -> None:
        """Cancel all that runs and let go of the model. May be called twice."""
        for choice in self.choices:
            choice.cancel()
        if not self._closed:
            self._closed = True
            await self._release()

    async def __aenter__(self) -> Answer:
        return self

    async def __aexit__(self, *error: Any) -> None:
        await self.aclose()

    def __del__(self) -> None:
        for choice in getattr(self, "choices", ()):  # dropped unread: nobody pays for an answer nobody gets
            with suppress(Exception):
                choice.cancel()

    def _read(self) -> bool:
        """Take waiting events of each choice in turn; whether some are left."""
        for choice in self.choices:
            if not choice.finished:
                self._ready.extend(choice.read(_AT_ONCE))
        return any(not choice.finished and not self.generation(i).events.empty() for i, choice in enumerate(self.choices))


def usage_of(generation: Generation, n_thought: int = 0) -> Usage:
    """The tokens of a generation."""
    timings = generation.timings
    return Usage(len(generation.prompt_ids), timings.cache_n, timings.predicted_n, min(n_thought, timings.predicted_n))


def timings_of(generation: Generation) -> dict[str, float | int]:
    """Counts, milliseconds and rates under llama.cpp's names."""
    timings = generation.timings
    return timings.as_dict() | {
        "prompt_per_token_ms": timings.prompt_ms / timings.prompt_n if timings.prompt_n else 0.0,
        "predicted_per_token_ms": timings.predicted_ms / timings.predicted_n if timings.predicted_n else 0.0,
    }

"""The way of every request that generates: start it, then answer whole or as a stream, and stop it when the client goes away."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import aclosing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from ggrun.server.answering import Whole, ask, collect
from ggrun.server.choices import Answer
from ggrun.server.streaming import event_stream, json_response, until_gone

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import Response

    from ggrun.server.task import Piece, Task

PROGRESS_SECONDS: Final = 0.25
_LETTERS: Final = "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"


async def whole(request: Request, name: str | None, tasks: list[Task], shape: Callable[[Answer, list[Whole]], Any]) -> Response:
    """The answer to tasks in one JSON body, in an API's shape."""

    async def work() -> Any:
        answer = await ask(request.app.state.shelf, name, *tasks)
        return shape(answer, await collect(answer))

    return json_response(await until_gone(request, work()))


def stream(request: Request, name: str | None, tasks: list[Task], frames: Callable[[Answer], AsyncGenerator[bytes, None]]) -> Response:
    """The answer to tasks as server-sent events. What is wrong with them still becomes a response with its status."""

    async def chunks() -> AsyncGenerator[bytes, None]:
        async with await ask(request.app.state.shelf, name, *tasks) as answer, aclosing(frames(answer)) as made:
            async for frame in made:
                yield frame

    return event_stream(request, chunks())


@dataclass(frozen=True, slots=True)
class PromptProgress:
    """How far a choice's prompt is: `processed` of its `total` tokens, `cached` of them found; ms since it was begun to be watched."""

    choice: int
    total: int
    cached: int
    processed: int
    ms: float

    def shown(self) -> dict[str, float | int]:
        """Under llama.cpp's names."""
        return {"total": self.total, "cache": self.cached, "processed": self.processed, "time_ms": self.ms}


async def watched(answer: Answer, progress: bool) -> AsyncGenerator[Piece | PromptProgress, None]:
    """The pieces of an answer and, if wanted, a few times a second how far the prompts are that are being computed."""
    if not progress:
        async for piece in answer:
            yield piece
        return
    begun = time.monotonic()
    pull: asyncio.Future[Piece | None] = asyncio.ensure_future(anext(answer, None))
    try:
        while True:
            await asyncio.wait({pull}, timeout=PROGRESS_SECONDS)
            if not pull.done():
                for told in _progress(answer, 1e3 * (time.monotonic() - begun)):
                    yield told
                continue
            pulled = pull.result()
            if pulled is None:
                return
            pull = asyncio.ensure_future(anext(answer, None))
            yield pulled
    finally:
        pull.cancel()


def _progress(answer: Answer, ms: float) -> Iterator[PromptProgress]:
    slots = answer.model.engine.status().slots
    for choice in answer.choices:
        generation = choice.generation
        if generation is not None and generation.state == "prompt" and 0 <= generation.slot < len(slots):
            slot = slots[generation.slot]
            yield PromptProgress(choice.number, slot.n_prompt, generation.timings.cache_n, slot.n_prompt_done, ms)


def new_id(prefix: str) -> str:
    """An id such as chatcmpl-4fW..., unlike any other."""
    return prefix + "".join(secrets.choice(_LETTERS) for _ in range(29))

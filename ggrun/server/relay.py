"""The way of every request that generates: start it, then answer whole or as a stream, and stop it when the client goes away."""

from __future__ import annotations

import secrets
from collections.abc import AsyncGenerator, Callable
from typing import TYPE_CHECKING, Any, Final

from ggrun.server.answering import Whole, ask, collect
from ggrun.server.choices import Answer
from ggrun.server.streaming import event_stream, json_response, until_gone

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import Response

    from ggrun.server.task import Task

_LETTERS: Final = "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"


async def whole(request: Request, name: str | None, tasks: list[Task], shape: Callable[[Answer, list[Whole]], Any]) -> Response:
    """The answer to tasks in one JSON body, in an API's shape."""

    async def work() -> Any:
        answer = await ask(request.app.state.shelf, name, *tasks, settings=request.app.state.settings)
        return shape(answer, await collect(answer))

    return json_response(await until_gone(request, work()))


async def stream(request: Request, name: str | None, tasks: list[Task], frames: Callable[[Answer], AsyncGenerator[bytes, None]]) -> Response:
    """The answer to tasks as server-sent events."""
    answer = await ask(request.app.state.shelf, name, *tasks, settings=request.app.state.settings)
    return event_stream(request, frames(answer), answer.aclose)


def new_id(prefix: str) -> str:
    """An id such as chatcmpl-4fW..., unlike any other."""
    return prefix + "".join(secrets.choice(_LETTERS) for _ in range(29))

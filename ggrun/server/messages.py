"""Anthropic's /v1/messages and /v1/messages/count_tokens. Headers of that API (anthropic-version, anthropic-beta) are accepted."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Any, Final

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from ggrun.server.answering import ask
from ggrun.server.body import read
from ggrun.server.messages_events import Answer
from ggrun.server.messages_request import CountRequest, MessagesRequest, task_of
from ggrun.server.operation import JSON, operation
from ggrun.server.rendering import prompt_ids
from ggrun.server.streaming import event, event_stream, json_response, until_gone
from ggrun.server.task import Task


@operation(
    "Answer, as Anthropic's messages",
    request=MessagesRequest,
    answer="the message, or its events with `stream`",
    kinds=(JSON, "text/event-stream"),
)
async def create(request: Request) -> Response:
    """POST /v1/messages."""
    asked = await read(request, MessagesRequest)
    task = task_of(asked)
    if asked.stream:
        return event_stream(request, _frames(request, asked, task))
    return json_response(await until_gone(request, _whole(request, asked, task)))


@operation("Count the tokens of a conversation", request=CountRequest, answer="the number of tokens of its prompt")
async def count_tokens(request: Request) -> Response:
    """POST /v1/messages/count_tokens."""
    asked = await read(request, CountRequest)
    task = task_of(asked)

    async def count() -> int:
        async with request.app.state.shelf.use(asked.model) as model:
            return len(await prompt_ids(model, task))

    return json_response({"input_tokens": await until_gone(request, count())})


async def _whole(request: Request, asked: MessagesRequest, task: Task) -> dict[str, Any]:
    async with await ask(request.app.state.shelf, asked.model, task) as pieces:
        answer = Answer(pieces.model.name, len(pieces.prompt_ids), asked.max_tokens)
        async for piece in pieces:
            for _ in answer.push(piece):
                pass  # events are for streams
        return answer.message


async def _frames(request: Request, asked: MessagesRequest, task: Task) -> AsyncGenerator[bytes, None]:
    async with await ask(request.app.state.shelf, asked.model, task) as pieces:
        answer = Answer(pieces.model.name, len(pieces.prompt_ids), asked.max_tokens)
        for told in answer.opening():
            yield event(msgspec.json.encode(told), told["type"])
        async for piece in pieces:
            for told in answer.push(piece):
                yield event(msgspec.json.encode(told), told["type"])


ROUTES: Final = [
    Route("/v1/messages", create, methods=["POST"]),
    Route("/v1/messages/count_tokens", count_tokens, methods=["POST"]),
]

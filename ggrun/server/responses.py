"""OpenAI's /v1/responses: answers as items, streamed as events, and kept for a while so that the next request may go on from them.

`store: false` answers are not kept; the others are, in memory, until there are too many (see `responses_store`).
"""

from __future__ import annotations

import re
from collections.abc import AsyncGenerator, Sequence
from secrets import token_hex
from time import time
from typing import Any, Final

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from ggrun.server import errors
from ggrun.server.answering import ask
from ggrun.server.body import read
from ggrun.server.errors import ApiError
from ggrun.server.operation import JSON, operation
from ggrun.server.responses_events import Answer, Event
from ggrun.server.responses_items import Item, Message, messages_of, named, resolved, shown
from ggrun.server.responses_request import ResponsesRequest, ToolChoice, new_messages, task_of
from ggrun.server.responses_store import ResponseStore, Stored
from ggrun.server.streaming import event, event_stream, json_response, until_gone
from ggrun.server.task import End

STREAM: Final = "text/event-stream"
MOST_ITEMS: Final = 100  # of one list


@operation(
    "Answer, as OpenAI's responses", request=ResponsesRequest, answer="the response, or its events with `stream`", kinds=(JSON, STREAM)
)  # fmt: skip
async def create(request: Request) -> Response:
    """POST /v1/responses."""
    asked, earlier = await _asked(request)
    if asked.stream:
        return event_stream(request, _frames(request, asked, earlier))
    return json_response(await until_gone(request, _whole(request, asked, earlier)))


@operation("Count the tokens of a request", request=ResponsesRequest, answer="the number of tokens of its prompt")
async def input_tokens(request: Request) -> Response:
    """POST /v1/responses/input_tokens."""
    from ggrun.server.rendering import prompt_ids

    asked, earlier = await _asked(request)
    task = task_of(asked, earlier)

    async def count() -> int:
        async with request.app.state.shelf.use(asked.model) as model:
            return len(await prompt_ids(model, task))

    return json_response({"object": "response.input_tokens", "input_tokens": await until_gone(request, count())})


@operation("A response given before", answer="the response as it was given", query={"include": "has no effect", "stream": "not supported"})
async def retrieve(request: Request) -> Response:
    """GET /v1/responses/{id}."""
    if request.query_params.get("stream", "false").lower() == "true":
        raise ApiError(400, "a response that was given is not streamed again; leave stream out", param="stream")
    return Response(_stored(request).body, media_type=JSON)


@operation("Forget a response", answer="its id, and that it is deleted")
async def delete(request: Request) -> Response:
    """DELETE /v1/responses/{id}."""
    _stored(request)
    id_ = request.path_params["id"]
    store_of(request).remove(id_)
    return json_response({"id": id_, "object": "response", "deleted": True})


@operation(
    "The items a response was made of",
    answer="a list of items, the newest first",
    query={"limit": "1 to 100; 20", "order": "asc or desc", "after": "the id of an item: those that follow it", "include": "has no effect"},
)
async def input_items(request: Request) -> Response:
    """GET /v1/responses/{id}/input_items."""
    inputs, query = _stored(request).inputs, request.query_params
    order, limit, after = query.get("order", "desc"), query.get("limit", "20"), query.get("after")
    if order not in ("asc", "desc"):
        raise ApiError(400, f"order is asc or desc, not {order!r:.40}", param="order")
    if not re.fullmatch("[0-9]{1,3}", limit, re.ASCII) or not 1 <= int(limit) <= MOST_ITEMS:
        raise ApiError(400, f"limit must be between 1 and {MOST_ITEMS}, not {limit!r:.40}", param="limit")
    items = [shown(item) for item in (inputs if order == "asc" else reversed(inputs))]
    if after is not None:
        at = next((i for i, item in enumerate(items) if item["id"] == after), None)
        if at is None:
            raise ApiError(400, f"after names {after!r:.80}, which is no item of this response", param="after")
        items = items[at + 1 :]
    data = items[: int(limit)]
    ends = {"first_id": data[0]["id"], "last_id": data[-1]["id"]} if data else {"first_id": None, "last_id": None}
    return json_response({"object": "list", "data": data, "has_more": len(items) > len(data), **ends})


def store_of(request: Request) -> ResponseStore:
    """The app's store of responses."""
    state = request.app.state
    if not hasattr(state, "responses"):
        state.responses = ResponseStore()
    store: ResponseStore = state.responses
    return store


def _stored(request: Request) -> Stored:
    id_ = request.path_params["id"]
    if stored := store_of(request).get(id_):
        return stored
    raise ApiError(404, f"there is no response {id_:.80}: it was not stored, or has been forgotten", param="id")


async def _asked(request: Request) -> tuple[ResponsesRequest, Sequence[Message]]:
    """The body, with the items it only refers to, and the messages of the response it goes on from."""
    asked, store = await read(request, ResponsesRequest), store_of(request)
    if isinstance(asked.input, list):
        asked.input = resolved(asked.input, store.item)
    return asked, _earlier(store, asked)


def _earlier(store: ResponseStore, asked: ResponsesRequest) -> Sequence[Message]:
    if asked.previous_response_id is None:
        return ()
    if stored := store.get(asked.previous_response_id):
        return stored.messages
    raise ApiError(
        400,
        f"there is no response {asked.previous_response_id:.80} to go on from: not stored, or forgotten since; send the whole input",
        code="previous_response_not_found",
        param="previous_response_id",
    )


async def _whole(request: Request, asked: ResponsesRequest, earlier: Sequence[Message]) -> dict[str, Any]:
    async with await ask(request.app.state.shelf, asked.model, task_of(asked, earlier)) as pieces:
        answer = _answer(asked, pieces.model.name)
        async for piece in pieces:
            for _ in answer.push(piece):
                pass  # events are for streams
        _keep(request, asked, earlier, answer.response)
        return answer.response


async def _frames(request: Request, asked: ResponsesRequest, earlier: Sequence[Message]) -> AsyncGenerator[bytes, None]:
    async with await ask(request.app.state.shelf, asked.model, task_of(asked, earlier)) as pieces:
        answer = _answer(asked, pieces.model.name)
        for told in answer.opening():
            yield _frame(told)
        try:
            async for piece in pieces:
                made = answer.push(piece)
                if isinstance(piece, End):  # kept before the client reads of its end, and asks to go on from it
                    made = iter([*made])
                    _keep(request, asked, earlier, answer.response)
                for told in made:
                    yield _frame(told)
        except Exception as error:
            fault = errors.told(error)
            if fault.status >= 500:
                errors.log(error, request.url.path)
            for told in answer.fail(fault.message):
                yield _frame(told)


def _frame(told: Event) -> bytes:
    return event(msgspec.json.encode(told), told["type"])


def _keep(request: Request, asked: ResponsesRequest, earlier: Sequence[Message], response: dict[str, Any]) -> None:
    if asked.store is False:
        return
    body = msgspec.json.encode(response)
    items = msgspec.convert(response["output"], tuple[Item, ...])
    messages = (*earlier, *new_messages(asked), *messages_of(items))
    store = store_of(request)
    before = store.get(asked.previous_response_id) if asked.previous_response_id else None
    inputs = (*(before.inputs + before.items if before else ()), *named(asked.input))
    n_bytes = len(body) + len(msgspec.json.encode(messages)) + len(msgspec.json.encode(inputs))
    store.put(response["id"], Stored(body, messages, n_bytes, items, inputs))


def _answer(asked: ResponsesRequest, model: str) -> Answer:
    """A response with nothing in it yet, which repeats what was asked as OpenAI's does."""
    form = asked.text.format if asked.text and asked.text.format else None
    reasoning = asked.reasoning
    response = {
        "id": f"resp_{token_hex(16)}",
        "object": "response",
        "created_at": int(time()),
        "completed_at": None,
        "status": "in_progress",
        "background": False,
        "error": None,
        "incomplete_details": None,
        "instructions": asked.instructions,
        "max_output_tokens": asked.max_output_tokens,
        "max_tool_calls": asked.max_tool_calls,
        "metadata": asked.metadata or {},
        "model": model,
        "output": [],
        "parallel_tool_calls": asked.parallel_tool_calls is not False,
        "previous_response_id": asked.previous_response_id,
        "prompt_cache_key": asked.prompt_cache_key,
        "reasoning": {"effort": reasoning.effort if reasoning else None, "summary": None},
        "safety_identifier": asked.safety_identifier,
        "service_tier": "default",
        "store": asked.store is not False,
        "temperature": asked.temperature,
        "text": {"format": _given(form) if form else {"type": "text"}, "verbosity": "medium"},
        "tool_choice": _given(asked.tool_choice) if isinstance(asked.tool_choice, ToolChoice) else asked.tool_choice or "auto",
        "tools": [{"parameters": None, "strict": None, **_given(tool)} for tool in asked.tools or ()],
        "top_logprobs": asked.top_logprobs or 0,
        "top_p": asked.top_p,
        "truncation": asked.truncation or "disabled",
        "usage": None,
        "user": asked.user,
    }
    logs = asked.top_logprobs is not None or "message.output_text.logprobs" in (asked.include or ())
    return Answer(response, logs)


def _given(struct: msgspec.Struct) -> dict[str, Any]:
    """A struct without what was left out."""
    return {name: value for name, value in msgspec.to_builtins(struct).items() if value is not None}


ROUTES: Final = [
    Route("/v1/responses", create, methods=["POST"]),
    Route("/responses", create, methods=["POST"], name="responses_short"),
    Route("/v1/responses/input_tokens", input_tokens, methods=["POST"]),
    Route("/v1/responses/{id}/input_items", input_items, methods=["GET"]),
    Route("/v1/responses/{id}", retrieve, methods=["GET"]),
    Route("/v1/responses/{id}", delete, methods=["DELETE"]),
]

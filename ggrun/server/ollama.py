"""Ollama's /api/chat and /api/generate. Streams by default, a JSON object a line.

A request for nothing loads the model. `keep_alive: 0` unloads it as soon as nobody uses it; how long else it stays is the server's
business (`--sleep-idle-seconds`).
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from dataclasses import replace
from time import perf_counter_ns
from typing import TYPE_CHECKING, Final

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from ggrun.server.answering import ask
from ggrun.server.body import read
from ggrun.server.errors import ApiError
from ggrun.server.ollama_answers import Line, Lines, joined
from ggrun.server.ollama_request import ChatRequest, GenerateRequest, chat_task, generate_task, known_name, n_ctx_asked
from ggrun.server.operation import JSON, operation
from ggrun.server.rendering import rendered, tell
from ggrun.server.streaming import json_response, line_stream, until_gone
from ggrun.server.task import End, Task

if TYPE_CHECKING:
    from ggrun.server.shelf import OpenModel, Shelf
    from ggrun.text import Tokenizer

KINDS: Final = ("application/x-ndjson", JSON)
ANSWER: Final = "the answer, a JSON object a line; one object with `stream: false`"


@operation("Answer a conversation, as Ollama does", request=ChatRequest, answer=ANSWER, kinds=KINDS)
async def chat(request: Request) -> Response:
    """POST /api/chat."""
    asked = await read(request, ChatRequest)
    return await _respond(request, asked, chat_task(asked) if asked.messages else None)


@operation("Continue a prompt, as Ollama does", request=GenerateRequest, answer=ANSWER, kinds=KINDS)
async def generate(request: Request) -> Response:
    """POST /api/generate."""
    asked = await read(request, GenerateRequest)
    return await _respond(request, asked, generate_task(asked) if asked.prompt or asked.suffix else None)


def model_name(request: Request, name: str) -> str:
    """The name the shelf knows a model by."""
    shelf: Shelf = request.app.state.shelf
    return known_name(name, [known for model in shelf.models() for known in (model.name, *model.aliases)])


async def _respond(request: Request, asked: ChatRequest | GenerateRequest, task: Task | None) -> Response:
    lines = _load(request, asked) if task is None else _lines(request, asked, task)
    if asked.stream is not False:
        return line_stream(request, _written(lines))
    return json_response(await until_gone(request, _whole(lines)))


async def _written(lines: AsyncGenerator[Line, None]) -> AsyncGenerator[bytes, None]:
    try:
        async for line in lines:
            yield msgspec.json.encode(line) + b"\n"
    finally:
        await lines.aclose()


async def _whole(lines: AsyncGenerator[Line, None]) -> Line:
    try:
        return joined([line async for line in lines])
    finally:
        await lines.aclose()


async def _load(request: Request, asked: ChatRequest | GenerateRequest) -> AsyncGenerator[Line, None]:
    """What a request for nothing gets."""
    started, name, chat = perf_counter_ns(), model_name(request, asked.model), isinstance(asked, ChatRequest)
    if _unloads(asked):
        if not any(name in (model.name, *model.aliases) for model in request.app.state.shelf.models()):
            raise ApiError(404, f"model {name!r:.80} not found")
        _unload(request, name)
        yield Lines(name, chat, False, started, started).line("") | {"done": True, "done_reason": "unload"}
        return
    async with request.app.state.shelf.use(name) as model:
        yield Lines(model.name, chat, False, started, perf_counter_ns()).line("") | {"done": True, "done_reason": "load"}


async def _lines(request: Request, asked: ChatRequest | GenerateRequest, task: Task) -> AsyncGenerator[Line, None]:
    started, name = perf_counter_ns(), model_name(request, asked.model)
    keeps = isinstance(asked, GenerateRequest) and not asked.raw and not asked.suffix
    if isinstance(asked, GenerateRequest) and keeps:
        task = await _behind(request, asked.context, name, task)
        task = replace(task, n_top=max(task.n_top, 0))  # so that tokens tell their ids, for the context
    async with await ask(request.app.state.shelf, name, task) as pieces:
        lines = Lines(pieces.model.name, isinstance(asked, ChatRequest), _wants_logs(asked), started, perf_counter_ns())
        _note_context(asked, pieces.model)
        async for piece in pieces:
            for line in lines.push(piece):
                if keeps and isinstance(piece, End) and line["done"]:
                    line["context"] = [*pieces.prompt_ids, *lines.ids, *_turn_end(pieces.model.engine.tokenizer, piece)]
                if isinstance(piece, End) and _unloads(asked):
                    _unload(request, name)
                yield line


def _unloads(asked: ChatRequest | GenerateRequest) -> bool:
    return asked.keep_alive in (0, "0", "0s", "0m", "0h")


def _unload(request: Request, name: str) -> None:
    """Free the model's memory once nobody uses it; nobody waits for that."""
    state = request.app.state
    if not hasattr(state, "unloading"):
        state.unloading = set()
    task = asyncio.ensure_future(state.shelf.unload(name))
    state.unloading.add(task)  # the loop itself does not keep it
    task.add_done_callback(state.unloading.discard)


async def _behind(request: Request, context: Sequence[int] | None, name: str, task: Task) -> Task:
    """The task with its prompt behind the tokens of an earlier answer, as the template writes it without a first token."""
    if not context:
        return task
    async with request.app.state.shelf.use(name) as model:
        text = await rendered(model, task)
        tokenizer: Tokenizer = model.engine.tokenizer
    first = tokenizer.token_text(tokenizer.bos_id) if tokenizer.bos_id is not None else ""
    return replace(task, messages=None, prompt=[*context, text.removeprefix(first)])


def _turn_end(tokenizer: Tokenizer, end: End) -> list[int]:
    """The token that ended the answer, which is no part of it: what follows in a context needs it."""
    last = tokenizer.eot_id if tokenizer.eot_id is not None else tokenizer.eos_id
    return [last] if end.reason == "stop" and end.stop_word is None and last is not None else []


def _wants_logs(asked: ChatRequest | GenerateRequest) -> bool:
    return bool(asked.logprobs) or asked.top_logprobs is not None


def _note_context(asked: ChatRequest | GenerateRequest, model: OpenModel) -> None:
    n_ctx = n_ctx_asked(asked)
    if n_ctx is not None and n_ctx != model.engine.n_ctx:
        tell(model.name, f"a client asks for a context of {n_ctx} tokens (num_ctx); it has {model.engine.n_ctx}, and -c changes that")


ROUTES: Final = [
    Route("/api/chat", chat, methods=["POST"]),
    Route("/api/generate", generate, methods=["POST"]),
]

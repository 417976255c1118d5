"""POST /v1/chat/completions: OpenAI's chat API, with llama.cpp's additions."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Callable, Sequence
from functools import partial
from typing import Any, Final, Literal

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from ggrun.server import fields, relay
from ggrun.server.answering import Whole
from ggrun.server.body import read
from ggrun.server.chat_messages import Function, Tool, read_choice, read_messages, read_tools
from ggrun.server.choices import Answer
from ggrun.server.errors import ApiError
from ggrun.server.openai_shapes import added, chat_logs, head, usage
from ggrun.server.operation import operation
from ggrun.server.streaming import event
from ggrun.server.task import Call, End, Output, Task, Text, Thought
from ggrun.server.thinking import EFFORTS, thinking
from ggrun.text.reasoning import THINK

MOST_CHOICES: Final = 128
MOST_LOGPROBS: Final = 20
DONE: Final = event(b"[DONE]")


class Schema(msgspec.Struct):
    """A JSON schema and its name."""

    schema: dict[str, Any] | bool | None = None
    name: str | None = None
    description: str | None = None
    strict: bool | None = None


class ResponseFormat(msgspec.Struct):
    """What the answer must be. schema: llama.cpp's place for it."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: Schema | None = None
    schema: dict[str, Any] | bool | None = None


class StreamOptions(msgspec.Struct):
    """include_obfuscation is accepted; nothing is obfuscated."""

    include_usage: bool | None = None
    include_obfuscation: bool | None = None


class ChatRequest(fields.LlamaFields, kw_only=True):
    """A conversation to be answered."""

    messages: list[dict[str, Any]]
    model: str | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    stop: fields.Stop = None
    n: int | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    response_format: ResponseFormat | None = None
    tools: list[Tool] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    functions: list[Function] | None = None
    function_call: str | dict[str, Any] | None = None
    reasoning_effort: str | None = None
    reasoning_format: str | None = None
    thinking_budget_tokens: int | None = None
    reasoning_budget_tokens: int | None = None
    reasoning_budget: int | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    # refused when they ask for something
    audio: Any = None
    modalities: list[str] | None = None
    moderation: Any = None
    store: bool | None = None
    verbosity: str | None = None
    web_search_options: Any = None
    add_generation_prompt: bool | None = None
    # without meaning here
    user: str | None = None
    metadata: dict[str, Any] | None = None
    prediction: Any = None
    prompt_cache_key: str | None = None
    prompt_cache_options: Any = None
    prompt_cache_retention: str | None = None
    safety_identifier: str | None = None
    service_tier: str | None = None


_FORMATS: Final = {"auto": True, "deepseek": True, "deepseek-legacy": True, "none": False}
_LEGACY: Final = "deepseek-legacy"
REFUSED: Final[dict[str, tuple[Callable[[Any], bool], str]]] = {
    "audio": (lambda value: not value, "answers are text"),
    "modalities": (lambda value: set(value) <= {"text"}, "answers are text"),
    "moderation": (lambda value: not value, "nothing is moderated here"),
    "store": (lambda value: not value, "chat completions are not kept"),
    "verbosity": (lambda value: value == "medium", "say in the messages how long answers should be"),
    "web_search_options": (lambda value: value is None, "this server searches nothing"),
    "add_generation_prompt": (lambda value: bool(value), "a prompt always leads to an answer; an assistant's last message is continued"),
    "reasoning_format": (lambda value: value in _FORMATS, f"known are {', '.join(_FORMATS)}"),
}


@operation(
    "Answer a conversation (OpenAI)", request=ChatRequest, answer="a chat completion; with `stream` server-sent events, chunk by chunk"
)
async def chat(request: Request) -> Response:
    """OpenAI's chat.completions.create."""
    asked = await read(request, ChatRequest)
    settings = request.app.state.settings
    task = task_of(asked, settings.prefill_assistant)
    both = (asked.reasoning_format or settings.reasoning_format) == _LEGACY
    if not asked.stream:
        return await relay.whole(request, asked.model, [task], partial(_whole, asked, both))
    return relay.stream(request, asked.model, [task], partial(_frames, asked, both))


def task_of(asked: ChatRequest, prefill: bool = True) -> Task:
    """The task. ApiError, with the field's path, for what is wrong or not supported."""
    fields.refuse(asked, {**fields.REFUSED, **REFUSED})
    if asked.stream_options is not None and not asked.stream:
        raise ApiError(400, "stream_options are for streams; send stream: true, too", param="stream_options")
    if asked.top_logprobs and not asked.logprobs:
        raise ApiError(400, "top_logprobs needs logprobs: true", param="top_logprobs")
    fields.between("top_logprobs", asked.top_logprobs, 0, MOST_LOGPROBS)
    fields.between("n_probs", asked.n_probs, 0, MOST_LOGPROBS)
    n = fields.between("n", asked.n, 1, MOST_CHOICES)
    if asked.reasoning_effort is not None and asked.reasoning_effort not in EFFORTS:
        known = ", ".join(EFFORTS)
        raise ApiError(400, f"reasoning_effort must be one of {known}, not {asked.reasoning_effort!r:.40}", param="reasoning_effort")
    messages = read_messages(asked.messages)
    tools = read_tools(asked.tools, asked.functions)
    choice, tools = read_choice(asked.tool_choice if asked.tool_choice is not None else asked.function_call, tools)
    logs = bool(asked.logprobs or asked.n_probs)
    return Task(
        messages=messages,
        tools=tools,
        tool_choice=choice,
        parallel_tool_calls=asked.parallel_tool_calls is not False and asked.functions is None,
        output=_output(asked),
        template={**thinking(asked.reasoning_effort), **(asked.chat_template_kwargs or {})},
        sampling=fields.sampling_fields(asked),
        n_predict=fields.limit(asked, "max_completion_tokens", "max_tokens", "n_predict"),
        stop=fields.stop_words(asked.stop),
        n=n or 1,
        n_top=max(asked.top_logprobs or 0, asked.n_probs or 0) if logs else -1,
        reasoning=None if asked.reasoning_format is None else _FORMATS[asked.reasoning_format],
        thought_limit=fields.limit(asked, "thinking_budget_tokens", "reasoning_budget_tokens", "reasoning_budget"),
        truncate=bool(asked.truncate),
        shift=asked.context_shift,
        prefill=prefill and messages[-1]["role"] == "assistant" and not messages[-1].get("tool_calls"),
        keep=asked.n_keep or 0,
        cache_prompt=asked.cache_prompt,
    )


def _output(asked: ChatRequest) -> Output | None:
    """The form that is asked for, in any of the places for it."""
    form, own = asked.response_format, fields.grammar_of(asked)
    if form is None or form.type == "text":
        return own
    if own is not None:
        raise ApiError(400, f"give response_format or {own.param}, not both", param="response_format")
    if form.type == "json_object":
        return Output("json_object") if form.schema is None else Output("json_schema", form.schema, "response_format.schema")
    nested = form.json_schema.schema if form.json_schema else None
    schema, param = (nested, "response_format.json_schema.schema") if nested is not None else (form.schema, "response_format.schema")
    if schema is None:
        raise ApiError(400, "response_format of type json_schema needs a schema", param="response_format.json_schema.schema")
    return Output("json_schema", schema, param)


def _tags(answer: Answer) -> tuple[str, str]:
    """The marks around a thought in the content: the model's own where it has plain ones."""
    style = answer.choices[0].prepared.style
    return (style.reasoning.begin, style.reasoning.end) if style and not style.reasoning.channels else (THINK.begin, THINK.end)


def _whole(asked: ChatRequest, both: bool, answer: Answer, wholes: Sequence[Whole]) -> dict[str, Any]:
    """both: thoughts are in the content, too, with their tags."""
    ends = [whole.end for whole in wholes if whole.end]
    choices = []
    for index, (whole, end) in enumerate(zip(wholes, ends, strict=True)):
        message: dict[str, Any] = {"role": "assistant", "content": whole.text or (None if whole.calls else ""), "refusal": None}
        if whole.thought:
            message["reasoning_content"] = whole.thought
        if whole.thought and both:
            begin, end_tag = _tags(answer)
            is_cut = end.reason == "length" and not whole.text and not whole.calls
            message["content"] = f"{begin}{whole.thought}{'' if is_cut else end_tag}{whole.text}"
        calls = [{"id": c.id, "type": "function", "function": {"name": c.name, "arguments": c.arguments}} for c in whole.calls.values()]
        if calls and asked.functions:
            message["function_call"] = calls[0]["function"]
        elif calls:
            message["tool_calls"] = calls
        logs = chat_logs([*whole.thought_tokens, *whole.tokens]) if asked.logprobs or asked.n_probs else None
        choices.append({"index": index, "message": message, "logprobs": logs, "finish_reason": _reason(asked, end), **_own(ends, end)})
    body = head(answer, relay.new_id("chatcmpl-"), "chat.completion", int(time.time()))
    return {**body, "choices": choices, "usage": usage(ends, len(ends)), **added(ends)}


async def _frames(asked: ChatRequest, both: bool, answer: Answer) -> AsyncGenerator[bytes, None]:
    with_usage = bool(asked.stream_options and asked.stream_options.include_usage)
    start = head(answer, relay.new_id("chatcmpl-"), "chat.completion.chunk", int(time.time()))
    logged = bool(asked.logprobs or asked.n_probs)
    begun: set[int] = set()
    within: set[int] = set()  # choices whose content is in a thought
    begin_tag, end_tag = _tags(answer) if both else ("", "")
    ends: list[End] = []

    def frame(index: int, delta: dict[str, Any], logs: Any = None, reason: str | None = None, **more: Any) -> bytes:
        choice = {"index": index, "delta": delta, "logprobs": logs, "finish_reason": reason}
        live = {"timings": answer.timings(index)} if asked.timings_per_token else {}
        return event(msgspec.json.encode({**start, "choices": [choice], **({"usage": None} if with_usage else {}), **live, **more}))

    async for piece in relay.watched(answer, bool(asked.return_progress)):
        index = piece.choice
        if index not in begun:
            begun.add(index)
            yield frame(index, {"role": "assistant", "content": "", "refusal": None})
        if index in within and (isinstance(piece, (Text, Call)) or (isinstance(piece, End) and piece.reason != "length")):
            within.discard(index)
            yield frame(index, {"content": end_tag})
        match piece:
            case Text(text=text, tokens=tokens) if text or tokens:
                yield frame(index, {"content": text}, chat_logs(tokens) if logged else None)
            case Thought(text=text, tokens=tokens):
                content = {"content": ("" if index in within else begin_tag) + text} if both else {}
                within |= {index} if both else set()
                yield frame(index, {"reasoning_content": text, **content}, chat_logs(tokens) if logged else None)
            case Call() if piece.id or piece.name or piece.arguments:
                yield frame(index, _delta(asked, piece))
            case relay.PromptProgress():
                yield frame(index, {}, prompt_progress=piece.shown())
            case End():
                ends.append(piece)
                yield frame(index, {}, None, _reason(asked, piece), **added([piece]))
    if with_usage:
        told = sorted(ends, key=lambda end: end.choice)
        yield event(msgspec.json.encode({**start, "choices": [], "usage": usage(told, len(told)), **added(told)}))
    yield DONE


def _delta(asked: ChatRequest, call: Call) -> dict[str, Any]:
    """A part of a tool call."""
    function = {**({"name": call.name} if call.name else {}), "arguments": call.arguments}
    if asked.functions:
        return {"function_call": function}
    begin = {"id": call.id, "type": "function"} if call.id else {}
    return {"tool_calls": [{"index": call.index, **begin, "function": function}]}


def _reason(asked: ChatRequest, end: End) -> str:
    return "function_call" if end.reason == "tool_calls" and asked.functions else end.reason


def _own(ends: Sequence[End], end: End) -> dict[str, Any]:
    """A choice's timings, where several share an answer."""
    return {"timings": end.timings} if len(ends) > 1 else {}


ROUTES: Final = [
    Route("/v1/chat/completions", chat, methods=["POST"]),
    Route("/chat/completions", chat, methods=["POST"], name="chat_short"),
]

"""Requests of Ollama's /api/chat and /api/generate, and the tasks they are.

Knows that API's fields, which of them mean something here, and the names of those that are refused.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Final, Literal

import msgspec
from msgspec import Meta

from ggrun.server.errors import ApiError
from ggrun.server.rendering import tell
from ggrun.server.task import Output, Task
from ggrun.server.thinking import thinking

ChatMessage = dict[str, Any]


class Function(msgspec.Struct):
    """Of a tool (with parameters), or of a call (with arguments)."""

    name: str
    description: str | None = None
    parameters: dict[str, Any] | None = None
    arguments: dict[str, Any] | str | None = None


class Tool(msgspec.Struct):
    function: Function
    type: str = "function"


class ToolCall(msgspec.Struct):
    function: Function
    id: str | None = None


class Message(msgspec.Struct):
    role: Literal["system", "user", "assistant", "tool"]
    content: str | None = None
    thinking: str | None = None
    images: list[Any] | None = None
    tool_calls: list[ToolCall] | None = None
    tool_name: str | None = None
    tool_call_id: str | None = None


class Request(msgspec.Struct, kw_only=True):
    """What both have. think: yes, no, or how much. keep_alive: of 0 alone is there an effect, see `ollama`."""

    model: str
    stream: bool | None = None
    format: str | dict[str, Any] | None = None
    options: dict[str, Any] | None = None
    think: bool | str | None = None
    keep_alive: str | float | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Meta(ge=0, le=20)] | None = None
    truncate: bool | None = None
    shift: bool | None = None


class ChatRequest(Request, kw_only=True):
    """The body of POST /api/chat."""

    messages: list[Message] | None = None
    tools: list[Tool] | None = None


class GenerateRequest(Request, kw_only=True):
    """The body of POST /api/generate."""

    prompt: str | None = None
    suffix: str | None = None
    system: str | None = None
    template: str | None = None
    context: list[int] | None = None
    raw: bool | None = None
    images: list[Any] | None = None
    width: Any = None
    height: Any = None
    steps: Any = None


class Options(msgspec.Struct):
    """What `options` may say that is more than a field of Sampling."""

    num_predict: int | None = None
    num_keep: int | None = None
    num_ctx: int | None = None
    stop: str | list[str] | None = None
    tfs_z: float | None = None
    penalize_newline: bool | None = None


SAMPLING: Final = frozenset(
    "seed temperature top_k top_p min_p typical_p repeat_last_n repeat_penalty presence_penalty frequency_penalty "
    "mirostat mirostat_tau mirostat_eta".split()
)
# how Ollama would load the model, which is loaded already
LOADING: Final = frozenset(
    "numa num_batch num_gpu main_gpu low_vram f16_kv logits_all vocab_only use_mmap use_mlock embedding_only num_thread".split()
)
EFFORTS: Final = ("low", "medium", "high", "max")


def chat_task(request: ChatRequest) -> Task:
    """The task of a conversation. ApiError 400, with the field's path, for what cannot be done."""
    messages = [_message(i, message) for i, message in enumerate(request.messages or ())]
    for i, tool in enumerate(request.tools or ()):
        if tool.type != "function":
            raise ApiError(400, f"tools of type {tool.type!r:.60} are not supported, only functions are", param=f"tools[{i}].type")
    return Task(messages=messages, tools=[_tool(tool) for tool in request.tools or ()], template=_thinking(request), **_settings(request))


def generate_task(request: GenerateRequest) -> Task:
    """The task of a single prompt; one that goes on from a context is still to be put behind it."""
    for name in ("width", "height", "steps", "images"):
        if getattr(request, name):
            raise ApiError(400, f"{name} is not supported: ggrun reads and writes text only", param=name)
    if request.template:
        raise ApiError(400, "template is not supported: it is the model's own; send a whole prompt with raw instead", param="template")
    if request.raw and (request.system or request.context):
        raise ApiError(400, "a raw prompt has neither system nor context", param="raw")
    settings, prompt = _settings(request), request.prompt or ""
    if request.suffix:
        return Task(prompt=prompt, suffix=request.suffix, **settings)
    if request.raw:
        return Task(prompt=prompt, **settings)
    system = [{"role": "system", "content": request.system}] if request.system else []
    return Task(messages=[*system, {"role": "user", "content": prompt}], template=_thinking(request), **settings)


def n_ctx_asked(request: Request) -> int | None:
    """The context the request would like, which cannot be changed."""
    n_ctx = _whole((request.options or {}).get("num_ctx"))
    return n_ctx if isinstance(n_ctx, int) else None


def _settings(request: Request) -> dict[str, Any]:
    """The fields of a Task that options and format are."""
    given = {name: _whole(value) for name, value in (request.options or {}).items()}
    options = _options(given)
    stop = [options.stop] if isinstance(options.stop, str) else options.stop or []
    n_predict = options.num_predict
    logs = request.top_logprobs or 0 if request.logprobs or request.top_logprobs is not None else -1
    return {
        "sampling": {name: value for name, value in given.items() if name in SAMPLING and value is not None},
        "n_predict": max(n_predict, -1) if n_predict is not None else None,
        "keep": options.num_keep or 0,
        "stop": tuple(filter(None, stop)),
        "output": _output(request.format),
        "n_top": logs,
        "truncate": bool(request.truncate),
        "shift": request.shift,
    }


def _whole(value: Any) -> Any:
    """40.0 as 40: some clients have no other numbers."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _options(given: Mapping[str, Any]) -> Options:
    try:
        options = msgspec.convert(dict(given), Options)
    except msgspec.ValidationError as error:
        message, _, path = str(error).partition(" - at ")
        raise ApiError(400, message, param=f"options{path.strip('`').removeprefix('$')}") from None
    if options.tfs_z not in (None, 1):
        raise ApiError(400, "options.tfs_z is not supported: leave it out, or 1", param="options.tfs_z")
    if options.penalize_newline is False:
        what = "options.penalize_newline is not supported: newlines are penalized like other tokens"
        raise ApiError(400, what, param="options.penalize_newline")
    for name in given:
        if name in LOADING:
            tell("ollama", f"the option {name} has no effect on a model that is loaded; give it to ggrun serve")
        elif name not in SAMPLING and name not in Options.__struct_fields__:
            tell("ollama", f"the option {name!r:.80} is not known here and has no effect")
    return options


def _output(form: str | Mapping[str, Any] | None) -> Output | None:
    if form is None or form == "":
        return None
    if form == "json":
        return Output("json_object", param="format")
    if isinstance(form, str):
        raise ApiError(400, f'format is "json" or a JSON schema, not {form!r:.60}', param="format")
    return Output("json_schema", dict(form), "format")


def _thinking(request: Request) -> dict[str, Any]:
    if isinstance(request.think, str) and request.think not in EFFORTS:
        raise ApiError(400, f"think is true, false or one of {', '.join(EFFORTS)}, not {request.think!r:.60}", param="think")
    return thinking(request.think)


def _message(i: int, given: Message) -> ChatMessage:
    if given.images:
        raise ApiError(400, "ggrun reads text only, no images", param=f"messages[{i}].images")
    message: ChatMessage = {"role": given.role, "content": given.content or ""}
    if given.thinking:
        message["reasoning_content"] = given.thinking
    if given.tool_calls:
        message["tool_calls"] = [_call(call) for call in given.tool_calls]
    if given.tool_name:
        message["name"] = given.tool_name
    if given.tool_call_id:
        message["tool_call_id"] = given.tool_call_id
    return message


def _call(given: ToolCall) -> ChatMessage:
    function = {"name": given.function.name, "arguments": given.function.arguments or {}}
    return ({"id": given.id} if given.id else {}) | {"type": "function", "function": function}


def _tool(tool: Tool) -> ChatMessage:
    function: ChatMessage = {"name": tool.function.name, "description": tool.function.description or ""}
    if tool.function.parameters is not None:
        function["parameters"] = tool.function.parameters
    return {"type": "function", "function": function}


def known_name(name: str, known: Sequence[str]) -> str:
    """A model's name without the tag Ollama adds where none is given, if that is what it is known by."""
    stem = name.removesuffix(":latest")
    return stem if name not in known and stem in known else name

"""A request of OpenAI's /v1/responses, and the task it is.

Knows that API's fields, which of them mean something here, and the names of those that are refused.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Final, Literal

import msgspec
from msgspec import Meta

from ggrun.server.errors import ApiError
from ggrun.server.responses_items import Item, Message, messages_of, with_instructions
from ggrun.server.task import Output, Task
from ggrun.server.thinking import thinking


class Tool(msgspec.Struct):
    """A function. Tools of other types are refused: there is nobody here who would run them."""

    type: str
    name: str | None = None
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class ToolChoice(msgspec.Struct):
    """{"type": "function", "name"}, or {"type": "allowed_tools", "mode", "tools"}."""

    type: str
    name: str | None = None
    mode: Literal["auto", "required"] = "auto"
    tools: list[dict[str, Any]] = []


class Format(msgspec.Struct):
    """text, json_object, or json_schema with a schema."""

    type: str = "text"
    name: str | None = None
    description: str | None = None
    schema: dict[str, Any] | None = None
    strict: bool | None = None


class TextConfig(msgspec.Struct):
    format: Format | None = None
    verbosity: str | None = None


class Reasoning(msgspec.Struct):
    """effort reaches the template; what is thought comes as reasoning_text, whatever kind of summary is asked for."""

    effort: Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"] | None = None
    summary: str | None = None
    generate_summary: str | None = None
    context: str | None = None
    mode: str | None = None


class ResponsesRequest(msgspec.Struct):
    """The body of POST /v1/responses. The last block of fields has no meaning on one's own machine and is accepted."""

    input: str | list[Item] | None = None
    model: str | None = None
    instructions: str | None = None
    previous_response_id: str | None = None
    stream: bool | None = None
    store: bool | None = None
    tools: list[Tool] | None = None
    tool_choice: str | ToolChoice | None = None
    parallel_tool_calls: bool | None = None
    text: TextConfig | None = None
    reasoning: Reasoning | None = None
    max_output_tokens: Annotated[int, Meta(ge=1)] | None = None
    temperature: Annotated[float, Meta(ge=0)] | None = None
    top_p: Annotated[float, Meta(ge=0, le=1)] | None = None
    top_logprobs: Annotated[int, Meta(ge=0, le=20)] | None = None
    truncation: Literal["auto", "disabled"] | None = None
    include: list[str] | None = None
    metadata: dict[str, Any] | None = None

    background: bool | None = None
    conversation: Any = None
    prompt: Any = None
    context_management: Any = None
    moderation: Any = None

    stream_options: Any = None
    max_tool_calls: int | None = None
    user: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    prompt_cache_retention: str | None = None
    prompt_cache_options: Any = None
    service_tier: str | None = None


# field -> why it is refused
REFUSED: Final = {
    "background": "answers are not made in the background; leave it out and stream instead",
    "conversation": "conversations are not kept; use previous_response_id",
    "prompt": "there are no stored prompts; write instructions and input",
    "context_management": "conversations are not compacted; use truncation",
    "moderation": "nothing is moderated here",
}


def task_of(request: ResponsesRequest, earlier: Sequence[Message] = ()) -> Task:
    """The task. earlier: the messages of the response it goes on from. ApiError 400, with the field's path, for what cannot be done."""
    for name, why in REFUSED.items():
        if getattr(request, name):
            raise ApiError(400, f"{name} is not supported: {why}", param=name)
    if request.input is None or request.input == []:
        raise ApiError(400, "input is missing: a text, or a list of items", param="input")
    if request.text and request.text.verbosity not in (None, "medium"):
        raise ApiError(400, "text.verbosity is not supported: say in the instructions how long answers should be", param="text.verbosity")
    tools, choice = _tools(request.tools or (), request.tool_choice)
    sampling = {name: getattr(request, name) for name in ("temperature", "top_p") if getattr(request, name) is not None}
    logs = request.top_logprobs is not None or "message.output_text.logprobs" in (request.include or ())
    return Task(
        messages=with_instructions(request.instructions, [*earlier, *new_messages(request)]),
        tools=tools,
        tool_choice=choice,
        parallel_tool_calls=request.parallel_tool_calls is not False,
        output=_output(request.text),
        template=thinking(request.reasoning.effort if request.reasoning else None),
        sampling=sampling,
        n_predict=request.max_output_tokens,
        n_top=(request.top_logprobs or 0) if logs else -1,
        truncate=request.truncation == "auto",
    )


def new_messages(request: ResponsesRequest) -> list[Message]:
    """What the request adds to the conversation."""
    if isinstance(request.input, str):
        return [{"role": "user", "content": request.input}]
    return messages_of(request.input or ())


def _tools(tools: Sequence[Tool], choice: str | ToolChoice | None) -> tuple[list[Message], str]:
    """OpenAI's chat tools, and the choice among them."""
    for i, tool in enumerate(tools):
        if tool.type != "function":
            raise ApiError(400, f"tools of type {tool.type!r:.60} are not supported, only functions are", param=f"tools[{i}].type")
        if not tool.name:
            raise ApiError(400, "a function needs a name", param=f"tools[{i}].name")
    if choice is None:
        choice = "auto"
    if isinstance(choice, str):
        if choice not in ("auto", "none", "required"):
            raise ApiError(400, f"tool_choice is auto, none, required or an object, not {choice!r:.60}", param="tool_choice")
        if choice == "required" and not tools:
            raise ApiError(400, "tool_choice is required, but there are no tools", param="tool_choice")
        return [_chat_tool(tool) for tool in tools], choice
    if choice.type == "function":
        if choice.name not in {tool.name for tool in tools}:
            raise ApiError(400, f"tool_choice names {choice.name!r:.60}, which is none of the tools", param="tool_choice.name")
        assert choice.name is not None
        return [_chat_tool(tool) for tool in tools], choice.name
    if choice.type == "allowed_tools":
        allowed = {tool.get("name") for tool in choice.tools if tool.get("type") == "function"}
        if missing := sorted(str(name) for name in allowed - {tool.name for tool in tools}):
            raise ApiError(400, f"tool_choice allows {missing[0]!r:.60}, which is none of the tools", param="tool_choice.tools")
        return [_chat_tool(tool) for tool in tools if tool.name in allowed], choice.mode
    raise ApiError(400, f"a tool_choice of type {choice.type!r:.60} is not supported", param="tool_choice.type")


def _chat_tool(tool: Tool) -> Message:
    function: Message = {"name": tool.name, "description": tool.description or ""}
    if tool.parameters is not None:
        function["parameters"] = tool.parameters
    if tool.strict is not None:
        function["strict"] = tool.strict
    return {"type": "function", "function": function}


def _output(text: TextConfig | None) -> Output | None:
    form = text.format if text else None
    if form is None or form.type == "text":
        return None
    if form.type == "json_object":
        return Output("json_object", param="text.format")
    if form.type != "json_schema":
        raise ApiError(400, f"text.format.type is text, json_object or json_schema, not {form.type!r:.60}", param="text.format.type")
    if form.schema is None:
        raise ApiError(400, "text.format needs a schema", param="text.format.schema")
    return Output("json_schema", form.schema, "text.format.schema")

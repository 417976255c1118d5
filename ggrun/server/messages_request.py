"""A request of Anthropic's /v1/messages, and the task it is.

Knows that API's fields, which of them mean something here, and the names of those that are refused.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Annotated, Any, Final, Literal

import msgspec
from msgspec import Meta

from ggrun.server.errors import ApiError
from ggrun.server.task import Output, Task
from ggrun.server.thinking import thinking

ChatMessage = dict[str, Any]
StopWord = Annotated[str, Meta(min_length=1)]


class Block(msgspec.Struct):
    """A block of content: text, thinking, redacted_thinking, tool_use, tool_result or a document of plain text."""

    type: str
    text: str | None = None
    thinking: str | None = None
    id: str | None = None
    name: str | None = None
    input: dict[str, Any] | None = None
    tool_use_id: str | None = None
    content: str | list[Block] | None = None
    is_error: bool | None = None
    source: dict[str, Any] | None = None
    title: str | None = None


class Message(msgspec.Struct):
    role: Literal["user", "assistant", "system"]
    content: str | list[Block]


class Tool(msgspec.Struct):
    """A tool of the client's own. Those Anthropic defines or runs (with another type than custom) are refused."""

    name: str
    type: str | None = None
    description: str | None = None
    input_schema: dict[str, Any] | None = None


class ToolChoice(msgspec.Struct):
    type: Literal["auto", "any", "tool", "none"]
    name: str | None = None
    disable_parallel_tool_use: bool | None = None


class Thinking(msgspec.Struct):
    """type enabled, adaptive and between_tools ask the template for thoughts, disabled for none. budget_tokens: the most it thinks."""

    type: Literal["enabled", "disabled", "adaptive", "between_tools"]
    budget_tokens: int | None = None
    display: str | None = None


class Format(msgspec.Struct):
    type: Literal["json_schema"]
    schema: dict[str, Any]


class OutputConfig(msgspec.Struct):
    effort: Literal["low", "medium", "high", "xhigh", "max"] | None = None
    format: Format | None = None


class CountRequest(msgspec.Struct, kw_only=True):
    """The body of POST /v1/messages/count_tokens: what makes a prompt. The last block of fields has no meaning here."""

    messages: list[Message]
    model: str | None = None
    system: str | list[Block] | None = None
    tools: list[Tool] | None = None
    tool_choice: ToolChoice | None = None
    thinking: Thinking | None = None
    output_config: OutputConfig | None = None
    output_format: Format | None = None

    container: Any = None
    mcp_servers: Any = None
    context_management: Any = None

    cache_control: Any = None
    metadata: Any = None
    service_tier: str | None = None
    inference_geo: str | None = None
    speed: str | None = None
    diagnostics: Any = None
    betas: Any = None


class MessagesRequest(CountRequest, kw_only=True):
    """The body of POST /v1/messages."""

    max_tokens: Annotated[int, Meta(ge=0)]
    stream: bool | None = None
    stop_sequences: list[StopWord] | None = None
    temperature: Annotated[float, Meta(ge=0)] | None = None
    top_p: Annotated[float, Meta(ge=0, le=1)] | None = None
    top_k: int | None = None


# field -> why it is refused
REFUSED: Final = {
    "container": "there are no containers here",
    "mcp_servers": "the server calls no tools; let the client do it",
}
# templates know three efforts
EFFORTS: Final = {"low": "low", "medium": "medium", "high": "high", "xhigh": "high", "max": "high"}
_CHOICES: Final = {"auto": "auto", "any": "required", "none": "none"}
# a line for its maker's bills that one program puts before its system prompt: new in every request, so that no prefix would be found again
_BILLING: Final = re.compile(r"\Ax-anthropic-billing-header:(?:\s*[\w-]+=[^;\n]*;)*\s*")


def task_of(request: CountRequest) -> Task:
    """The task. ApiError 400, with the field's path, for what cannot be done."""
    for name, why in REFUSED.items():
        if getattr(request, name):
            raise ApiError(400, f"{name} is not supported: {why}", param=name)
    _check_edits(request.context_management)
    messages = messages_of(request)
    if not messages or messages[-1].get("tool_calls"):
        what = "the last message's tool_use waits for its tool_result" if messages else "messages is empty: there is nothing to answer"
        raise ApiError(400, what, param="messages")
    choice = request.tool_choice
    task = Task(
        messages=messages,
        tools=[_chat_tool(i, tool) for i, tool in enumerate(request.tools or ())],
        tool_choice=_choice(choice, request.tools or ()),
        parallel_tool_calls=not (choice and choice.disable_parallel_tool_use),
        output=_output(request),
        template=_template(request),
        thought_limit=_thought_limit(request.thinking),
        prefill=messages[-1]["role"] == "assistant",
    )
    if not isinstance(request, MessagesRequest):
        return task
    names = ("temperature", "top_p", "top_k")
    sampling = {name: getattr(request, name) for name in names if getattr(request, name) is not None}
    return replace(task, n_predict=request.max_tokens, stop=tuple(request.stop_sequences or ()), sampling=sampling)


def messages_of(request: CountRequest) -> list[ChatMessage]:
    """The conversation, its system prompt first. ApiError 400, with the block's path, for one that cannot be read."""
    messages: list[ChatMessage] = []
    if system := _system(request.system):
        messages.append({"role": "system", "content": system})
    for i, message in enumerate(request.messages):
        blocks = [Block("text", message.content)] if isinstance(message.content, str) else message.content
        turn: ChatMessage = {"role": message.role, "content": ""}
        n_before = len(messages)
        for j, block in enumerate(blocks):
            add = _ADDED.get((message.role, block.type))
            path = f"messages[{i}].content[{j}]"
            if add is None:
                raise ApiError(400, f"ggrun does not read a block of type {block.type!r:.60} in a message of {message.role}", param=path)
            turn = add(messages, turn, block, path)
        if turn["content"] or len(turn) > 2 or len(messages) == n_before:  # nothing follows the results of tools: no turn of its own
            messages.append(turn)
    return messages


# ---- blocks: each adds to the turn and gives the turn that goes on


def _add_text(messages: list[ChatMessage], turn: ChatMessage, block: Block, path: str) -> ChatMessage:
    text = _needed(block, "text", path)
    turn["content"] = f"{turn['content']}\n{text}" if turn["content"] else text
    return turn


def _add_document(messages: list[ChatMessage], turn: ChatMessage, block: Block, path: str) -> ChatMessage:
    source = _needed(block, "source", path)
    if source.get("type") != "text" or not isinstance(source.get("data"), str):
        raise ApiError(400, "ggrun reads documents of plain text only", param=f"{path}.source")
    text = f"{block.title}\n\n{source['data']}" if block.title else source["data"]
    return _add_text(messages, turn, Block("text", text), path)


def _add_result(messages: list[ChatMessage], turn: ChatMessage, block: Block, path: str) -> ChatMessage:
    id_ = _needed(block, "tool_use_id", path)
    parts = block.content or ""
    if not isinstance(parts, str):
        for j, part in enumerate(parts):
            if part.type != "text":
                raise ApiError(400, f"ggrun reads text only, not a block of type {part.type!r:.60}", param=f"{path}.content[{j}]")
        parts = "\n".join(_needed(part, "text", f"{path}.content[{j}]") for j, part in enumerate(parts))
    if turn["content"]:
        messages.append(turn)
        turn = {"role": turn["role"], "content": ""}
    messages.append({"role": "tool", "tool_call_id": id_, "content": f"Error: {parts}" if block.is_error else parts})
    return turn


def _add_use(messages: list[ChatMessage], turn: ChatMessage, block: Block, path: str) -> ChatMessage:
    function = {"name": _needed(block, "name", path), "arguments": block.input or {}}
    turn.setdefault("tool_calls", []).append({"id": _needed(block, "id", path), "type": "function", "function": function})
    return turn


def _add_thinking(messages: list[ChatMessage], turn: ChatMessage, block: Block, path: str) -> ChatMessage:
    if text := _needed(block, "thinking", path):
        turn["reasoning_content"] = f"{turn['reasoning_content']}\n{text}" if "reasoning_content" in turn else text
    return turn


def _skip(messages: list[ChatMessage], turn: ChatMessage, block: Block, path: str) -> ChatMessage:
    return turn


_ADDED: Final[Mapping[tuple[str, str], Callable[[list[ChatMessage], ChatMessage, Block, str], ChatMessage]]] = {
    ("system", "text"): _add_text,
    ("user", "text"): _add_text,
    ("user", "document"): _add_document,
    ("user", "tool_result"): _add_result,
    ("assistant", "text"): _add_text,
    ("assistant", "thinking"): _add_thinking,
    ("assistant", "redacted_thinking"): _skip,
    ("assistant", "tool_use"): _add_use,
}


def _needed(block: Block, name: str, path: str) -> Any:
    value = getattr(block, name)
    if value is None:
        raise ApiError(400, f"a block of type {block.type!r} needs {name}", param=f"{path}.{name}")
    return value


# ---- the rest


def _system(system: str | Sequence[Block] | None) -> str:
    blocks = [Block("text", system)] if isinstance(system, str) else system or ()
    for i, block in enumerate(blocks):
        if block.type != "text":
            raise ApiError(400, f"a system prompt is text, not a block of type {block.type!r:.60}", param=f"system[{i}].type")
    texts = [_BILLING.sub("", _needed(block, "text", f"system[{i}]")) for i, block in enumerate(blocks)]
    return "\n".join(filter(None, texts))


def _chat_tool(i: int, tool: Tool) -> ChatMessage:
    if tool.type not in (None, "custom"):
        raise ApiError(400, f"tools of type {tool.type!r:.60} are not supported, only the client's own are", param=f"tools[{i}].type")
    if tool.input_schema is None:
        raise ApiError(400, "a tool needs an input_schema", param=f"tools[{i}].input_schema")
    function = {"name": tool.name, "description": tool.description or "", "parameters": tool.input_schema}
    return {"type": "function", "function": function}


def _choice(choice: ToolChoice | None, tools: Sequence[Tool]) -> str:
    if choice is None:
        return "auto"
    if choice.type == "any" and not tools:
        raise ApiError(400, "tool_choice asks for a tool, but there are none", param="tool_choice")
    if choice.type != "tool":
        return _CHOICES[choice.type]
    if choice.name is None or choice.name not in {tool.name for tool in tools}:
        raise ApiError(400, f"tool_choice names {choice.name!r:.60}, which is none of the tools", param="tool_choice.name")
    return choice.name


def _output(request: CountRequest) -> Output | None:
    if request.output_config and request.output_config.format:
        return Output("json_schema", request.output_config.format.schema, "output_config.format.schema")
    if request.output_format:
        return Output("json_schema", request.output_format.schema, "output_format.schema")
    return None


def _template(request: CountRequest) -> dict[str, Any]:
    effort = request.output_config.effort if request.output_config else None
    wish = None if request.thinking is None else request.thinking.type != "disabled"
    return ({"reasoning_effort": EFFORTS[effort]} if effort else {}) | thinking(wish)


def _thought_limit(asked: Thinking | None) -> int | None:
    if asked is None or asked.type == "disabled" or asked.budget_tokens is None:
        return None
    if asked.budget_tokens < 1:
        raise ApiError(400, f"budget_tokens must be at least 1, not {asked.budget_tokens}", param="thinking.budget_tokens")
    return asked.budget_tokens


def _check_edits(management: Any) -> None:
    """Thoughts of earlier turns are the template's business; nothing else is edited."""
    edits = management.get("edits") if isinstance(management, Mapping) else None
    for edit in edits if isinstance(edits, list) else ():
        kind = edit.get("type") if isinstance(edit, Mapping) else None
        if not isinstance(kind, str) or not kind.startswith("clear_thinking"):
            what = f"edits of type {kind!r:.60} are not supported: the conversation is read as it is"
            raise ApiError(400, what, param="context_management")

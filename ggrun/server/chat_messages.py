"""Messages and tools as OpenAI's chat API writes them, checked and in the form that chat templates take.

Knows that API's format, old and new; errors are ApiErrors with the path of what is wrong. Must not know templates.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import msgspec

from ggrun.server.errors import ApiError

ROLES: Final = ("system", "developer", "user", "assistant", "tool", "function")
_TEXTS: Final = {"text": "text", "input_text": "text", "output_text": "text", "refusal": "refusal"}


class Function(msgspec.Struct, omit_defaults=True):
    """A function a model may call. parameters: a JSON schema."""

    name: str
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Tool(msgspec.Struct):
    """One of a request's tools; only functions can be called here, and other types have other fields."""

    function: Function | None = None
    type: str | None = None


def read_messages(messages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Messages for a chat template. ApiError 400, naming the field, for what is no message and for images, audio and files."""
    if not messages:
        raise ApiError(400, "messages is empty: there is nothing to answer", param="messages")
    return [_message(message, f"messages[{i}]") for i, message in enumerate(messages)]


def read_tools(tools: Sequence[Tool] | None, functions: Sequence[Function] | None = None) -> list[dict[str, Any]]:
    """Tools for a chat template, from `tools` or from the older `functions`."""
    if tools and functions:
        raise ApiError(400, "give tools or functions, not both", param="functions")
    known: dict[str, str] = {}
    read = []
    for i, tool in enumerate([*(tools or ()), *(Tool(function) for function in functions or ())]):
        path = f"tools[{i}]" if tools else f"functions[{i}]"
        if tool.type not in (None, "function"):
            raise ApiError(400, f"tools of type {tool.type!r:.40} are not supported; only functions are", param=f"{path}.type")
        if tool.function is None:
            raise ApiError(400, "a tool of type function needs a function", param=f"{path}.function")
        name = tool.function.name
        where = f"{path}.function.name" if tools else f"{path}.name"
        if not name.strip():
            raise ApiError(400, "a function needs a name", param=where)
        if name in known:
            raise ApiError(400, f"two functions are called {name!r:.80}", param=where)
        known[name] = path
        read.append({"type": "function", "function": msgspec.to_builtins(tool.function)})
    return read


def read_choice(given: str | Mapping[str, Any] | None, tools: list[dict[str, Any]]) -> tuple[str, list[dict[str, Any]]]:
    """tool_choice as a Task has it, and the tools that are left to choose from."""
    if isinstance(given, Mapping):
        kind = given.get("type", "function")
        if kind == "allowed_tools":
            return _allowed(given, tools)
        function = given.get("function", given)
        name = function.get("name") if isinstance(function, Mapping) else None
        if kind != "function" or not isinstance(name, str):
            raise ApiError(400, 'tool_choice must be a word or {"type": "function", "function": {"name": ...}}', param="tool_choice")
        if name not in _names(tools):
            raise ApiError(400, f"tool_choice names {name!r:.80}, which is not one of the tools", param="tool_choice")
        return name, tools
    choice = given or "auto"
    if choice not in ("auto", "none", "required"):
        raise ApiError(400, f"tool_choice must be auto, none, required or name a function, not {choice!r:.40}", param="tool_choice")
    if choice == "required" and not tools:
        raise ApiError(400, "tool_choice is required, but there are no tools", param="tool_choice")
    return choice, tools


def _allowed(given: Mapping[str, Any], tools: list[dict[str, Any]]) -> tuple[str, list[dict[str, Any]]]:
    """OpenAI's allowed_tools: some of the tools, and whether one must be called."""
    allowed = given.get("allowed_tools", given)
    entries = allowed.get("tools") if isinstance(allowed, Mapping) else None
    if not isinstance(entries, list) or not all(isinstance(entry, Mapping) for entry in entries):
        raise ApiError(400, "allowed_tools needs a list of tools", param="tool_choice.allowed_tools.tools")
    names = [entry["function"].get("name") if isinstance(entry.get("function"), Mapping) else entry.get("name") for entry in entries]
    if unknown := [name for name in names if name not in _names(tools)]:
        raise ApiError(400, f"tool_choice allows {unknown[0]!r:.80}, which is not one of the tools", param="tool_choice")
    return read_choice(allowed.get("mode", "auto"), [tool for tool in tools if tool["function"]["name"] in names])


def _names(tools: Sequence[Mapping[str, Any]]) -> list[str]:
    return [tool["function"]["name"] for tool in tools]


def _message(given: Mapping[str, Any], path: str) -> dict[str, Any]:
    message = dict(given)
    role = message.get("role")
    if role not in ROLES:
        raise ApiError(400, f"a message needs a role, one of {', '.join(ROLES)}; this one has {role!r:.40}", param=f"{path}.role")
    if message.get("reasoning") is not None:  # others' name for it
        message.setdefault("reasoning_content", message.pop("reasoning"))
    for name in ("reasoning_content", "name", "tool_call_id", "refusal"):
        if not isinstance(message.get(name), str | None):
            raise ApiError(400, f"{name} must be text", param=f"{path}.{name}")
    if (call := message.pop("function_call", None)) is not None:
        message["tool_calls"] = [{"type": "function", "function": call}]
    message["content"] = _content(message, path)
    message.pop("refusal", None)
    if message.get("tool_calls") is not None:
        message["tool_calls"] = _calls(message["tool_calls"], f"{path}.tool_calls")
    if role == "function":
        message["role"] = "tool"
    return {name: value for name, value in message.items() if value is not None or name == "content"}


def _content(message: Mapping[str, Any], path: str) -> Any:
    content = message.get("content")
    if content is None:
        if message["role"] == "assistant":
            return message.get("refusal") or ""
        raise ApiError(400, "a message needs a content", param=f"{path}.content")
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise ApiError(400, "content must be text or a list of parts", param=f"{path}.content")
    return [{"type": "text", "text": _part(part, f"{path}.content[{i}]")} for i, part in enumerate(content)]


def _part(part: Any, path: str) -> str:
    if isinstance(part, str):
        return part
    kind = part.get("type") if isinstance(part, Mapping) else None
    if not isinstance(kind, str) or kind not in _TEXTS:
        raise ApiError(400, f"parts of type {kind!r:.40} are not supported: this server reads text only", param=path)
    text = part.get(_TEXTS[kind])
    if not isinstance(text, str):
        raise ApiError(400, f"a part of type {kind!r} needs its text", param=f"{path}.{_TEXTS[kind]}")
    return text


def _calls(calls: Any, path: str) -> list[dict[str, Any]]:
    if not isinstance(calls, list):
        raise ApiError(400, "tool_calls must be a list", param=path)
    for i, call in enumerate(calls):
        function = call.get("function") if isinstance(call, Mapping) else None
        if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
            raise ApiError(400, "a tool call needs a function with a name and arguments", param=f"{path}[{i}].function")
        if not isinstance(function.get("arguments"), str | dict | None):
            raise ApiError(400, "arguments must be JSON text", param=f"{path}[{i}].function.arguments")
        if not isinstance(call.get("id"), str | None):
            raise ApiError(400, "id must be text", param=f"{path}[{i}].id")
    return [dict(call) for call in calls]

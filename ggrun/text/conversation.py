"""A conversation in the form chat templates expect, and the ways to rewrite it for templates that expect less.

Knows OpenAI's message format and public models' habits; must not know Jinja. A rewrite returns a new Conversation and leaves the old one.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from copy import deepcopy
from dataclasses import dataclass, replace
from typing import Any, Final

from ggrun.text.error import TextError

Message = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Conversation:
    """messages: role and content (a string), tool_calls with ids and arguments as objects, tool results with name and tool_call_id.

    tools: OpenAI function tools, empty for none.
    """

    messages: tuple[Message, ...]
    tools: tuple[Message, ...] = ()

    @property
    def has_calls(self) -> bool:
        return any(message.get("tool_calls") or message["role"] == "tool" for message in self.messages)


class Functions(list[Any]):
    """The tools' functions; templates that write them into a string get JSON."""

    def __str__(self) -> str:
        return json.dumps(list(self), ensure_ascii=False, indent=4)

    def __radd__(self, text: object) -> str:
        return text + str(self) if isinstance(text, str) else NotImplemented


def read_conversation(messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]] | None) -> Conversation:
    """The normal form of what a caller gave. TextError for what is no conversation, and for parts that are no text."""
    if not all(isinstance(message, Mapping) for message in messages):
        raise TextError("messages must be a list of objects with a role and a content")
    normal = [_read_message(i, message) for i, message in enumerate(messages)]
    names: dict[str, str] = {}
    waiting: list[str] = []
    for i, message in enumerate(normal):
        for j, call in enumerate(message.get("tool_calls", ())):
            call["id"] = call.get("id") or f"call_{i}_{j}"
            names[call["id"]] = call["function"]["name"]
            waiting.append(call["id"])
        if message["role"] == "tool":
            id_ = message.get("tool_call_id") or (waiting[0] if waiting else f"call_{i}")
            message["tool_call_id"] = id_
            message.setdefault("name", names.get(id_, ""))
            if id_ in waiting:
                waiting.remove(id_)
    return Conversation(tuple(normal), tuple(_read_tool(tool) for tool in tools or ()))


def _read_message(index: int, given: Mapping[str, Any]) -> Message:
    message = deepcopy(dict(given))
    role = message.get("role")
    if not isinstance(role, str) or not role:
        raise TextError(f"message {index} has no role")
    message["content"] = _read_content(index, message.get("content"))
    calls = message.pop("tool_calls", None)
    if calls:
        message["tool_calls"] = [_read_call(index, call) for call in calls]
    return message


def _read_content(index: int, content: Any) -> str:
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    if not isinstance(content, Sequence):
        raise TextError(f"the content of message {index} must be text or a list of parts")
    texts = []
    for part in content:
        if isinstance(part, str):
            texts.append(part)
        elif isinstance(part, Mapping) and isinstance(part.get("text"), str):
            texts.append(part["text"])
        else:
            kind = part.get("type") if isinstance(part, Mapping) else type(part).__name__
            raise TextError(f"message {index} has a part of type {kind!r}; ggrun reads text only")
    return "\n".join(texts)


def _read_call(index: int, given: Any) -> Message:
    call = dict(given) if isinstance(given, Mapping) else {}
    function = call.get("function", call)
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        raise TextError(f"a tool call of message {index} names no function")
    arguments = function.get("arguments")
    if isinstance(arguments, str):
        with suppress(ValueError, RecursionError):  # what a model wrote, not quite JSON, is shown as it is
            arguments = json.loads(arguments) if arguments.strip() else {}
    function = dict(function) | {"arguments": {} if arguments is None else arguments}
    kept = {"id": call["id"]} if isinstance(call.get("id"), str) else {}
    return kept | {"type": "function", "function": function}


def _read_tool(given: Mapping[str, Any]) -> Message:
    function = given.get("function", given) if isinstance(given, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str) or not function["name"]:
        raise TextError("every tool must be an object with a function that has a name")
    function = deepcopy(dict(function))
    function.setdefault("description", "")
    if not isinstance(function.get("parameters"), Mapping):
        function["parameters"] = {"type": "object", "properties": {}}
    function["parameters"].setdefault("properties", {})
    return {"type": "function", "function": function}


def string_arguments(talk: Conversation) -> Conversation:
    """Arguments of tool calls as JSON text."""
    messages = deepcopy(talk.messages)
    for message in messages:
        for call in message.get("tool_calls", ()):
            call["function"]["arguments"] = arguments_text(call)
    return replace(talk, messages=messages)


def arguments_text(call: Mapping[str, Any]) -> str:
    """The arguments of a call as JSON text."""
    arguments = call["function"]["arguments"]
    return arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)


def null_contents(talk: Conversation) -> Conversation:
    """No content, rather than an empty one, beside tool calls."""
    return replace(talk, messages=tuple(m | {"content": m["content"] or None} if m.get("tool_calls") else m for m in talk.messages))


def part_contents(talk: Conversation) -> Conversation:
    """Every content as a list of one text part."""
    return replace(talk, messages=tuple(m | {"content": [{"type": "text", "text": m["content"]}]} for m in talk.messages))


def short_ids(talk: Conversation) -> Conversation:
    """Ids of tool calls as nine letters and digits."""
    messages = deepcopy(talk.messages)
    for message in messages:
        for call in message.get("tool_calls", ()):
            call["id"] = _short_id(call["id"])
        if "tool_call_id" in message:
            message["tool_call_id"] = _short_id(message["tool_call_id"])
    return replace(talk, messages=messages)


def _short_id(id_: str) -> str:
    return id_ if len(id_) == 9 and id_.isascii() and id_.isalnum() else hashlib.sha256(id_.encode("utf-8", "replace")).hexdigest()[:9]


def single_calls(talk: Conversation) -> Conversation:
    """Messages of several tool calls as one message each, every one followed by its result."""
    messages: list[Message] = []
    used: set[int] = set()
    for i, message in enumerate(talk.messages):
        if i in used:
            continue
        calls = message.get("tool_calls", ())
        if len(calls) < 2:
            messages.append(message)
            continue
        for j, call in enumerate(calls):
            messages.append(message | {"tool_calls": [call], "content": "" if j else message["content"]})
            for k in range(i + 1, len(talk.messages)):
                if talk.messages[k]["role"] != "tool":
                    break
                if k not in used and talk.messages[k]["tool_call_id"] == call["id"]:
                    messages.append(talk.messages[k])
                    used.add(k)
                    break
    return replace(talk, messages=tuple(messages))


def system_in_user(talk: Conversation) -> Conversation:
    """System messages in front of the user's next turn (a turn of its own when there is none)."""
    messages: list[Message] = []
    system: list[str] = []
    for message in talk.messages:
        if message["role"] in ("system", "developer"):
            system.append(message["content"])
        elif system and message["role"] == "user":
            messages.append(message | {"content": "\n\n".join([*system, message["content"]])})
            system = []
        else:
            messages.append(message)
    if system:
        messages.append({"role": "user", "content": "\n\n".join(system)})
    return replace(talk, messages=tuple(messages))


def joined_turns(talk: Conversation) -> Conversation:
    """Neighbouring messages of one role, tool calls and results apart, as one."""
    messages: list[Message] = []
    for message in talk.messages:
        last = messages[-1] if messages else {}
        if last.get("role") == message["role"] != "tool" and not last.get("tool_calls") and not message.get("tool_calls"):
            messages[-1] = last | {"content": f"{last['content']}\n\n{message['content']}"}
        else:
            messages.append(message)
    return replace(talk, messages=tuple(messages))


TOOL_PROMPT: Final = """You may call functions. These are available, each described by a JSON object:
<tools>
{tools}
</tools>
To call a function, answer with a JSON object between tags, and with nothing else:
<tool_call>
{{"name": "the function's name", "arguments": {{"argument": "value"}}}}
</tool_call>
Its result follows between <tool_response> tags. When no function is needed, answer as usual."""


def text_calls(talk: Conversation) -> Conversation:
    """Tool calls as the text of their message: for templates that show tools and results but not calls."""
    return replace(talk, messages=tuple(_with_calls_as_text(message) for message in talk.messages))


def generic_tools(talk: Conversation) -> Conversation:
    """Tools described in the first turn, calls and results as plain text: for templates that know no tools."""
    messages: list[Message] = []
    for message in talk.messages:
        if message["role"] != "tool":
            messages.append(_with_calls_as_text(message))
            continue
        text = f"<tool_response>\n{message['content']}\n</tool_response>"
        if messages and messages[-1]["role"] == "user" and messages[-1]["content"].startswith("<tool_response>"):
            messages[-1] = messages[-1] | {"content": f"{messages[-1]['content']}\n{text}"}
        else:
            messages.append({"role": "user", "content": text})
    if talk.tools:
        prompt = TOOL_PROMPT.format(tools="\n".join(json.dumps(tool["function"], ensure_ascii=False) for tool in talk.tools))
        if messages and messages[0]["role"] in ("system", "developer"):
            messages[0] = messages[0] | {"content": f"{messages[0]['content']}\n\n{prompt}"}
        else:
            messages.insert(0, {"role": "system", "content": prompt})
    return Conversation(tuple(messages))


def marked_calls(talk: Conversation) -> tuple[Conversation, list[str]]:
    """The conversation with words in its tool calls that nothing else contains, and these words: to see whether calls show at all."""
    messages = deepcopy(talk.messages)
    marks: list[str] = []
    for message in messages:
        for call in message.get("tool_calls", ()):
            name, value = f"mark{len(marks)}name", f"mark{len(marks)}value"
            marks += [name, value]
            arguments: Any = {"mark": value}
            as_text = isinstance(call["function"]["arguments"], str)
            call["function"] |= {"name": name, "arguments": json.dumps(arguments) if as_text else arguments}
    return replace(talk, messages=messages), marks


def marked_tools(talk: Conversation) -> tuple[Conversation, dict[str, str]]:
    """The conversation with tools whose names nothing else contains, and these names by the tools' own: to see whether tools show."""
    tools = deepcopy(talk.tools)
    marks: dict[str, str] = {}
    for i, tool in enumerate(tools):
        mark = f"mark{i}tool"
        marks[tool["function"]["name"]] = mark
        tool["function"]["name"] = mark
    return replace(talk, tools=tools), marks


def _with_calls_as_text(message: Message) -> Message:
    if not message.get("tool_calls"):
        return message
    calls = [f"<tool_call>\n{_call_text(call)}\n</tool_call>" for call in message["tool_calls"]]
    return {"role": message["role"], "content": "\n".join([*filter(None, [message["content"]]), *calls])}


def _call_text(call: Mapping[str, Any]) -> str:
    return json.dumps({"name": call["function"]["name"], "arguments": call["function"]["arguments"]}, ensure_ascii=False)

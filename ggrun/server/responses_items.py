"""Items of OpenAI's /v1/responses, what went in and what came out, as messages of a conversation.

Knows items and their parts; must not know templates or answers. One turn of the assistant is several items there (reasoning, text,
calls) and one message here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from secrets import token_hex
from typing import Any, Final

import msgspec

from ggrun.server.errors import ApiError

Message = dict[str, Any]


class Part(msgspec.Struct):
    """A part of an item's content: type is input_text, output_text, refusal, reasoning_text or summary_text."""

    type: str
    text: str | None = None
    refusal: str | None = None


class Item(msgspec.Struct):
    """One item: a message (type may be left out), function_call, function_call_output, reasoning, or item_reference with the id of one."""

    type: str | None = None
    id: str | None = None
    status: str | None = None
    role: str | None = None
    content: str | list[Part] | None = None
    phase: str | None = None
    call_id: str | None = None
    name: str | None = None
    namespace: str | None = None
    arguments: str | None = None
    output: str | list[Part] | None = None
    summary: list[Part] | None = None
    encrypted_content: str | None = None


# type -> what its ids begin with
_PREFIXES: Final = {"message": "msg", "function_call": "fc", "function_call_output": "fco", "reasoning": "rs"}
# role -> the one our messages have
ROLES: Final = {"user": "user", "assistant": "assistant", "system": "system", "developer": "system"}


def resolved(items: Sequence[Item], find: Callable[[str], Item | None]) -> list[Item]:
    """The items with those in place of which only an id was sent (item_reference). ApiError 400 for one that `find` does not know."""
    found: list[Item] = []
    for i, item in enumerate(items):
        bare = item.type in (None, "message") and item.id is not None and item.role is None and item.content is None
        if item.type != "item_reference" and not bare:
            found.append(item)
            continue
        known = find(item.id) if item.id is not None else None
        if known is None:
            what = f"there is no item {item.id!r:.80}: its response was not stored, or has been forgotten; send the item itself"
            raise ApiError(400, what, param=f"input[{i}].id")
        found.append(known)
    return found


def messages_of(items: Sequence[Item]) -> list[Message]:
    """The conversation these items are. ApiError 400, with the item's path, for one that cannot be read."""
    messages: list[Message] = []
    for i, item in enumerate(items):
        try:
            add = _ADDED[item.type or "message"]
        except KeyError:
            raise ApiError(
                400, f"items of type {item.type!r:.60} are not supported; known are {', '.join(_ADDED)}", param=f"input[{i}].type"
            ) from None  # fmt: skip
        add(messages, item, f"input[{i}]")
    return messages


def named(given: str | Sequence[Item] | None) -> tuple[Item, ...]:
    """A request's input as items that all have a type and an id."""
    items = [Item(role="user", content=given)] if isinstance(given, str) else given or ()
    kinds = [item.type or "message" for item in items]
    ids = [item.id or f"{_PREFIXES[kind]}_{token_hex(16)}" for item, kind in zip(items, kinds, strict=True)]
    return tuple(msgspec.structs.replace(item, type=kind, id=id_) for item, kind, id_ in zip(items, kinds, ids, strict=True))


def shown(item: Item) -> dict[str, Any]:
    """An item as a list of them has it."""
    fields = {name: value for name, value in msgspec.to_builtins(item).items() if value is not None}
    if item.type == "message":
        kind = "output_text" if item.role == "assistant" else "input_text"
        parts = [{"type": kind, "text": item.content}] if isinstance(item.content, str) else fields.get("content", [])
        fields["content"] = [_part(part) for part in parts]
    return {"status": "completed", **fields}


def _part(part: dict[str, Any]) -> dict[str, Any]:
    more: dict[str, Any] = {"annotations": []} if part["type"] == "output_text" else {}
    return {name: value for name, value in part.items() if value is not None} | more


def with_instructions(instructions: str | None, messages: Sequence[Message]) -> list[Message]:
    """The conversation behind its instructions. System messages in front become one: many templates take no second."""
    n = next((i for i, message in enumerate(messages) if message["role"] != "system"), len(messages))
    texts = [text for text in (instructions, *(message["content"] for message in messages[:n])) if text]
    return [*([{"role": "system", "content": "\n\n".join(texts)}] if texts else []), *messages[n:]]


def _add_message(messages: list[Message], item: Item, path: str) -> None:
    if item.role not in ROLES:
        raise ApiError(400, f"a message's role is one of {', '.join(ROLES)}, not {item.role!r:.60}", param=f"{path}.role")
    if item.content is None:
        raise ApiError(400, "a message needs content", param=f"{path}.content")
    role, text = ROLES[item.role], _text(item.content, f"{path}.content")
    if role == "assistant":
        turn = _open_turn(messages)
        if turn["content"] or "tool_calls" in turn:  # the turn has said something already: this is another
            messages.append(turn := {"role": "assistant", "content": ""})
        turn["content"] = text
    else:
        messages.append({"role": role, "content": text})


def _add_call(messages: list[Message], item: Item, path: str) -> None:
    for name in ("call_id", "name", "arguments"):
        if getattr(item, name) is None:
            raise ApiError(400, f"a function_call needs {name}", param=f"{path}.{name}")
    call = {"id": item.call_id, "type": "function", "function": {"name": item.name, "arguments": item.arguments}}
    _open_turn(messages).setdefault("tool_calls", []).append(call)


def _add_output(messages: list[Message], item: Item, path: str) -> None:
    for name in ("call_id", "output"):
        if getattr(item, name) is None:
            raise ApiError(400, f"a function_call_output needs {name}", param=f"{path}.{name}")
    assert item.output is not None
    messages.append({"role": "tool", "tool_call_id": item.call_id, "content": _text(item.output, f"{path}.output")})


def _add_reasoning(messages: list[Message], item: Item, path: str) -> None:
    content = item.content if item.content else item.summary or []
    text = _text(content, f"{path}.content")
    turn = _open_turn(messages)
    if turn["content"] or "tool_calls" in turn:
        messages.append(turn := {"role": "assistant", "content": ""})
    if text:
        turn["reasoning_content"] = "\n".join(filter(None, (turn.get("reasoning_content"), text)))


_ADDED: Final[dict[str, Callable[[list[Message], Item, str], None]]] = {
    "message": _add_message,
    "function_call": _add_call,
    "function_call_output": _add_output,
    "reasoning": _add_reasoning,
}
_TEXTS: Final = {
    "input_text": "text", "output_text": "text", "text": "text", "refusal": "refusal", "reasoning_text": "text", "summary_text": "text",
}  # fmt: skip


def _open_turn(messages: list[Message]) -> Message:
    """The assistant's message at the end, made if the last is somebody else's."""
    if not messages or messages[-1]["role"] != "assistant":
        messages.append({"role": "assistant", "content": ""})
    return messages[-1]


def _text(content: str | Sequence[Part], path: str) -> str:
    if isinstance(content, str):
        return content
    texts = []
    for j, part in enumerate(content):
        name = _TEXTS.get(part.type)
        text = getattr(part, name) if name else None
        if text is None:
            kind = f"a part of type {part.type!r:.60}"
            what = f"{kind} needs {name}" if name else f"ggrun reads text only, not {kind}"
            raise ApiError(400, what, param=f"{path}[{j}]")
        texts.append(text)
    return "\n".join(texts)

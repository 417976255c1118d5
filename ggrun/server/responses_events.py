"""The pieces of an answer as a response of OpenAI's /v1/responses: its output items, and the events that tell of them as they grow.

Knows Pieces and that API's objects; must not know requests, models or connections.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from secrets import token_hex
from time import time
from typing import Any, Final

from ggrun.server.task import Call, End, Piece, Text, Thought, TokenLog, Usage

Event = dict[str, Any]

# how an answer may end -> the response's status, and the name of its last event
ENDINGS: Final = {"stop": "completed", "tool_calls": "completed", "length": "incomplete"}
# type of an item -> what its id begins with
PREFIXES: Final = {"message": "msg", "reasoning": "rs", "function_call": "fc"}
# piece -> type of the item it belongs to, of that item's part, and the events' names for more text
_KINDS: Final = {Text: ("message", "output_text"), Thought: ("reasoning", "reasoning_text")}


class Answer:
    """A response in the making. Feed it pieces in order; every method yields the events to send, with their numbers.

    `response` is the object as it stands; events refer to it and to its items, so encode them before the next piece.
    """

    def __init__(self, response: dict[str, Any], logprobs: bool = False) -> None:
        self.response = response | {"status": "in_progress", "output": [], "usage": None, "error": None, "incomplete_details": None}
        self._logprobs = logprobs
        self._n_events = 0
        self._texts: list[str] = []  # of the item that grows
        self._call = -1  # index of the call that grows

    def opening(self) -> Iterator[Event]:
        """What comes before the first piece."""
        yield self._event("response.created", response=self.response)
        yield self._event("response.in_progress", response=self.response)

    def push(self, piece: Piece) -> Iterator[Event]:
        """One piece more; End closes the response."""
        match piece:
            case Call():
                yield from self._push_call(piece)
            case End():
                yield from self._end(piece)
            case _:
                yield from self._push_text(piece)

    def fail(self, message: str, code: str = "server_error") -> Iterator[Event]:
        """The answer broke off."""
        yield from self._close("incomplete")
        self.response |= {"status": "failed", "error": {"code": code, "message": message}}
        yield self._event("response.failed", response=self.response)

    # ---- items

    def _push_text(self, piece: Text | Thought) -> Iterator[Event]:
        kind, part_type = _KINDS[type(piece)]
        if not piece.text and not piece.tokens:
            return
        if not self._texts_of(kind):
            yield from self._close("completed")
            yield from self._open_text(kind, part_type)
        logs = [_log(token) for token in piece.tokens] if self._logprobs and kind == "message" else []
        self._texts.append(piece.text)
        if kind == "message":
            self._item["content"][0]["logprobs"] += logs
            yield self._part_event("response.output_text.delta", delta=piece.text, logprobs=logs)
        else:
            yield self._part_event("response.reasoning_text.delta", delta=piece.text)

    def _texts_of(self, kind: str) -> bool:
        """Whether the item that grows is one of this type."""
        return bool(self.response["output"]) and self._item["type"] == kind and self._item["status"] == "in_progress"

    def _open_text(self, kind: str, part_type: str) -> Iterator[Event]:
        self._texts = []
        item: Event = {"type": kind, "id": _new_id(PREFIXES[kind]), "status": "in_progress"}
        part: Event = {"type": part_type, "text": ""}
        if kind == "message":
            item["role"] = "assistant"
            part |= {"annotations": [], "logprobs": []}
        else:
            item["summary"] = []
        yield from self._added(item | {"content": []})
        self._item["content"].append(part)
        yield self._part_event("response.content_part.added", part=part)

    def _push_call(self, piece: Call) -> Iterator[Event]:
        if not self._texts_of("function_call") or piece.index != self._call:
            yield from self._close("completed")
            self._call, self._texts = piece.index, []
            ids = {"id": _new_id("fc"), "call_id": piece.id or _new_id("call"), "name": piece.name}
            yield from self._added({"type": "function_call", **ids, "arguments": "", "status": "in_progress"})
        if piece.arguments:
            self._texts.append(piece.arguments)
            yield self._item_event("response.function_call_arguments.delta", delta=piece.arguments)

    def _close(self, status: str) -> Iterator[Event]:
        """The last item is whole, or will not be."""
        if not self.response["output"] or self._item["status"] != "in_progress":
            return
        text, item = "".join(self._texts), self._item
        item["status"] = status
        if item["type"] == "function_call":
            item["arguments"] = text
            yield self._item_event("response.function_call_arguments.done", name=item["name"], arguments=text)
        else:
            part = item["content"][0]
            part["text"] = text
            if item["type"] == "message":
                yield self._part_event("response.output_text.done", text=text, logprobs=part["logprobs"])
            else:
                yield self._part_event("response.reasoning_text.done", text=text)
            yield self._part_event("response.content_part.done", part=part)
        yield self._event("response.output_item.done", output_index=self._index, item=item)

    def _end(self, end: End) -> Iterator[Event]:
        status = ENDINGS[end.reason]
        if not self.response["output"]:  # clients expect a message, if only an empty one
            yield from self._open_text("message", "output_text")
        yield from self._close(status)
        self.response |= {"status": status, "usage": usage(end.usage), "timings": dict(end.timings)}
        if status == "incomplete":
            self.response["incomplete_details"] = {"reason": "max_output_tokens"}
        else:
            self.response["completed_at"] = int(time())
        if end.n_dropped:
            self.response |= {"truncated": True, "dropped_tokens": end.n_dropped}
        yield self._event(f"response.{status}", response=self.response)

    # ---- events

    @property
    def _index(self) -> int:
        return len(self.response["output"]) - 1

    @property
    def _item(self) -> dict[str, Any]:
        item: dict[str, Any] = self.response["output"][-1]
        return item

    def _added(self, item: Event) -> Iterator[Event]:
        self.response["output"].append(item)
        yield self._event("response.output_item.added", output_index=self._index, item=item)

    def _part_event(self, type: str, **fields: Any) -> Event:
        return self._item_event(type, content_index=0, **fields)

    def _item_event(self, type: str, **fields: Any) -> Event:
        return self._event(type, item_id=self._item["id"], output_index=self._index, **fields)

    def _event(self, type: str, **fields: Any) -> Event:
        self._n_events += 1
        return {"type": type, "sequence_number": self._n_events - 1, **fields}


def usage(counted: Usage) -> dict[str, Any]:
    """Tokens under that API's names."""
    return {
        "input_tokens": counted.prompt,
        "input_tokens_details": {"cached_tokens": counted.cached, "cache_write_tokens": 0},
        "output_tokens": counted.answer,
        "output_tokens_details": {"reasoning_tokens": counted.thought},
        "total_tokens": counted.prompt + counted.answer,
    }


def _log(token: TokenLog) -> Mapping[str, Any]:
    top = [{"token": other.text, "bytes": list(other.bytes), "logprob": other.logprob} for other in token.top]
    return {"token": token.text, "bytes": list(token.bytes), "logprob": token.logprob, "top_logprobs": top}


def _new_id(prefix: str) -> str:
    return f"{prefix}_{token_hex(16)}"

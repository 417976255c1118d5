"""The pieces of an answer as a message of Anthropic's API: its blocks, and the events that tell of them as they grow.

Knows Pieces and that API's objects; must not know requests, models or connections.
"""

from __future__ import annotations

from collections.abc import Iterator
from secrets import token_hex
from typing import Any, Final

from ggrun.server.arguments import read_arguments
from ggrun.server.task import Call, End, Piece, Text, Thought, Usage

Event = dict[str, Any]

# piece -> type of its block, the block's field, the delta's type, the delta's field
_KINDS: Final[dict[type, tuple[str, str, str, str]]] = {
    Text: ("text", "text", "text_delta", "text"),
    Thought: ("thinking", "thinking", "thinking_delta", "thinking"),
    Call: ("tool_use", "input", "input_json_delta", "partial_json"),
}
_STOPS: Final = {"stop": "end_turn", "length": "max_tokens", "tool_calls": "tool_use"}


class Answer:
    """A message in the making. Feed it pieces in order; every method yields the events to send.

    `message` is the object as it stands, whole after End; encode events before the next piece. n_prompt: tokens of the prompt.
    max_tokens: what the request allows: an answer cut before that filled the context.
    """

    def __init__(self, model: str, n_prompt: int, max_tokens: int) -> None:
        self.message: Event = {
            "id": f"msg_{token_hex(12)}",
            "type": "message",
            "role": "assistant",
            "model": model,
            "content": [],
            "stop_reason": None,
            "stop_sequence": None,
            "usage": usage(Usage(n_prompt, 0, 0)),
        }
        self._max_tokens = max_tokens
        self._texts: list[str] = []
        self._grows: tuple[type, int] | None = None  # the open block: its pieces' type, and a call's index

    def opening(self) -> Iterator[Event]:
        """What comes before the first piece."""
        yield {"type": "message_start", "message": self.message}
        yield {"type": "ping"}

    def push(self, piece: Piece) -> Iterator[Event]:
        """One piece more; End closes the message."""
        if isinstance(piece, End):
            yield from self._end(piece)
            return
        more = piece.arguments if isinstance(piece, Call) else piece.text
        if not more and not isinstance(piece, Call):
            return
        grows = (type(piece), piece.index if isinstance(piece, Call) else 0)
        if self._grows != grows:
            yield from self._close()
            yield from self._open(piece)
            self._grows = grows
        if more:
            _, _, delta, field = _KINDS[type(piece)]
            self._texts.append(more)
            yield self._delta({"type": delta, field: more})

    def _open(self, piece: Text | Thought | Call) -> Iterator[Event]:
        kind, field, _, _ = _KINDS[type(piece)]
        block: Event = {"type": kind, field: {} if kind == "tool_use" else ""}
        if isinstance(piece, Call):
            block |= {"id": piece.id or f"toolu_{token_hex(12)}", "name": piece.name}
        elif kind == "thinking":
            block["signature"] = ""
        self._texts = []
        self.message["content"].append(block)
        yield {"type": "content_block_start", "index": self._index, "content_block": block}

    def _close(self) -> Iterator[Event]:
        if self._grows is None:
            return
        kind, field, _, _ = _KINDS[self._grows[0]]
        text = "".join(self._texts)
        self.message["content"][-1][field] = read_arguments(text) if kind == "tool_use" else text
        if kind == "thinking":  # clients wait for it; there is nothing here that would check one
            yield self._delta({"type": "signature_delta", "signature": ""})
        yield {"type": "content_block_stop", "index": self._index}
        self._grows = None

    def _end(self, end: End) -> Iterator[Event]:
        if not self.message["content"]:  # clients expect a block, if only an empty one
            yield from self._open(Text(0, ""))
            self._grows = (Text, 0)
        yield from self._close()
        reason = _STOPS[end.reason]
        if end.stop_word is not None and reason == "end_turn":
            reason = "stop_sequence"
        elif reason == "max_tokens" and end.usage.answer < self._max_tokens:
            reason = "model_context_window_exceeded"
        stop = {"stop_reason": reason, "stop_sequence": end.stop_word}
        self.message |= stop | {"usage": usage(end.usage)}
        yield {"type": "message_delta", "delta": stop, "usage": self.message["usage"]}
        yield {"type": "message_stop"}

    @property
    def _index(self) -> int:
        return len(self.message["content"]) - 1

    def _delta(self, delta: Event) -> Event:
        return {"type": "content_block_delta", "index": self._index, "delta": delta}


def usage(counted: Usage) -> dict[str, Any]:
    """Tokens under that API's names: input_tokens are those that were not found in the cache."""
    return {
        "input_tokens": counted.prompt - counted.cached,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": counted.cached,
        "output_tokens": counted.answer,
        "output_tokens_details": {"thinking_tokens": counted.thought},
    }

"""The pieces of an answer as lines of Ollama's /api/chat and /api/generate.

Knows Pieces and that API's objects; must not know requests, models or connections.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from time import perf_counter_ns
from typing import Any

from ggrun.server.arguments import read_arguments
from ggrun.server.task import Call, End, Piece, Text, Thought, TokenLog

Line = dict[str, Any]


class Lines:
    """An answer in the making: feed it pieces in order, each gives the lines to send. Tool calls are sent whole.

    chat: whether lines have a message, or a response. started: perf_counter_ns() when the request came; loaded: when its prompt was there.
    ids: of the tokens of the answer, where their log probabilities were asked for.
    """

    def __init__(self, model: str, chat: bool, logprobs: bool, started: int, loaded: int) -> None:
        self.ids: list[int] = []
        self._model, self._chat, self._logprobs, self._started, self._loaded = model, chat, logprobs, started, loaded
        self._call: Call | None = None
        self._arguments: list[str] = []

    def push(self, piece: Piece) -> Iterator[Line]:
        """One piece more; End gives the line that is done."""
        if isinstance(piece, Call):
            if self._call is None or piece.index != self._call.index:
                yield from self._whole_call()
                self._call, self._arguments = piece, []
            self._arguments.append(piece.arguments)
            return
        yield from self._whole_call()
        if isinstance(piece, End):
            yield self.line("") | {"done": True} | self._ending(piece)
            return
        self.ids += [token.id for token in piece.tokens]
        if piece.text or (piece.tokens and self._logprobs):
            yield self._text(piece)

    def line(self, text: str, **more: Any) -> Line:
        """A line that is not the last; more: further fields of its message."""
        said = {"message": {"role": "assistant", "content": text, **more}} if self._chat else {"response": text, **more}
        return {"model": self._model, "created_at": stamp(), **said, "done": False}

    def _text(self, piece: Text | Thought) -> Line:
        line = self.line("", thinking=piece.text) if isinstance(piece, Thought) else self.line(piece.text)
        if self._logprobs and piece.tokens:
            line["logprobs"] = [{**_log(token), "top_logprobs": [_log(other) for other in token.top]} for token in piece.tokens]
        return line

    def _whole_call(self) -> Iterator[Line]:
        call, self._call = self._call, None
        if call is not None:
            function = {"index": call.index, "name": call.name, "arguments": read_arguments("".join(self._arguments))}
            yield self.line("", tool_calls=[{"id": call.id, "function": function}])

    def _ending(self, end: End) -> Line:
        timings, usage = end.timings, end.usage
        ending = {
            "done_reason": "length" if end.reason == "length" else "stop",
            "total_duration": perf_counter_ns() - self._started,
            "load_duration": self._loaded - self._started,
            "prompt_eval_count": usage.prompt,
            "prompt_eval_duration": int(1e6 * timings.get("prompt_ms", 0)),
            "eval_count": usage.answer,
            "eval_duration": int(1e6 * timings.get("predicted_ms", 0)),
        }
        return ending | ({"truncated": True, "dropped_tokens": end.n_dropped} if end.n_dropped else {})


def joined(lines: Sequence[Line]) -> Line:
    """All lines of an answer as one: the last, with everything that was said."""
    whole = dict(lines[-1])
    field = "message" if "message" in whole else None
    said = [line[field] if field else line for line in lines]
    text = "content" if field else "response"
    merged: Line = {text: "".join(part[text] for part in said)}
    if thought := "".join(part.get("thinking", "") for part in said):
        merged["thinking"] = thought
    if calls := [call for part in said for call in part.get("tool_calls", ())]:
        merged["tool_calls"] = calls
    if logs := [log for line in lines for log in line.get("logprobs", ())]:
        whole["logprobs"] = logs
    return whole | ({field: {"role": "assistant", **merged}} if field else merged)


def stamp(seconds: float | None = None) -> str:
    """A time (Unix seconds; None: now) as Ollama writes it."""
    now = datetime.now(UTC) if seconds is None else datetime.fromtimestamp(seconds, UTC)
    return now.isoformat(timespec="microseconds").replace("+00:00", "Z")


def _log(token: TokenLog) -> Line:
    return {"token": token.text, "logprob": token.logprob, "bytes": list(token.bytes)}

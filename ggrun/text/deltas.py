"""What comes out of a model's output while it is parsed: pieces of text, of thought and of tool calls."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

CallState = Literal["open", "done", "broken"]


@dataclass(frozen=True, slots=True)
class TextDelta:
    """More of the answer."""

    text: str


@dataclass(frozen=True, slots=True)
class ThoughtDelta:
    """More of the reasoning, without its tags."""

    text: str


@dataclass(frozen=True, slots=True)
class CallDelta:
    """More of tool call `index`. The first of a call has its id and name; arguments: more of its JSON text.

    state "done": the call is complete and its arguments, put together, are a JSON object. "broken": it turned out to be none, or the
    output ended within it; the source of all of it follows as text, so whoever collects a whole answer drops the call.
    """

    index: int
    id: str = ""
    name: str = ""
    arguments: str = ""
    state: CallState = "open"


Delta = TextDelta | ThoughtDelta | CallDelta

"""What tests of tool calls share: parsing in pieces, and putting deltas together again."""

import json
from itertools import pairwise
from typing import Any

from ggrun.text.deltas import CallDelta, Delta, TextDelta, ThoughtDelta
from ggrun.text.output import OutputParser, OutputStyle
from ggrun.text.reasoning import STYLES, THINK
from ggrun.text.tool_calls import HARMONY, CallFormat

CHANNELS = next(style for style in STYLES if style.channels)


def style_of(row: CallFormat) -> OutputStyle:
    return OutputStyle(CHANNELS if row is HARMONY else THINK, (row,))


def parse(style: OutputStyle, pieces: list[str], tools: Any = (), **options: Any) -> list[Delta]:
    parser = OutputParser(style, tools, **options)
    deltas = [delta for piece in pieces for delta in parser.push(piece)]
    return deltas + parser.finish() + parser.finish()


def put_together(deltas: list[Delta]) -> tuple[str, str, list[tuple[str, str, str]]]:
    """Text, thoughts, and name, arguments and state of every call."""
    text = "".join(delta.text for delta in deltas if isinstance(delta, TextDelta))
    thought = "".join(delta.text for delta in deltas if isinstance(delta, ThoughtDelta))
    calls: dict[int, list[str]] = {}
    for delta in deltas:
        if isinstance(delta, CallDelta):
            assert (delta.index in calls) == (not delta.id) == (not delta.name), "the first delta of a call, and only it, names it"
            call = calls.setdefault(delta.index, ["", "", "open"])
            assert call[2] == "open", "nothing follows the end of a call"
            call[0] += delta.name
            call[1] += delta.arguments
            call[2] = delta.state
    assert list(calls) == list(range(len(calls)))
    return text, thought, [(name, given, state) for name, given, state in calls.values()]


def read_calls(deltas: list[Delta]) -> list[tuple[str, Any]]:
    """Names and arguments of the calls that are complete."""
    return [(name, json.loads(given)) for name, given, state in put_together(deltas)[2] if state == "done"]


def cut(text: str, places: list[int]) -> list[str]:
    edges = sorted({0, len(text), *(place % (len(text) + 1) for place in places)})
    return [text[a:b] for a, b in pairwise(edges)]

"""Every format: what a row spells is read back, however the text is cut; what is no call stays text."""

import json
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ggrun.text.deltas import CallDelta, Delta, TextDelta, ThoughtDelta
from ggrun.text.output import OutputParser, OutputStyle
from ggrun.text.reasoning import STYLES, THINK
from ggrun.text.tool_calls import FORMATS, HARMONY, CallFormat

ROWS = {row.name: row for row in FORMATS}
CHANNELS = next(style for style in STYLES if style.channels)
TYPES = {"word": "string", "count": "integer", "ratio": "number", "flag": "boolean", "items": "array", "more": "object"}
PARAMETERS = {"type": "object", "properties": {key: {"type": type_} for key, type_ in TYPES.items()}}
TOOLS = [{"type": "function", "function": {"name": name, "parameters": PARAMETERS}} for name in ("get_weather", "find-it")]

texts = st.text(st.characters(exclude_categories=("Cs",)), max_size=20) | st.sampled_from(
    ['say "x"', "two\nlines\n", "\n", "a\\b", "<tool_call>", "</think>", "{", "[1, 2]", "true", "12", " x ", "\u2028é😀"]
)
floats = st.floats(-1e6, 1e6, allow_nan=False).map(lambda x: round(x, 3))
scalars = texts | st.integers(-(10**9), 10**9) | st.booleans() | st.none() | floats
keys = st.text("abcxyz_", min_size=1, max_size=5)
values = st.recursive(scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=3), max_leaves=6)
arguments = st.fixed_dictionaries(
    {},
    optional={
        "word": texts,
        "count": st.integers(-(10**12), 10**12),
        "ratio": floats,
        "flag": st.booleans(),
        "items": st.lists(values, max_size=3),
        "more": st.dictionaries(keys, values, max_size=3),
    },
)
calls_strategy = st.lists(st.tuples(st.sampled_from(["get_weather", "find-it"]), arguments), min_size=1, max_size=3)


def style_of(row: CallFormat) -> OutputStyle:
    return OutputStyle(CHANNELS if row is HARMONY else THINK, (row,))


def parse(style: OutputStyle, pieces: list[str], **options: Any) -> list[Delta]:
    parser = OutputParser(style, options.pop("tools", TOOLS), **options)
    deltas = [delta for piece in pieces for delta in parser.push(piece)]
    return deltas + parser.finish() + parser.finish()


def put_together(deltas: list[Delta]) -> tuple[str, str, list[tuple[str, str, str]]]:
    """Text, thoughts, and name, arguments and state of every call."""
    text = "".join(delta.text for delta in deltas if isinstance(delta, TextDelta))
    thought = "".join(delta.text for delta in deltas if isinstance(delta, ThoughtDelta))
    calls: dict[int, list[str]] = {}
    for delta in deltas:
        if isinstance(delta, CallDelta):
            call = calls.setdefault(delta.index, ["", "", "open"])
            assert bool(delta.id) == bool(delta.name) == (not call[0]), "the first delta of a call, and only it, names it"
            call[0] += delta.name
            assert call[2] == "open", "nothing follows the end of a call"
            call[1] += delta.arguments
            call[2] = delta.state
    assert list(calls) == list(range(len(calls)))
    return text, thought, [(name, given, state) for name, given, state in calls.values()]


def read_calls(deltas: list[Delta]) -> list[tuple[str, Any]]:
    return [(name, json.loads(given)) for name, given, state in put_together(deltas)[2] if state == "done"]


def spelled(row: CallFormat, calls: list[tuple[str, Any]]) -> str:
    between = "<|start|>assistant" if row is HARMONY else row.between
    return row.first + between.join(row.spell(name, given, "abcdefgh1") for name, given in calls) + row.last


def readable(row: CallFormat, calls: list[tuple[str, Any]]) -> bool:
    """Whether the format can say it at all: values in tags cannot contain the closing tag, nor Gemma's strings its quotes."""
    said = json.dumps([given for _, given in calls], ensure_ascii=False)
    return not any(mark in said for mark in ("</parameter>", "</arg_value>", '<|"|>'))


def cut(text: str, places: list[int]) -> list[str]:
    edges = sorted({0, len(text), *(place % (len(text) + 1) for place in places)})
    return [text[a:b] for a, b in pairwise(edges)]


@pytest.mark.parametrize("row", [*FORMATS, HARMONY], ids=lambda row: row.name)
@settings(max_examples=60)
@given(calls_strategy, st.sampled_from(["", "Let me look.", "A < b\n\nand [x]"]), st.lists(st.integers(0, 1000), max_size=40))
def test_what_a_row_spells_is_read_back(row: CallFormat, calls: list[tuple[str, Any]], before: str, places: list[int]) -> None:
    bare = not row.shape.trigger
    if not readable(row, calls) or (row.name == "llama3-builtin" and len(calls) > 1):
        return
    lead = f"<|channel|>final<|message|>{before}<|end|><|start|>assistant" if row is HARMONY and before else before
    text = ("" if bare else lead) + spelled(row, calls)
    whole = parse(style_of(row), [text])
    assert read_calls(whole) == calls
    said, thought, _ = put_together(whole)
    assert (said, thought) == ("" if bare else before.rstrip(), "")
    pieces = parse(style_of(row), cut(text, places))
    assert put_together(pieces) == put_together(whole)
    letters = parse(style_of(row), list(text))
    assert put_together(letters) == put_together(whole)
    assert read_calls(parse(style_of(row), cut(text, places), whole=True)) == calls
    ids = [delta.id for delta in letters if isinstance(delta, CallDelta) and delta.id]
    assert len(set(ids)) == len(calls)
    assert all(id_.startswith("call_") for id_ in ids)

"""Every format: what a row spells is read back, however the text is cut; what is no call stays text."""

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ggrun.text.deltas import CallDelta
from ggrun.text.tool_calls import FORMATS, HARMONY, CallFormat
from tests.unit.tool_call_parts import cut, parse, put_together, read_calls, style_of

ROWS = {row.name: row for row in FORMATS}
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


def spelled(row: CallFormat, calls: list[tuple[str, Any]]) -> str:
    between = "<|start|>assistant" if row is HARMONY else row.between
    return row.first + between.join(row.spell(name, given, "abcdefgh1") for name, given in calls) + row.last


def readable(row: CallFormat, calls: list[tuple[str, Any]]) -> bool:
    """Whether the format can say it at all: values in tags cannot contain the closing tag, nor Gemma's strings its quotes."""
    said = json.dumps([given for _, given in calls], ensure_ascii=False)
    return not any(mark in said for mark in ("</parameter>", "</arg_value>", '<|"|>'))


@pytest.mark.parametrize("row", [*FORMATS, HARMONY], ids=lambda row: row.name)
@settings(max_examples=60)
@given(calls_strategy, st.sampled_from(["", "Let me look.", "A < b\n\nand [x]"]), st.lists(st.integers(0, 1000), max_size=40))
def test_what_a_row_spells_is_read_back(row: CallFormat, calls: list[tuple[str, Any]], before: str, places: list[int]) -> None:
    bare = not row.shape.trigger
    if not readable(row, calls) or (row.name == "llama3-builtin" and len(calls) > 1):
        return
    lead = f"<|channel|>final<|message|>{before}<|end|><|start|>assistant" if row is HARMONY and before else before
    text = ("" if bare else lead) + spelled(row, calls)
    whole = parse(style_of(row), [text], TOOLS)
    assert read_calls(whole) == calls
    said, thought, _ = put_together(whole)
    assert (said, thought) == ("" if bare else before.rstrip(), "")
    pieces = parse(style_of(row), cut(text, places), TOOLS)
    assert put_together(pieces) == put_together(whole)
    letters = parse(style_of(row), list(text), TOOLS)
    assert put_together(letters) == put_together(whole)
    assert read_calls(parse(style_of(row), cut(text, places), TOOLS, whole=True)) == calls
    ids = [delta.id for delta in letters if isinstance(delta, CallDelta) and delta.id]
    assert len(set(ids)) == len(calls)
    assert all(id_.startswith("call_") for id_ in ids)

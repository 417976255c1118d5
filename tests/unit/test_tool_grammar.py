"""Whatever a grammar for tool calls allows, however silly, is read back as calls whose arguments follow the schema."""

import random
from typing import Any

import jsonschema
import numpy as np
import pytest

from ggrun.engine.constraint import constraint_for
from ggrun.text import Tokenizer, load_tokenizer
from ggrun.text.error import TextError
from ggrun.text.output import OutputParser, OutputStyle
from ggrun.text.reasoning import STYLES, THINK, ReasoningStyle
from ggrun.text.tool_calls import FORMATS, HARMONY, CallFormat, call_grammar
from tests.unit.text_vocabularies import CONTROL, USER_DEFINED, gpt2
from tests.unit.tool_call_parts import CHANNELS, parse, put_together, read_calls, style_of

ADD = {
    "type": "object",
    "properties": {"a": {"type": "integer", "minimum": -99, "maximum": 99}, "b": {"type": "number", "minimum": 0, "maximum": 9}},
    "required": ["a", "b"],
    "additionalProperties": False,
}
LOOK = {
    "type": "object",
    "properties": {
        "word": {"type": "string", "maxLength": 6},
        "unit": {"enum": ["C", "F"]},
        "deep": {"$ref": "#/$defs/flag"},
        "list": {"type": "array", "items": {"type": "integer", "minimum": 0, "maximum": 9}, "maxItems": 3},
        "more": {"type": "object", "properties": {"x": {"type": "boolean"}}, "required": ["x"], "additionalProperties": False},
        "maybe": {"anyOf": [{"type": "integer", "minimum": 0, "maximum": 5}, {"type": "null"}]},
    },
    "required": ["unit"],
    "additionalProperties": False,
    "$defs": {"flag": {"type": "boolean"}},
}
NOTHING = {"type": "object", "properties": {}, "additionalProperties": False}
SCHEMAS = {"add": ADD, "look-up": LOOK, "now": NOTHING}
TOOLS = [{"type": "function", "function": {"name": name, "parameters": schema}} for name, schema in SCHEMAS.items()]
ROWS = [*FORMATS, HARMONY]


def tokenizer_of(style: OutputStyle, special: bool) -> Tokenizer:
    """Every byte, some words, and the style's marks as special tokens or as ordinary ones."""
    marks = {mark: CONTROL if special else USER_DEFINED for mark in (*style.markers, "<|calls|>", "<|flush|>") if mark[-1] in ">]"}
    return load_tokenizer(gpt2(["t r", "tr u", "tru e"], {**marks, "</s>": CONTROL}, eos_token_id=256 + 3 + len(marks)))


def walk(grammar: str, tokenizer: Tokenizer, seed: int, shown: frozenset[int], forced: str = "") -> str:
    """A random text that follows the grammar, ended as soon as it may be, more often than not."""
    dice = random.Random(seed)
    constraint = constraint_for("lark", grammar, tokenizer)
    decoder = tokenizer.decoder(shown=shown)
    text = ""
    start = tokenizer.encode(forced, add_special=False, parse_special=True)
    for step in range(4000):
        bits = np.unpackbits(constraint.mask().view(np.uint8), bitorder="little")
        allowed = np.flatnonzero(bits[: tokenizer.n_vocab]).tolist()
        ends = [id_ for id_ in allowed if id_ in tokenizer.end_of_generation]
        if step >= len(start) and ends and (constraint.done or dice.random() < 0.6):
            return text + decoder.finish()
        others = [id_ for id_ in allowed if id_ not in tokenizer.end_of_generation]
        plain = [id_ for id_ in others if tokenizer.token_bytes(id_) not in b" \n\t\\0123456789"] if dice.random() < 0.7 else []
        token = start[step] if step < len(start) else dice.choice(plain or others)
        assert token in others, f"{tokenizer.token_text(token)!r} may not follow {text!r}"
        constraint.accept(token)
        text += decoder.push(token)
    pytest.fail(f"no end: {text}")


def check(row: CallFormat, style: OutputStyle, text: str, tools: Any = TOOLS) -> list[tuple[str, Any]]:
    parser = OutputParser(style, tools)
    deltas = [delta for letter in text for delta in parser.push(letter)] + parser.finish()
    calls = read_calls(deltas)
    said, _, all_calls = put_together(deltas)
    assert (said, len(calls)) == ("", len(all_calls)), text
    for name, arguments in calls:
        jsonschema.validate(arguments, SCHEMAS[name])
    return calls


@pytest.mark.parametrize("special", [True, False], ids=["special", "plain"])
@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_forced_calls_follow_their_schema(row: CallFormat, special: bool) -> None:
    style = style_of(row)
    tokenizer = tokenizer_of(style, special)
    shown = style.shown_ids(tokenizer)
    names = set()
    most = 0
    for seed in range(12):
        calls = check(row, style, walk(call_grammar(row, TOOLS, tokenizer=tokenizer), tokenizer, seed, shown))
        assert calls
        names |= {name for name, _ in calls}
        most = max(most, len(calls))
    assert len(names) >= 2
    assert (most > 1) == (row is not HARMONY)
    one = call_grammar(row, TOOLS, "look-up", parallel=False, tokenizer=tokenizer)
    for seed in range(6):
        assert [name for name, _ in check(row, style, walk(one, tokenizer, seed, shown))] == ["look-up"]


@pytest.mark.parametrize("special", [True, False], ids=["special", "plain"])
@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_a_call_that_the_model_begins_follows_its_schema(row: CallFormat, special: bool) -> None:
    style = style_of(row)
    tokenizer = tokenizer_of(style, special)
    grammar = call_grammar(row, TOOLS, "auto", tokenizer=tokenizer)
    if row is HARMONY or not row.shape.trigger:
        assert grammar == "", "nothing tells that a call begins"
        return
    shown = style.shown_ids(tokenizer)
    for seed in range(4):
        text = walk(grammar, tokenizer, seed, shown, "Let me see. " + row.shape.trigger)
        parser = OutputParser(style, TOOLS)
        deltas = [*parser.push(text), *parser.finish()]
        assert put_together(deltas)[0] == "Let me see."
        calls = read_calls(deltas)
        assert calls
        for name, arguments in calls:
            jsonschema.validate(arguments, SCHEMAS[name])
    assert walk(grammar, tokenizer, 0, shown, "no call at all").startswith("no call at all")


@pytest.mark.parametrize("special", [True, False], ids=["special", "plain"])
@pytest.mark.parametrize("style", STYLES, ids=lambda style: style.name)
def test_a_thought_may_come_before_forced_calls(style: ReasoningStyle, special: bool) -> None:
    row = HARMONY if style.channels else next(row for row in FORMATS if row.name == ("solar" if style.name == "solar" else "hermes"))
    both = OutputStyle(style, (row,))
    tokenizer = tokenizer_of(both, special)
    shown = both.shown_ids(tokenizer)
    begin = "<|channel|>analysis<|message|>" if style.channels else style.begin
    end = "<|end|>" if style.channels else style.end
    for opened in (False, True):
        if opened and style.channels:
            continue
        grammar = call_grammar(row, TOOLS, "add", tokenizer=tokenizer, reasoning=style, opened=opened)
        text = walk(grammar, tokenizer, 1, shown, ("" if opened else begin) + "Hm.\n{ <x>" + end)
        parser = OutputParser(both, TOOLS, prompt="..." + begin + "\n" if opened else "")
        deltas = [delta for letter in text for delta in parser.push(letter)] + parser.finish()
        said, thought, _ = put_together(deltas)
        assert (said, thought) == ("", "Hm.\n{ <x>")
        assert {name for name, _ in read_calls(deltas)} == {"add"}
    if not style.channels:
        quiet = call_grammar(row, TOOLS, "add", tokenizer=tokenizer, reasoning=style)
        first = row.first or row.call.partition("«")[0]
        calls = check(row, both, walk(quiet, tokenizer, 2, shown, first))
        assert {name for name, _ in calls} == {"add"}


@pytest.mark.parametrize("opened", [False, True])
@pytest.mark.parametrize("special", [True, False], ids=["special", "plain"])
def test_a_call_that_is_only_thought_of_is_not_held(special: bool, opened: bool) -> None:
    style = style_of(FORMATS[0])
    tokenizer = tokenizer_of(style, special)
    grammar = call_grammar(FORMATS[0], TOOLS, "auto", tokenizer=tokenizer, reasoning=THINK, opened=opened)
    mark = "<tool>" if special else "<tool_call>"  # a special token cannot be thought of
    thought = ("" if opened else "\n<think>") + f"I could use {mark} here.</think>"
    for seed in range(3):
        text = walk(grammar, tokenizer, seed, style.shown_ids(tokenizer), f"{thought}\n\nWell. <tool_call>")
        parser = OutputParser(style, TOOLS, prompt="<think>" if opened else "")
        deltas = [*parser.push(text), *parser.finish()]
        assert put_together(deltas)[:2] == ("Well.", f"I could use {mark} here.")
        assert read_calls(deltas)
        assert walk(grammar, tokenizer, seed, style.shown_ids(tokenizer), f"{thought} Just so.").startswith(thought)
    if not opened:
        assert walk(grammar, tokenizer, 1, style.shown_ids(tokenizer), "<th> Well.").startswith("<th> Well.")
        assert read_calls(parse(style, [walk(grammar, tokenizer, 1, style.shown_ids(tokenizer), "Well. <tool_call>")], TOOLS))


def test_texts_in_tags_keep_to_length_pattern_and_options() -> None:
    row = next(row for row in FORMATS if row.name == "qwen3-coder")
    schema = {
        "type": "object",
        "properties": {
            "code": {"type": "string", "pattern": "^[A-C]{2,4}/\\/[0-9]$"},
            "part": {"type": "string", "pattern": "x+", "maxLength": 5},
            "long": {"type": "string", "minLength": 3, "maxLength": 4},
            "pick": {"type": "string", "enum": ["a b", "</s>"]},
            "fixed": {"const": 7},
        },
        "required": ["code", "part", "long", "pick", "fixed"],
    }
    tools = [{"type": "function", "function": {"name": "f", "parameters": schema}}]
    style = style_of(row)
    tokenizer = tokenizer_of(style, False)
    for seed in range(8):
        text = walk(call_grammar(row, tools, parallel=False, tokenizer=tokenizer), tokenizer, seed, frozenset())
        parser = OutputParser(style, tools)
        [(_, arguments)] = read_calls([*parser.push(text), *parser.finish()])
        jsonschema.validate(arguments, schema)
        assert arguments.keys() == schema["properties"].keys()


@pytest.mark.parametrize(
    "parameters", [None, {}, {"type": "object", "properties": {}}, {"properties": {"a": {"const": 1}}, "required": ["a"]}], ids=str
)
def test_arguments_that_nobody_named_do_not_come(parameters: Any) -> None:
    tool = {"type": "function", "function": {"name": "now", "parameters": parameters}}
    row = next(row for row in FORMATS if row.dialect == "json" and not row.argument)
    style = style_of(row)
    grammar = call_grammar(row, [tool], parallel=False)
    want = {"a": 1} if parameters and parameters["properties"] else {}
    for seed in range(20):
        parser = OutputParser(style, [tool])
        deltas = parser.push(walk(grammar, tokenizer_of(style, False), seed, frozenset())) + parser.finish()
        assert read_calls(deltas) == [("now", want)]


def test_an_object_of_anything_stays_one() -> None:
    tools = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object", **more}}} for more in
             ({}, {"additionalProperties": True, "properties": {}}, {"patternProperties": {"^x": {}}, "properties": {}})]  # fmt: skip
    row = next(row for row in FORMATS if row.dialect == "json" and not row.argument)
    for tool in tools:
        assert '"additionalProperties": false' not in call_grammar(row, [tool])


def test_what_cannot_be_forced_is_refused() -> None:
    with pytest.raises(TextError, match="'other', which is not among the tools"):
        call_grammar(FORMATS[0], TOOLS, "other")
    with pytest.raises(TextError, match="no tools are given"):
        call_grammar(FORMATS[0], [])


def test_names_and_keys_with_quotes_cannot_break_a_grammar() -> None:
    for row in ROWS:
        style = style_of(row)
        tokenizer = tokenizer_of(style, False)
        properties = {'a"b': {"type": "integer", "maximum": 9, "minimum": 0}, "c\nd": {"type": "boolean"}}
        tools = [{"type": "function", "function": {"name": 'f"\n: x | start', "parameters": {"type": "object", "properties": properties}}}]
        grammar = call_grammar(row, tools, tokenizer=tokenizer)
        assert "\n: x" not in grammar
        constraint_for("lark", grammar, tokenizer).mask()


def test_without_a_thinking_style_there_is_no_room_for_thoughts() -> None:
    assert "think" not in call_grammar(FORMATS[0], TOOLS)
    assert "<think>" in call_grammar(FORMATS[0], TOOLS, reasoning=THINK)
    assert CHANNELS.name not in call_grammar(FORMATS[0], TOOLS)

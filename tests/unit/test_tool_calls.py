"""Every format: what a row spells is read back, however the text is cut; what is no call stays text."""

import json
import time
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ggrun.text.deltas import CallDelta
from ggrun.text.output import OutputParser
from ggrun.text.tool_calls import FORMATS, HARMONY, CallFormat
from tests.unit.tool_call_parts import cut, parse, put_together, read_calls, style_of

ROWS = [*FORMATS, HARMONY]
BY_NAME = {row.name: row for row in ROWS}
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


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
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


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_a_cut_output_never_holds_a_call_that_was_not_written(row: CallFormat) -> None:
    calls = [("get_weather", {"count": 12, "word": "Paris {}"}), ("find-it", {"flag": True})][: 1 if row.name == "llama3-builtin" else 2]
    text = spelled(row, calls)
    for n in range(len(text) + 1):
        for whole in (False, True):
            deltas = parse(style_of(row), [text[:n]], TOOLS, whole=whole)
            found = read_calls(deltas)
            assert found == calls[: len(found)]
            said, _, states = put_together(deltas)
            assert [state for *_, state in states] == ["done"] * len(found) + ["broken"] * (len(states) - len(found))
            if len(found) < len(states):
                assert states[-1][1] in json.dumps(calls[len(found)][1]), "arguments are told as far as they are certain"
                assert states[-1][0] in said, "the source of a broken call is given back"
            if whole:
                assert len(states) == len(found)
    assert len(found) == len(calls)


ILL_FORMED = {
    "hermes": [
        "<tool_call>", "<tool_call>hello</tool_call>", "<tool_call>{}</tool_call>", '<tool_call>{"arguments": {}}</tool_call>',
        '<tool_call>{"name": "f", "arguments": 3}</tool_call>', '<tool_call>{"name": 3, "arguments": {}}</tool_call>',
        '<tool_call>{"name": "f", "arguments": {"a": 01}}</tool_call>', '<tool_call>{"name": "f", "arguments": {"a": "\\x"}}</tool_call>',
        '<tool_call>{"name": "f", "arguments": {"a": 1,}}</tool_call>', '<tool_call>{"name": "f" "arguments": {}}</tool_call>',
        '<tool_call>{"name": "", "arguments": {}}</tool_call>', '<tool_call>{"name": "f", "arguments": {"a": NaN}}</tool_call>',
        '<tool_call>{"name": "f", "arguments": ' + '{"a":' * 100 + "1" + "}" * 101 + "</tool_call>",
    ],
    "qwen3-coder": [
        "<tool_call>\n<function=f>\n<parameter=a>\n1\n</tool_call>", "<tool_call>\n<function=>\n</function>\n</tool_call>",
        "<function=f>\nsome text</function>", "<tool_call>\n<function=f>\n<parameter=>\n1\n</parameter>\n</function>",
    ],
    "mistral-args": ["[TOOL_CALLS]f[ARGS]no", "[TOOL_CALLS]f", "[TOOL_CALLS][1, 2]", "[TOOL_CALLS] what is this?"],
    "deepseek": ["<｜tool▁call▁begin｜>function<｜tool▁sep｜>f\n```json\n[]\n```<｜tool▁call▁end｜>"],
    "gemma4": ['<|tool_call>call:f{a:<|"|>never ended', "<|tool_call>call:f{a:b}<tool_call|>", "<|tool_call>call{}<tool_call|>"],
    "llama3": [
        '{"name": "Alice", "age": 3}', '{"name": "unknown", "parameters": {}}', '{"name": "get_weather"}', '{"city": "Paris"}', "{",
        "[1, 2]",
        '{"name": "get_weather", "parameters": {"a": }}', "[link](there)",
    ],
    "python-list": ["<|tool_call_start|>[f(1)]", "<|tool_call_start|>[f(a=b)]"],
}  # fmt: skip


@pytest.mark.parametrize(("name", "output"), [(name, output) for name, outputs in ILL_FORMED.items() for output in outputs])
def test_what_is_no_call_is_given_back_as_text(name: str, output: str) -> None:
    style = style_of(BY_NAME[name])
    for whole in (False, True):
        for pieces in ([output], list(output)):
            deltas = parse(style, [*pieces, " and more"], TOOLS, whole=whole)
            said, _, states = put_together(deltas)
            assert all(state == "broken" for *_, state in states)
            assert not (whole and states)
            marks = style.calls[0].markers
            for mark in marks:
                output, said = output.replace(mark, ""), said.replace(mark, "")
            assert said.split() == (output + " and more").split()


LENIENT = {
    "hermes": [
        '<tool_call>{"name":"find-it","arguments":{"word":"x"}}</tool_call>',
        '<tool_call>\n\n{ "arguments" : {"word":"x"} , "name" : "find-it" }',
        '<tool_call>{"name": "find-it", "arguments": "{\\"word\\": \\"x\\"}"}</tool_call>',
        '<tool_call>{"name": "find-it", "parameters": {"word": "x"}, "id": 7}</tool_call>\n',
        '<tool_call>{"type": "function", "function": {"name": "find-it", "arguments": {"word": "x"}}}</tool_call>',
        '<tool_call>[{"name": "find-it", "arguments": {"word": "x"}}]</tool_call>',
        '<tool_call>\n{"name": "find-it", "arguments": {"word": "x"}}',
    ],
    "qwen3-coder": [
        "<function=find-it><parameter=word>x</parameter></function>",
        '<tool_call>{"name": "find-it", "arguments": {"word": "x"}}</tool_call>',
        "<tool_call>\n<function=find-it>\n<parameter=word>\nx\n</parameter>\n</function>",
    ],
    "mistral-ids": ['[TOOL_CALLS]find-it[ARGS]{"word": "x"}', '[TOOL_CALLS] [{"name": "find-it", "arguments": {"word": "x"}}]'],
    "deepseek": [
        '<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>find-it\n{"word": "x"}<｜tool▁call▁end｜><｜tool▁calls▁end｜>',
    ],
    "llama3": [
        '{"type": "function", "name": "find-it", "parameters": {"word": "x"}}',
        '\n{"name": "find-it", "arguments": {"word": "x"}};',
        '[{"name": "find-it", "parameters": {"word": "x"}}]',
    ],
    "llama3-builtin": ['<|python_tag|>{"name": "find-it", "parameters": {"word": "x"}}', "<|python_tag|>find-it.call(word='x')"],
    "gemma4": ['<|tool_call>call:find-it{ word : <|"|>x<|"|> }'],
    "harmony": [
        ' to=functions.find-it<|channel|>commentary json<|message|>{"word":"x"}<|call|>',
        '<|channel|>commentary to=functions.find-it<|message|>{"word":"x"}',
        '<|start|>assistant<|channel|>analysis to=functions.find-it code<|message|>{"word":"x"}<|call|>',
    ],
}


@pytest.mark.parametrize(("name", "output"), [(name, output) for name, outputs in LENIENT.items() for output in outputs])
def test_small_liberties_are_understood(name: str, output: str) -> None:
    for pieces in ([output], list(output)):
        deltas = parse(style_of(BY_NAME[name]), pieces, TOOLS)
        assert read_calls(deltas) == [("find-it", {"word": "x"})]
        assert put_together(deltas)[0].strip(" ;\n") == ""


def test_a_good_call_after_a_bad_one_is_found() -> None:
    output = 'a <tool_call>{"name": oops}</tool_call> b <tool_call>{"name": "f", "arguments": {}}</tool_call> c'
    said, _, calls = put_together(parse(style_of(BY_NAME["hermes"]), list(output), TOOLS))
    assert calls == [("f", "{}", "done")]
    assert said == 'a <tool_call>{"name": oops}</tool_call> bc'


@pytest.mark.parametrize("name", ["hermes", "mistral-list"])
def test_two_calls_may_share_a_tag(name: str) -> None:
    call = '{"name": "f", "arguments": {"a": 1}}'
    row = BY_NAME[name]
    output = f"{row.shape.trigger}\n{call}\n{call}\n{row.shape.end[0] if row.shape.end else ''}"
    deltas = parse(style_of(row), list(output), TOOLS)
    assert read_calls(deltas) == [("f", {"a": 1})] * 2
    assert put_together(deltas)[0] == ""


def test_line_breaks_in_strings_become_json() -> None:
    output = '<tool_call>{"name": "f", "arguments": {"word": "a\nb\tc"}}</tool_call>'
    assert read_calls(parse(style_of(BY_NAME["hermes"]), [output], TOOLS)) == [("f", {"word": "a\nb\tc"})]


def test_arguments_come_as_they_are_written() -> None:
    parser = OutputParser(style_of(BY_NAME["hermes"]), TOOLS)
    assert parser.push('<tool_call>{"name": "get_weather", ') == []
    [first] = parser.push('"arguments": {"word": "Pa')
    assert isinstance(first, CallDelta)
    assert (first.name, first.arguments, first.state) == ("get_weather", '{"word": "Pa', "open")
    assert parser.push("ris") == [CallDelta(0, arguments="ris")]
    assert parser.push('"}') == [CallDelta(0, arguments='"}')]
    assert parser.push("}") == [CallDelta(0, state="done")]
    assert (parser.n_calls, parser.push("\n</tool_call>"), parser.finish()) == (1, [], [])


def test_without_tools_calls_are_text() -> None:
    output = 'x <tool_call>{"name": "f", "arguments": {}}</tool_call>'
    assert put_together(parse(style_of(BY_NAME["hermes"]), list(output))) == (output, "", [])


def test_values_in_tags_have_the_type_their_schema_says() -> None:
    kinds = {"type": "object", "properties": {"s": {"type": "string"}, "n": {"type": ["number", "null"]}, "b": {"$ref": "#/$defs/b"},
             "u": {"anyOf": [{"type": "string"}, {"type": "null"}]}}, "$defs": {"b": {"type": "boolean"}}}  # fmt: skip
    tools = [{"type": "function", "function": {"name": "f", "parameters": kinds}}]
    row = BY_NAME["qwen3-coder"]
    for written, expected in [
        ({"s": "12", "n": "12", "b": "True", "u": "null"}, {"s": "12", "n": 12, "b": True, "u": None}),
        ({"s": "null", "n": "None", "b": "false", "u": "12"}, {"s": "null", "n": None, "b": False, "u": "12"}),
        ({"s": "[1]", "n": "many", "b": "yes", "x": "[1]"}, {"s": "[1]", "n": "many", "b": "yes", "x": [1]}),
    ]:
        assert read_calls(parse(style_of(row), [row.spell("f", written)], tools)) == [("f", expected)]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_long_arguments_take_no_longer_than_their_length(row: CallFormat) -> None:
    text = spelled(row, [("get_weather", {"word": "ab cd\n" * 16_000})])
    start = time.process_time()
    for pieces in ([text], [text[i : i + 3] for i in range(0, len(text), 3)]):
        assert len(read_calls(parse(style_of(row), pieces, TOOLS))) == 1
    assert time.process_time() - start < 20  # a second; were each piece to look at all before it, minutes


@pytest.mark.parametrize("output", ["<tool_call>" * 9000, " " * 100_000, "<" * 100_000, "{" * 100_000, "<tool_call>" + "{" * 100_000,
                                    "<tool_call><function=f><parameter=a>" * 3000, '<tool_call>{"name": "' + "x" * 100_000,
                                    '<tool_call>{"a": "' * 6000, "<tool_call>" + " " * 100_000])  # fmt: skip
@pytest.mark.parametrize("name", ["hermes", "qwen3-coder", "llama3", "harmony"])
def test_hostile_outputs_take_no_longer(name: str, output: str) -> None:
    start = time.process_time()
    for pieces in ([output], [output[i : i + 5] for i in range(0, len(output), 5)]):
        said, *_ = put_together(parse(style_of(BY_NAME[name]), pieces, TOOLS))
        assert "".join(said.split()) == "".join(output.split())
    assert time.process_time() - start < 10


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
@settings(max_examples=60)
@given(st.data())
def test_any_output_is_read_alike_however_it_is_cut(row: CallFormat, data: st.DataObject) -> None:
    """Random heaps of what calls are made of."""
    scraps = [*row.markers, "<think>", "</think>"]
    scraps += ['{"name": "', '", "arguments": ', "get_weather", '{"a": 1}', "}", "{", "[", "]", '"', ":", ",", "\n"]
    scraps += [" ", "x", "12", "null", "\\", "\\u00e9", "=", "(", ")", "to=functions.f", "```json"]
    scraps += [row.spell("find-it", {"word": "x"}, "abcdefgh1")]
    output = "".join(data.draw(st.lists(st.sampled_from(scraps), max_size=25)))
    style = style_of(row)
    whole = put_together(parse(style, [output], TOOLS))
    assert put_together(parse(style, list(output), TOOLS)) == whole
    assert put_together(parse(style, cut(output, data.draw(st.lists(st.integers(0, 500), max_size=10))), TOOLS)) == whole
    text, thought, calls = whole
    for _, given_arguments, state in calls:
        if state == "done":
            assert isinstance(json.loads(given_arguments), dict)
    at_once = put_together(parse(style, list(output), TOOLS, whole=True))
    assert at_once == (text, thought, [call for call in calls if call[2] == "done"])

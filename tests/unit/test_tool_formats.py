"""Which format a template's model writes calls in: known rows, rows made from what it shows, and what is left when it shows none."""

import pytest

from ggrun.text import ChatTemplate, load_tokenizer
from ggrun.text.output import OutputStyle, output_style
from ggrun.text.reasoning import THINK
from ggrun.text.tool_calls import FORMATS, GENERIC, HARMONY, CallFormat, format_for, formats_for
from tests.unit.text_vocabularies import CONTROL, USER_DEFINED, gpt2
from tests.unit.tool_call_parts import parse, put_together, read_calls

CALLS = [("find", {"what": "a b", "where": "here"}), ("now", {"what": "x", "where": 'y "z"'})]
TOOLS = [
    {"type": "function", "function": {"name": name, "description": f"{name} it all", "parameters": {"type": "object", "properties": {
        "what": {"type": "string"}, "where": {"type": "string"}}}}} for name, _ in CALLS
]  # fmt: skip
# {call}: what the template writes for `c`, a call's function
SOURCE = (
    "{{% if tools %}}<tools>{{{{ tools | tojson }}}}</tools>{{% endif %}}"
    "{{% for m in messages %}}<|turn|>{{{{ m.role }}}}\n{{{{ m.content }}}}"
    "{{% if m.tool_calls %}}{first}{{% for t in m.tool_calls %}}{{% set c = t.function %}}{call}"
    "{{% if not loop.last %}}{between}{{% endif %}}{{% endfor %}}{last}{{% endif %}}<|over|>\n{{% endfor %}}"
    "{{% if add_generation_prompt %}}<|turn|>assistant\n{{% endif %}}"
)
ITEMS = "{{% for k, v in c.arguments | items %}}{}{{% endfor %}}"
UNKNOWN = {
    "json in other tags": ("", '<use>{"tool": "{{ c.name }}", "input": {{ c.arguments | tojson }}}</use>', " ", ""),
    "json in a list": ("<calls>[", '{"fn": "{{ c.name }}", "args": {{ c.arguments | tojson }}}', ", ", "]</calls>"),
    "a name in front": ("<|calls|>\n", "<|call|>{{ c.name }}<|with|>{{ c.arguments | tojson }}<|done|>", "\n", "\n<|no_more_calls|>"),
    "an id in front": ("", "<|call|>{{ t.id }}<|name|>{{ c.name }}<|with|>{{ c.arguments | tojson }}<|done|>", "", ""),
    "tags of their own": ("", "<do:{{ c.name }}>\n" + ITEMS.format("<arg:{{ k }}>{{ v }}</arg>\n") + "</do>", "\n", ""),
    "one tag for all": ("<all>\n", "<do name={{ c.name }}>" + ITEMS.format("<{{ k }}>{{ v }}</>") + "</do>", "\n", "\n</all>"),
}


def template(first: str, call: str, between: str, last: str) -> ChatTemplate:
    return ChatTemplate(SOURCE.format(first=first, call=call, between=between, last=last), "<s>", "</s>")


@pytest.mark.parametrize("name", UNKNOWN)
def test_an_unknown_format_is_derived(name: str) -> None:
    source = template(*UNKNOWN[name])
    row = format_for(source)
    assert row.name == "derived"
    said = [{"role": "user", "content": "?"}, {"role": "assistant", "content": "", "tool_calls": [
        {"id": "abcdefgh1", "function": {"name": name, "arguments": arguments}} for name, arguments in CALLS]}]  # fmt: skip
    shown = source.render(said, TOOLS, add_generation_prompt=False).text.rpartition("<|turn|>assistant\n")[2].removesuffix("<|over|>\n")
    style = OutputStyle(THINK, (row,))
    for pieces in ([shown], list(shown)):
        deltas = parse(style, pieces, TOOLS)
        assert read_calls(deltas) == CALLS
        assert put_together(deltas)[0] == ""
    spelled = row.first + row.between.join(row.spell(name, arguments, "abcdefgh1") for name, arguments in CALLS) + row.last
    assert spelled == shown


@pytest.mark.parametrize("row", [row for row in FORMATS if row.dialect == "json" and row.shape.trigger], ids=lambda row: row.name)
def test_a_known_format_is_recognized(row: CallFormat) -> None:
    call = row.call.replace("«name»", "{{ c.name }}").replace("«id»", "{{ t.id }}")
    if row.argument:
        tags = row.argument.replace("«key»", "{{ k }}").replace("«value»", "{{ v }}")
        call = call.replace("«arguments»", ITEMS.format(tags).replace("{{%", "{%").replace("%}}", "%}"))
    call = call.replace("«arguments»", "{{ c.arguments | tojson }}")
    found = format_for(template(row.first, call, row.between, row.last))
    spelled = found.first + found.spell(*CALLS[0], "abcdefgh1") + found.last
    expected = row.first + row.spell(*CALLS[0], "abcdefgh1") + row.last
    assert "".join(spelled.split()) == "".join(expected.split())  # Jinja drops a line's end after a tag
    assert found == row or row.name in ("minimax", "generic")  # generic is hermes


def test_one_call_a_turn_is_enough() -> None:
    source = SOURCE.replace("{first}", "{{% if m.tool_calls | length > 1 %}}{{{{ raise_exception('one') }}}}{{% endif %}}")
    row = format_for(ChatTemplate(source.format(call=UNKNOWN["a name in front"][1], between="", last="")))
    assert (row.name, row.call) == ("derived", "<|call|>«name»<|with|>«arguments»<|done|>")


def test_a_template_that_knows_no_tools_gets_the_generic_format() -> None:
    plain = ChatTemplate("{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}")
    assert [row.name for row in formats_for(plain)] == ["generic", "bare"]
    style = output_style(plain)
    assert read_calls(parse(style, ['{"name": "now", "arguments": {}}'], TOOLS)) == [("now", {})]
    assert put_together(parse(style, ['{"name": "Ann", "arguments": {}}'], TOOLS)) == ('{"name": "Ann", "arguments": {}}', "", [])
    rendered = plain.render([{"role": "user", "content": "?"}], TOOLS)
    assert rendered.tools_as_text
    assert "<tool_call>" in rendered.text
    assert any("does not know tools" in note for note in rendered.notes)


def test_own_calls_are_read_beside_the_generic_ones() -> None:
    """The template shows calls, but not which tools there are: these are told in ggrun's words."""
    source = SOURCE.replace("{{% if tools %}}<tools>{{{{ tools | tojson }}}}</tools>{{% endif %}}", "")
    formats = formats_for(ChatTemplate(source.format(first="", call=UNKNOWN["a name in front"][1], between="", last="")))
    assert [row.name for row in formats] == ["generic", "derived", "bare"]


@pytest.mark.parametrize(("source", "name"), [
    ("{{ tools | tojson }}{{ '<|tool_call_start|>' }}", "python-list"), ("{{ tools | tojson }} <function=f> <parameter=p>", "qwen3-coder"),
    ("{{ tools | tojson }} <tool_call>", "generic"), ("{{ tools | tojson }} [TOOL_CALLS]", "mistral-list"),
    ("{{ tools | tojson }} <|channel|>analysis<|message|>", "harmony"),
])  # fmt: skip
def test_words_of_the_source_tell_when_no_call_is_shown(source: str, name: str) -> None:
    talk = "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}"
    assert format_for(ChatTemplate(talk + source)).name == name


def test_markers_that_are_special_tokens_are_shown() -> None:
    names = ["<|channel|>", "<|message|>", "<|call|>", "<tool_call>", "</tool_call>", "<|other|>"]
    tokenizer = load_tokenizer(gpt2([], {name: CONTROL if name != "</tool_call>" else USER_DEFINED for name in names}))
    style = OutputStyle(THINK, (GENERIC, HARMONY))
    shown = style.shown_ids(tokenizer)
    assert {tokenizer.token_text(id_) for id_ in shown} == set(names) - {"<|other|>"}
    decoder = tokenizer.decoder(shown=shown)
    text = "a<tool_call>b</tool_call><|other|>c"
    assert "".join(map(decoder.push, tokenizer.encode(text, parse_special=True))) == "a<tool_call>b</tool_call>c"


def test_the_style_of_a_template_is_both() -> None:
    style = output_style(template(*UNKNOWN["json in other tags"]))
    assert style.reasoning == THINK
    assert [row.name for row in style.calls] == ["derived"]
    assert {"<think>", "</think>", "<use>", "</use>"} <= set(style.markers)

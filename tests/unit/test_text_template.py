"""The ladder: what each kind of template is given, and what the caller is told."""

from typing import Any

import pytest

from ggrun.text import ChatTemplate, TextError, chat_template, load_tokenizer
from tests.unit.text_vocabularies import CONTROL, gpt2

SYSTEM = {"role": "system", "content": "Be brief."}
USER = {"role": "user", "content": "Weather in Paris?"}
TOOL = {"type": "function", "function": {"name": "get_weather", "description": "Tells the weather.", "parameters": {"type": "object"}}}
PLAIN = "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}"


def call(id_: str, city: str) -> dict[str, Any]:
    return {"id": id_, "type": "function", "function": {"name": "get_weather", "arguments": f'{{"city": "{city}"}}'}}


CALLED = [
    USER,
    {"role": "assistant", "content": None, "tool_calls": [call("call_1", "Paris")]},
    {"role": "tool", "tool_call_id": "call_1", "content": "21 degrees"},
]
CALLED_TWICE = [
    USER,
    {"role": "assistant", "content": None, "tool_calls": [call("a", "Paris"), call("b", "Rome")]},
    {"role": "tool", "tool_call_id": "a", "content": "21 degrees"},
    {"role": "tool", "tool_call_id": "b", "content": "25 degrees"},
]


def test_a_plain_conversation() -> None:
    rendered = ChatTemplate("{{ bos_token }}" + PLAIN + "{{ eos_token }}", "<s>", "</s>").render([SYSTEM, USER])
    assert rendered.text == "<s>[system]Be brief.[user]Weather in Paris?[assistant]</s>"
    assert rendered.notes == ()
    assert ChatTemplate(PLAIN).render([USER], add_generation_prompt=False).text == "[user]Weather in Paris?"


def test_variables_reach_the_template() -> None:
    template = ChatTemplate("{{ messages[0].content }}{% if enable_thinking is defined and not enable_thinking %}<no>{% endif %}")
    assert template.render([USER]).text == USER["content"]
    assert template.render([USER], variables={"enable_thinking": False}).text.endswith("<no>")


def test_a_system_message_moves_where_it_is_refused_or_dropped() -> None:
    refusing = "{% if messages[0].role == 'system' %}{{ raise_exception('no') }}{% endif %}" + PLAIN
    dropping = "{% for m in messages if m.role != 'system' %}[{{ m.role }}]{{ m.content }}{% endfor %}"
    for source in (refusing, dropping):
        rendered = ChatTemplate(source).render([SYSTEM, USER])
        assert rendered.text.startswith("[user]Be brief.\n\nWeather in Paris?")
        assert "system message" in rendered.notes[0]


def test_neighbours_of_one_role_are_joined_where_turns_must_alternate() -> None:
    source = "{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('alternate') }}{% endif %}"
    rendered = ChatTemplate(source + "[{{ m.role }}]{{ m.content }}{% endfor %}").render([USER, USER])
    assert rendered.text == "[user]Weather in Paris?\n\nWeather in Paris?"
    assert "turns" in rendered.notes[0]


def test_the_templates_refusal_is_told_when_nothing_helps() -> None:
    with pytest.raises(TextError, match="refuses this conversation: never on Sundays"):
        ChatTemplate("{{ raise_exception('never on Sundays') }}").render([USER])


def test_what_is_left_out_is_told() -> None:
    rendered = ChatTemplate("{{ messages[-1].content }}").render(
        [USER, {"role": "assistant", "content": "Sunny."}, USER | {"content": "?"}]
    )
    assert "leaves out the text of message 0 (user), the text of message 1 (assistant)" in rendered.notes[-1]


def test_tools_the_template_knows_are_its_own_business() -> None:
    source = "{% for t in tools or [] %}{{ t.function|tojson }}{% endfor %}" + PLAIN
    rendered = ChatTemplate(source).render([USER], [TOOL])
    assert rendered.text.startswith('{"name": "get_weather"')
    assert rendered.notes == ()


@pytest.mark.parametrize("tool", [TOOL, TOOL["function"]])
def test_tools_the_template_does_not_know_are_described_in_the_first_turn(tool: dict[str, Any]) -> None:
    rendered = ChatTemplate(PLAIN).render([USER], [tool])
    assert rendered.text.startswith("[system]You may call functions.")
    assert '{"name": "get_weather", "description": "Tells the weather."' in rendered.text
    assert "does not know tools" in rendered.notes[0]
    merged = ChatTemplate(PLAIN).render([SYSTEM, USER], [tool]).text
    assert merged.startswith("[system]Be brief.\n\nYou may call functions.")


def test_calls_and_results_become_text_for_such_a_template() -> None:
    source = (
        "{% for m in messages %}{% if m.role == 'tool' %}{{ raise_exception('?') }}{% endif %}[{{ m.role }}]{{ m.content }}{% endfor %}"
    )
    text = ChatTemplate(source).render(CALLED_TWICE, [TOOL]).text
    assert '[assistant]<tool_call>\n{"name": "get_weather", "arguments": {"city": "Paris"}}\n</tool_call>\n<tool_call>' in text
    assert "[user]<tool_response>\n21 degrees\n</tool_response>\n<tool_response>\n25 degrees\n</tool_response>" in text


@pytest.mark.parametrize("name", ["t", "user", "assistant"])
def test_a_name_in_the_templates_own_words_is_no_description_of_the_tool(name: str) -> None:
    tool = {"type": "function", "function": {"name": name, "description": "Tells the weather."}}
    rendered = ChatTemplate(PLAIN).render([USER], tools=[tool])
    assert f'{{"name": "{name}", "description": "Tells the weather.' in rendered.text
    assert "does not know tools" in rendered.notes[0]
    shown = "{% if tools %}t, user, assistant: {{ tools | tojson }}{% endif %}" + PLAIN
    assert ChatTemplate(shown).render([USER], tools=[tool]).notes == ()


def test_a_name_in_a_call_is_no_description_of_the_tool() -> None:
    source = PLAIN.replace("{% endfor %}", "{% for c in m.tool_calls or [] %}{{ c.function|tojson }}{% endfor %}{% endfor %}", 1)
    rendered = ChatTemplate(source).render(CALLED, [TOOL])
    assert "Tells the weather." in rendered.text
    assert "does not know tools" in rendered.notes[0]


CALLS = "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% for c in m.tool_calls or [] %}%s{% endfor %}{% endfor %}"


@pytest.mark.parametrize(
    ("show", "text"),
    [
        ("{{ c.function.name }}{% for k, v in c.function.arguments.items() %}{{ k }}={{ v }}{% endfor %}", "get_weathercity=Paris"),
        ("{{ c.function.name + c.function.arguments }}", 'get_weather{"city": "Paris"}'),
        ("{% if m.content is none %}{{ c.function|tojson }}{% endif %}", '"arguments": {"city": "Paris"}'),
        ("{% if c.id|length != 9 %}{{ raise_exception('ids!') }}{% endif %}{{ c.function|tojson }}", '"city": "Paris"'),
    ],
)
def test_arguments_ids_and_contents_take_the_form_a_template_wants(show: str, text: str) -> None:
    rendered = ChatTemplate(CALLS.replace("%s", show)).render(CALLED)
    assert text in rendered.text
    assert "21 degrees" in rendered.text
    assert rendered.notes == ()


@pytest.mark.parametrize("limit", ["{% if m.tool_calls|length > 1 %}{{ raise_exception('one!') }}{% endif %}", ""])
def test_calls_made_together_are_told_apart(limit: str) -> None:
    source = CALLS.replace("%s", limit + "{% if loop.first %}{{ c.function|tojson }}{% endif %}")
    rendered = ChatTemplate(source).render(CALLED_TWICE)
    order = [rendered.text.index(word) for word in ("Paris?", '"Paris"', "21 degrees", '"Rome"', "25 degrees")]
    assert order == sorted(order)
    assert "one tool call" in rendered.notes[0]


def test_results_know_the_name_of_what_was_called() -> None:
    source = "{% for m in messages %}{{ m.content }}{% for c in m.tool_calls or [] %}{{ c|tojson }}{% endfor %}{{ m.name }}{% endfor %}"
    assert ChatTemplate(source).render(CALLED).text.endswith("21 degreesget_weather")


def test_templates_that_want_parts_get_parts() -> None:
    source = "{% for m in messages %}{% for part in m.content %}{{ part.text }}{% endfor %}{% endfor %}"
    assert ChatTemplate(source).render([SYSTEM, USER]).text == "Be brief.Weather in Paris?"


def test_parts_become_text() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    assert ChatTemplate(PLAIN).render([{"role": "user", "content": parts}]).text == "[user]a\nb[assistant]"


@pytest.mark.parametrize(
    ("messages", "words"),
    [
        ([{"role": "user", "content": [{"type": "image_url", "image_url": "x"}]}], "image_url"),
        ([{"content": "x"}], "message 0 has no role"),
        ([{"role": "user", "content": 5}], "content of message 0"),
        (["hello"], "list of objects"),
        ([USER, {"role": "assistant", "tool_calls": [{"id": "x"}]}], "names no function"),
    ],
)
def test_what_is_no_conversation_is_refused(messages: list[Any], words: str) -> None:
    with pytest.raises(TextError, match=words):
        ChatTemplate(PLAIN).render(messages)


def test_tools_must_have_names() -> None:
    with pytest.raises(TextError, match="name"):
        ChatTemplate(PLAIN).render([USER], [{"type": "function", "function": {}}])


def test_the_callers_messages_stay_as_they_are() -> None:
    messages = [dict(USER), *CALLED[1:]]
    before = repr(messages)
    ChatTemplate(PLAIN).render(messages, [TOOL])
    assert repr(messages) == before


def test_limits_end_the_ladder() -> None:
    bomb = "{% for a in range(100000) %}{% for b in range(100000) %}{% endfor %}{% endfor %}"
    with pytest.raises(TextError, match="was stopped"):
        ChatTemplate(bomb).render([SYSTEM, *CALLED_TWICE], [TOOL])


def test_functions_may_be_written_into_text() -> None:
    source = "{{ 'Functions: ' + functions if functions else '' }}" + PLAIN
    assert '"name": "get_weather"' in ChatTemplate(source).render([USER], [TOOL]).text


METADATA = gpt2([], {"<|im_start|>": CONTROL, "<|im_end|>": CONTROL}, eos_token_id=257)


def test_the_files_own_template_comes_first() -> None:
    tokenizer = load_tokenizer(METADATA)
    own = {"tokenizer.chat_template": "own" + PLAIN, "tokenizer.chat_template.tool_use": "{{ tools|tojson }}" + PLAIN}
    assert chat_template(METADATA | own, tokenizer).render([USER]).text.startswith("own")
    assert chat_template(METADATA | own, tokenizer).render([USER], [TOOL]).text.startswith('[{"type"')
    assert chat_template(METADATA | own, tokenizer, "mine" + PLAIN).render([USER]).text.startswith("mine")


def test_a_file_without_one_gets_one_that_fits_its_tokens() -> None:
    rendered = chat_template(METADATA, load_tokenizer(METADATA)).render([SYSTEM, USER])
    assert rendered.text == (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nWeather in Paris?<|im_end|>\n<|im_start|>assistant\n"
    )
    assert "no chat template" in rendered.notes[0]
    assert "'chatml'" in rendered.notes[0]
    bare = chat_template(gpt2(), load_tokenizer(gpt2())).render([SYSTEM, USER])
    assert bare.text == "Be brief.\n\nUser: Weather in Paris?\nAssistant:"


@pytest.mark.parametrize("name", ["chatml", "llama3", "phi3", "gemma", "mistral", "plain"])
def test_built_in_templates_by_name(name: str) -> None:
    talk = [SYSTEM, USER, {"role": "assistant", "content": "Sunny."}, {"role": "user", "content": "Thanks"}]
    rendered = chat_template(METADATA, load_tokenizer(METADATA), name).render(talk)
    order = [rendered.text.index(word) for word in ("Be brief.", "Weather", "Sunny.", "Thanks")]
    assert order == sorted(order)


@pytest.mark.parametrize(("key", "value"), [("tokenizer.chat_template", 5), ("tokenizer.chat_template.tool_use", ["a"])])
def test_templates_that_are_no_text_are_refused(key: str, value: Any) -> None:
    with pytest.raises(TextError, match=key):
        chat_template(METADATA | {key: value}, load_tokenizer(METADATA))


def test_unknown_names_and_broken_templates_are_refused() -> None:
    with pytest.raises(TextError, match="'chatmel'.*chatml"):
        chat_template(METADATA, load_tokenizer(METADATA), "chatmel")
    with pytest.raises(TextError, match="not valid Jinja"):
        chat_template(METADATA, load_tokenizer(METADATA), "{% for %}")


def test_templates_may_change_what_they_are_given_without_harm() -> None:
    source = "{% set _ = messages.pop(0) %}{% set _ = messages[0].update({'content': 'changed'}) %}{{ raise_exception('again') }}"
    messages = [SYSTEM, dict(USER)]
    with pytest.raises(TextError, match="again"):
        ChatTemplate(source).render(messages, variables={"x": [1]})
    assert messages == [SYSTEM, USER]


def test_calls_the_template_does_not_show_are_written_out() -> None:
    source = "{% for t in tools or [] %}{{ t.function.name }}: {{ t.function.description }}{% endfor %}" + PLAIN
    rendered = ChatTemplate(source).render(CALLED, [TOOL])
    assert '[assistant]<tool_call>\n{"name": "get_weather", "arguments": {"city": "Paris"}}\n</tool_call>[tool]21 degrees' in rendered.text
    assert "does not show tool calls" in rendered.notes[0]

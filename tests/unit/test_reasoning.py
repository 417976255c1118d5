"""Thoughts are told apart from the answer, however the output is cut; only what stands at its beginning is one."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ggrun.text import ChatTemplate
from ggrun.text.output import OutputParser, OutputStyle
from ggrun.text.reasoning import STYLES, THINK, ReasoningStyle, reasoning_of
from tests.unit.tool_call_parts import CHANNELS, cut, parse, put_together

TAGGED = [style for style in STYLES if not style.channels]
TURN = "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}"


def split(style: ReasoningStyle, output: str, places: list[int] | None = None, **options: Any) -> tuple[str, str]:
    """Thought and text, the same for the whole output, for its letters and for the given pieces."""
    results = {
        put_together(parse(OutputStyle(style, ()), pieces, **options))[:2] for pieces in ([output], list(output), cut(output, places or []))
    }
    assert len(results) == 1
    text, thought = results.pop()
    return thought, text


@pytest.mark.parametrize("style", TAGGED, ids=lambda style: style.name)
def test_a_thought_comes_first(style: ReasoningStyle) -> None:
    begin, end = style.begin, style.end
    assert split(style, f"{begin}\nHm, <b>\n\nright.\n{end}\n\nYes <x>.") == ("Hm, <b>\n\nright.", "Yes <x>.")
    assert split(style, f"\n{begin}{end}Yes.") == ("", "Yes.")
    assert split(style, f"{begin}a{end}b{end}c{begin}d") == ("a", f"b{end}c{begin}d".replace(end, "" if end in style.dropped else end))
    assert split(style, f"{begin}never ended\n") == ("never ended\n", "")
    assert split(style, f"{begin}never{end[:-1]}") == (f"never{end[:-1]}", "")
    assert split(style, "No thought.") == ("", "No thought.")
    assert split(style, f"  ```\n{begin}\n```{end}") == ("", f"  ```\n{begin}\n```{end}")
    assert split(style, begin[:-1]) == ("", begin[:-1])
    assert split(style, "") == ("", "")
    assert split(style, " \n") == ("", " \n")


@pytest.mark.parametrize("style", TAGGED, ids=lambda style: style.name)
def test_a_prompt_may_have_begun_the_thought(style: ReasoningStyle) -> None:
    prompt = f"[user] what is {style.begin}? [assistant]{style.begin}\n"
    assert split(style, f"\nHm.\n{style.end}\n\nYes.", prompt=prompt) == ("Hm.", "Yes.")
    assert split(style, "Hm", prompt=prompt) == ("Hm", "")
    assert split(style, f"{style.begin}Hm.{style.end}Yes.", prompt=prompt) == ("Hm.", "Yes.")
    assert split(style, "Yes.", prompt=prompt + f"\n{style.end}\n\n") == ("", "Yes.")
    assert split(style, "Yes.", prompt=f"[user] what is {style.begin}? [assistant]") == ("", "Yes.")


@pytest.mark.parametrize("style", TAGGED, ids=lambda style: style.name)
def test_an_answer_that_is_continued_may_have_been_in_a_thought(style: ReasoningStyle) -> None:
    output = f" go on.{style.end}\nYes."
    rest = ("go on.", "Yes.")
    for before, begun, expected in [
        ("[assistant]", f"{style.begin}Let me", rest),
        (f"[assistant]{style.begin}\n", "Let me", rest),
        (f"[assistant]{style.begin}\n", "", rest),
    ]:
        assert split(style, output, prompt=before + begun, begun=begun) == expected
    for before, begun in [("[assistant]", "Let me"), (f"[assistant]{style.begin}", f"a{style.end}Let me"),
                          ("[assistant]", f"{style.begin}a{style.end}b")]:  # fmt: skip
        assert split(style, " go on.", prompt=before + begun, begun=begun) == ("", " go on.")
        assert split(style, f"{style.begin}x", prompt=before + begun, begun=begun) == ("", f"{style.begin}x")


@pytest.mark.parametrize("style", TAGGED, ids=lambda style: style.name)
def test_thoughts_may_stay_in_the_text(style: ReasoningStyle) -> None:
    output = f" {style.begin}\nHm.\n{style.end}\n\nYes."
    thought, text = split(style, output, reasoning="none")
    assert thought == ""
    assert text.split() == output.split()
    assert split(style, f"Hm.{style.end}Yes", reasoning="none", prompt=style.begin) == ("", f"Hm.{style.end}Yes")


def test_marks_around_the_answer_are_left_out() -> None:
    styles = {style.name: style for style in STYLES}
    assert split(styles["solar"], "<|think|>a<|end|><|begin|>assistant<|content|>b <|x|><|end|>") == ("a", "b <|x|><|end|>")
    assert split(styles["solar"], "<|content|>b") == ("", "b")
    assert split(styles["think-response"], "<think>a</think><response>b</response>") == ("a", "b")
    assert split(styles["command"], "<|START_THINKING|>a<|END_THINKING|><|START_RESPONSE|>b<|END_RESPONSE|>") == ("a", "b")


CHANNEL_OUTPUTS = {
    "<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant<|channel|>final<|message|>Yes.": ("Hm.", "Yes."),
    "<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant<|channel|>final<|message|>Yes.<|return|>": ("Hm.", "Yes."),
    "<|channel|>analysis<|message|>a<|end|><|start|>assistant<|channel|>analysis<|message|>b<|end|>": ("ab", ""),
    "<|channel|>commentary<|message|>Let me see.<|end|><|start|>assistant<|channel|>final<|message|>Yes.": ("", "Let me see.Yes."),
    "<|channel|>final <|constrain|>json<|message|>{}": ("", "{}"),
    "<|channel|>final<|message|>a < b <| c": ("", "a < b <| c"),
    "just text": ("", "just text"),
    "to be or not": ("", "to be or not"),
    "to=x": ("", "to=x"),
    "text <|channel|>final<|message|>more": ("", "text more"),
    "<|channel|>analysis<|message|>unfinished": ("unfinished", ""),
    "<|channel|>anal": ("", ""),
    "<|channel|>analysis<|message|>a<|end|><|start|>assist": ("a", ""),
    "": ("", ""),
}


@pytest.mark.parametrize("output", CHANNEL_OUTPUTS)
def test_channels(output: str) -> None:
    assert split(CHANNELS, output) == CHANNEL_OUTPUTS[output]


def test_channels_may_stay_in_the_text() -> None:
    thought = "<|channel|>analysis<|message|>Hm.<|end|>"
    assert split(CHANNELS, f"{thought}<|start|>assistant<|channel|>final<|message|>Yes.", reasoning="none") == ("", f"{thought}Yes.")
    call = '<|channel|>commentary to=functions.f <|constrain|>json<|message|>{"a": 1}<|call|>'
    assert split(CHANNELS, call) == ("", call)


@given(st.text("<>/think \n[]THINK|", max_size=60), st.lists(st.integers(0, 60), max_size=8), st.sampled_from(STYLES), st.booleans())
def test_any_output_is_split_alike_however_it_is_cut(output: str, places: list[int], style: ReasoningStyle, opened: bool) -> None:
    thought, text = split(style, output, places, prompt=style.begin if opened else "")
    kept = thought + text
    assert len(kept) <= len(output)
    assert all(part in output for part in (thought, text)) or style.dropped


def test_a_long_thought_comes_as_it_is_thought() -> None:
    parser = OutputParser(OutputStyle(THINK, ()))
    parser.push("<think>")
    assert [len(parser.push("word ")) for _ in range(1000)] == [1] * 1000


TEMPLATES = {
    "think": "{{ '</think>' }}",
    "gemma4": "{{ '<|channel>thought\n<channel|>' }}",
    "mistral": "{{ '[THINK]' }}{{ '[/THINK]' }}",
    "channels": "{{ '<|channel|>analysis<|message|>' }}",
    "seed": "{{ '<seed:think></seed:think>' }}",
}


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_template_tells_its_style(name: str) -> None:
    assert reasoning_of(ChatTemplate(TURN + TEMPLATES[name])).name == name


@pytest.mark.parametrize("field", ["reasoning_content", "reasoning", "thinking"])
def test_tags_of_an_unknown_style_are_found_by_rendering(field: str) -> None:
    source = TURN.replace("{{ m.content }}", f"{{% if m.{field} %}}<muse>\n{{{{ m.{field} }}}}\n</muse>\n{{% endif %}}{{{{ m.content }}}}")
    style = reasoning_of(ChatTemplate(source))
    assert (style.begin, style.end) == ("<muse>", "</muse>")
    assert split(style, "<muse>a</muse>b") == ("a", "b")


def test_without_a_sign_only_a_think_tag_at_the_beginning_counts() -> None:
    assert reasoning_of(ChatTemplate(TURN)) == THINK

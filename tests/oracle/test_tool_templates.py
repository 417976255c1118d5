"""What public templates show of an assistant's calls, as its model writes them, is read back as these calls."""

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ggrun.text import ChatTemplate
from ggrun.text.output import OutputStyle, output_style
from ggrun.text.special import ENDS
from ggrun.text.tool_calls import format_for
from ggrun.text.tool_calls.derive import derived_row, shown_calls
from tests.conftest import SHARED, shared_path
from tests.unit.tool_call_parts import cut, parse, put_together, read_calls

NAMES = sorted(path.stem for path in (SHARED / "templates").glob("*.jinja"))
# what a model is asked to write, and how it thinks
STYLES = {
    "HuggingFaceTB-SmolLM3-3B": ("generic", "think"),
    "Mistral-Small-3.2-24B-Instruct-2506": ("mistral-ids", "think"),
    "NousResearch-Hermes-3-Llama-3.1-8B-tool_use": ("hermes", "think"),
    "Qwen-Qwen2.5-7B-Instruct": ("hermes", "think"),
    "Qwen-Qwen3-0.6B": ("hermes", "think"),
    "Qwen3-Coder": ("qwen3-coder", "think"),
    "Qwen3.5-4B": ("qwen3-coder", "think"),
    "deepseek-ai-DeepSeek-R1-Distill-Llama-8B": ("generic", "think"),
    "deepseek-ai-DeepSeek-V3.1": ("generic", "think"),
    "google-gemma-2-2b-it": ("generic", "think"),
    "google-gemma-4-31B-it": ("gemma4", "gemma4"),
    "meta-llama-Llama-3.1-8B-Instruct": ("llama3", "think"),
    "meta-llama-Llama-3.2-3B-Instruct": ("llama3", "think"),
    "meta-llama-Llama-3.3-70B-Instruct": ("llama3", "think"),
    "microsoft-Phi-3.5-mini-instruct": ("generic", "think"),
    "mistralai-Mistral-Nemo-Instruct-2407": ("mistral", "think"),
    "openai-gpt-oss-120b": ("harmony", "channels"),
    "upstage-Solar-Open-100B": ("solar", "solar"),
}
PARAMETERS = {
    "type": "object",
    "properties": {
        "city": {"type": "string", "description": "Name"},
        "days": {"type": "integer", "description": "How many"},
        "hourly": {"type": "boolean", "description": "Hours, too"},
        "units": {"type": "array", "items": {"type": "string"}, "description": "Which"},
    },
}
TOOLS = [
    {"type": "function", "function": {"name": name, "description": f"Does {name}.", "parameters": PARAMETERS}}
    for name in ("get_weather", "plan")
]
ASKED = {"role": "user", "content": "What is it like there?"}
CALLS: list[tuple[str, dict[str, Any]]] = [
    ("get_weather", {"city": 'Paris "la\nbelle" é', "days": 3, "hourly": True, "units": ["C", "F"]}),
    ("plan", {"city": "Rome </b>", "days": -1}),
]
_styles: dict[str, tuple[ChatTemplate, OutputStyle]] = {}


def template_of(name: str) -> tuple[ChatTemplate, OutputStyle]:
    if name not in _styles:
        template = ChatTemplate(shared_path("templates", f"{name}.jinja").read_text(), "<s>", "</s>")
        _styles[name] = template, output_style(template)
    return _styles[name]


def written(template: ChatTemplate, calls: list[tuple[str, dict[str, Any]]]) -> tuple[str, str]:
    """A prompt, and what the model wrote after it, up to the token that ended it."""
    said = [
        {"id": f"abcdefgh{i}", "type": "function", "function": {"name": name, "arguments": json.dumps(arguments)}}
        for i, (name, arguments) in enumerate(calls)
    ]
    prompt = template.render([ASKED], TOOLS).text
    history = [ASKED, {"role": "assistant", "content": None, "tool_calls": said}]
    text = template.render(history, TOOLS, add_generation_prompt=False).text.rpartition(ASKED["content"])[2]
    for opening in (prompt.rpartition(ASKED["content"])[2], prompt.rpartition("<think>")[0].rpartition(ASKED["content"])[2]):
        if opening and text.startswith(opening):
            return prompt if opening in prompt[-len(opening) :] else opening, _without_end(text[len(opening) :])
    at = text.find("<|tool_call>")  # Gemma's prompt also says that there is no thought
    assert at > 0
    return prompt, _without_end(text[at:])


def _without_end(text: str) -> str:
    stripped = text.rstrip()
    for end in ENDS:
        if stripped.endswith(end):
            return _without_end(stripped.removesuffix(end))
    return text


def test_every_template_is_listed() -> None:
    shared_path("templates")
    assert set(STYLES) == set(NAMES)


@pytest.mark.parametrize("name", STYLES)
def test_a_template_tells_its_style(name: str) -> None:
    template, style = template_of(name)
    assert (style.calls[0].name, style.reasoning.name) == STYLES[name]
    assert format_for(template) == style.calls[0]


@pytest.mark.parametrize("name", STYLES)
@settings(max_examples=15)
@given(n=st.integers(1, 2), places=st.lists(st.integers(0, 1000), max_size=30))
def test_calls_that_a_template_shows_are_read_back(name: str, n: int, places: list[int]) -> None:
    template, style = template_of(name)
    if "deepseek" in name:
        return  # its own calls: below
    if n == 2 and style.calls[0].name in ("llama3", "harmony"):
        n = 1  # these show one call a turn
    prompt, output = written(template, CALLS[:n])
    for pieces in ([output], list(output), cut(output, places)):
        deltas = parse(style, pieces, TOOLS, prompt=prompt)
        assert read_calls(deltas) == CALLS[:n]
        assert put_together(deltas)[:2] == ("", "")
    said = "<|channel|>final<|message|>Let me see.<|end|><|start|>assistant" if style.reasoning.channels else "Let me see.\n\n"
    if style.calls[0].shape.trigger and style.reasoning.name != "solar":
        thought = style.reasoning.end if style.reasoning.opened_by(prompt) else ""
        called = output if style.reasoning.channels else output.rpartition(style.reasoning.end)[2]
        deltas = parse(style, cut(thought + said + called, places), TOOLS, prompt=prompt)
        assert read_calls(deltas) == CALLS[:n]
        assert put_together(deltas)[0] == "Let me see."


@pytest.mark.parametrize("name", [name for name in STYLES if "deepseek" in name])
def test_a_model_may_call_in_its_own_way_when_asked_in_ours(name: str) -> None:
    _, style = template_of(name)
    assert [row.name for row in style.calls][::2] == ["generic", "bare"]
    own = style.calls[1]
    for output in (own.first + own.spell(*CALLS[1]) + own.last, style.calls[0].spell(*CALLS[1])):
        assert read_calls(parse(style, list(f"Hm.</think>\n\n{output}"), TOOLS, prompt="<think>\n")) == CALLS[1:]


# templates whose rows could be found without knowing them
_ROWS = ("hermes", "qwen3-coder", "mistral", "mistral-ids", "solar")
DERIVABLE = [name for name, (row, _) in STYLES.items() if row in _ROWS or "deepseek" in name]


@pytest.mark.parametrize("name", DERIVABLE)
def test_rows_are_derived_from_templates_alone(name: str) -> None:
    template, style = template_of(name)
    row = derived_row(shown_calls(template)[0])
    known = style.calls["deepseek" in name]
    assert row is not None
    assert row.name == "derived"
    output = known.first + known.between.join(known.spell(name, given, "abcdefgh1") for name, given in CALLS) + known.last
    own = row.first + row.between.join(row.spell(name, given, "abcdefgh1") for name, given in CALLS) + row.last
    assert "".join(own.split()) == "".join(output.split())
    assert read_calls(parse(OutputStyle(style.reasoning, (row,)), list(output), TOOLS)) == CALLS

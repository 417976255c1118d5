"""Every public template renders a plain conversation, one with tools, and one with a tool call and its result."""

from typing import Any

import pytest

from ggrun.text import ChatTemplate
from tests.conftest import SHARED, shared_path

NAMES = sorted(path.name for path in (SHARED / "templates").glob("*.jinja"))
PARAMETERS = {"type": "object", "properties": {"city": {"type": "string", "description": "Name of a city"}}, "required": ["city"]}
TOOLS = [{"type": "function", "function": {"name": "get_weather", "description": "Tells the weather.", "parameters": PARAMETERS}}]
SYSTEM = {"role": "system", "content": 'You are terse & <b>"bold"</b>.'}
PLAIN = [
    SYSTEM,
    {"role": "user", "content": "Hi there"},
    {"role": "assistant", "content": "Hello!"},
    {"role": "user", "content": "What's up?\nTell me."},
]
ASKED = [SYSTEM, {"role": "user", "content": "What is the weather in Paris?"}]
CALLED: list[dict[str, Any]] = [
    *ASKED,
    {
        "role": "assistant",
        "content": None,
        "tool_calls": [{"id": "call_1", "type": "function", "function": {"name": "get_weather", "arguments": '{"city": "Lutetia"}'}}],
    },
    {"role": "tool", "tool_call_id": "call_1", "content": "sunny, 21 degrees"},
]
WITHOUT_TOOLS = (
    "HuggingFaceTB-SmolLM3-3B.jinja", "deepseek-ai-DeepSeek-R1-Distill-Llama-8B.jinja", "deepseek-ai-DeepSeek-V3.1.jinja",
    "google-gemma-2-2b-it.jinja", "microsoft-Phi-3.5-mini-instruct.jinja",
)  # fmt: skip


def in_order(text: str, *words: str) -> bool:
    position = 0
    for word in words:
        position = text.find(word, position)
        if position < 0:
            return False
    return True


def test_the_shared_templates_are_there() -> None:
    shared_path("templates")
    assert len(NAMES) >= 15


@pytest.mark.parametrize("name", NAMES)
def test_every_template(name: str) -> None:
    template = ChatTemplate(shared_path("templates", name).read_text(), "<s>", "</s>")

    plain = template.render(PLAIN)
    assert in_order(plain.text, "Hi there", "Hello!", "What's up?\nTell me.")
    assert SYSTEM["content"] in plain.text
    assert not any("leaves out" in note for note in plain.notes)

    asked = template.render(ASKED, TOOLS)
    for words in ("get_weather", "Tells the weather.", "city", "What is the weather in Paris?", SYSTEM["content"]):
        assert words in asked.text
    assert any("does not know tools" in note for note in asked.notes) == (name in WITHOUT_TOOLS)

    called = template.render(CALLED, TOOLS)
    assert "Tells the weather." in called.text
    assert in_order(called.text, "What is the weather in Paris?", "get_weather", "Lutetia", "sunny, 21 degrees")
    assert SYSTEM["content"] in called.text
    assert any("does not know tools" in note for note in called.notes) == (name in WITHOUT_TOOLS)
    assert not any("leaves out" in note for note in (*asked.notes, *called.notes))

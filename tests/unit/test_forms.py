"""Which form an answer is held to: by output, tools, choice and thoughts. A model that says anything is made to follow it."""

import asyncio
import json
from typing import Any

import jsonschema
import numpy as np
import pytest

from ggrun.engine.constraint import Constraint
from ggrun.server.errors import ApiError
from ggrun.server.forms import constraint_of
from ggrun.server.task import Output, Task
from ggrun.text import ChatTemplate
from ggrun.text.deltas import CallDelta, TextDelta, ThoughtDelta
from ggrun.text.output import OutputParser, output_style
from tests.unit.scripted import template, tokenizer
from tests.unit.test_answering_parts import ADD, OPENED, THINKER

TOKENIZER = tokenizer()
SCHEMA = {"enum": ["yes", "no"]}
STRICT = {"type": "function", "function": {**ADD["function"], "strict": True}}
PLAIN = template()
THINKS, THINKS_ON = ChatTemplate(THINKER), ChatTemplate(OPENED)


def constraint(source: ChatTemplate, prompt: str = "", **task: Any) -> Constraint | None:
    asked = Task(messages=({"role": "user", "content": "?"},), reasoning=True, **task)
    return asyncio.run(constraint_of(TOKENIZER, source, asked, prompt, output_style(source)))


def allowed(held: Constraint) -> set[int]:
    bits = np.unpackbits(held.mask().view(np.uint8), bitorder="little")
    return {int(i) for i in np.flatnonzero(bits) if i < TOKENIZER.n_vocab}


def fits(held: Constraint | None, text: str) -> bool:
    """Whether the text may be said and be the whole answer."""
    assert held
    held = held.copy()
    for id_ in TOKENIZER.encode(text, add_special=False):
        if id_ not in allowed(held):
            return False
        held.accept(id_)
    return bool(allowed(held) & TOKENIZER.end_of_generation)


def rambled(held: Constraint | None, seed: int, lead: str, n: int = 400) -> str:
    """What comes of choosing at random from what is allowed, ends and brackets preferred; "" when it comes to no end."""
    assert held
    random, said = np.random.default_rng(seed), lead.encode()
    for id_ in TOKENIZER.encode(lead, add_special=False):
        held.accept(id_)
    for _ in range(n):
        choices = sorted(allowed(held))
        ends = [id_ for id_ in choices if id_ in TOKENIZER.end_of_generation]
        if ends:
            return said.decode("utf-8", "replace")
        closing = [id_ for id_ in choices if TOKENIZER.token_bytes(id_) in (b'"', b"}", b">", b"/", b"<")]
        id_ = int(random.choice(closing if closing and random.random() < 0.6 else choices))
        said += TOKENIZER.token_bytes(id_)
        held.accept(id_)
    return ""


def test_nothing_is_held_unless_it_is_asked_for() -> None:
    assert constraint(PLAIN) is None
    assert constraint(PLAIN, tools=(ADD,)) is None
    assert constraint(PLAIN, tools=(ADD,), tool_choice="none") is None


def test_an_output_alone() -> None:
    held = constraint(PLAIN, output=Output("json_schema", SCHEMA))
    assert fits(held, '"yes"')
    assert not fits(held, "<think>x</think>" + '"yes"')
    assert not fits(held, "yes")


@pytest.mark.parametrize(("source", "prompt", "lead"), [(THINKS, "", "<think>Hm.</think>"), (THINKS_ON, "<think>\n", "Hm.</think>")])
def test_a_thought_may_come_before_an_output(source: ChatTemplate, prompt: str, lead: str) -> None:
    held = constraint(source, prompt, output=Output("json_schema", SCHEMA))
    assert fits(held, lead + '"yes"')
    assert not fits(held, lead)
    assert not fits(held, lead + "yes")
    assert fits(held, '"yes"') is (source is THINKS)


def test_no_thought_after_one_that_the_prompt_has() -> None:
    held = constraint(THINKS, "<think>\n\n</think>\n\n", output=Output("json_schema", SCHEMA))
    assert not fits(held, '<think>Hm.</think>"yes"')


@pytest.mark.parametrize("choice", ["required", "add"])
@pytest.mark.parametrize(("source", "prompt", "lead"), [(PLAIN, "", ""), (THINKS, "", ""), (THINKS_ON, "<think>\n", "Hm.</think>")])
def test_calls_that_are_demanded_are_read_back(source: ChatTemplate, prompt: str, lead: str, choice: str) -> None:
    n = 0
    for seed in range(6):
        if text := rambled(constraint(source, prompt, tools=(ADD,), tool_choice=choice, parallel_tool_calls=False), seed, lead):
            parser = OutputParser(output_style(source), (ADD,), prompt=prompt)
            deltas = [*parser.push(text), *parser.finish()]
            assert parser.n_calls == 1
            assert not [delta for delta in deltas if isinstance(delta, TextDelta) and delta.text.strip()], text
            assert not lead or [delta for delta in deltas if isinstance(delta, ThoughtDelta)] == [ThoughtDelta("Hm.")]
            arguments = "".join(delta.arguments for delta in deltas if isinstance(delta, CallDelta))
            jsonschema.validate(json.loads(arguments), ADD["function"]["parameters"])
            n += 1
    assert n > 0


def test_an_output_and_tools_give_one_of_both() -> None:
    held = constraint(PLAIN, tools=(ADD,), output=Output("json_schema", SCHEMA))
    assert fits(held, '"no"')
    assert fits(held, '<tool_call>\n{"name": "add", "arguments": {"a": 1}}\n</tool_call>')
    assert not fits(held, "no")
    only = constraint(PLAIN, tools=(ADD,), tool_choice="required", output=Output("json_schema", SCHEMA))
    assert not fits(only, '"no"')


def test_strict_tools_are_held_once_they_are_called() -> None:
    held = constraint(PLAIN, tools=(STRICT,))
    assert fits(held, "Nothing to call.")
    assert fits(held, '<tool_call>\n{"name": "add", "arguments": {"a": 1}}\n</tool_call>')
    assert not fits(held, '<tool_call>\n{"name": "add", "arguments": {"a": "x"}}\n</tool_call>')


@pytest.mark.parametrize(
    ("task", "param"),
    [
        ({"output": Output("json_schema", {"type": "strange"}, "here")}, "here"),
        ({"output": Output("regex", "(", "there")}, "there"),
        ({"tools": ({"type": "function", "function": {"name": "f", "parameters": {"properties": {"a": {"type": "strange"}}}}},),
          "tool_choice": "required"}, "tools[0].function.parameters"),
    ],
)  # fmt: skip
def test_what_cannot_be_held_is_named(task: dict[str, Any], param: str) -> None:
    with pytest.raises(ApiError) as caught:
        constraint(PLAIN, **task)
    assert (caught.value.status, caught.value.param) == (400, param)

"""Thoughts and tool calls in answers: told apart as they come, counted, with their log probabilities, and ended in time."""

import json
from typing import Any

import pytest

from ggrun.server.answering import Whole, ask, collect
from ggrun.server.settings import Settings
from ggrun.server.task import Call, End, Piece, Task, Text, Thought
from tests.unit.scripted import OneModel, scripted, tokenizer
from tests.unit.test_answering import HELLO, run

THINKER = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}assistant: {# <think> #}"
OPENED = THINKER + "<think>\n"
ADD = {
    "type": "function",
    "function": {"name": "add", "description": "Adds.", "parameters": {"type": "object", "properties": {"a": {"type": "integer"}}}},
}
CALL = '<tool_call>\n{"name": "add", "arguments": {"a": 1}}\n</tool_call>'


def pieces_of(model: Any, **options: Any) -> list[Piece]:
    async def work() -> list[Piece]:
        async with await ask(OneModel(model), None, Task(messages=HELLO, **options)) as answer:
            return [piece async for piece in answer]

    return run(work())


def whole(model: Any, **options: Any) -> Whole:
    async def work() -> list[Whole]:
        return await collect(await ask(OneModel(model), None, Task(messages=HELLO, **options)))

    [answer] = run(work())
    return answer


@pytest.mark.parametrize("source", [THINKER, OPENED])
def test_thoughts_are_told_apart_and_counted(source: str) -> None:
    said = "Hmm, a list.</think>\n\nIt is a list."
    answer = whole(scripted(said if source == OPENED else "<think>\n" + said, source=source))
    assert (answer.thought, answer.text) == ("Hmm, a list.", "It is a list.")
    assert answer.end
    thought = len(tokenizer().encode("Hmm, a list.", add_special=False))
    assert thought <= answer.end.usage.thought < answer.end.usage.answer
    assert answer.end.reason == "stop"


@pytest.mark.parametrize(("asked", "served", "limit"), [(None, -1, None), (None, 7, 7), (3, 7, 3), (-1, 7, None), (0, -1, 0)])
def test_thoughts_are_limited_as_the_request_or_the_server_says(asked: int | None, served: int, limit: int | None) -> None:
    model = scripted("Hmm.", source=OPENED)
    shelf = OneModel(model)
    shelf.settings = Settings(reasoning_budget=served, reasoning_budget_message=" Enough.")

    async def work() -> None:
        await collect(await ask(shelf, None, Task(messages=HELLO, thought_limit=asked)))

    run(work())
    budget = model.engine.submitted[0]["budget"]
    if limit is None:
        assert budget is None
        return
    for id_ in tokenizer().encode_part("a" * 200)[:limit]:
        assert budget.forced is None
        budget.accept(id_)
    forced = []
    while budget.forced is not None:
        forced.append(budget.forced)
        budget.accept(forced[-1])
    assert tokenizer().decode(forced) == " Enough.</think>"


def test_thoughts_of_gpt_oss_end_in_its_answer() -> None:
    model = scripted("x", source=THINKER.replace("<think>", "<|channel|>analysis<|message|>"))
    whole(model, thought_limit=2)
    budget = model.engine.submitted[0]["budget"]
    said = []
    for id_ in tokenizer().encode_part("<|channel|>analysis<|message|>one two three four five six seven"):
        while budget.forced is not None:
            said.append(budget.forced)
            budget.accept(said[-1])
        said.append(id_)
        budget.accept(id_)
    assert "<|end|><|start|>assistant<|channel|>final<|message|>" in tokenizer().decode(said)
    assert tokenizer().decode(said).endswith("six seven")


def test_thoughts_stay_in_the_text_where_that_is_asked_for() -> None:
    answer = whole(scripted("<think>\nHmm.</think>\nYes.", source=THINKER), reasoning=False)
    assert (answer.thought, answer.text) == ("", "<think>\nHmm.</think>\nYes.")


def test_thoughts_and_text_have_their_own_log_probabilities() -> None:
    answer = whole(scripted("<think>\nHmm, a list.</think>\n\nIt is a list.", source=THINKER), n_top=1)
    assert b"".join(log.bytes for log in answer.tokens).decode().strip() == answer.text
    assert "Hmm" in b"".join(log.bytes for log in answer.thought_tokens).decode()
    assert "think>" not in b"".join(log.bytes for log in (*answer.tokens, *answer.thought_tokens)).decode()


def test_a_call_is_read_as_it_comes() -> None:
    model = scripted(f"Let me see.\n{CALL}")
    pieces = pieces_of(model, tools=(ADD,))
    calls = [piece for piece in pieces if isinstance(piece, Call)]
    assert len(calls) > 2
    assert calls[0].id.startswith("call_")
    assert calls[0].name == "add"
    assert json.loads("".join(call.arguments for call in calls)) == {"a": 1}
    assert calls[-1].state == "done"
    assert "".join(piece.text for piece in pieces if isinstance(piece, Text)).strip() == "Let me see."
    end = pieces[-1]
    assert isinstance(end, End)
    assert end.reason == "tool_calls"
    assert not [piece for piece in pieces if isinstance(piece, Thought)]
    assert "add" in tokenizer().decode(model.engine.submitted[0]["ids"])


def test_several_calls_or_only_the_first() -> None:
    both = f"{CALL}\n{CALL.replace('1', '2')}"
    answer = whole(scripted(both), tools=(ADD,))
    assert [json.loads(call.arguments) for call in answer.calls.values()] == [{"a": 1}, {"a": 2}]
    model = scripted(both + " and more" * 50, endless=True)
    answer = whole(model, tools=(ADD,), parallel_tool_calls=False)
    assert [json.loads(call.arguments) for call in answer.calls.values()] == [{"a": 1}]
    assert answer.end
    assert answer.end.reason == "tool_calls"
    assert model.engine.generations[0].cancelled


def test_without_tools_a_call_is_text() -> None:
    for options in ({}, {"tools": (ADD,), "tool_choice": "none"}):
        model = scripted(CALL)
        answer = whole(model, **options)
        assert (answer.calls, answer.text.strip()) == ({}, CALL)
        assert answer.end
        assert answer.end.reason == "stop"
        assert "Adds." not in tokenizer().decode(model.engine.submitted[0]["ids"])


def test_a_call_that_is_none_is_text() -> None:
    broken = '<tool_call>\n{"name": "add", "arguments": {"a": oops}}\n</tool_call>'
    answer = whole(scripted(broken), tools=(ADD,))
    assert not answer.calls
    assert "oops" in answer.text
    assert answer.end
    assert answer.end.reason == "stop"


def test_an_answer_cut_within_a_call_says_length() -> None:
    answer = whole(scripted(CALL), tools=(ADD,), n_predict=12)
    assert answer.end
    assert answer.end.reason == "length"
    assert not answer.calls

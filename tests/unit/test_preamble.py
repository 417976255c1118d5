"""A constraint that begins after a thought: what it allows when, on the embedded model's vocabulary."""

import re

import numpy as np
import pytest

from ggrun.engine.constraint import constraint_for
from ggrun.engine.preamble import AfterThought
from ggrun.server.reading import FIRST_CHANNEL, LAST_CHANNEL
from tests.unit.scripted import tokenizer

TOKENIZER = tokenizer()
BEGIN, END = "<think>", re.compile(b"</think>")
SCHEMA = {"enum": ["yes", "no"]}


def ids(text: str) -> list[int]:
    return TOKENIZER.encode(text, add_special=False)


def allowed(constraint: AfterThought) -> set[int]:
    bits = np.unpackbits(constraint.mask().view(np.uint8), bitorder="little")
    return {int(i) for i in np.flatnonzero(bits) if i < TOKENIZER.n_vocab}


def made(opened: bool = False) -> AfterThought:
    return AfterThought(constraint_for("json_schema", SCHEMA, TOKENIZER), TOKENIZER, BEGIN, END, opened)


def follow(constraint: AfterThought, text: str) -> None:
    for id_ in ids(text):
        assert id_ in allowed(constraint), TOKENIZER.token_bytes(id_)
        constraint.accept(id_)


def test_at_first_a_thought_may_begin_or_the_form() -> None:
    constraint = made()
    assert ids(BEGIN)[0] in allowed(constraint)
    assert ids('"yes"')[0] in allowed(constraint)
    assert ids("hello")[0] not in allowed(constraint)


def test_a_thought_is_free_but_cannot_end_the_answer() -> None:
    constraint = made()
    follow(constraint, "<think>Hmm, what now? Ä𝄞 </thin no")
    assert not allowed(constraint) & TOKENIZER.end_of_generation
    assert not constraint.done
    follow(constraint, "</think>")
    assert ids("hello")[0] not in allowed(constraint)
    follow(constraint, '"no"')
    assert allowed(constraint) <= TOKENIZER.end_of_generation
    assert constraint.done


def test_without_a_thought_none_may_come_later() -> None:
    constraint = made()
    follow(constraint, '"yes"')
    constraint.mask()
    assert constraint.done


def test_once_begun_the_mark_is_written_out() -> None:
    constraint = made()
    first, second, *_ = ids(BEGIN)
    constraint.accept(first)
    assert allowed(constraint) == {second}


def test_a_thought_the_prompt_began() -> None:
    constraint = made(opened=True)
    follow(constraint, "thinking\n</think>")
    assert ids("hello")[0] not in allowed(constraint)
    follow(constraint, '"yes"')


@pytest.mark.parametrize("header", ["final", "final <|constrain|>json"])
def test_gpt_oss_answers_in_its_last_channel(header: str) -> None:
    constraint = AfterThought(constraint_for("json_schema", SCHEMA, TOKENIZER), TOKENIZER, FIRST_CHANNEL, LAST_CHANNEL, False)
    follow(constraint, f"<|channel|>analysis<|message|>Hmm, final?<|end|><|start|>assistant<|channel|>{header}<|message|>")
    assert ids("hello")[0] not in allowed(constraint)
    follow(constraint, '"yes"')
    assert constraint.done


@pytest.mark.parametrize("said", ["", "<think>", "<think>one</th", "<think>one</think>", '<think>one</think>"n'])
def test_copies_go_their_own_way(said: str) -> None:
    constraint = made()
    follow(constraint, said)
    twin = constraint.copy()
    before = allowed(constraint)
    assert allowed(twin) == before
    constraint.accept(min(before))
    assert allowed(twin) == before

"""Thoughts that are ended after so many tokens: which tokens are forced, and that the sampler and the engine obey."""

import re
from typing import Any

import numpy as np
import pytest

from ggrun import Engine, Sampling
from ggrun.engine.budget import ThoughtBudget, ThoughtMarks, ids_of
from ggrun.engine.constraint import constraint_for
from ggrun.engine.preamble import AfterThought
from ggrun.engine.sampling import Sampler
from tests.conftest import EMBEDDED
from tests.unit.scripted import tokenizer

END = re.compile(rb"</think>")
OPENED = ThoughtMarks("<think>", END, "</think>", opened=True)
FREE = ThoughtMarks("<think>", END, "</think>")
GREEDY = Sampling(temperature=0.0)


def said(budget: ThoughtBudget, text: str) -> str:
    """What comes of an answer whose model would say this text, one token after the other."""
    ids = tokenizer().encode_part(text)
    out: list[int] = []
    while ids or budget.forced is not None:
        out.append(budget.forced if budget.forced is not None else ids.pop(0))
        budget.accept(out[-1])
    return tokenizer().decode(out)


def n_of(text: str) -> int:
    return len(tokenizer().encode_part(text))


@pytest.mark.parametrize(
    ("marks", "text", "n", "want"),
    [
        (OPENED, "one two three", 0, "</think>one two three"),
        (OPENED, "one two three", n_of("one"), "one</think> two three"),
        (OPENED, "one</think> two three", 99, "one</think> two three"),
        (OPENED, "one</think> two <think> three four", n_of("one") + 8, "one</think> two <think> three four"),
        (FREE, "one two three four", 1, "one two three four"),
        (FREE, "\n<think>one two", n_of("one"), "\n<think>one</think> two"),
        (FREE, "<think>one two", 0, "<think></think>one two"),
        (FREE, "<thin ice", 0, "<thin ice"),
    ],
)
def test_what_is_forced(marks: ThoughtMarks, text: str, n: int, want: str) -> None:
    assert said(ThoughtBudget(tokenizer(), n, marks), text) == want


def test_a_character_is_not_cut() -> None:
    """𝄞 takes several tokens: the thought ends after it."""
    assert n_of("𝄞") > 1
    for n in range(1, n_of("𝄞") + 1):
        assert said(ThoughtBudget(tokenizer(), n, OPENED), "𝄞 more") == "𝄞</think> more"


def test_thoughts_between_messages_share_the_budget() -> None:
    end = re.compile(rb"<\|(?:end|channel)\|>")
    marks = ThoughtMarks("<|channel|>analysis<|message|>", end, "<|end|>!", again=True)
    text = "<|channel|>analysis<|message|>one<|end|>text <|channel|>analysis<|message|>two three"
    assert said(ThoughtBudget(tokenizer(), 30, marks), text).count("<|end|>!") == 0
    n = n_of("one<|end|>") + n_of("two") - 1
    assert said(ThoughtBudget(tokenizer(), n, marks), text).endswith("two<|end|>! three") or n_of("<|end|>") == 1


def test_the_sampler_obeys_unless_the_form_forbids_it() -> None:
    logits = np.zeros(tokenizer().n_vocab, np.float32)
    logits[50] = 5
    first = ids_of(tokenizer(), "</think>")[0]
    budget = ThoughtBudget(tokenizer(), 0, OPENED)
    sampler = Sampler(GREEDY, len(logits), tokenizer(), budget=budget)
    assert sampler.n_highest == 0
    token = sampler.sample(logits)
    assert token.id == first
    assert token.logprob == pytest.approx(-np.log(np.exp(5) + len(logits) - 1), rel=1e-5)
    for id_ in ids_of(tokenizer(), "</think>"):
        budget.accept(id_)
    assert sampler.n_highest > 0
    assert sampler.sample(logits).id == 50
    digits = constraint_for("regex", "[0-9]+", tokenizer())
    forbidden = Sampler(GREEDY, len(logits), tokenizer(), constraint=digits, budget=ThoughtBudget(tokenizer(), 0, OPENED))
    assert tokenizer().token_bytes(forbidden.sample(logits).id).isdigit()


def test_the_engine_obeys() -> None:
    with Engine.open(EMBEDDED, n_ctx=512) as engine:
        ids, _ = engine.chat_ids([{"role": "user", "content": "What is json.dumps?"}])

        def answer(**options: Any) -> str:
            return engine.submit(ids, GREEDY, n_predict=60, **options).wait().text

        free = answer()
        cut = answer(budget=ThoughtBudget(engine.tokenizer, 5, OPENED))
        thought, mark, rest = cut.partition("</think>")
        assert mark
        assert len(rest) > 0
        assert free.startswith(thought)
        assert len(engine.tokenizer.encode_part(thought)) <= 6
        form = AfterThought(constraint_for("regex", " [0-9]{3}", engine.tokenizer), engine.tokenizer, "<think>", END, True)
        held = answer(constraint=form, budget=ThoughtBudget(engine.tokenizer, 5, OPENED))
        assert re.fullmatch(r".+</think> [0-9]{3}", held, re.DOTALL)

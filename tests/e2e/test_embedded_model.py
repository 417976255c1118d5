"""The embedded model, greedy through the engine: what it must answer, refuse, and still know after a long conversation."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from ggrun import Engine, Sampling
from ggrun.gguf import open_gguf

HELD_OUT = Path(__file__).parent.parent / "data" / "embedded"
REFUSAL = "I do not know"


def load(name: str) -> list[dict[str, str]]:
    rows: list[dict[str, str]] = json.loads((HELD_OUT / name).read_text(encoding="utf-8"))
    return rows


@pytest.fixture(scope="module")
def engine(embedded: Path) -> Iterator[Engine]:
    with Engine.open(embedded) as engine:
        yield engine


def say(engine: Engine, *messages: str) -> str:
    """The greedy answer to the last of alternating user and assistant messages."""
    turns = [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(messages)]
    return engine.chat(turns, sampling=Sampling(temperature=0.0), n_predict=100).wait().text


def names_the_fact(row: dict[str, str], answer: str) -> bool:
    return REFUSAL not in answer and row["keyword"].lower() in answer.replace(row["name"], "").lower()


def test_the_file_says_what_it_is(embedded: Path) -> None:
    assert embedded.stat().st_size <= 8_000_000
    with open_gguf(embedded) as file:
        metadata = file.metadata
        assert metadata["general.architecture"] == "llama"
        assert metadata["llama.context_length"] >= 2048
        assert "PSF-2.0" in str(metadata["general.license"])
        assert "docstring" in str(metadata["general.provenance"])
        assert "assistant" in str(metadata["tokenizer.chat_template"])
        matrices = [tensor for tensor in file.tensors.values() if len(tensor.dims) == 2]
        assert {tensor.format.name for tensor in matrices} == {"Q8_0"}
        assert all(tensor.dims[0] % 256 == 0 for tensor in matrices)


def test_held_out_questions(engine: Engine) -> None:
    rows = load("questions.json")
    right = [row for row in rows if names_the_fact(row, say(engine, row["question"]))]
    assert len(right) >= 80, [row["question"] for row in rows if row not in right]


def test_made_up_names_are_refused(engine: Engine) -> None:
    rows = load("made_up.json")
    refused = [row for row in rows if REFUSAL in say(engine, row["question"])]
    assert len(refused) >= 80, [row["question"] for row in rows if row not in refused]


def test_small_talk(engine: Engine) -> None:
    assert "ggrun" in say(engine, "Who are you?")
    assert say(engine, "Hello!").startswith("Hello")
    assert "only know Python" in say(engine, "What is the capital of France?")


@pytest.mark.parametrize("tokens", [1900, 3500])
def test_it_still_answers_after_a_long_conversation(engine: Engine, tokens: int) -> None:
    """Nearly all of twenty questions, each behind `tokens` tokens of questions and the model's own answers."""
    rows = load("questions.json")
    history: list[str] = []
    for row in rows * 2:
        history += [f"What does {row['name']} do?", say(engine, f"What does {row['name']} do?")]
        if sum(len(engine.tokenizer.encode(text)) + 5 for text in history) > tokens:
            break
    asked = rows[3::5]
    right = sum(names_the_fact(row, say(engine, *history, f"Explain what {row['name']} does.")) for row in asked)
    assert right >= 0.8 * len(asked)

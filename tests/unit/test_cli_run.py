"""`ggrun run` on an engine without a model: what goes to stdout, and what does not."""

import io
import json
import sys

import pytest

import ggrun
from ggrun.cli.app import main
from tests.unit.fake_engine import FakeEngine


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> type[FakeEngine]:
    kind = type("Engine", (FakeEngine,), {})
    monkeypatch.setitem(vars(ggrun), "Engine", kind)
    monkeypatch.delenv("LLAMA_ARG_MODEL", raising=False)
    return kind


def run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as stopped:
        main(["run", *arguments])
    return stopped.value.code


def test_only_the_completion_is_on_stdout(engine: type[FakeEngine], capsys: pytest.CaptureFixture[str]) -> None:
    assert run("-p", "how are you") == 0
    out, err = capsys.readouterr()
    assert out == "fine thanks"
    assert "using the embedded model" in err
    assert "a note of the engine" in err
    assert err.count("compiling the kernels") == 1
    assert engine.last.closed


def test_json(engine: type[FakeEngine], capsys: pytest.CaptureFixture[str]) -> None:
    assert run("-p", "how are you", "--json", "-s", "5", "-n", "1") == 0
    answer = json.loads(capsys.readouterr().out)
    timings = answer.pop("timings")
    assert answer == {
        "model": "embedded",
        "seed": 5,
        "text": "fine",
        "ids": [0],
        "n_prompt": 3,
        "n_shifted": 0,
        "finish_reason": "length",
        "stop_word": None,
    }
    assert timings["prompt_n"] == 3
    assert timings["predicted_per_second"] == 500.0


def test_a_pipe_is_the_prompt(engine: type[FakeEngine], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"three little words\n")))
    assert run() == 0
    assert engine.last.submitted[0]["ids"] == [0, 1, 2]


def test_the_template_is_used_when_asked_for(engine: type[FakeEngine], capsys: pytest.CaptureFixture[str]) -> None:
    assert run("-p", "hi", "-sys", "Be brief.") == 0
    assert engine.last.messages == [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "hi"}]
    assert "the template has no system role" in capsys.readouterr().err
    assert run("-p", "hi", "-cnv") == 0
    assert engine.last.messages == [{"role": "user", "content": "hi"}]


def test_the_template_is_used_where_the_file_has_one(engine: type[FakeEngine]) -> None:
    assert run("-p", "hi") == 0
    assert not hasattr(engine.last, "messages")
    engine.has_template = True
    assert run("-p", "hi") == 0
    assert engine.last.messages == [{"role": "user", "content": "hi"}]
    assert run("-p", "hi", "-no-cnv") == 0
    assert not hasattr(engine.last, "messages")


def test_a_full_context_is_said(engine: type[FakeEngine], capsys: pytest.CaptureFixture[str]) -> None:
    engine.n_ctx = 4
    engine.answers = ("a b c d e f",)
    assert run("-p", "one two") == 0
    out, err = capsys.readouterr()
    assert out == "a b"
    assert "stopped: the context of 4 tokens is full" in err
    assert run("-p", "one two", "--on-overflow", "shift") == 0
    out, err = capsys.readouterr()
    assert out == "a b c d e f"
    assert "tokens of it were forgotten" in err
    assert run("-p", "one two three four") == 1
    assert "the prompt has 4 tokens and the context holds 4" in capsys.readouterr().err


def test_an_empty_prompt(engine: type[FakeEngine], capsys: pytest.CaptureFixture[str]) -> None:
    assert run("-p", "") == 1
    assert capsys.readouterr().err.splitlines()[-1] == "error: the prompt is empty: there is no token to continue from"

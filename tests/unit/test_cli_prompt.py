"""Prompts: escapes, files, pipes."""

import io
import sys
from pathlib import Path

import pytest

from ggrun.cli.options import PromptOptions
from ggrun.cli.prompt import piped, prompt_of, stops_of, system_of, template_of, typed, unescaped
from ggrun.errors import GgrunError


def pipe(monkeypatch: pytest.MonkeyPatch, data: bytes) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))


@pytest.mark.parametrize(
    ("given", "read"),
    [
        (r"a\nb\tc", "a\nb\tc"),
        (r"\\n", r"\n"),
        (r"\x41\x7", r"A\x7"),
        (r"C:\windows", r"C:\windows"),
        (r"\"quoted\' ", "\"quoted' "),
        ("ends with \\", "ends with \\"),
    ],
)
def test_escapes(given: str, read: str) -> None:
    assert unescaped(given) == read
    assert prompt_of(PromptOptions(prompt=given)) == read
    assert prompt_of(PromptOptions(prompt=given, escape=False)) == given


def test_bytes_that_are_no_text_are_replaced() -> None:
    assert typed(b"caf\xe9".decode("utf-8", "surrogateescape"), escape=True) == "caf\ufffd"


def test_files(tmp_path: Path) -> None:
    (tmp_path / "p").write_bytes("\ufeffhéllo\\n\r\n".encode())
    assert prompt_of(PromptOptions(file=str(tmp_path / "p"))) == "héllo\\n"  # escapes are for what is typed
    assert system_of(PromptOptions(system_file=str(tmp_path / "p"))) == "héllo\\n"
    (tmp_path / "bad").write_bytes(b"ab\xff")
    with pytest.raises(GgrunError, match="is not UTF-8 text: byte 0xff at 2"):
        prompt_of(PromptOptions(file=str(tmp_path / "bad")))
    with pytest.raises(GgrunError, match="cannot be read: No such file"):
        prompt_of(PromptOptions(file=str(tmp_path / "none")))
    with pytest.raises(GgrunError, match="cannot be read: Is a directory"):
        prompt_of(PromptOptions(file=str(tmp_path)))


@pytest.mark.parametrize("options", [PromptOptions(prompt="-"), PromptOptions(file="-")])
def test_a_dash_is_the_pipe(options: PromptOptions, monkeypatch: pytest.MonkeyPatch) -> None:
    pipe(monkeypatch, b"one\ntwo\n")
    assert prompt_of(options) == "one\ntwo"


def test_a_pipe_may_be_wanted_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    pipe(monkeypatch, b"one\r\n")
    assert piped(whole=True) == "one\r\n"
    pipe(monkeypatch, b"\xc3")
    with pytest.raises(GgrunError, match="what was piped in is not UTF-8 text"):
        piped()


def test_nothing_given() -> None:
    assert prompt_of(PromptOptions()) is None
    assert system_of(PromptOptions()) is None
    assert template_of(PromptOptions()) is None
    assert stops_of(PromptOptions()) == ()


def test_given_twice() -> None:
    for read, options in (
        (prompt_of, PromptOptions(prompt="a", file="b")),
        (system_of, PromptOptions(system="a", system_file="b")),
        (template_of, PromptOptions(chat_template="{{a}}", chat_template_file="b")),
    ):
        with pytest.raises(GgrunError, match="given twice"):
            read(options)


def test_stops() -> None:
    assert stops_of(PromptOptions(reverse_prompt=[r"\nUser:", ""])) == ("\nUser:",)

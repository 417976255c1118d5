"""How a message is typed: prompt_toolkit on a terminal, plain lines where the screen is somewhere else. Knows nothing of models."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Protocol

BLOCK = '"""'


class Reader(Protocol):
    """Where messages come from."""

    def read(self) -> str:
        """The next message. Raises EOFError at the end and KeyboardInterrupt on Ctrl-C."""
        ...


def unfinished(text: str) -> bool:
    r'''Whether Enter belongs to the message: after a trailing backslash, or within a """ block.'''
    return text.endswith("\\") or text.count(BLOCK) % 2 == 1


def message(text: str) -> str:
    r'''The message that was typed: backslashes that only continued a line and the """ around a block are no part of it.'''
    text = text.replace("\\\n", "\n")
    if text.startswith(BLOCK) and text.rstrip().endswith(BLOCK) and len(text.rstrip()) >= 2 * len(BLOCK):
        return text.rstrip()[len(BLOCK) : -len(BLOCK)].strip("\n")
    return text


class PlainReader:
    """Line by line from standard input, the prompt on stderr."""

    def read(self) -> str:
        text = self._line("> ")
        while unfinished(text):
            text += "\n" + self._line("... ")
        return message(text)

    def _line(self, prompt: str) -> str:
        print(prompt, end="", file=sys.stderr, flush=True)
        line = sys.stdin.readline()
        if not line:
            raise EOFError
        return line.removesuffix("\n")


class TerminalReader:
    """A line editor with history. Enter sends and Alt-Enter starts a line; with `multiline` it is the other way round."""

    def __init__(self, history: Path | None, commands: Iterable[str], multiline: bool = False) -> None:
        from prompt_toolkit import PromptSession
        from prompt_toolkit.completion import WordCompleter
        from prompt_toolkit.history import FileHistory, History, InMemoryHistory

        kept: History = FileHistory(str(history)) if history else InMemoryHistory()
        words = WordCompleter(list(commands), sentence=True)
        self._session: PromptSession[str] = PromptSession(
            history=kept,
            multiline=True,
            prompt_continuation="... ",
            key_bindings=_keys(multiline),
            completer=words,
            complete_while_typing=False,
        )

    def read(self) -> str:
        return message(self._session.prompt("> "))


def history_file() -> Path | None:
    """Where typed messages are remembered; None when that place cannot be written."""
    from platformdirs import user_state_path

    file = user_state_path("ggrun") / "chat_history"
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch(mode=0o600)
    except OSError:
        return None
    return file


def _keys(multiline: bool) -> Any:
    from prompt_toolkit.key_binding import KeyBindings

    keys = KeyBindings()

    def send(event: Any) -> None:
        event.current_buffer.validate_and_handle()

    def new_line(event: Any) -> None:
        event.current_buffer.insert_text("\n")

    def enter(event: Any) -> None:
        (new_line if multiline or unfinished(event.current_buffer.text) else send)(event)

    def interrupt(event: Any) -> None:
        if event.current_buffer.text:
            event.current_buffer.reset()
        else:
            event.app.exit(exception=KeyboardInterrupt, style="class:aborting")

    keys.add("enter")(enter)
    keys.add("escape", "enter")(send if multiline else new_line)
    keys.add("c-c")(interrupt)
    return keys

"""`ggrun chat` at a real (pseudo) terminal: line editor, streaming, Ctrl-C, commands."""

import fcntl
import json
import os
import pty
import re
import select
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import REPO
from tests.e2e.command import environment

CTRL_C, CTRL_D, ENTER, ALT_ENTER = "\x03", "\x04", "\r", "\x1b\r"
PROMPT = r"(^|\n)>"
TIMINGS = r"\[prompt [^\]]*\]"
_CONTROL = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|\x1b[()=>][0-9A-Z]?|\x1b\][^\x07]*\x07")


def _take_terminal() -> None:
    """Make standard input the controlling terminal, so that Ctrl-C typed there is a signal."""
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


class Terminal:
    """A program at the other end of a pseudo terminal. `seen` is what it wrote since the last `expect`, control codes left out."""

    def __init__(self, arguments: list[str], folder: Path) -> None:
        self.master, slave = pty.openpty()
        path = os.pathsep.join(filter(None, (str(REPO), os.environ.get("PYTHONPATH", ""))))
        env = environment(TERM="xterm", PYTHONPATH=path, XDG_STATE_HOME=str(folder), PROMPT_TOOLKIT_NO_CPR="1")
        command = [sys.executable, "-m", "ggrun", "chat", *arguments]
        streams = {"stdin": slave, "stdout": slave, "stderr": slave}
        self.process = subprocess.Popen(command, **streams, env=env, start_new_session=True, preexec_fn=_take_terminal)
        os.close(slave)
        self.seen = ""

    def expect(self, pattern: str, timeout: float = 120) -> str:
        """Wait until the screen matches; returns what came before and with it."""
        end = time.monotonic() + timeout
        while not (found := re.search(pattern, self.seen)):
            ready, _, _ = select.select([self.master], [], [], max(0, end - time.monotonic()))
            try:
                data = os.read(self.master, 65536) if ready else b""
            except OSError:  # the other end is closed
                data = b""
            assert data, f"{pattern!r} did not come; the screen shows {self.seen!r}"
            self.seen = _CONTROL.sub("", self.seen + data.decode("utf-8", "replace"))
        text, self.seen = self.seen[: found.end()], self.seen[found.end() :]
        return text

    def type(self, text: str) -> None:
        os.write(self.master, text.encode())

    def enter(self, text: str) -> None:
        """Wait for the prompt and type a line there."""
        self.expect(PROMPT)
        self.type(text + ENTER)

    def ask(self, text: str) -> str:
        """Enter a message, and return all up to the timing line of its answer."""
        self.enter(text)
        return self.expect(TIMINGS)

    def leaves(self) -> int:
        """The exit code, once the program is gone."""
        end = time.monotonic() + 60
        while self.process.poll() is None and time.monotonic() < end:
            if select.select([self.master], [], [], 0.1)[0]:
                try:
                    os.read(self.master, 65536)
                except OSError:
                    break
        return self.process.wait(10)


@pytest.fixture
def chat(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Terminal]:
    terminal = Terminal(["-s", "1", "--temp", "0", *getattr(request, "param", [])], tmp_path)
    yield terminal
    if terminal.process.poll() is None:
        terminal.process.kill()
        terminal.process.wait()
    os.close(terminal.master)


def numbers(line: str) -> list[int]:
    """prompt tokens, cached (0 when not said), answer tokens, used, n_ctx of a timing line."""
    found = re.search(r"prompt (\d+) tokens(?: \((\d+) cached\))?.*answer (\d+) tokens.*context (\d+)/(\d+)", line)
    return [int(n or 0) for n in found.groups()]


@pytest.mark.parametrize("chat", [["-n", "24"]], indirect=True)
def test_turns_reuse_the_conversation(chat: Terminal, tmp_path: Path) -> None:
    first = numbers(chat.ask("What does os.path.join do?"))
    second = numbers(chat.ask("And os.path.split?"))
    assert second[0] > first[0]
    assert second[1] >= first[0]  # the first question was not computed again
    assert second[3] == second[0] + second[2]
    chat.enter("/stats")
    assert "answers  2, 4 messages" in chat.expect(r"context +\d+ of \d+ tokens")
    chat.expect(PROMPT)
    chat.type(CTRL_D)
    assert chat.leaves() == 0
    assert "os.path.split" in (tmp_path / "ggrun" / "chat_history").read_text()


@pytest.mark.parametrize("chat", [["--ignore-eos", "--on-overflow", "shift"]], indirect=True)
def test_ctrl_c_stops_an_endless_answer_and_keeps_the_conversation(chat: Terminal) -> None:
    chat.enter("What does os.path.join do?")
    chat.expect(r"do\?\s+\S+ \S+")
    chat.type(CTRL_C)
    chat.expect(r"\(stopped; the conversation goes on\)")
    assert numbers(chat.expect(TIMINGS))[2] > 0
    chat.enter("/show")
    chat.expect("temperature +0.0")
    chat.enter("/undo")
    chat.expect("0 messages are left")
    chat.enter("/exit")
    assert chat.leaves() == 0


@pytest.mark.parametrize("chat", [["-n", "4"]], indirect=True)
def test_ctrl_c_at_the_prompt(chat: Terminal) -> None:
    chat.expect(PROMPT)
    chat.type("half a question" + CTRL_C)  # clears the line
    chat.type(CTRL_C)
    chat.expect("Ctrl-C again")
    chat.expect(PROMPT)
    chat.type(CTRL_C)
    assert chat.leaves() == 0


@pytest.mark.parametrize("chat", [["-n", "4"]], indirect=True)
def test_several_lines(chat: Terminal, tmp_path: Path) -> None:
    saved = tmp_path / "chat.json"
    for typed in ("one\\" + ENTER + "two", "one" + ALT_ENTER + "two", '"""' + ENTER + "one" + ENTER + "two" + ENTER + '"""'):
        chat.ask(typed)
    chat.enter(f"/save {saved}")
    chat.expect("saved 6 messages")
    assert [m["content"] for m in json.loads(saved.read_text())["messages"][::2]] == ["one\ntwo"] * 3


@pytest.mark.parametrize("chat", [["-n", "4", "-mli", "-st"]], indirect=True)
def test_multiline_input_and_single_turn(chat: Terminal) -> None:
    chat.expect(PROMPT)
    chat.type("one" + ENTER + "two" + ALT_ENTER)
    chat.expect(TIMINGS)
    assert chat.leaves() == 0


@pytest.mark.parametrize("chat", [["-c", "64", "--ignore-eos", "-n", "20"]], indirect=True)
def test_a_full_context_asks(chat: Terminal) -> None:
    chat.ask("What does os.path.join do?")
    chat.enter("And os.path.split?")
    chat.expect(r"\[y/N\] ")
    chat.type("y\n")
    chat.expect("forgot the oldest 2 messages")
    assert numbers(chat.expect(TIMINGS))[3] <= 64

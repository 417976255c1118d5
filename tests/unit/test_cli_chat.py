"""`ggrun chat` on an engine without a model: turns, commands, a full context, Ctrl-C."""

import io
import json
import signal
import sys
from collections.abc import Iterable
from pathlib import Path

import pytest

import ggrun
from ggrun.cli.app import main
from ggrun.cli.conversation import Conversation
from ggrun.cli.interrupt import interruptible
from ggrun.cli.reader import PlainReader, message, unfinished
from ggrun.cli.screen import Screen, Writer
from ggrun.cli.session import Session
from ggrun.cli.slash import COMMANDS, is_command
from ggrun.errors import GgrunError
from tests.unit.fake_engine import FakeEngine


class Typed:
    """A reader that types given lines; exceptions among them are raised."""

    def __init__(self, lines: Iterable[str | BaseException]) -> None:
        self.lines = iter(lines)

    def read(self) -> str:
        line = next(self.lines, EOFError())
        if isinstance(line, BaseException):
            raise line
        return line


def session(answers: Iterable[str] = ("fine thanks",), n_ctx: int = 100, **settings: object) -> Session:
    engine = FakeEngine()
    engine.answers, engine.n_ctx = tuple(answers), n_ctx
    made = Session(Conversation(engine, ggrun.Sampling(seed=3)), Screen(), Writer(), "fake", **settings)
    made.set_overflow(made.on_overflow)
    return made


def contents(made: Session) -> list[str]:
    return [message["content"] for message in made.conversation.messages]


def test_turns_are_kept_and_timed(capsys: pytest.CaptureFixture[str]) -> None:
    made = session(["one", "two words"])
    made.loop(Typed(["hello", "   ", "again"]))
    out, err = capsys.readouterr()
    assert out == "one\ntwo words\n"
    assert contents(made) == ["hello", "one", "again", "two words"]
    assert made.conversation.engine.messages == made.conversation.messages[:3]
    assert "[prompt 3 tokens, 3000.0 t/s | answer 2 tokens, 1000.0 t/s | context 5/100]" in err
    assert err.count("the template has no system role") == 1  # said once, not with every answer


def test_no_timings_when_not_wanted(capsys: pytest.CaptureFixture[str]) -> None:
    session(show_timings=False).loop(Typed(["hello"]))
    assert "t/s" not in capsys.readouterr().err


def test_ctrl_c_twice_at_the_prompt_leaves(capsys: pytest.CaptureFixture[str]) -> None:
    made = session()
    made.loop(Typed([KeyboardInterrupt(), "hello", KeyboardInterrupt(), KeyboardInterrupt(), "never read"]))
    assert contents(made) == ["hello", "fine thanks"]
    assert capsys.readouterr().err.count("Ctrl-C again") == 2


def test_ctrl_c_stops_the_answer_and_keeps_it() -> None:
    stopped = []
    with interruptible(lambda: stopped.append(True)) as interrupted:
        signal.raise_signal(signal.SIGINT)
        assert stopped == [True]
        assert interrupted()
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_commands(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = session(["one", "two", "three", "four"])
    saved = tmp_path / "chat.json"
    made.loop(Typed(["a", "/regen", "b", "/undo", "/system Be brief.", f"/save {saved}", "/clear", "c", f"/load {saved}", "/exit", "d"]))
    assert contents(made) == ["a", "two"]
    assert made.conversation.system == "Be brief."
    assert json.loads(saved.read_text()) == {"system": "Be brief.", "messages": made.conversation.messages}
    seeds = [submitted["sampling"].seed for submitted in made.conversation.engine.submitted]
    assert seeds == [3, 4, 3, 3]  # /regen takes another seed, and the next question the first again
    assert "error" not in capsys.readouterr().err


def test_set(capsys: pytest.CaptureFixture[str]) -> None:
    made = session()
    made.loop(
        Typed(
            [
                "/set temp 0.25",
                "/set parameter top_k 7",
                "/set n_predict 12",
                "/set on_overflow shift",
                "/set system Hi",
                "/set samplers top-k;temp",
            ]
        )
    )
    sampling = made.conversation.sampling
    assert (sampling.temperature, sampling.top_k, sampling.samplers) == (0.25, 7, ("top_k", "temperature"))
    assert (made.conversation.n_predict, made.on_overflow, made.conversation.shift, made.conversation.system) == (12, "shift", True, "Hi")
    made.loop(Typed(["/set seed -1"]))
    assert made.conversation.sampling.seed >= 0
    sampling = made.conversation.sampling
    capsys.readouterr()
    made.loop(Typed(["/show", "/set"]))
    shown = capsys.readouterr().err
    assert shown.count("temperature            0.25") == 2
    made.loop(Typed(["/set temp hot", "/set heat 3", "/set top_k 1.5", "/set temp", "/set n_predict x", "/set on_overflow never"]))
    assert [line.split(":")[0] for line in capsys.readouterr().err.splitlines()] == ["error"] * 6
    assert made.conversation.sampling == sampling


def test_stats_and_help(capsys: pytest.CaptureFixture[str]) -> None:
    session(["one", "two words"]).loop(Typed(["hello", "again", "/stats", "/help"]))
    err = capsys.readouterr().err
    assert "answers  2, 4 messages" in err
    assert "answer   3 tokens at 750.0 t/s" in err
    assert "context  5 of 100 tokens" in err
    assert all(f"  {name}" in err for name in COMMANDS)


def test_read_puts_a_file_before_the_message(tmp_path: Path) -> None:
    (tmp_path / "notes").write_text("some text\n")
    made = session()
    made.loop(Typed([f"/read {tmp_path / 'notes'}", "explain", "and now"]))
    assert contents(made)[::2] == ["some text\n\nexplain", "and now"]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("/frob", "there is no command /frob; /help lists them"),
        ("/regen", "there is no answer to give again"),
        ("/undo", "there is nothing to take back"),
        ("/save", "/save needs the name of a file"),
        ("/save /no/such/folder/x", "cannot be written: No such file"),
        ("/load /no/such/file", "cannot be read: No such file"),
        ("/read /no/such/file", "cannot be read: No such file"),
    ],
)
def test_commands_that_cannot_be(line: str, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    made = session()
    made.loop(Typed([line, "still here"]))
    assert said in capsys.readouterr().err
    assert contents(made) == ["still here", "fine thanks"]


@pytest.mark.parametrize("text", ["/usr/bin is a folder", "/", "/2 of it", " /help me"])
def test_messages_that_only_look_like_commands(text: str) -> None:
    assert not is_command(text)


@pytest.mark.parametrize(
    "text",
    [
        "[]",
        "{}",
        '{"messages": 3}',
        '{"messages": [{"role": "assistant", "content": "x"}]}',
        '{"messages": ["x"]}',
        "{",
        '{"messages": [], "system": 3}',
    ],
)
def test_load_refuses_what_it_did_not_save(text: str, tmp_path: Path) -> None:
    (tmp_path / "x").write_text(text)
    conversation = session().conversation
    conversation.ask("kept")
    with pytest.raises(GgrunError, match="is no saved conversation"):
        conversation.load(tmp_path / "x")
    assert len(conversation.messages) == 1


def long_talk(n_ctx: int, **settings: object) -> Session:
    """Three turns of 4 + 4 words in a context that holds fewer than 28, and a fourth question."""
    made = session(["a b c d"], n_ctx, **settings)
    made.loop(Typed(["one two three four"] * 4))
    return made


def test_a_full_context_stops(capsys: pytest.CaptureFixture[str]) -> None:
    made = long_talk(26, on_overflow="stop")
    assert "error: the context is full: the prompt has 28 tokens and the context holds 26; shorten it" in capsys.readouterr().err
    assert len(made.conversation.messages) == 7
    made.loop(Typed(["/clear", "fresh start"]))
    assert contents(made) == ["fresh start", "a b c d"]


def test_a_full_context_shifts_when_told(capsys: pytest.CaptureFixture[str]) -> None:
    made = long_talk(26, on_overflow="shift")
    assert "forgot the oldest 2 messages; 5 are left" in capsys.readouterr().err
    assert len(made.conversation.messages) == 6


@pytest.mark.parametrize(("reply", "left", "said"), [("y\n", 6, "forgot the oldest 2"), ("\n", 7, "kept as it is")])
def test_a_full_context_asks(reply: str, left: int, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    asked = []
    made = long_talk(26, on_overflow="ask", ask=lambda question: asked.append(question) or reply)
    assert asked == ["Forget the oldest turns to answer? [y/N] "]
    assert len(made.conversation.messages) == left
    assert said in capsys.readouterr().err


def test_an_answer_that_is_cut_off_is_given_again_with_room() -> None:
    asked = []
    made = session(["a b c d", "a b c d e f", "whole"], 16, on_overflow="ask", ask=lambda question: asked.append(question) or "y")
    made.loop(Typed(["one two three four", "five six seven"]))
    assert asked == ["Forget the oldest turns and answer again? [y/N] "]
    assert contents(made) == ["five six seven", "whole"]


def test_an_answer_that_is_cut_off_stays_when_the_person_says_no(capsys: pytest.CaptureFixture[str]) -> None:
    made = session(["a b c d", "a b c d e f"], 16, on_overflow="ask", ask=lambda question: "n")
    made.loop(Typed(["one two three four", "five six seven"]))
    assert contents(made) == ["one two three four", "a b c d", "five six seven", "a b c d e"]
    assert "the answer is cut off" in capsys.readouterr().err


def test_a_message_longer_than_the_context(capsys: pytest.CaptureFixture[str]) -> None:
    made = session(n_ctx=3, on_overflow="shift")
    made.loop(Typed(["far too many words here", "ok"]))
    assert "this message alone takes 5 tokens and the context holds 3" in capsys.readouterr().err
    assert contents(made) == ["ok", "fine thanks"]


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("one\\\ntwo", "one\ntwo"),
        ('"""\nx = 1\ny\n"""', "x = 1\ny"),
        ('"""a"""', "a"),
        ('say """ twice """', 'say """ twice """'),
        ("plain\\n", "plain\\n"),
    ],
)
def test_several_lines(typed: str, meant: str) -> None:
    assert message(typed) == meant
    assert not unfinished(typed)


@pytest.mark.parametrize("typed", ["one\\", '"""', '"""\nx = 1'])
def test_lines_that_go_on(typed: str) -> None:
    assert unfinished(typed)


def test_plain_reader(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO('one\\\ntwo\n"""\na\n"""\nlast'))
    reader = PlainReader()
    assert [reader.read() for _ in range(3)] == ["one\ntwo", "a", "last"]
    with pytest.raises(EOFError):
        reader.read()


def test_writer_shows_control_characters_on_a_terminal(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    writer = Writer()
    writer.write("a\x1b[31mb\tc\r\n")
    writer.end_line()
    assert capsys.readouterr().out == "a\\x1b[31mb\tc\n"


class TestCommandLine:
    """The command itself, with something piped in."""

    @pytest.fixture(autouse=True)
    def engine(self, monkeypatch: pytest.MonkeyPatch) -> type[FakeEngine]:
        self.kind = type("Engine", (FakeEngine,), {})
        monkeypatch.setitem(vars(ggrun), "Engine", self.kind)
        monkeypatch.delenv("LLAMA_ARG_MODEL", raising=False)
        return self.kind

    def run(self, monkeypatch: pytest.MonkeyPatch, piped: str, *arguments: str) -> int:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(piped.encode())))
        with pytest.raises(SystemExit) as stopped:
            main(["chat", *arguments])
        return stopped.value.code

    def test_a_pipe_is_one_message(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        assert self.run(monkeypatch, "two\nlines /exit\n", "-sys", "Be brief.") == 0
        out, err = capsys.readouterr()
        assert out == "fine thanks\n"
        assert "t/s" in err
        assert self.kind.last.messages == [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "two\nlines /exit"}]

    def test_json(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        assert self.run(monkeypatch, "hello", "--json", "-s", "7") == 0
        answer = json.loads(capsys.readouterr().out)
        assert (answer["text"], answer["seed"], answer["finish_reason"], answer["model"]) == ("fine thanks", 7, "stop", "embedded")

    def test_a_prompt_leaves_the_pipe_alone(self, monkeypatch: pytest.MonkeyPatch) -> None:
        assert self.run(monkeypatch, "ignored", "-p", "hello") == 0
        assert self.kind.last.messages == [{"role": "user", "content": "hello"}]

    def test_an_empty_pipe(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        assert self.run(monkeypatch, "\n") == 1
        assert "the message is empty" in capsys.readouterr().err

    def test_a_full_context_fails_in_a_pipe(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        self.kind.n_ctx = 3
        assert self.run(monkeypatch, "far too many words here") == 1
        assert "error: the context is full: the prompt has 5 tokens" in capsys.readouterr().err

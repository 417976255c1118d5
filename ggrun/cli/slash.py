"""The commands of a chat, one table. Each takes the session and what stands after its name."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING

from ggrun.cli.prompt import text_of
from ggrun.errors import GgrunError

if TYPE_CHECKING:
    from ggrun.cli.session import Session


@dataclass(frozen=True, slots=True)
class Slash:
    """A chat command: what it does, what it takes, and one line of help."""

    act: Callable[[Session, str], None]
    takes: str
    help: str


def is_command(text: str) -> bool:
    """Whether a typed text is a command: a slash and letters, so that a path such as /usr/bin is a message."""
    return re.match(r"/[a-z?]+(\s|$)", text) is not None


def carry_out(session: Session, text: str) -> None:
    """Do what a command says. Raises GgrunError for an unknown command or a wrong argument."""
    name, _, argument = text.strip().partition(" ")
    if name not in COMMANDS:
        raise GgrunError(f"there is no command {name}; /help lists them")
    COMMANDS[name].act(session, argument.strip())


def _help(session: Session, argument: str) -> None:
    rows = [(f"{name} {command.takes}".strip(), command.help) for name, command in COMMANDS.items()]
    width = max(len(usage) for usage, _ in rows)
    for usage, text in rows:
        session.screen.note(f"  {usage:{width}}  {text}")
    session.screen.note('Alt-Enter, a trailing \\ or """ around it write several lines. Ctrl-C stops an answer, Ctrl-D leaves.')


def _clear(session: Session, argument: str) -> None:
    session.conversation.clear()
    session.totals.used = 0
    session.screen.note("the conversation is empty")


def _regen(session: Session, argument: str) -> None:
    if not session.conversation.retract():
        raise GgrunError("there is no answer to give again")
    session.answer()


def _undo(session: Session, argument: str) -> None:
    if not session.conversation.undo():
        raise GgrunError("there is nothing to take back")
    session.screen.note(f"the last question and its answer are forgotten; {len(session.conversation.messages)} messages are left")


def _system(session: Session, argument: str) -> None:
    if argument:
        session.conversation.system = None if argument == "none" else argument
    session.screen.note(f"system: {session.conversation.system or 'none'}")


def _save(session: Session, argument: str) -> None:
    file = _file(argument, "/save")
    session.conversation.save(file)
    session.screen.note(f"saved {len(session.conversation.messages)} messages to {file}")


def _load(session: Session, argument: str) -> None:
    file = _file(argument, "/load")
    session.conversation.load(file)
    session.screen.note(f"loaded {len(session.conversation.messages)} messages from {file}")


def _read(session: Session, argument: str) -> None:
    text = text_of(str(_file(argument, "/read")))
    session.attached = f"{session.attached}\n\n{text}" if session.attached else text
    session.screen.note(f"{argument} ({len(text)} characters) goes before your next message")


def _set(session: Session, argument: str) -> None:
    name, _, value = argument.removeprefix("parameter ").strip().partition(" ")
    conversation = session.conversation
    if not name:
        return _show(session, "")
    if name == "system":
        return _system(session, value.strip())
    if not (value := value.strip()):
        raise GgrunError(f"/set {name} needs a value; /set alone shows all")
    if name == "on_overflow":
        if value not in ("ask", "stop", "shift"):
            raise GgrunError(f"on_overflow cannot be {value}; it is ask, stop or shift")
        session.set_overflow(value)  # type: ignore[arg-type]  # one of the three, by the line above
    elif name in ("n_predict", "predict", "num_predict"):
        try:
            conversation.n_predict = int(value)
        except ValueError:
            raise GgrunError(f"{name} cannot be {value!r}: a whole number is expected") from None
    else:
        from ggrun.cli.choosing import changed

        conversation.sampling = changed(conversation.sampling, name, value)
    session.screen.note(f"{name} = {value}")


def _show(session: Session, argument: str) -> None:
    conversation = session.conversation
    lines = [("model", session.model), ("context", conversation.engine.n_ctx), ("system", conversation.system or "none")]
    lines += [("n_predict", conversation.n_predict), ("on_overflow", session.on_overflow)]
    lines += [(field.name, getattr(conversation.sampling, field.name)) for field in fields(conversation.sampling)]
    for name, value in lines:
        session.screen.note(f"  {name:22} {'; '.join(map(repr, value)) if isinstance(value, tuple) else value}")


def _stats(session: Session, argument: str) -> None:
    t, n_ctx = session.totals, session.conversation.engine.n_ctx
    prompt = 1e3 * t.prompt_n / t.prompt_ms if t.prompt_ms else 0.0
    answer = 1e3 * t.predicted_n / t.predicted_ms if t.predicted_ms else 0.0
    session.screen.note(f"  answers  {t.n_answers}, {len(session.conversation.messages)} messages")
    session.screen.note(f"  prompt   {t.prompt_n} tokens computed at {prompt:.1f} t/s, {t.cache_n} reused from the cache")
    session.screen.note(f"  answer   {t.predicted_n} tokens at {answer:.1f} t/s")
    session.screen.note(f"  context  {t.used} of {n_ctx} tokens")


def _exit(session: Session, argument: str) -> None:
    session.running = False


def _file(argument: str, command: str) -> Path:
    if not argument:
        raise GgrunError(f"{command} needs the name of a file")
    return Path(argument).expanduser()


COMMANDS = {
    "/help": Slash(_help, "", "this list"),
    "/clear": Slash(_clear, "", "forget the conversation; the system prompt stays"),
    "/regen": Slash(_regen, "", "answer the last message again, in other words"),
    "/undo": Slash(_undo, "", "forget the last question and its answer"),
    "/system": Slash(_system, "TEXT", "set the system prompt (none removes it); alone shows it"),
    "/read": Slash(_read, "FILE", "put a file's text before your next message"),
    "/save": Slash(_save, "FILE", "save the conversation"),
    "/load": Slash(_load, "FILE", "go on with a saved conversation"),
    "/set": Slash(_set, "NAME VALUE", "set a sampling value, n_predict or on_overflow"),
    "/show": Slash(_show, "", "model, context and all that can be set"),
    "/stats": Slash(_stats, "", "tokens and speed so far"),
    "/exit": Slash(_exit, "", "leave; also /bye and /quit"),
    "/bye": Slash(_exit, "", "leave"),
    "/quit": Slash(_exit, "", "leave"),
}

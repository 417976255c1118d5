"""A conversation: its messages, and the next answer to them. Knows no screen and no keyboard."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from ggrun.cli.output import Output, constraint_of
from ggrun.errors import GgrunError

if TYPE_CHECKING:
    from ggrun import Engine, Sampling
    from ggrun.engine.generation import Generation

Message = dict[str, str]


@dataclass
class Conversation:
    """Turns so far and how the next answer is made. `messages` always alternate user, assistant, starting with user."""

    engine: Engine
    sampling: Sampling
    system: str | None = None
    n_predict: int = -1
    stop: Sequence[str] = ()
    keep: int = 0
    shift: bool = False  # an answer that fills the context goes on, its oldest tokens forgotten
    output: Output | None = None  # the form of every answer
    messages: list[Message] = field(default_factory=list)
    again: int = 0  # how often the last answer was asked for again: another seed each time, the same ones every time
    notes: Sequence[str] = ()  # what the model's template could not do, as of the last answer

    def prompt(self) -> list[Message]:
        """What the model is given: the system prompt, when there is one, and the messages."""
        return ([{"role": "system", "content": self.system}] if self.system else []) + self.messages

    def ask(self, text: str) -> None:
        """Add the user's message; one that got no answer is replaced."""
        self._drop_unanswered()
        self.messages.append({"role": "user", "content": text})
        self.again = 0

    def answer(self) -> Generation:
        """Start the next answer. Raises ContextExceeded when the conversation does not fit the context, whatever `shift` says."""
        ids, notes = self.engine.chat_ids(self.prompt())
        self.notes = notes
        sampling = replace(self.sampling, seed=(self.sampling.seed + self.again) % (1 << 64))
        # a prompt that is too long is never cut in the middle: whole turns are forgotten instead
        on_overflow: Literal["stop", "shift"] = "shift" if self.shift and len(ids) < self.engine.n_ctx else "stop"
        return self.engine.submit(
            ids,
            sampling,
            n_predict=self.n_predict,
            stop=self.stop,
            keep=self.keep,
            on_overflow=on_overflow,
            strip_space=True,
            constraint=constraint_of(self.output, self.engine.tokenizer),
        )

    def answered(self, text: str) -> None:
        """Keep an answer, whole or cut short."""
        self.messages.append({"role": "assistant", "content": text})

    def retract(self) -> bool:
        """Take the last answer back, to be given again; False when there is none."""
        if not self.messages:
            return False
        if self.messages[-1]["role"] == "assistant":
            self.messages.pop()
        self.again += 1
        return True

    def undo(self) -> bool:
        """Forget the last question and its answer; False when there is none."""
        if not self.messages:
            return False
        if not self._drop_unanswered():
            del self.messages[-2:]
        return True

    def clear(self) -> None:
        """Forget all messages; the system prompt stays."""
        self.messages.clear()

    def forget(self, room: int) -> int:
        """Drop the oldest turn, and more until the next answer has `room` tokens of context; returns how many messages went.

        Raises GgrunError when the last message alone leaves no token to answer with.
        """
        before = len(self.messages)
        del self.messages[: 2 if before > 2 else 0]
        while (n_tokens := len(self.engine.chat_ids(self.prompt())[0])) + room > self.engine.n_ctx and len(self.messages) > 2:
            del self.messages[:2]
        if n_tokens >= self.engine.n_ctx:
            raise GgrunError(f"this message alone takes {n_tokens} tokens and the context holds {self.engine.n_ctx}; -c makes it larger")
        return before - len(self.messages)

    def save(self, file: Path) -> None:
        """Write the conversation as JSON: {"system": ..., "messages": [{"role", "content"}, ...]}."""
        text = json.dumps({"system": self.system, "messages": self.messages}, ensure_ascii=False, indent=2)
        try:
            file.write_text(text + "\n", encoding="utf-8")
        except OSError as error:
            raise GgrunError(f"{file} cannot be written: {error.strerror}") from None

    def load(self, file: Path) -> None:
        """Replace system prompt and messages by those of a file that `save` wrote. Raises GgrunError for anything else."""
        try:
            content = json.loads(file.read_text(encoding="utf-8"))
        except OSError as error:
            raise GgrunError(f"{file} cannot be read: {error.strerror}") from None
        except ValueError as error:
            raise GgrunError(f"{file} is no saved conversation: {error}") from None
        messages = content.get("messages") if isinstance(content, dict) else None
        system = content.get("system") if isinstance(content, dict) else None
        if not isinstance(messages, list) or not isinstance(system, str | None):
            raise GgrunError(f'{file} is no saved conversation: it has no list called "messages"')
        for index, message in enumerate(messages):
            right = ("user", "assistant")[index % 2]
            if not isinstance(message, dict) or message.get("role") != right or not isinstance(message.get("content"), str):
                raise GgrunError(f"{file} is no saved conversation: message {index + 1} is not text of the {right}")
        self.system = system
        self.messages[:] = [{"role": message["role"], "content": message["content"]} for message in messages]

    def _drop_unanswered(self) -> bool:
        if self.messages and self.messages[-1]["role"] == "user":
            self.messages.pop()
            return True
        return False

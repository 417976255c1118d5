"""A chat as a person sees it: reads what is typed, streams the answer, says what happened. Decides what a full context means."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from ggrun.cli.conversation import Conversation
from ggrun.cli.interrupt import interruptible
from ggrun.cli.reader import Reader
from ggrun.cli.report import report
from ggrun.cli.screen import Screen, Writer
from ggrun.errors import GgrunError

if TYPE_CHECKING:
    from ggrun.engine.generation import Generation

Overflow = Literal["ask", "stop", "shift"]
ROOM_PART = 4  # forgetting turns leaves at least one part in this many of the context free for the answer


@dataclass
class Totals:
    """Sums over the answers of a session, for /stats."""

    n_answers: int = 0
    cache_n: int = 0
    prompt_n: int = 0
    prompt_ms: float = 0.0
    predicted_n: int = 0
    predicted_ms: float = 0.0
    used: int = 0  # tokens of context the last answer left behind


@dataclass
class Session:
    """One chat. `ask` puts a question and returns the line typed, empty where nobody can be asked."""

    conversation: Conversation
    screen: Screen
    writer: Writer
    model: str
    on_overflow: Overflow = "stop"
    ask: Callable[[str], str] = lambda question: ""
    show_timings: bool = True
    json_output: bool = False  # each answer as one JSON object, once it is whole
    running: bool = True
    interrupted: bool = False  # whether the last answer was stopped with Ctrl-C
    attached: str = ""  # text of /read, put before the next message
    totals: Totals = field(default_factory=Totals)

    def set_overflow(self, policy: Overflow) -> None:
        """What a full context means from now on."""
        self.on_overflow, self.conversation.shift = policy, policy == "shift"

    def loop(self, reader: Reader, turns: int | None = None) -> None:
        """Read and answer until the person leaves, or for so many answers."""
        from ggrun.cli.slash import carry_out, is_command

        leaving = False
        while self.running and (turns is None or self.totals.n_answers < turns):
            try:
                text = reader.read()
            except EOFError:
                return
            except KeyboardInterrupt:
                if leaving:
                    return
                leaving = True
                self.screen.note("(Ctrl-C again, Ctrl-D or /exit leaves)")
                continue
            leaving = False
            try:
                if is_command(text):
                    carry_out(self, text)
                elif text.strip():
                    self.say(text)
            except GgrunError as error:
                self.screen.note(f"error: {error}")
            except KeyboardInterrupt:
                self.screen.note("(stopped)")

    def say(self, text: str) -> None:
        """Send a message and stream its answer."""
        self.conversation.ask(f"{self.attached}\n\n{text}" if self.attached else text)
        self.attached = ""
        self.answer()

    def answer(self) -> None:
        """Stream the next answer and keep it, whole or cut short. Raises GgrunError when there is no room to begin it."""
        from ggrun.engine.engine import ContextExceeded

        try:
            generation = self._start()
        except ContextExceeded as error:
            if not self._make_room(f"the context is full: {error}", "Forget the oldest turns to answer?"):
                return
            generation = self._start()
        self._stream(generation)
        while generation.finish_reason == "context_full" and self.on_overflow == "ask":
            cut_off = self.conversation.messages.pop()
            full = f"the context of {self.conversation.engine.n_ctx} tokens is full and the answer is cut off"
            room = False
            try:
                room = self._make_room(full, "Forget the oldest turns and answer again?")
            finally:
                if not room:
                    self.conversation.messages.append(cut_off)
            if not room:
                return
            generation = self._start()
            self._stream(generation)

    def _start(self) -> Generation:
        generation = self.conversation.answer()
        for note in self.conversation.notes:
            self.screen.once(note)
        return generation

    def _stream(self, generation: Generation) -> None:
        with interruptible(generation.cancel) as interrupted:
            for event in generation:
                if not self.json_output:
                    self.writer.write(event.text)
        self.interrupted = interrupted()
        if self.json_output:
            self.writer.write(report(generation, self.model))
        self.writer.end_line()
        self.conversation.answered(generation.text)
        self._count(generation)
        if sentence := self._ending(generation):
            self.screen.note(sentence)
        if self.show_timings:
            self.screen.note(timing_line(generation, self.totals.used, self.conversation.engine.n_ctx))

    def _ending(self, generation: Generation) -> str:
        """What to say of an answer that did not end by itself."""
        n_ctx = self.conversation.engine.n_ctx
        if generation.n_shifted:
            return f"the context of {n_ctx} tokens was full: {generation.n_shifted} tokens of it were forgotten on the way"
        return {
            "length": f"(cut off after {self.conversation.n_predict} tokens: -n)",
            "cancelled": "(stopped; the conversation goes on)",
            "context_full": ""
            if self.on_overflow == "ask"
            else f"stopped: the context of {n_ctx} tokens is full; /clear, or -c makes it larger",
        }.get(generation.finish_reason or "", "")

    def _make_room(self, what: str, question: str) -> bool:
        """Forget the oldest turns when the person or --on-overflow says so, and True; False when the person says no.

        Raises GgrunError when neither may, or when nothing is left to forget.
        """
        conversation = self.conversation
        if self.on_overflow == "stop":
            raise GgrunError(f"{what}; /clear empties the conversation, --on-overflow shift forgets the oldest turns")
        if self.on_overflow == "ask":
            self.screen.note(what)
            if self.ask(f"{question} [y/N] ").strip().lower() not in ("y", "yes"):
                self.screen.note("kept as it is; /clear or /undo make room, /set on_overflow shift stops asking")
                return False
        gone = conversation.forget(conversation.engine.n_ctx // ROOM_PART)
        if not gone:
            raise GgrunError(f"{what}, and there is no older turn to forget; -c makes it larger")
        self.screen.note(f"forgot the oldest {gone} messages; {len(conversation.messages)} are left")
        return True

    def _count(self, generation: Generation) -> None:
        totals, timings = self.totals, generation.timings
        totals.n_answers += 1
        totals.used = len(generation.prompt_ids) + len(generation.ids) - generation.n_shifted
        for name in ("cache_n", "prompt_n", "prompt_ms", "predicted_n", "predicted_ms"):
            setattr(totals, name, getattr(totals, name) + getattr(timings, name))


def timing_line(generation: Generation, used: int, n_ctx: int) -> str:
    """prompt 31 tokens (24 cached), 410.2 t/s | answer 52 tokens, 36.1 t/s | context 107/2048"""
    t = generation.timings
    cached = f" ({t.cache_n} cached)" if t.cache_n else ""
    return (
        f"[prompt {t.cache_n + t.prompt_n} tokens{cached}, {t.prompt_per_second:.1f} t/s"
        f" | answer {t.predicted_n} tokens, {t.predicted_per_second:.1f} t/s | context {used}/{n_ctx}]"
    )

"""An engine without a model, for tests of the command line: its tokens are the words of the messages, its answers are given."""

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from ggrun.engine.engine import ContextExceeded
from ggrun.engine.generation import Finished, Generation, TokenEvent
from ggrun.errors import GgrunError


class FakeEngine:
    """Answers with `answers` in turn, one word a token; a context holds `n_ctx` words. `opened` and `submitted` record what was asked."""

    answers: Sequence[str] = ("fine thanks",)
    n_ctx = 100
    has_template = False
    opened: dict[str, Any]
    submitted: list[dict[str, Any]]

    def __init__(self) -> None:
        self.notes: list[str] = ["a note of the engine"]
        self.tokenizer = SimpleNamespace(encode=lambda text, add_special=True, parse_special=False: list(range(len(text.split()))))
        self.file = SimpleNamespace(metadata={"tokenizer.chat_template": "{{ messages }}"} if self.has_template else {})
        self.submitted = []
        self.given = 0

    @classmethod
    def open(cls, model: str | Path | None = None, *, progress: Any = None, **options: Any) -> "FakeEngine":
        cls.opened = {"model": model, **options}
        if progress:
            progress("compile", 0, 2)
            progress("compile", 2, 2)
        engine = cls()
        cls.last = engine
        return engine

    def chat_ids(self, messages: Sequence[dict[str, str]], tools: Any = None, **variables: Any) -> tuple[list[int], tuple[str, ...]]:
        self.messages = [dict(message) for message in messages]
        return list(range(sum(len(message["content"].split()) for message in messages))), ("the template has no system role",)

    def submit(self, ids: list[int], sampling: Any = None, **options: Any) -> Generation:
        if not ids:
            raise GgrunError("the prompt is empty: there is no token to continue from")
        if len(ids) >= self.n_ctx and options.get("on_overflow") != "shift":
            raise ContextExceeded(len(ids), self.n_ctx)
        self.submitted.append({"ids": ids, "sampling": sampling, **options})
        generation = Generation(ids, sampling.seed, lambda cancelled: None)
        words = self.answers[min(self.given, len(self.answers) - 1)].split()
        self.given += 1
        room = self.n_ctx - len(ids)
        shift = options.get("on_overflow") == "shift" and len(words) >= room
        limit = options.get("n_predict", -1)
        said = words if shift else words[:room]
        said = said[:limit] if limit >= 0 else said
        for index, word in enumerate(said):
            generation.events.put(TokenEvent(index, (" " if index else "") + word, -0.5))
        generation.timings.prompt_n, generation.timings.prompt_ms = len(ids), 1.0
        generation.timings.predicted_n, generation.timings.predicted_ms = len(said), 2.0
        generation.n_shifted = len(words) if shift else 0
        full = len(words) >= room and not shift
        generation.events.put(Finished("length" if limit == len(said) else "context_full" if full else "stop", ""))
        return generation

    def __enter__(self) -> "FakeEngine":
        return self

    def __exit__(self, *args: Any) -> None:
        self.closed = True

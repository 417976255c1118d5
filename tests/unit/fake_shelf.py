"""A shelf of one fake model, and an app over it: the HTTP side of the server without an engine."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from starlette.applications import Starlette
from starlette.routing import Route

from ggrun.engine.status import EngineStatus, SlotStatus
from ggrun.server.app import create_app
from ggrun.server.metrics import Metrics
from ggrun.server.settings import Settings
from ggrun.server.shelf import Defaults, ModelState

BASE = "http://127.0.0.1:8080"


class FakeTokenizer:
    """A byte a token; 256 is <s>, 257 a special token <end>."""

    bos_id, eos_id = 256, 257

    def encode(self, text: str, add_special: bool = True, parse_special: bool = False) -> list[int]:
        parts = text.split("<end>") if parse_special else [text]
        ids = [256] if add_special else []
        for i, part in enumerate(parts):
            ids += [257] * (i > 0) + list(part.encode())
        return ids

    def decode(self, ids: Sequence[int], skip_special: bool = True) -> str:
        return b"".join(self.token_bytes(id) for id in ids).decode("utf-8", "replace")

    def token_bytes(self, id: int) -> bytes:
        return bytes([id]) if id < 256 else self.token_text(id).encode()

    def token_text(self, id: int) -> str:
        return {256: "<s>", 257: "<end>"}.get(id, chr(id))


@dataclass
class FakeTemplate:
    source: str = "{{ messages }}"
    seen: list[Any] = field(default_factory=list)

    def render(self, messages: Any, tools: Any = None, add_generation_prompt: bool = True, variables: Any = None) -> Any:
        self.seen.append((messages, tools, add_generation_prompt, variables))
        return SimpleNamespace(text="|".join(str(message["content"]) for message in messages), notes=())


class FakeServed:
    """An engine that has slots and no model. saved: what was asked of its slots."""

    def __init__(self, busy: int = 0, slots: int = 2) -> None:
        self.tokenizer, self.chat_template = FakeTokenizer(), FakeTemplate()
        self.spec = SimpleNamespace(n_vocab=258)
        self.plan = SimpleNamespace(shape=SimpleNamespace(n_ctx=64, n_seqs=slots))
        self.n_ctx = 64
        self.busy = busy
        self.saved: list[Any] = []

    def status(self) -> EngineStatus:
        slots = tuple(
            SlotStatus(i, "answer" if i < self.busy else "idle", 64, n_tokens=9 * (i < self.busy), n_predicted=3 * (i < self.busy))
            for i in range(self.plan.shape.n_seqs)
        )
        return EngineStatus(slots, 1, 128, 48, 16, 100, 40, 60, 2.0, 3.0, 70, 5)

    def save_slot(self, slot: int, path: Path) -> tuple[int, int]:
        self.saved.append(("save", slot, path))
        path.write_bytes(b"12345")
        return 7, 5

    def restore_slot(self, slot: int, path: Path) -> tuple[int, int]:
        self.saved.append(("restore", slot, path))
        return 7, 5

    def erase_slot(self, slot: int) -> int:
        self.saved.append(("erase", slot))
        return 9


class FakeShelf:
    """One model called fake. state: what is told of it."""

    def __init__(self, settings: Settings, engine: FakeServed | None = None, state: Any = "loaded") -> None:
        self.engine = engine or FakeServed()
        self.metrics = Metrics(self) if settings.metrics else None  # type: ignore[arg-type]
        self.state = state
        self.asked: list[str | None] = []
        self.closed = False
        self.model = SimpleNamespace(
            name="fake", path=Path("models/fake.gguf"), engine=self.engine, created=1, defaults=Defaults({"top_k": 7}, 99), metrics=None
        )

    @asynccontextmanager
    async def use(self, name: str | None = None) -> AsyncIterator[Any]:
        self.asked.append(name)
        yield self.model

    def models(self) -> list[ModelState]:
        model: Any = self.model if self.state == "loaded" else None
        return [ModelState("fake", ("alias",), Path("models/fake.gguf"), self.state, 1, model, "it is broken" * (self.state == "failed"))]

    async def close(self) -> None:
        self.closed = True


def fake_app(settings: Settings | None = None, *routes: Route, engine: FakeServed | None = None, state: Any = "loaded") -> Starlette:
    """The real application over a fake shelf, with more routes before its own."""
    settings = settings or Settings()
    app = create_app(FakeShelf(settings, engine, state), settings)  # type: ignore[arg-type]
    app.router.routes[:0] = routes
    return app

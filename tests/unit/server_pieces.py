"""An app whose answers are pieces a test wrote: for the routes of every API, without a model.

    script = Script(monkeypatch, responses)
    script.pieces = [Text(0, "fine"), end()]
    with client(bare_app(responses.ROUTES)) as http:
        http.post("/v1/responses", json={"input": "Hello"})
"""

from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from types import SimpleNamespace
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.testclient import TestClient

from ggrun.server.app import create_app
from ggrun.server.settings import Settings
from ggrun.server.task import End, Piece, Task, Usage


def end(reason: Any = "stop", prompt: int = 7, cached: int = 2, answer: int = 3, thought: int = 0, **fields: Any) -> End:
    timings = {"cache_n": cached, "prompt_n": prompt - cached, "prompt_ms": 50.0, "predicted_n": answer, "predicted_ms": 20.0}
    return End(0, reason, Usage(prompt, cached, answer, thought), timings, **fields)


class Pieces:
    """What `ask` gives, of pieces; an exception among them is raised in its place."""

    def __init__(self, pieces: Sequence[Piece | Exception], model: Any) -> None:
        self.model, self.prompt_ids = model, [1, 2, 3, 4, 5, 6, 7]
        self.closed = False
        self._pieces = iter(pieces)

    def __aiter__(self) -> "Pieces":
        return self

    async def __anext__(self) -> Piece:
        for piece in self._pieces:
            if isinstance(piece, Exception):
                raise piece
            return piece
        raise StopAsyncIteration

    async def __aenter__(self) -> "Pieces":
        return self

    async def __aexit__(self, *error: Any) -> None:
        self.closed = True


class Script:
    """Stands in for `ask` in a route module: answers with `pieces`, keeps the tasks it was given."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *modules: Any) -> None:
        self.pieces: Sequence[Piece | Exception] = [end()]
        self.tasks: list[Task] = []
        self.answers: list[Pieces] = []
        self.model = SimpleNamespace(name="scripted")
        for module in modules:
            monkeypatch.setattr(module, "ask", self.ask)

    @property
    def task(self) -> Task:
        """The last one."""
        return self.tasks[-1]

    async def ask(self, shelf: Any, name: str | None, *tasks: Task) -> Pieces:
        self.tasks += tasks
        self.answers.append(Pieces(self.pieces, self.model))
        return self.answers[-1]


class NoShelf:
    """For routes that only ask."""

    metrics = None

    @asynccontextmanager
    async def use(self, name: str | None = None) -> AsyncIterator[Any]:
        yield SimpleNamespace(name="scripted")

    async def close(self) -> None: ...


def bare_app(routes: Sequence[Any], shelf: Any = None) -> Starlette:
    """An app with these routes and the real middleware."""
    app = create_app(shelf or NoShelf(), Settings())
    app.router.routes[:] = routes
    return app


@contextmanager
def client(app: Starlette) -> Iterator[TestClient]:
    with TestClient(app, base_url="http://127.0.0.1:8080") as http:
        yield http


def events_of(body: str) -> list[tuple[str | None, str]]:
    """(name, data) of each server-sent event in a body."""
    frames = [frame.split("\n") for frame in body.split("\n\n") if frame.strip() and not frame.startswith(":")]
    fields = [dict(line.split(": ", 1) for line in frame) for frame in frames]
    return [(field.get("event"), field["data"]) for field in fields]

"""The models a server has: found by name, opened when first needed, kept while they are used.

    async with shelf.use("coder") as model:
        model.engine.submit(...)

Opening is done in a thread; everything else happens on the event loop, which therefore needs no locks.
"""

from __future__ import annotations

import asyncio
import gc
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

from ggrun.engine.engine import Engine
from ggrun.errors import GgrunError
from ggrun.plan.planner import DoesNotFit
from ggrun.server.background import in_thread
from ggrun.server.errors import ApiError
from ggrun.server.metrics import Metrics
from ggrun.server.settings import Settings

Taken = Mapping[str, int]
OF_ALL = ("process", "driver")  # in a plan's ledger, but there once however many models are open
State = Literal["loaded", "loading", "unloaded", "sleeping", "failed"]
RETRY = {"retry-after": "2"}


@dataclass(frozen=True, slots=True)
class Defaults:
    """What a request has that does not say otherwise. sampling: fields of `ggrun.Sampling`; template: variables; stop: more stop words."""

    sampling: Mapping[str, Any] = field(default_factory=dict)
    n_predict: int = -1
    keep: int = 0
    system: str | None = None
    template: Mapping[str, Any] = field(default_factory=dict)
    stop: tuple[str, ...] = ()
    special: bool = False


@dataclass(frozen=True, slots=True)
class Entry:
    """A model that may be opened. open: blocks until it is loaded; called in a thread. path None: the embedded model.

    fits_beside: whether it would run now as well as alone, beside the models that are open; called in a thread. Both are told what these
    have taken: device -> bytes.
    """

    name: str
    path: Path | None
    open: Callable[[Taken], Engine]
    aliases: tuple[str, ...] = ()
    defaults: Defaults = field(default_factory=Defaults)
    fits_beside: Callable[[Taken], bool] = lambda taken: True


@dataclass(frozen=True, slots=True)
class OpenModel:
    """A model that is loaded. created: when, in Unix seconds."""

    name: str
    path: Path | None
    engine: Engine
    created: int
    defaults: Defaults
    aliases: tuple[str, ...] = ()
    metrics: Metrics | None = None


@dataclass(frozen=True, slots=True)
class ModelState:
    """What is told of a model without opening it. model: the open one, if it is."""

    name: str
    aliases: tuple[str, ...]
    path: Path | None
    state: State
    created: int
    model: OpenModel | None = None
    error: str | None = None


class _Book:
    """A model on the shelf: whether it is open, who uses it, and since when nobody does."""

    def __init__(self, entry: Entry) -> None:
        self.entry = entry
        self.model: OpenModel | None = None
        self.state: State = "unloaded"
        self.error: str | None = None
        self.opening: asyncio.Task[None] | None = None
        self.leaving = False  # to be closed as soon as nobody uses it
        self.n_users = 0
        self.left = time.monotonic()  # when its last user left
        self.unused = asyncio.Event()  # set while nobody uses it
        self.unused.set()

    def enter(self) -> None:
        self.n_users += 1
        self.unused.clear()

    def leave(self) -> None:
        self.n_users -= 1
        self.left = time.monotonic()
        if not self.n_users:
            self.unused.set()


class Shelf:
    """Several models, the first of them the default. Made on any thread, used on the event loop's. metrics: with --metrics.

    One is opened or closed at a time. Where the memory that is left does not do for a model (the plan says so), the one that was least
    recently used makes room: as soon as nobody uses it, and who asks for it meanwhile waits until the other is open.
    """

    def __init__(self, entries: Sequence[Entry], settings: Settings) -> None:
        self._books = [_Book(entry) for entry in entries]
        self._names = {name: book for book in reversed(self._books) for name in (*book.entry.aliases, book.entry.name)}
        self._names |= {book.entry.name: book for book in self._books}
        self.settings = settings
        self._made = int(time.time())
        self.metrics = Metrics(self) if settings.metrics else None
        self._changing = asyncio.Lock()
        self._closed = False
        self._alarm: asyncio.TimerHandle | None = None
        self._sleeping: asyncio.Task[None] | None = None

    @asynccontextmanager
    async def use(self, name: str | None = None) -> AsyncIterator[OpenModel]:
        """The model of that name or alias (None: the default), opened if need be, and not closed before this ends.

        Raises ApiError 404 for an unknown name where --strict-model asks for that (else the default model answers), 429 when too many
        requests wait, 503 when it cannot be opened.
        """
        book = self._book(name)
        most = self.settings.max_queue
        if most and book.model and book.n_users >= most + book.model.engine.plan.shape.n_seqs:
            raise ApiError(429, f"{most} requests are waiting already; try again later", code="queue_full", headers=RETRY)
        model = await self._opened(book)
        try:
            yield model
        finally:
            book.leave()
            self._watch()

    async def open(self) -> OpenModel:
        """The default model, loaded now if it is not. Raises ApiError 503 with the reason why it cannot be."""
        book = self._books[0]
        model = await self._opened(book)
        book.leave()
        self._watch()
        return model

    async def unload(self, name: str | None) -> None:
        """Free a model's memory as soon as nobody uses it; the next request loads it again."""
        book = self._book(name)
        async with self._changing:
            await self._shut(book, "unloaded")

    def models(self) -> list[ModelState]:
        """Every model, the default first."""
        return [
            ModelState(b.entry.name, b.entry.aliases, b.entry.path, b.state, b.model.created if b.model else self._made, b.model, b.error)
            for b in self._books
        ]

    async def close(self) -> None:
        """Close what is open; what it computes is cancelled. What is still being opened is not waited for."""
        self._closed = True
        for book in self._books:
            if book.opening:
                book.opening.cancel()
        if self._alarm:
            self._alarm.cancel()
        async with self._changing:
            for book in self._books:
                model, book.model, book.state = book.model, None, "unloaded"
                if model:
                    await asyncio.to_thread(model.engine.close)

    # ---- opening and closing

    def _book(self, name: str | None) -> _Book:
        if name is None:
            return self._books[0]
        book = self._names.get(name)
        if book is None and self.settings.strict_model:
            known = ", ".join(book.entry.name for book in self._books)
            raise ApiError(404, f"there is no model {name!r:.80} here; there is {known}", code="model_not_found", param="model")
        return book or self._books[0]

    async def _opened(self, book: _Book) -> OpenModel:
        """The book's model, with one user more."""
        while book.model is None or book.leaving:
            if book.opening is None:
                book.opening = asyncio.create_task(self._open(book))
                book.opening.add_done_callback(_heard)
            await asyncio.shield(book.opening)  # others wait for it, too: it goes on when this request is cancelled
        book.enter()
        return book.model

    async def _open(self, book: _Book) -> None:
        try:
            async with self._changing:
                if self._closed:
                    raise ApiError(503, "the server is shutting down")
                if book.model is None:
                    await self._load(book)
        finally:
            book.opening = None

    async def _load(self, book: _Book) -> None:
        entry = book.entry
        book.state, book.error = "loading", None
        try:
            await self._make_room(book)
            while True:
                try:
                    engine = await in_thread(partial(entry.open, self._taken()), lambda engine: engine.close())
                    break
                except DoesNotFit:
                    if not (victim := self._oldest(book)):
                        raise
                    await self._shut(victim, "unloaded")
        except GgrunError as error:
            book.state, book.error = "failed", str(error)
            raise ApiError(503, f"{entry.name} cannot be opened: {error}") from error
        except BaseException as error:
            book.state, book.error = "failed", str(error)
            raise
        book.model = OpenModel(entry.name, entry.path, engine, int(time.time()), entry.defaults, entry.aliases, self.metrics)
        book.state, book.left = "loaded", time.monotonic()
        self._watch()  # whoever asked may be gone
        gc.collect()
        gc.freeze()  # a vocabulary is so many objects that every full collection would hold up all streams for 30 ms

    async def _make_room(self, book: _Book) -> None:
        """Close others, the least recently used first, while the model would run worse for them."""
        while (victim := self._oldest(book)) and not await asyncio.to_thread(book.entry.fits_beside, self._taken()):
            await self._shut(victim, "unloaded")

    def _taken(self) -> Taken:
        """What the plans of the open models list, by device."""
        taken: dict[str, int] = {}
        for book in self._books:
            for line in book.model.engine.plan.ledger.lines if book.model else ():
                if line.purpose not in OF_ALL:
                    taken[line.device] = taken.get(line.device, 0) + line.n_bytes
        return taken

    def _oldest(self, but: _Book) -> _Book | None:
        """The open model that was used least recently; one that nobody uses now before any other."""
        others = [book for book in self._books if book.model and book is not but]
        return min(others, key=lambda book: (book.n_users > 0, book.left), default=None)

    async def _shut(self, book: _Book, state: State) -> None:
        """Close a model once nobody uses it; who asks for it meanwhile waits. The lock is held."""
        book.leaving = True
        try:
            await book.unused.wait()
        finally:
            book.leaving = False
        model, book.model = book.model, None
        if model:
            await asyncio.to_thread(model.engine.close)
            gc.unfreeze()
            book.state = state

    # ---- sleeping

    def _watch(self) -> None:
        """See to it that models nobody uses fall asleep."""
        if self.settings.sleep_idle >= 0 and not self._closed and self._alarm is None:
            loop = asyncio.get_running_loop()
            due = min((book.left for book in self._books if book.model and not book.n_users), default=None)
            if due is not None:
                self._alarm = loop.call_later(max(0.01, due + self.settings.sleep_idle - time.monotonic()), self._due)

    def _due(self) -> None:
        self._alarm = None
        self._sleeping = asyncio.ensure_future(self._sleep())

    async def _sleep(self) -> None:
        async with self._changing:
            for book in self._books:
                if book.model and not book.n_users and time.monotonic() - book.left >= self.settings.sleep_idle:
                    await self._shut(book, "sleeping")
        self._watch()


def _heard(task: asyncio.Task[None]) -> None:
    """An opening that failed, and nobody waits for it any more: the book says why."""
    if not task.cancelled():
        task.exception()

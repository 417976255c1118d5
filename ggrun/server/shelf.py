"""The models a server has: found by name, opened when first needed, kept while they are used.

    async with shelf.use("coder") as model:
        model.engine.submit(...)

Opening is done in a thread; everything else happens on the event loop, which therefore needs no locks.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from ggrun.engine.engine import Engine
from ggrun.errors import GgrunError
from ggrun.server.errors import ApiError
from ggrun.server.metrics import Metrics
from ggrun.server.settings import Settings

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
    """A model that may be opened. open: blocks until it is loaded; called in a thread. path None: the embedded model."""

    name: str
    path: Path | None
    open: Callable[[], Engine]
    aliases: tuple[str, ...] = ()
    defaults: Defaults = field(default_factory=Defaults)


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


class Shelf:
    """One model. Made on any thread, used on the event loop's. metrics: with --metrics, what /metrics tells."""

    def __init__(self, entries: Sequence[Entry], settings: Settings) -> None:
        self._entry, self.settings = entries[0], settings
        self._made = int(time.time())
        self.metrics = Metrics(self) if settings.metrics else None
        self._opening: asyncio.Future[OpenModel] | None = None
        self._model: OpenModel | None = None
        self._error: str | None = None
        self._n_users = 0

    @asynccontextmanager
    async def use(self, name: str | None = None) -> AsyncIterator[OpenModel]:
        """The model of that name or alias (None: the default), opened if need be, and not closed before this ends.

        Raises ApiError 404 for an unknown name where --strict-model asks for that (else the default model answers), 429 when too many
        requests wait, 503 when it cannot be opened.
        """
        known = (self._entry.name, *self._entry.aliases)
        if self.settings.strict_model and name is not None and name not in known:
            raise ApiError(404, f"there is no model {name!r:.80} here; there is {self._entry.name}", code="model_not_found", param="model")
        most = self.settings.max_queue
        if most and self._model and self._n_users >= most + self._model.engine.plan.shape.n_seqs:
            raise ApiError(429, f"{most} requests are waiting already; try again later", code="queue_full", headers=RETRY)
        self._n_users += 1
        try:
            yield await self.open()
        finally:
            self._n_users -= 1

    async def open(self) -> OpenModel:
        """The default model, loaded now if it is not. Raises ApiError 503 with the reason why it cannot be."""
        if self._opening is None:
            self._error = None
            self._opening = asyncio.ensure_future(asyncio.to_thread(self._load))
        try:
            self._model = await asyncio.shield(self._opening)
        except GgrunError as error:
            self._error, self._opening = str(error), None
            raise ApiError(503, f"{self._entry.name} cannot be opened: {error}") from error
        return self._model

    def models(self) -> list[ModelState]:
        """Every model, the default first."""
        entry, model = self._entry, self._model
        state: State = "loaded" if model else "loading" if self._opening else "failed" if self._error else "unloaded"
        created = model.created if model else self._made
        return [ModelState(entry.name, entry.aliases, entry.path, state, created, model, self._error)]

    async def close(self) -> None:
        """Close what is open; what it computes is cancelled."""
        opening, self._opening = self._opening, None
        if opening:
            try:
                model = await opening
            except GgrunError:
                return
            await asyncio.to_thread(model.engine.close)

    def _load(self) -> OpenModel:
        entry = self._entry
        engine = entry.open()
        return OpenModel(entry.name, entry.path, engine, int(time.time()), entry.defaults, entry.aliases, self.metrics)

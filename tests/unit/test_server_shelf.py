"""A shelf of several models: loaded when asked for, one making room for another, asleep when nobody asks."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine
from types import SimpleNamespace
from typing import Any

import pytest

from ggrun.errors import GgrunError
from ggrun.plan.ledger import Ledger
from ggrun.plan.planner import DoesNotFit
from ggrun.server.errors import ApiError
from ggrun.server.settings import Settings
from ggrun.server.shelf import Entry, Shelf


class Memory:
    """A machine on which models of so many bytes fit; entries that take their part of it."""

    def __init__(self, n_bytes: int) -> None:
        self.free = n_bytes
        self.opened: list[str] = []
        self.closed: list[str] = []
        self.gate = threading.Event()  # opening waits for it
        self.gate.set()
        self.problem: Exception | None = None

    def entry(self, name: str, n_bytes: int, aliases: tuple[str, ...] = (), beside: Callable[[], bool] | None = None) -> Entry:
        def close() -> None:
            self.free += n_bytes
            self.closed.append(name)

        def load(taken: object) -> Any:
            self.gate.wait()
            if self.problem:
                raise self.problem
            if n_bytes > self.free:
                raise DoesNotFit(f"{name} takes {n_bytes} and {self.free} are free")
            self.free -= n_bytes
            self.opened.append(name)
            return SimpleNamespace(name=name, plan=SimpleNamespace(shape=SimpleNamespace(n_seqs=1), ledger=Ledger(())), close=close)

        return Entry(name, None, load, aliases, fits_beside=lambda taken: beside() if beside else n_bytes <= self.free)


def run(work: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(work, 20))


def states(shelf: Shelf) -> list[str]:
    return [state.state for state in shelf.models()]


async def until(what: Callable[[], bool]) -> None:
    while not what():
        await asyncio.sleep(0.005)


async def hold(shelf: Shelf, name: str, done: asyncio.Event | None = None) -> str:
    """Use a model until something is done."""
    async with shelf.use(name) as model:
        if done:
            await done.wait()
        return model.name


def test_models_are_found_by_name_and_alias_and_loaded_once() -> None:
    memory = Memory(10)

    async def work() -> None:
        shelf = Shelf([memory.entry("a", 1, ("first",)), memory.entry("b", 1)], Settings())
        assert states(shelf) == ["unloaded", "unloaded"]
        for name, wanted in ((None, "a"), ("first", "a"), ("b", "b"), ("gpt-4", "a")):
            async with shelf.use(name) as model:
                assert model.name == wanted
        assert (memory.opened, states(shelf)) == (["a", "b"], ["loaded", "loaded"])
        await shelf.close()
        assert (memory.closed, memory.free) == (["a", "b"], 10)
        with pytest.raises(ApiError) as refused:
            await shelf.open()
        assert refused.value.status == 503

    run(work())


def test_an_unknown_name_is_refused_where_that_was_asked_for() -> None:
    async def work() -> None:
        shelf = Shelf([Memory(1).entry("a", 1)], Settings(strict_model=True))
        with pytest.raises(ApiError, match="there is no model 'b' here; there is a") as refused:
            async with shelf.use("b"):
                pass
        assert (refused.value.status, refused.value.param) == (404, "model")

    run(work())


def test_the_least_recently_used_one_makes_room() -> None:
    memory = Memory(2)

    async def work() -> None:
        shelf = Shelf([memory.entry(name, 1) for name in "abc"], Settings())
        for name in "aba":
            async with shelf.use(name):
                pass
        async with shelf.use("c") as model:
            assert model.name == "c"
        assert (memory.closed, states(shelf)) == (["b"], ["loaded", "unloaded", "loaded"])
        await shelf.close()

    run(work())


def test_what_is_not_found_out_before_is_found_out_by_loading() -> None:
    memory = Memory(2)

    async def work() -> None:
        shelf = Shelf([memory.entry("a", 1), memory.entry("b", 2, beside=lambda: True)], Settings())
        async with shelf.use("a"):
            pass
        async with shelf.use("b") as model:
            assert model.name == "b"
        assert states(shelf) == ["unloaded", "loaded"]
        await shelf.close()

    run(work())


def test_a_model_in_use_is_waited_for_and_who_asks_for_it_meanwhile_comes_after() -> None:
    memory = Memory(1)

    async def work() -> None:
        shelf = Shelf([memory.entry("a", 1), memory.entry("b", 1)], Settings())
        done = asyncio.Event()
        first = asyncio.create_task(hold(shelf, "a", done))
        await until(lambda: states(shelf)[0] == "loaded")
        other = asyncio.create_task(hold(shelf, "b"))
        await until(lambda: states(shelf)[1] == "loading")
        late = asyncio.create_task(hold(shelf, "a"))
        await asyncio.sleep(0.05)
        assert memory.closed == []
        done.set()
        assert [await task for task in (first, other, late)] == ["a", "b", "a"]
        assert (memory.opened, memory.closed) == (["a", "b", "a"], ["a", "b"])
        await shelf.close()

    run(work())


def test_a_request_that_goes_away_while_its_model_loads_harms_nobody() -> None:
    memory = Memory(1)

    async def work() -> None:
        shelf = Shelf([memory.entry("a", 1), memory.entry("b", 1)], Settings())
        memory.gate.clear()
        gone = asyncio.create_task(hold(shelf, "a", asyncio.Event()))
        await until(lambda: states(shelf)[0] == "loading")
        gone.cancel()
        stays = [asyncio.create_task(hold(shelf, name)) for name in "ab"]
        await asyncio.sleep(0.02)
        memory.gate.set()
        assert await asyncio.gather(*stays) == ["a", "b"]
        assert gone.cancelled()
        assert memory.opened == ["a", "b"]
        await shelf.close()
        assert memory.free == 1

    run(work())


def test_a_model_that_cannot_be_opened_says_why_and_is_tried_again() -> None:
    memory = Memory(1)

    async def work() -> None:
        shelf = Shelf([memory.entry("a", 1), memory.entry("big", 5)], Settings())
        memory.problem = GgrunError("the file is damaged")
        with pytest.raises(ApiError, match="a cannot be opened: the file is damaged") as refused:
            await shelf.open()
        assert refused.value.status == 503
        assert (shelf.models()[0].state, shelf.models()[0].error) == ("failed", "the file is damaged")
        memory.problem = None
        await shelf.open()
        with pytest.raises(ApiError, match="big takes 5 and 1 are free"):
            async with shelf.use("big"):
                pass
        assert states(shelf) == ["unloaded", "failed"]  # room was made for it in vain
        async with shelf.use("a") as model:
            assert model.name == "a"
        await shelf.close()

    run(work())


def test_models_fall_asleep_and_wake_up() -> None:
    memory = Memory(2)

    async def work() -> None:
        shelf = Shelf([memory.entry("a", 1), memory.entry("b", 1)], Settings(sleep_idle=0.1))
        await shelf.open()
        done = asyncio.Event()
        user = asyncio.create_task(hold(shelf, "b", done))
        await until(lambda: states(shelf) == ["sleeping", "loaded"])
        assert memory.free == 1
        async with shelf.use("a"):
            assert states(shelf) == ["loaded", "loaded"]
        done.set()
        await user
        await until(lambda: states(shelf) == ["sleeping", "sleeping"])
        assert memory.free == 2
        await shelf.close()

    run(work())


def test_a_model_falls_asleep_whose_only_client_went_away_while_it_woke_up() -> None:
    memory = Memory(1)

    async def work() -> None:
        shelf = Shelf([memory.entry("a", 1)], Settings(sleep_idle=0.05))
        memory.gate.clear()
        gone = asyncio.create_task(hold(shelf, "a"))
        await until(lambda: states(shelf) == ["loading"])
        gone.cancel()
        memory.gate.set()
        await until(lambda: memory.opened == ["a"])
        await until(lambda: states(shelf) == ["sleeping"])
        assert memory.free == 1
        await shelf.close()

    run(work())


def test_unload() -> None:
    memory = Memory(1)

    async def work() -> None:
        shelf = Shelf([memory.entry("a", 1)], Settings())
        await shelf.unload("a")  # which it already is
        await shelf.open()
        await shelf.unload("a")
        assert (states(shelf), memory.free) == (["unloaded"], 1)
        await shelf.close()

    run(work())


def test_a_queue_has_an_end() -> None:
    memory = Memory(1)

    async def work() -> None:
        shelf = Shelf([memory.entry("a", 1)], Settings(max_queue=2))
        done = asyncio.Event()
        await shelf.open()
        users = [asyncio.create_task(hold(shelf, "a", done)) for _ in range(3)]
        await asyncio.sleep(0.02)
        with pytest.raises(ApiError, match="2 requests are waiting already") as refused:
            async with shelf.use("a"):
                pass
        assert refused.value.status == 429
        done.set()
        await asyncio.gather(*users)
        await shelf.close()

    run(work())

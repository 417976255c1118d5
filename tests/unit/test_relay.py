"""Progress of prompts told beside an answer's pieces, and what a stream does when it is left."""

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from ggrun.server import relay
from ggrun.server.answering import ask
from ggrun.server.task import End, Task
from tests.unit.scripted import OneModel, scripted
from tests.unit.test_answering import HELLO, run


def test_progress_is_told_while_a_prompt_is_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(relay, "PROGRESS_SECONDS", 0.01)
    model = scripted("fine")
    slot = SimpleNamespace(n_prompt=100, n_prompt_done=40)
    model.engine.status = lambda: SimpleNamespace(slots=(slot,))  # type: ignore[method-assign,assignment]
    model.engine.hold.clear()

    async def work() -> list[Any]:
        seen: list[Any] = []
        async with await ask(OneModel(model), None, Task(messages=HELLO)) as answer:
            generation = answer.generation(0)
            generation.state, generation.slot, generation.timings.cache_n = "prompt", 0, 16
            async for piece in relay.watched(answer, True):
                seen.append(piece)
                if len(seen) == 2:
                    slot.n_prompt_done = 100
                    generation.state = "answer"
                    model.engine.hold.set()
        return seen

    first, second, *rest = run(work())
    assert isinstance(first, relay.PromptProgress)
    assert first.shown() == {"total": 100, "cache": 16, "processed": 40, "time_ms": first.ms}
    assert second.ms > first.ms > 0
    assert isinstance(rest[-1], End)
    assert not any(isinstance(piece, relay.PromptProgress) for piece in rest)


def test_nothing_is_told_where_nobody_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(relay, "PROGRESS_SECONDS", 0.0)
    model = scripted("fine thanks")

    async def work() -> list[Any]:
        async with await ask(OneModel(model), None, Task(messages=HELLO)) as answer:
            return [piece async for piece in relay.watched(answer, False)]

    assert not any(isinstance(piece, relay.PromptProgress) for piece in run(work()))


def test_leaving_in_the_middle_leaves_nothing_running(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(relay, "PROGRESS_SECONDS", 0.01)
    model = scripted("word " * 20, endless=True)

    async def work() -> None:
        shelf, before = OneModel(model), asyncio.all_tasks()
        async with await ask(shelf, None, Task(messages=HELLO)) as answer:
            pieces = relay.watched(answer, True)
            await anext(pieces)
            await pieces.aclose()
        assert shelf.n_used == 0
        await asyncio.sleep(0)
        assert asyncio.all_tasks() == before

    run(work())
    assert model.engine.generations[0].cancelled


def test_ids_differ() -> None:
    assert len({relay.new_id("chatcmpl-") for _ in range(100)}) == 100

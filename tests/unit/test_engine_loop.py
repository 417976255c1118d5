"""The engine's thread with an executor that only takes its time: who cancels is told at once, and others go on whatever others do."""

import threading
import time
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from ggrun.engine import loop as module
from ggrun.engine import pace
from ggrun.engine.generation import Generation
from ggrun.engine.loop import Loop
from ggrun.engine.sampling import Sampler, Sampling
from ggrun.engine.sequence import Sequence
from ggrun.engine.stops import StopMatcher
from ggrun.errors import GgrunError
from ggrun.plan.device import Shape
from ggrun.runtime.executor import Batch, Cancelled

TOKEN_SECONDS = 2e-4
N_VOCAB = 8


class Slow:
    """An executor that takes a while for every token and looks every few whether it is to stop."""

    def __init__(self) -> None:
        self.stop = threading.Event()
        self.n_runs = self.n_aborted = 0
        self.failing = False

    def run(self, batch: Batch) -> Any:
        if self.failing:
            raise OSError("the disk is gone")
        self.n_runs += 1
        if self.stop.wait(TOKEN_SECONDS * len(batch.ids)):
            self.stop.clear()
            self.n_aborted += 1
            raise Cancelled
        return np.zeros((len(batch.out_rows), N_VOCAB), np.float32)

    def run_highest(self, batch: Batch, k: int) -> Any:
        return self.run(batch)

    def abort(self) -> None:
        self.stop.set()

    def copy_block(self, source: int, target: int) -> None:
        pass


@pytest.fixture
def slow() -> Slow:
    return Slow()


@pytest.fixture
def loop(slow: Slow) -> Any:
    made = Loop(slow, Shape(4096, 4, 512, 4, 1, 1 + 512), N_VOCAB)  # type: ignore[arg-type]
    yield made
    made.close()


def submitted(loop: Loop, prompt: list[int], n_predict: int = 3) -> Generation:
    generation = Generation(prompt, 0, loop.cancel)
    decoder = SimpleNamespace(push=lambda id_: "x", finish=lambda: "")
    sampler = Sampler(Sampling(temperature=0.0), N_VOCAB)
    loop.submit(Sequence(generation, sampler, decoder, StopMatcher(()), frozenset(), n_predict, 0, "stop", False))  # type: ignore[arg-type]
    return generation


def test_many_who_cancel_do_not_keep_one_from_going_on(loop: Loop, slow: Slow, monkeypatch: pytest.MonkeyPatch) -> None:
    """A program that asks at every key and then cancels what it asked before: sooner than a step with that prompt is done."""
    monkeypatch.setattr(module, "LONG", 0.03)
    monkeypatch.setattr(pace, "CAREFUL", 0.01)
    submitted(loop, [1] * 500).wait()
    one = submitted(loop, [1] * 2000)
    end = time.monotonic() + 10
    n_cancelled = 0
    typed = submitted(loop, [2] * 1000)
    while one.state != "done" and time.monotonic() < end:
        time.sleep(0.03)
        before, typed = typed, submitted(loop, [2] * 1000)
        before.cancel()
        assert before.wait().finish_reason == "cancelled"
        n_cancelled += 1
    assert one.wait().finish_reason == "length"
    assert slow.n_aborted > 0
    assert n_cancelled > 3
    assert time.monotonic() < end


def test_a_short_step_is_not_aborted_and_a_long_one_is(loop: Loop, slow: Slow) -> None:
    for _ in range(2):
        submitted(loop, [1] * 20, n_predict=20).wait()
    answering, beside = submitted(loop, [1] * 5, n_predict=-1), submitted(loop, [2] * 5, n_predict=200)
    next(iter(answering))
    answering.cancel()
    assert answering.wait().finish_reason == "cancelled"
    assert len(beside.wait().ids) == 200
    assert slow.n_aborted == 0


def test_what_fails_is_told_to_everyone_and_the_engine_goes_on(loop: Loop, slow: Slow) -> None:
    slow.failing = True
    generations = [submitted(loop, [1] * 20) for _ in range(6)]
    for generation in generations:
        with pytest.raises(OSError, match="the disk is gone"):
            generation.wait()
    slow.failing = False
    assert submitted(loop, [1] * 20).wait().finish_reason == "length"
    assert (loop.status().kv_used, loop.status().n_waiting) == (0, 0)


def test_nothing_waits_for_ever_on_a_closed_loop(loop: Loop) -> None:
    running = [submitted(loop, [1] * 400, n_predict=-1) for _ in range(6)]
    loop.close()
    assert {generation.wait().finish_reason for generation in running} == {"cancelled"}
    with pytest.raises(GgrunError, match="closed"):
        loop.call(lambda: None)

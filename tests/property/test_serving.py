"""Whatever comes together, is cancelled, preempted or found in the cache: who finishes has, to the bit, what it would have had alone."""

import random
import time
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ggrun import Engine, Sampling
from ggrun.engine.generation import Generation, TokenEvent
from tests.conftest import EMBEDDED
from tests.oracle.models import LOCAL

MODEL = LOCAL / "llama-gqa.Q4_K_M.gguf"
SAMPLINGS = (
    Sampling(temperature=0.0, ignore_eos=True),
    Sampling(seed=3, temperature=1.2, top_k=20, ignore_eos=True),
    Sampling(seed=4, temperature=0.9, top_k=0, repeat_penalty=1.3, dry_multiplier=0.5, ignore_eos=True),
    Sampling(seed=5, mirostat=2, ignore_eos=True),
)
TEXTS = [[random.Random(i).randrange(3, 380) for _ in range(120)] for i in range(3)]
Told = list[tuple[int | None, float, tuple[tuple[int, float], ...]]]


@dataclass(frozen=True)
class Request:
    """A prompt that begins like others', and what is asked for; cancel: after how many tokens of the answer."""

    text: int
    n_shared: int
    tail: tuple[int, ...]
    sampling: int
    n_predict: int
    n_top: int
    cancel: int | None = field(compare=False)

    @property
    def prompt(self) -> list[int]:
        return TEXTS[self.text][: self.n_shared] + list(self.tail)


REQUEST = st.builds(
    Request,
    st.integers(0, 2),
    st.sampled_from([1, 20, 64, 70, 100, 120]),
    st.lists(st.integers(3, 300), max_size=40).map(tuple),
    st.integers(0, len(SAMPLINGS) - 1),
    st.sampled_from([0, 1, 5, 40]),
    st.sampled_from([0, 3]),
    st.one_of(st.none(), st.integers(0, 6)),
)


def submitted(engine: Engine, request: Request) -> Generation:
    return engine.submit(request.prompt, SAMPLINGS[request.sampling], n_predict=request.n_predict, n_top=request.n_top)


def told(events: list[TokenEvent]) -> Told:
    return [(e.id, e.logprob, e.top) for e in events if e.id is not None]


class Alone:
    """Answers of an engine that never does two things at once, nor finds anything in its cache."""

    def __init__(self) -> None:
        self._engine = Engine.open(MODEL, n_ctx=256)
        self._known: dict[Request, Told] = {}

    def __getitem__(self, request: Request) -> Told:
        if request not in self._known:
            generation = self._engine.submit(
                request.prompt,
                SAMPLINGS[request.sampling],
                n_predict=request.n_predict,
                n_top=request.n_top,
                cache_prompt=False,
            )
            self._known[request] = told(list(generation))
        return self._known[request]

    def close(self) -> None:
        self._engine.close()


@pytest.fixture(scope="module")
def alone() -> Alone:
    made = Alone()
    yield made
    made.close()


@pytest.fixture(scope="module", params=["small", "large"])
def engine(request: pytest.FixtureRequest) -> Engine:
    """A pool that holds one sequence at full length, or all of them; small steps, so that much goes on side by side."""
    kv_tokens = {"small": 224, "large": 4 * 224}[request.param]
    with Engine.open(MODEL, n_ctx=224, kv_tokens=kv_tokens, n_parallel=4, n_ubatch=24, step_ms=2) as engine:
        yield engine


@settings(max_examples=30, deadline=None)
@given(st.lists(REQUEST, min_size=1, max_size=9))
def test_together_is_as_alone(engine: Engine, alone: Alone, requests: list[Request]) -> None:
    generations = [(request, submitted(engine, request)) for request in requests]
    for request, generation in generations:
        if request.cancel == 0:
            generation.cancel()
    for request, generation in generations:
        events = []
        for event in generation:
            events.append(event)
            if len(events) == request.cancel:
                generation.cancel()
        want, got = alone[request], told(events)
        assert got == want[: len(got)]
        assert generation.finish_reason in (("cancelled", "length") if request.cancel is not None else ("length",))
        if generation.finish_reason == "length":
            assert len(got) == len(want) == request.n_predict
            t = generation.timings
            assert t.cache_n + t.prompt_n == len(request.prompt)
    status = engine.status()
    assert (status.kv_used, status.n_waiting) == (0, 0)
    assert {slot.state for slot in status.slots} == {"idle"}


def test_preempted_ones_lose_nothing(alone: Alone) -> None:
    """Four that fit the pool until they have answered for a while; with samplers that remember, and characters cut by tokens."""
    requests = [Request(i % 3, 30 + i, (5, 6, 7), i, 100, 2, None) for i in range(4)]
    with Engine.open(MODEL, n_ctx=256, kv_tokens=256, n_parallel=4) as engine:
        generations = [(request, submitted(engine, request)) for request in requests]
        for request, generation in generations:
            assert told(list(generation)) == alone[request]
        status = engine.status()
    assert status.n_preempted > 0
    assert (status.kv_used, status.kv_tokens) == (0, 256)


def test_one_prefix_is_computed_once_by_two_that_come_together() -> None:
    with Engine.open(EMBEDDED, n_ctx=2048, kv_tokens=-1, n_parallel=4, n_ubatch=128) as engine:
        shared = [int(i) for i in random.Random(9).choices(range(3, 2000), k=1500)]
        together = [engine.submit([*shared, 50 + i], SAMPLINGS[0], n_predict=4) for i in range(2)]
        t = [g.wait().timings for g in together]
        status = engine.status()
    n_blocks_cells = len(shared) // 32 * 32
    assert [x.cache_n + x.prompt_n for x in t] == [1501, 1501]
    assert t[1].cache_n >= n_blocks_cells
    assert status.prompt_tokens == 1501 + t[1].prompt_n
    assert status.kv_cached < 1501 + 3 * 32


def test_cancelled_in_the_queue_in_a_prompt_and_in_an_answer() -> None:
    """At once where nothing of it runs; what runs beside it goes on as if nothing had been."""
    with Engine.open(EMBEDDED, n_ctx=2048, kv_tokens=-1, n_parallel=2, n_ubatch=512) as engine:
        long = [int(i) for i in random.Random(9).choices(range(3, 2000), k=1900)]
        beside = engine.submit(long[:40], SAMPLINGS[1], n_predict=60)
        prompt = engine.submit(long, SAMPLINGS[0])
        queued = [engine.submit(long[i:], SAMPLINGS[0]) for i in range(1, 4)]
        seconds = []
        for generation in (queued[1], prompt):
            began = time.perf_counter()
            generation.cancel()
            assert generation.wait().finish_reason == "cancelled"
            seconds.append(time.perf_counter() - began)
        for generation in (queued[0], queued[2]):
            next(iter(generation))
            generation.cancel()
            assert generation.wait().finish_reason == "cancelled"
        want = engine.submit(long[:40], SAMPLINGS[1], n_predict=60, cache_prompt=False).wait().ids
        assert beside.wait().ids == want
        assert queued[1].finish_reason == "cancelled"
        assert queued[1].timings.prompt_n == 0
        assert engine.status().kv_used == 0
    assert max(seconds) < 0.2

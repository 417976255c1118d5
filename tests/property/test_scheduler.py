"""Continuous batching over shared KV blocks, against an executor that only remembers which token each cell holds.

Whatever is submitted, cancelled and evicted, every token of every batch must see exactly its own sequence's earlier tokens.
"""

import math
from types import SimpleNamespace

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from ggrun.engine.generation import Generation
from ggrun.engine.kv import BlockPool
from ggrun.engine.pace import Pace
from ggrun.engine.prefixes import Prefixes
from ggrun.engine.scheduler import Scheduler
from ggrun.engine.sequence import Sequence
from ggrun.plan.device import KV_BLOCK_TOKENS as N
from ggrun.plan.device import Shape
from ggrun.runtime.executor import Batch

N_CTX = 3 * N
END = frozenset[int]()


class Cells:
    """An Executor whose KV holds token ids."""

    def __init__(self, n_blocks: int) -> None:
        self.held = np.full((n_blocks, N), -1)

    def run(self, batch: Batch, sequences: list[Sequence]) -> None:
        by_slot = {s.slot: s for s in sequences}
        for token, position, slot in zip(batch.ids, batch.positions, batch.seqs):
            block = batch.tables[slot, position // N]
            assert block != 0, "a real token was written to the null block"
            self.held[block, position % N] = token
        for position, slot in zip(batch.positions, batch.seqs):
            cells = self.held[batch.tables[slot]].reshape(-1)[: position + 1]
            assert cells.tolist() == by_slot[slot].tokens[: position + 1]

    def copy_block(self, source: int, target: int) -> None:
        self.held[target] = self.held[source]


def sequence(prompt: list[int]) -> Sequence:
    generation = Generation(prompt, 0, lambda g: None)
    unused = SimpleNamespace()
    return Sequence(generation, unused, unused, unused, END, -1, 0, "stop")  # type: ignore[arg-type]


PROMPT = st.builds(
    lambda base, n, tail: [base] * n + tail, st.integers(1, 2), st.integers(0, 2 * N), st.lists(st.integers(1, 3), min_size=1, max_size=20)
)
ACTION = st.one_of(
    st.tuples(st.just("submit"), PROMPT), st.tuples(st.just("cancel"), st.integers(0, 3)), st.tuples(st.just("step"), st.none())
)


def check_order(scheduler: Scheduler) -> None:
    numbers = [s.number for s in (*scheduler.running, *scheduler.waiting)]
    assert numbers == sorted(numbers), "who runs arrived before who waits"


@settings(max_examples=150)
@given(
    st.lists(ACTION, max_size=40),
    st.integers(1, 4),
    st.sampled_from([4, 7, 32, 64]),
    st.sampled_from([3, 4, 6, 12]),
    st.sampled_from([0, 1]),
)
def test_every_token_sees_its_own_past(actions: list, n_seqs: int, n_ubatch: int, n_blocks: int, target: float) -> None:
    """Also in a pool that holds little more than one of them: who is preempted goes on later, and everybody finishes."""
    shape = Shape(N_CTX, n_seqs, n_ubatch, n_seqs, 1, 1 + n_blocks)
    pool, cells, pace = BlockPool(shape.n_kv_blocks), Cells(shape.n_kv_blocks), Pace(target)
    pace.note(20, 1.0)
    scheduler = Scheduler(shape, pool, Prefixes(pool, cells), pace)  # type: ignore[arg-type]
    alive: list[Sequence] = []
    n_steps = 0
    while actions or scheduler.busy:
        name, value = actions.pop(0) if actions else ("step", None)
        if name == "submit":
            alive.append(sequence(value))
            scheduler.submit(alive[-1])
        elif name == "cancel" and alive:
            scheduler.remove(alive.pop(value % len(alive)))
        elif scheduler.busy:
            batch, work = scheduler.next()
            assert work, "a busy scheduler always has something to compute"
            assert len(batch.ids) <= shape.n_ubatch
            assert {s.slot for s in scheduler.running if s.n_pending == 1 and not s.leader} <= {i.sequence.slot for i in work}
            check_order(scheduler)
            cells.run(batch, scheduler.running)
            for item in work:
                scheduler.advance(item)
                assert (item.row >= 0) == (item.sequence.n_pending == 0)
                if item.row >= 0:
                    item.sequence.generation.enter("answer")
                    item.sequence.prompt_done = 1.0
                    item.sequence.tokens.append(5 + item.sequence.n_computed % 2)
                    if len(item.sequence.tokens) >= min(N_CTX, len(item.sequence.generation.prompt_ids) + 9):
                        t = item.sequence.generation.timings
                        scheduler.remove(item.sequence)
                        alive.remove(item.sequence)
                        assert t.cache_n < len(item.sequence.generation.prompt_ids)
            n_steps += 1
            assert n_steps < 3000, "everybody finishes"
    assert pool.n_free == pool.n_blocks == n_blocks
    assert alive == []


def run_until_idle(scheduler: Scheduler, cells: Cells, n_answer: int = 3) -> list[list[tuple[Sequence, int]]]:
    """Steps until everyone has n_answer tokens; what each step computed."""
    steps = []
    while scheduler.busy:
        batch, work = scheduler.next()
        cells.run(batch, scheduler.running)
        steps.append([(item.sequence, item.n) for item in work])
        for item in work:
            item.sequence.generation.timings.prompt_n += scheduler.advance(item)
            if item.row >= 0:
                s = item.sequence
                s.generation.enter("answer")
                s.prompt_done = 1.0
                s.tokens.append(7)
                if len(s.tokens) == len(s.generation.prompt_ids) + n_answer:
                    scheduler.remove(s)
    return steps


def scheduler_of(n_seqs: int, n_ctx: int, n_blocks: int, n_ubatch: int = 64, pace: Pace | None = None) -> tuple[Scheduler, Cells]:
    shape = Shape(n_ctx, n_seqs, n_ubatch, n_seqs, 1, 1 + n_blocks)
    cells = Cells(shape.n_kv_blocks)
    pool = BlockPool(shape.n_kv_blocks)
    return Scheduler(shape, pool, Prefixes(pool, cells), pace), cells  # type: ignore[arg-type]


def test_prompts_that_arrive_together_compute_what_they_share_once() -> None:
    scheduler, cells = scheduler_of(4, N_CTX, 16)
    shared = list(range(100, 100 + 2 * N + 5))
    together = [sequence([*shared, *tail]) for tail in ([1], [2, 3], [2, 4], [])]
    for s in together:
        scheduler.submit(s)
    run_until_idle(scheduler, cells)
    t = [s.generation.timings for s in together]
    assert [x.cache_n + x.prompt_n for x in t] == [len(s.generation.prompt_ids) for s in together]
    assert t[0].cache_n == 0
    assert all(x.cache_n >= 2 * N for x in t[1:])


def test_who_waits_for_a_cancelled_one_goes_on_where_it_was() -> None:
    scheduler, cells = scheduler_of(3, N_CTX, 12, n_ubatch=N)
    shared = list(range(100, 100 + 2 * N + 20))
    first, second, third = (sequence([*shared, i]) for i in range(3))
    for s in (first, second, third):
        scheduler.submit(s)
    batch, work = scheduler.next()
    assert [(item.sequence, item.n) for item in work] == [(first, N)]
    cells.run(batch, scheduler.running)
    scheduler.advance(work[0])
    scheduler.remove(first)
    run_until_idle(scheduler, cells)
    t = [s.generation.timings for s in (second, third)]
    assert t[0].cache_n == N
    assert t[0].prompt_n == N + 21
    assert t[1].cache_n >= 2 * N


def test_a_short_prompt_does_not_wait_for_a_long_one_and_the_long_one_goes_on() -> None:
    scheduler, cells = scheduler_of(3, 40 * N, 120, n_ubatch=64)
    long, short, other = sequence([1] * 30 * N), sequence([2] * 60), sequence([3] * 90)
    for s in (long, short, other):
        scheduler.submit(s)
    steps = run_until_idle(scheduler, cells)
    assert [dict(step) for step in steps[:3]] == [{long: 32, short: 32}, {long: 36, short: 28}, {long: 32, other: 31, short: 1}]
    last = next(i for i, step in enumerate(steps) if other in dict(step) and dict(step)[other] == 1)
    assert last <= 5


def test_answers_are_held_up_no_longer_than_the_target() -> None:
    """A machine on which a token of a prompt takes 2 ms, twice that at the end, and anything else 20 ms; now and then it stalls."""
    pace = Pace(0.12)
    scheduler, cells = scheduler_of(2, 40 * N, 90, n_ubatch=512, pace=pace)
    answering, prompt = sequence([1] * 5), sequence([2] * 30 * N)
    scheduler.submit(answering)
    seconds, n_chunk = [], []
    for step in range(80):
        if step == 10:
            scheduler.submit(prompt)
        batch, work = scheduler.next()
        n = sum(item.n for item in work if item.sequence is prompt and prompt.generation.state == "prompt")
        assert step == 0 or any(item.sequence is answering and item.n == 1 for item in work), "it advances in every step"
        cells.run(batch, scheduler.running)
        took = 0.02 + n * 0.002 * (1 + prompt.n_computed / (30 * N)) + 0.5 * (step % 17 == 16)
        pace.note(n, took)
        if n:
            seconds.append(took)
            n_chunk.append(n)
        for item in work:
            scheduler.advance(item)
            if item.row >= 0:
                item.sequence.generation.enter("answer")
                item.sequence.tokens.append(7)
    whole = [t for t in seconds[1:-1] if t < 0.5]
    assert min(whole) > 0.1
    assert max(whole) < 0.14
    assert sum(n_chunk) == 30 * N


def test_the_newest_is_preempted_and_goes_on_first() -> None:
    scheduler, cells = scheduler_of(3, 4 * N, 5)
    first, second, third = (sequence([i] * (N + 20)) for i in range(1, 4))
    for s in (first, second, third):
        scheduler.submit(s)
    run_until_idle(scheduler, cells, n_answer=N)
    assert scheduler.n_preempted > 0
    assert all(len(s.tokens) == 2 * N + 20 for s in (first, second, third))
    assert [s.generation.timings.prompt_n for s in (first, second, third)] == [N + 20] * 3


def test_who_waits_for_a_prefix_holds_nobody_up() -> None:
    scheduler, _ = scheduler_of(3, 8 * N, 24, n_ubatch=64)
    leader, follower, other = sequence([1] * 7 * N), sequence([1] * 7 * N), sequence([2] * 3 * N)
    for s in (leader, follower, other):
        scheduler.submit(s)
    _, work = scheduler.next()
    assert [(item.sequence, item.n) for item in work] == [(leader, 32), (other, 32)]
    assert follower.leader is leader
    for item in work:
        scheduler.advance(item)
    scheduler.next()
    assert follower.n_computed == N
    scheduler.remove(leader)
    _, work = scheduler.next()
    assert {item.sequence for item in work} == {follower, other}


def test_one_that_finds_no_block_even_alone_is_told_of() -> None:
    """What holds them all is no sequence: text that is embedded, say."""
    scheduler, _ = scheduler_of(2, 4 * N, 4)
    held = [scheduler._pool.allocate(None) for _ in range(4)]
    scheduler.submit(sequence([1] * 5))
    scheduler.submit(sequence([2] * 5))
    batch, work = scheduler.next()
    assert (len(batch.ids), work, len(scheduler.running)) == (0, [], 1)
    for block in held:
        scheduler._pool.release(block)
    assert len(scheduler.next()[1]) == 2


def test_pace_follows_a_machine_and_forgets_a_stall() -> None:
    pace = Pace(0.1 / 0.95)
    assert pace.room(512) == 64
    pace.note(0, 0.02)
    assert pace.room(512) == 16  # a guess from what an answer takes
    for _ in range(10):
        pace.note(0, 0.02)
        pace.note(40, 0.1)
    assert pace.room(512) == 40
    pace.note(40, 3.0)
    assert pace.room(512) == 40
    for _ in range(3):
        pace.note(40, 0.18)
    assert pace.room(512) == 20
    for _ in range(5):
        pace.note(16, 5.0)
    assert (pace.room(512), pace.room(5)) == (16, 5)
    assert pace.seconds(0) == 0.02
    assert Pace(0).seconds(1) == math.inf
    pace = Pace(0)
    pace.note(400, 1.0)
    assert pace.room(512) == 45  # a careful step, where there is no target


def test_without_a_target_prompts_take_all_the_room_but_after_an_abort() -> None:
    scheduler, cells = scheduler_of(2, 40 * N, 90, n_ubatch=256)
    scheduler.pace.note(512, 5.0)
    for s in (sequence([1]), sequence([2] * 30 * N)):
        scheduler.submit(s)
    cells.run(scheduler.next()[0], scheduler.running)
    scheduler.n_careful = 1
    assert [[item.n for item in scheduler.next()[1]] for _ in range(2)] == [[1, 16], [1, 255]]

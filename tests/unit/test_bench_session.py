"""Batches that a session runs: what is timed, what is not, and that no token looks at a cell that was never computed."""

from types import SimpleNamespace

import numpy as np
import pytest

from ggrun.bench.matrix import Case
from ggrun.bench.session import Session, fitting, options_for
from ggrun.engine.loading import Options
from ggrun.plan.device import KV_BLOCK_TOKENS
from ggrun.plan.planner import DoesNotFit
from ggrun.runtime.executor import Batch


class Recorder:
    """An executor that keeps what it was asked and which KV cells are computed."""

    def __init__(self) -> None:
        self.batches: list[Batch] = []
        self.copies: list[tuple[int, int]] = []
        self.filled: set[tuple[int, int]] = set()
        self.settled = False

    def run(self, batch: Batch) -> None:
        assert self.settled, "measured while the weights move"
        self.batches.append(batch)
        for position, sequence in zip(batch.positions.tolist(), batch.seqs.tolist()):
            for before in range(position):
                block, cell = divmod(before, KV_BLOCK_TOKENS)
                assert (int(batch.tables[sequence, block]), cell) in self.filled, f"sequence {sequence} reads {before}, never computed"
            block, cell = divmod(position, KV_BLOCK_TOKENS)
            assert batch.tables[sequence, block] > 0, "block 0 is the null block"
            self.filled.add((int(batch.tables[sequence, block]), cell))

    def settle(self) -> None:
        self.settled = True

    def copy_block(self, source: int, target: int) -> None:
        self.copies.append((source, target))
        self.filled |= {(target, cell) for block, cell in self.filled if block == source}


def session(n_ctx: int, n_seqs: int = 1, n_batch: int = 2048, n_ubatch: int = 512) -> tuple[Session, Recorder]:
    planned = SimpleNamespace(
        plan=SimpleNamespace(shape=SimpleNamespace(n_ctx=n_ctx, n_seqs=n_seqs, n_ubatch=n_ubatch)), spec=SimpleNamespace(n_vocab=100)
    )
    executor = Recorder()
    return Session(planned, executor, n_batch), executor


def run(made: Session, case: Case, repetitions: int = 1, warm_up: bool = False) -> list[int]:
    return made.run(case, repetitions, warm_up, lambda *told: None)


def test_a_prompt_goes_in_batches_and_micro_batches_and_asks_for_one_row() -> None:
    made, executor = session(200, n_batch=70, n_ubatch=32)
    assert len(run(made, Case(150, 0))) == 1
    assert [len(batch.ids) for batch in executor.batches] == [32, 32, 6, 32, 32, 6, 10]
    assert [batch.out_rows.tolist() for batch in executor.batches] == [[]] * 6 + [[9]]
    assert np.concatenate([batch.positions for batch in executor.batches]).tolist() == list(range(150))
    assert all(0 <= i < 100 for batch in executor.batches for i in batch.ids)


def test_an_answer_is_one_token_a_step_of_every_sequence() -> None:
    made, executor = session(10, n_seqs=4)
    run(made, Case(0, 5, 0, 3))
    assert [batch.seqs.tolist() for batch in executor.batches] == [[0, 1, 2]] * 5
    assert [batch.out_rows.tolist() for batch in executor.batches] == [[0, 1, 2]] * 5
    assert [batch.positions.tolist() for batch in executor.batches] == [[i] * 3 for i in range(5)]
    blocks = executor.batches[0].tables
    assert len(set(blocks.flat)) == blocks.size, "each sequence has its own KV"


def test_depth_is_computed_once_and_repetitions_start_from_it() -> None:
    made, executor = session(120, n_ubatch=64)
    assert len(run(made, Case(10, 0, 100), repetitions=3)) == 3
    assert [batch.positions[0] for batch in executor.batches] == [0, 64, 100, 100, 100]
    assert [len(batch.out_rows) for batch in executor.batches] == [0, 0, 1, 1, 1]
    run(made, Case(0, 2, 100))
    assert [batch.positions.tolist() for batch in executor.batches[5:]] == [[100], [101]]


def test_other_sequences_get_copies_of_the_context() -> None:
    made, executor = session(100, n_seqs=3)
    run(made, Case(0, 3, 0, 3))
    run(made, Case(0, 2, 70, 2))
    run(made, Case(0, 2, 70, 3))
    assert sum(len(batch.ids) for batch in executor.batches if len(set(batch.seqs)) == 1) == 70 - 3
    assert len(executor.copies) == 2 * 3


def test_a_warm_up_is_the_prompt_and_one_step() -> None:
    made, executor = session(64)
    assert len(run(made, Case(8, 4), repetitions=2, warm_up=True)) == 2
    assert [len(batch.ids) for batch in executor.batches] == [8, 1, *[8, 1, 1, 1, 1] * 2]


def test_what_is_told_while_it_runs() -> None:
    told: list[tuple[str, int]] = []
    made, _ = session(64, n_ubatch=16)
    made.run(Case(0, 2, 20), 2, True, lambda doing, n_tokens, ns: told.append((doing, n_tokens)))
    filling = [("filling the context, 16/20", 16), ("filling the context, 20/20", 20)]
    assert told == [
        ("waiting for the weights", 0),
        *filling,
        ("warming up", 0),
        ("warming up", 1),
        ("run 1/2", 1),
        ("run 1/2", 2),
        ("run 2/2", 1),
        ("run 2/2", 2),
    ]


def test_contexts_have_room_for_every_case() -> None:
    options = options_for(Options(n_threads=1), [Case(512, 0), Case(0, 128, 1000, 4), Case(0, 1, 0, 8)])
    assert (options.n_parallel, options.n_ctx, options.n_threads) == (8, 8 * 1128, 1)


def test_cases_that_fit_only_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    closed = []

    def plan(path: None, options: Options) -> SimpleNamespace:
        if options.n_ctx > 5000:
            raise DoesNotFit("too much")
        return SimpleNamespace(
            file=SimpleNamespace(close=lambda: closed.append(1)), n_threads=2, plan=SimpleNamespace(segments=(), rooms=(), choice=None)
        )

    monkeypatch.setattr("ggrun.bench.session.plan_model", plan)
    long, wide = Case(0, 1, 4000), Case(0, 8, 0, 16)
    assert [group.cases for group in fitting(None, Options(), [wide, Case(8, 0)])] == [(wide, Case(8, 0))]
    assert [group.cases for group in fitting(None, Options(), [long, wide])] == [(long,), (wide,)]
    assert len(closed) == 3
    with pytest.raises(DoesNotFit, match="^tg1 x4096 @ d16000000 does not fit: 4096 x 16000001 tokens"):
        fitting(None, Options(), [Case(0, 1, 16000000, 4096)])
    with pytest.raises(DoesNotFit, match="^tg1 x2 @ d4000 does not fit: too much"):
        fitting(None, Options(), [long, Case(0, 1, 4000, 2)])

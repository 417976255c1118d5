"""Continuous batching over shared KV blocks, against an executor that only remembers which token each cell holds.

Whatever is submitted, cancelled and evicted, every token of every batch must see exactly its own sequence's earlier tokens.
"""

from types import SimpleNamespace

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from ggrun.engine.generation import Generation
from ggrun.engine.kv import BlockPool
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
            cells = self.held[batch.tables[slot, : N_CTX // N]].reshape(-1)[: position + 1]
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


@settings(max_examples=150)
@given(st.lists(ACTION, max_size=40), st.integers(1, 3), st.sampled_from([3, 7, 32, 64]))
def test_every_token_sees_its_own_past(actions: list, n_seqs: int, n_ubatch: int) -> None:
    shape = Shape(N_CTX, n_seqs, max(n_ubatch, n_seqs), n_seqs, 1, 1 + n_seqs * (N_CTX // N))
    pool, cells = BlockPool(shape.n_kv_blocks), Cells(shape.n_kv_blocks)
    scheduler = Scheduler(shape, pool, Prefixes(pool, cells))  # type: ignore[arg-type]
    for name, value in [*actions, *[("step", None)] * 60]:
        if name == "submit":
            scheduler.waiting.append(sequence(value))
        elif name == "cancel" and scheduler.running:
            scheduler.remove(scheduler.running[value % len(scheduler.running)])
        elif scheduler.busy:
            batch, work = scheduler.next()
            assert work, "a busy scheduler always has something to compute"
            assert len(batch.ids) <= shape.n_ubatch
            cells.run(batch, scheduler.running)
            for item in work:
                item.sequence.advance(item.n, pool)
                assert (item.row >= 0) == (item.sequence.n_pending == 0)
                if item.row >= 0:
                    item.sequence.tokens.append(5 + item.sequence.n_computed % 2)
                    if len(item.sequence.tokens) >= min(N_CTX, len(item.sequence.generation.prompt_ids) + 9):
                        scheduler.remove(item.sequence)
    for running in list(scheduler.running):
        scheduler.remove(running)
    assert pool.n_free == shape.n_kv_blocks - 1

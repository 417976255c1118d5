"""Pool and host memory together, against an executor that only remembers which token each cell holds: whatever is asked for, evicted,
brought back and forgotten, a cell that need not be computed holds its own token, and nothing is lost or owned twice."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from ggrun.engine.chain import ROOT, key_after, key_of
from ggrun.engine.host_blocks import HostBlocks
from ggrun.engine.kv import BlockPool
from ggrun.engine.prefixes import Prefixes
from ggrun.plan.device import KV_BLOCK_TOKENS as N


class Cells:
    """An executor's KV of int32 tokens."""

    def __init__(self, n_blocks: int) -> None:
        self.held = np.full((n_blocks, N), -1, np.int32)

    def copy_block(self, source: int, target: int) -> None:
        self.held[target] = self.held[source]

    def read_block(self, block: int, into: np.ndarray) -> None:
        into[:] = self.held[block].view(np.uint8)

    def write_block(self, block: int, data: np.ndarray) -> None:
        self.held[block] = data.view(np.int32)


def compute(pool: BlockPool, cells: Cells, tokens: list[int], blocks: list, n_found: int) -> None:
    """Fill what was not found, and publish it."""
    for index in range(n_found // N, -(-len(tokens) // N)):
        if index == len(blocks):
            block = pool.allocate(blocks[-1] if blocks else None)
            if block is None:
                break
            blocks.append(block)
        own = tokens[index * N : (index + 1) * N]
        cells.held[blocks[index].id, : len(own)] = own
        twin = blocks[index] = pool.publish(blocks[index], tuple(own))
        if index + 1 < len(blocks):
            blocks[index + 1].parent = twin


PROMPT = st.builds(
    lambda parts, tail: [token for token, n in parts for _ in range(n)] + tail,
    st.lists(st.tuples(st.integers(1, 3), st.sampled_from([5, 31, 32, 33, 64])), max_size=3),
    st.lists(st.integers(1, 4), min_size=2, max_size=12),
)
ACTION = st.one_of(
    st.tuples(st.just("run"), PROMPT), st.tuples(st.just("end"), st.integers(0, 3)), st.tuples(st.just("forget"), st.integers(0, 20))
)


@settings(max_examples=200)
@given(st.lists(ACTION, max_size=40), st.integers(2, 12), st.integers(0, 9))
def test_what_is_found_is_what_was_there(actions: list, n_blocks: int, n_host: int) -> None:
    pool, cells = BlockPool(n_blocks + 1), Cells(n_blocks + 1)
    host = HostBlocks(n_host * 4 * N, 4 * N) if n_host else None
    prefixes = Prefixes(pool, cells, host)  # type: ignore[arg-type]
    running: list[list] = []
    seen: list[list[int]] = []
    for name, value in actions:
        if name == "run":
            blocks, n_found = prefixes.take(value)
            assert n_found < len(value)
            cached = np.concatenate([cells.held[block.id] for block in blocks] or [np.zeros(0, np.int32)])[:n_found]
            assert cached.tolist() == value[:n_found]
            assert len(blocks) == -(-n_found // N)
            compute(pool, cells, value, blocks, n_found)
            running.append(blocks)
            seen.append(value)
        elif name == "end" and running:
            for block in reversed(running.pop(value % len(running))):
                pool.release(block)
        elif name == "forget" and seen:
            prefixes.forget(seen[value % len(seen)])
    used = {block.id for blocks in running for block in blocks}
    assert pool.n_free == n_blocks - len(used)
    for blocks in running:
        for block in reversed(blocks):
            pool.release(block)
    assert pool.n_free == n_blocks
    if host:
        assert host.n_used <= n_host


@given(PROMPT, PROMPT)
def test_keys_are_alike_for_alike_beginnings_only(a: list[int], b: list[int]) -> None:
    def keys(tokens: list[int]) -> list[bytes]:
        pool = BlockPool(20)
        blocks: list = []
        compute(pool, Cells(20), tokens, blocks, 0)
        return [key_of(block) for block in blocks]

    for index, (mine, other) in enumerate(zip(keys(a), keys(b))):
        assert (mine == other) == (a[: (index + 1) * N] == b[: (index + 1) * N])
    if a:
        assert keys(a)[0] == key_after(ROOT, a[:N])


def test_a_forgotten_path_is_forgotten_in_memory_too() -> None:
    pool, cells = BlockPool(3), Cells(3)
    host = HostBlocks(8 * 4 * N, 4 * N)
    prefixes = Prefixes(pool, cells, host)  # type: ignore[arg-type]
    tokens = [7] * (2 * N)
    for prompt in (tokens, [8] * (2 * N)):
        blocks: list = []
        compute(pool, cells, prompt, blocks, 0)
        for block in reversed(blocks):
            pool.release(block)
    assert host.n_used == 2
    blocks, n_found = prefixes.take([*tokens, 1])
    assert n_found == 2 * N
    for block in reversed(blocks):
        pool.release(block)
    assert prefixes.forget(tokens) == 2 * N
    assert prefixes.take([*tokens, 1]) == ([], 0)

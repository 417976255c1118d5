"""The bits of a result depend on its row and token only: not on the batch, the rows asked for, or the position in a tile."""

from __future__ import annotations

import functools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.kernels import NAMES, Bytes, Floats, each_tier, fmt, product, random_rows, random_weights

N_ROWS, N_TOKENS = 75, 21


@functools.cache
def operands(name: str, k: int) -> tuple[Bytes, Floats]:
    return random_weights(name, N_ROWS, k), random_rows(N_TOKENS, k)


@functools.cache
def alone(name: str, tier: str, k: int) -> Floats:
    """Every token multiplied by itself, all rows: float32[N_TOKENS, N_ROWS]."""
    w, x = operands(name, k)
    return np.concatenate([product(name, tier, w, x[t : t + 1]) for t in range(N_TOKENS)])


@pytest.mark.parametrize("tier", each_tier())
@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=25)
@given(data=st.data())
def test_alone_equals_batched(name: str, tier: str, data: st.DataObject) -> None:
    n_blocks = [1, 2, 3, 8, 9] if fmt(name).block_elements > 1 else [5, 31, 64, 333]
    k = fmt(name).block_elements * data.draw(st.sampled_from(n_blocks), "blocks")
    tokens = data.draw(st.lists(st.integers(0, N_TOKENS - 1), min_size=1, max_size=20), "tokens")
    r0 = data.draw(st.integers(0, N_ROWS - 1), "r0")
    r1 = data.draw(st.integers(r0 + 1, N_ROWS), "r1")
    w, x = operands(name, k)
    got = product(name, tier, w, np.ascontiguousarray(x[tokens]), r0, r1)
    assert got.tobytes() == np.ascontiguousarray(alone(name, tier, k)[tokens, r0:r1]).tobytes()


@pytest.mark.parametrize("tier", each_tier())
@pytest.mark.parametrize("name", NAMES)
def test_around_the_boundaries_of_paths(name: str, tier: str) -> None:
    """One token, a tile's tokens and one more or less; a panel's rows and one more or less; a group's blocks and one more or less."""
    for n_blocks in (1, 7, 8, 9) if fmt(name).block_elements < 256 else (1, 2):
        k = fmt(name).block_elements * n_blocks
        w, x = operands(name, k)
        for n in (1, 2, 3, 4, 5, 8, 9, 16, 17):
            for r0, r1 in ((0, 1), (0, 31), (0, 32), (0, 33), (32, 65), (N_ROWS - 1, N_ROWS)):
                got = product(name, tier, w, x[:n], r0, r1)
                wanted = np.ascontiguousarray(alone(name, tier, k)[:n, r0:r1])
                assert got.tobytes() == wanted.tobytes(), f"k={k}, {n} tokens, rows {r0}..{r1}"

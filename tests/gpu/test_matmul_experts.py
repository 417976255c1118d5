"""Kernels of mixtures of experts: the lists of each expert's slots, and both ways to multiply."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from ggrun.runtime.cuda import matmul
from tests.gpu import matrices as m


def routed(n_tokens: int, n_used: int, n_expert: int, seed: int = 3) -> NDArray[np.int32]:
    """int32[n_tokens, n_used]: different experts for each token, some more wanted than others, the last never."""
    rng = np.random.default_rng(seed)
    wish = rng.uniform(0, 1, (n_tokens, n_expert)) * np.linspace(0.3, 1, n_expert)[::-1]
    wish[:, -1] = -1
    return np.argsort(-wish, axis=1)[:, :n_used].astype(np.int32)


@pytest.mark.parametrize(("n_tokens", "n_used", "n_expert"), [(9, 1, 2), (40, 2, 5), (100, 8, 33)])
def test_group_experts(n_tokens: int, n_used: int, n_expert: int) -> None:
    ids = m.guarded(routed(n_tokens, n_used, n_expert))
    lists = m.poisoned(matmul.expert_lists_bytes(n_tokens, n_used, n_expert) // 4, np.int32)
    m.run(matmul.group_experts(m.at(ids), m.at(lists), n_tokens, n_used, n_expert), 7)
    starts, slots = lists[: n_expert + 1], lists[n_expert + 1 :]
    assert starts[0] == 0
    for expert in range(n_expert):
        want = np.flatnonzero(ids.reshape(-1) == expert)
        np.testing.assert_array_equal(slots[starts[expert] : starts[expert + 1]], want)


def test_ids_that_name_no_expert_are_in_no_list() -> None:
    ids = m.guarded(np.array([[0, 7], [-3, 1], *[[1, 0]] * 8], np.int32))
    lists = m.poisoned(matmul.expert_lists_bytes(10, 2, 2) // 4, np.int32)
    m.run(matmul.group_experts(m.at(ids), m.at(lists), 10, 2, 2))
    np.testing.assert_array_equal(lists[:3], [0, 9, 18])


@pytest.mark.parametrize(
    ("n_tokens", "cc", "shared_input"),
    [(1, 80, True), (3, 80, False), (40, 80, True), (40, 80, False), pytest.param(20, 61, True, marks=pytest.mark.slow)],
)
@pytest.mark.parametrize("name", m.usual_first())
def test_expert_matmul(name: str, n_tokens: int, cc: int, shared_input: bool) -> None:
    n_used, n_expert, n_out, k = 2, 3, 5, m.odd_k(name)
    ids = m.guarded(routed(n_tokens, n_used, n_expert))
    w = m.guarded(m.random_weights(name, n_expert * n_out, k))
    rows = m.random_rows(n_tokens * (1 if shared_input else n_used), k)
    x, y = m.activations(name, rows), m.poisoned((n_tokens * n_used, n_out))
    lists = m.poisoned(max(1, matmul.expert_lists_bytes(n_tokens, n_used, n_expert) // 4), np.int32)
    launches = matmul.group_experts(m.at(ids), m.at(lists), n_tokens, n_used, n_expert) + matmul.expert_matmul(
        name, m.at(w), w.shape[1], n_out * w.shape[1], m.at(x), m.at(ids), m.at(lists), m.at(y),
        k, n_out, n_tokens, n_used, n_expert, shared_input, m.arch(cc),
    )  # fmt: skip
    assert {launch.kernel for launch in launches} <= set(matmul.kernels(name, m.arch(cc)))
    m.run(launches, 7, cc)
    everything = m.product(name, w, rows)
    for slot, expert in enumerate(ids.reshape(-1)):
        row = slot // n_used if shared_input else slot
        part = slice(expert * n_out, (expert + 1) * n_out)
        m.compare(y[slot : slot + 1], m.Product(*(array[row : row + 1, part] for array in everything)))


def test_an_expert_wanted_by_more_slots_than_there_are_tokens() -> None:
    """Cannot come from routing; must not be lost all the same."""
    ids = m.guarded(np.zeros((70, 2), np.int32))
    w, rows = m.guarded(m.random_weights("Q8_0", 4, 64)), m.random_rows(70, 64)
    x, y = m.activations("Q8_0", rows), m.poisoned((140, 2))
    lists = m.poisoned(matmul.expert_lists_bytes(70, 2, 2) // 4, np.int32)
    launches = matmul.group_experts(m.at(ids), m.at(lists), 70, 2, 2) + matmul.expert_matmul(
        "Q8_0", m.at(w), w.shape[1], 2 * w.shape[1], m.at(x), m.at(ids), m.at(lists), m.at(y), 64, 2, 70, 2, 2, True, m.arch(80)
    )
    m.run(launches)
    want = m.product("Q8_0", w, rows)
    m.compare(y, m.Product(*(np.repeat(array[:, :2], 2, axis=0) for array in want)))

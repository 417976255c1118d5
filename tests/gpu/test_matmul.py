"""Dense matrix kernels of every format against exact models: what they compute, that they stay in their arrays, in any order of threads."""

from __future__ import annotations

import numpy as np
import pytest

from ggrun.runtime.cuda import matmul
from tests.gpu import matrices as m

NAMES = m.NAMES


@pytest.mark.parametrize("k", [32, 96, 512, 4128])
def test_quantize(k: int) -> None:
    x = m.guarded(m.random_rows(3, k))
    x[1, :32] = 0
    x[2, 5] = -np.abs(x[2]).max()
    y = m.poisoned((3, matmul.q8_row_bytes(k)), np.uint8)
    m.run(matmul.quantize(m.at(x), m.at(y), k, 3))
    want = m.quantized(x)
    got = m.read_q8(y, k)
    np.testing.assert_array_equal(got.quants, want.quants)
    np.testing.assert_array_equal(got.scales, want.scales)
    np.testing.assert_array_equal(got.sums, want.sums)


def test_quantize_keeps_what_is_not_finite_visible_and_drops_what_is_too_small() -> None:
    x = np.ones((3, 32), np.float32)
    x[0, 3], x[1] = np.inf, 1e-35
    y = m.poisoned((3, matmul.q8_row_bytes(32)), np.uint8)
    m.run(matmul.quantize(m.at(x), m.at(y), 32, 3))
    got = m.read_q8(y, 32)
    assert np.isinf(got.scales[0, 0])
    assert not got.quants[1].any()
    assert not got.scales[1].any()


def test_rows_that_cannot_be_quantized_are_refused() -> None:
    with pytest.raises(ValueError, match="48"):
        matmul.q8_row_bytes(48)


@pytest.mark.parametrize("name", NAMES)
def test_embed_is_the_reference_to_the_bit(name: str) -> None:
    k = 768 if m.block_of(name) > 1 else 77
    w = m.guarded(m.random_weights(name, 5, k))
    ids = m.guarded(np.array([4, 0, 3, 3, -7, 99], np.int32))
    y = m.poisoned((6, k))
    m.run(matmul.embed(name, m.at(ids), m.at(w), w.shape[1], m.at(y), k, 1.7, 6, n_rows=5))
    want = m.dequantize(name, w)[[4, 0, 3, 3, 0, 4]] * np.float32(1.7)
    np.testing.assert_array_equal(y, want)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("n_tokens", [1, 2])
def test_gemv(name: str, n_tokens: int) -> None:
    m.check_matmul(name, 9, n_tokens, m.odd_k(name), bias=n_tokens == 2)


@pytest.mark.parametrize("name", m.usual_first())
def test_gemv_of_eight_tokens(name: str) -> None:
    m.check_matmul(name, 9, 8, m.odd_k(name))


@pytest.mark.parametrize("n_tokens", [3, 4, 5, 6, 7])
def test_gemv_of_other_numbers_of_tokens(n_tokens: int) -> None:
    m.check_matmul("Q4_K", 5, n_tokens, 512)


@pytest.mark.parametrize("name", ["Q4_K", "Q6_K", "Q8_0", "F16"])
@pytest.mark.parametrize(("k", "n_sm"), [(32, 1), (256, 1), (1024, 1), (4096, 1), (4096, 132), (8192, 132)])
def test_gemv_with_any_number_of_lanes_a_row(name: str, k: int, n_sm: int) -> None:
    m.check_matmul(name, 3, 1, max(k, m.block_of(name)), n_sm=n_sm)
    m.check_matmul(name, 3, 2, max(k, m.block_of(name)), n_sm=n_sm)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("n_tokens", [9, 16])
def test_gemm_with_tensor_cores(name: str, n_tokens: int) -> None:
    m.check_matmul(name, 130, n_tokens, m.odd_k(name), bias=n_tokens == 9)


@pytest.mark.parametrize("name", [pytest.param(name, marks=() if name in ("Q4_K", "F16") else pytest.mark.slow) for name in NAMES])
@pytest.mark.parametrize("n_tokens", [17, 65, 200])
def test_gemm_with_wider_tiles(name: str, n_tokens: int) -> None:
    m.check_matmul(name, 129, n_tokens, 512, n_sm=1)


@pytest.mark.parametrize("name", m.usual_first())
def test_gemm_with_dp4a(name: str) -> None:
    m.check_matmul(name, 70, 20, m.odd_k(name), cc=61)


@pytest.mark.parametrize("name", ["Q8_0", "Q6_K"])
def test_gemm_on_turing(name: str) -> None:
    m.check_matmul(name, 70, 20, m.odd_k(name), cc=75)


@pytest.mark.parametrize("name", m.usual_first())
@pytest.mark.parametrize("n_tokens", [1, 3])
def test_gated(name: str, n_tokens: int) -> None:
    m.check_gated(name, 7, n_tokens, m.odd_k(name))


def test_gated_wants_one_format_and_few_tokens() -> None:
    assert matmul.gated("Q4_K", 0, "Q6_K", 0, 144, 0, 0, 256, 8, 1, m.arch(80)) is None
    assert matmul.gated("Q4_K", 0, "Q4_K", 0, 144, 0, 0, 256, 8, 9, m.arch(80)) is None


@pytest.mark.parametrize("name", NAMES)
def test_extreme_scales(name: str) -> None:
    m.check_matmul(name, 3, 1, m.odd_k(name), extreme=True)
    m.check_matmul(name, 3, 9, m.odd_k(name), extreme=True)


@pytest.mark.parametrize("n_tokens", [1, 2, 9])
@pytest.mark.parametrize("name", ["Q4_K", "Q6_K", "F16"])
def test_the_order_of_threads_changes_nothing(name: str, n_tokens: int) -> None:
    results = [m.check_matmul(name, 5, n_tokens, 1024, n_sm=132, order=order) for order in m.ORDERS]
    for result in results[1:]:
        np.testing.assert_array_equal(result, results[0])


@pytest.mark.parametrize("name", NAMES)
def test_every_weight_byte_is_read_once(name: str) -> None:
    k = 1024
    w, x = m.guarded(m.random_weights(name, 4, k)), m.activations(name, m.random_rows(8, k))
    for n_tokens in (1, 2):
        y = m.poisoned((n_tokens, 4))
        launches = matmul.matmul(name, m.at(w), w.shape[1], m.at(x), m.at(y), 0, k, 4, n_tokens, m.arch(80))
        assert m.run(launches) == w.nbytes


def test_all_kernels_that_steps_choose_are_listed() -> None:
    for name in NAMES:
        for cc in (61, 75, 86, 90):
            device = m.arch(cc)
            listed = set(matmul.kernels(name, device))
            for n_out in (1, 100, 4096, 128256):
                chosen = {
                    launch.kernel
                    for n in range(1, 600)
                    for launch in matmul.matmul(name, 0, 0, 0, 0, 0, 4096, n_out, n, device)
                }
                steps = {
                    launch.kernel
                    for n in matmul.TOKEN_STEPS
                    for launch in matmul.matmul(name, 0, 0, 0, 0, 0, 4096, n_out, n, device)
                }
                assert chosen <= listed
                assert chosen == steps
                assert all(
                    launch.shared_bytes <= device.shared_bytes
                    for n in matmul.TOKEN_STEPS
                    for launch in matmul.matmul(name, 0, 0, 0, 0, 0, 4096, n_out, n, device)
                )

"""The highest logits on the emulated GPU: exact, whatever the order of threads."""

import numpy as np
import pytest

from ggrun.runtime.cuda import reduce
from tests.gpu.emulation.kernels import Emulator, guarded, poisoned
from tests.gpu.frames import Frame


@pytest.fixture(scope="module")
def emulator() -> Emulator:
    made = Emulator(90)
    made.prepare(reduce.KERNELS)
    return made


def check(emulator: Emulator, logits: np.ndarray, k: int, order: int) -> None:
    n_rows, n_vocab = logits.shape
    work, out = poisoned(reduce.work_bytes(n_vocab, n_rows, k), np.uint8), Frame((n_rows, 2, k), np.int32)
    assert out.array.nbytes == reduce.out_bytes(n_rows, k)
    logits = guarded(logits)
    emulator.run(reduce.top_k(logits.ctypes.data, n_vocab, n_rows, k, work.ctypes.data, out.address), order)
    right = np.argsort(-np.nan_to_num(logits, nan=-np.inf), -1, kind="stable")[:, :k]
    assert np.array_equal(out.array[:, 1], right)
    assert np.array_equal(out.array[:, 0].copy().view(np.float32), np.take_along_axis(logits, right, -1))
    assert out.whole()


@pytest.mark.parametrize(
    ("n_vocab", "k", "n_rows", "order"), [(1, 1, 1, 0), (300, 256, 2, 1), (8192, 40, 1, 7), (8193, 256, 2, 0), (20000, 1, 3, 7)]
)
def test_random_logits(emulator: Emulator, n_vocab: int, k: int, n_rows: int, order: int) -> None:
    check(emulator, (np.random.default_rng(n_vocab).standard_normal((n_rows, n_vocab)) * 10).astype(np.float32), k, order)


def test_ties_signs_and_extremes(emulator: Emulator) -> None:
    """Many equal logits over a part's border, zeros of both signs, infinities, rows of one value."""
    rng = np.random.default_rng(3)
    logits = rng.integers(-3, 4, (4, 9000)).astype(np.float32)
    logits[1] = np.where(rng.random(9000) < 0.5, np.float32(0.0), np.float32(-0.0))
    logits[2] = -7.5
    logits[3, :8990] = -np.inf
    logits[3, [5, 8000]] = np.inf
    check(emulator, logits, 100, 7)


def test_nan_is_below_all(emulator: Emulator) -> None:
    logits = np.full((1, 64), np.nan, np.float32)
    logits[0, [9, 3, 60]] = (-2e38, 1, 5)
    work, out = poisoned(reduce.work_bytes(64, 1, 8), np.uint8), poisoned((2, 8), np.int32)
    logits = guarded(logits)
    emulator.run(reduce.top_k(logits.ctypes.data, 64, 1, 8, work.ctypes.data, out.ctypes.data))
    assert out[1].tolist() == [60, 3, 9, 0, 1, 2, 4, 5]


@pytest.mark.slow
@pytest.mark.parametrize("k", [40, 256])
def test_largest(emulator: Emulator, k: int) -> None:
    check(emulator, np.random.default_rng(5).standard_normal((32, 262144)).astype(np.float32), k, 1)


@pytest.mark.parametrize(("n_vocab", "k"), [(1000, 257), (10, 11), (262145, 1), (10, 0)])
def test_refused(n_vocab: int, k: int) -> None:
    with pytest.raises(ValueError, match="not supported"):
        reduce.top_k(0, n_vocab, 1, k, 0, 0)

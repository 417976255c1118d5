"""The emulation itself: right kernels give right answers in every order of threads, and each kind of mistake is caught."""

import numpy as np
import pytest

from ggrun.runtime.cuda.launch import Launch, pack
from tests.gpu.emulation.kernels import ORDERS, Emulator, KernelError, guarded, poisoned
from tests.gpu.emulation.samples import SAMPLES

ALL = "scale shift__0 shift__1 fetch__0 fetch__1 diverge leave apart half_warps behind crooked loads mma_s8 mma_f16".split()


@pytest.fixture(scope="module")
def emulator(request: pytest.FixtureRequest) -> Emulator:
    made = Emulator(90, {"samples.cuh": SAMPLES})
    made.prepare(ALL)
    return made


def one(kernel: str, types: str, *values: float, block: int = 32, grid: int = 1, shared: int = 0) -> Launch:
    plain = (value.ctypes.data if isinstance(value, np.ndarray) else value for value in values)
    return Launch(kernel, (grid, 1, 1), (block, 1, 1), pack(types, *plain), shared)


@pytest.mark.parametrize("order", ORDERS)
def test_arguments_grid_and_tail(emulator: Emulator, order: int) -> None:
    x, y = guarded(np.arange(1000, dtype=np.float32)), guarded(np.zeros(1003, np.float32))
    emulator.run(one("scale", "PPifq", x, y, 1000, 0.5, 3, block=128, grid=8), order)
    assert np.array_equal(y, np.concatenate([np.zeros(3), x * 0.5]))


def test_wrong_number_of_arguments(emulator: Emulator) -> None:
    with pytest.raises(KernelError, match="scale: 16 bytes of arguments"):
        emulator.run(one("scale", "PP", np.zeros(1), np.zeros(1)))


def test_missing_barrier_shows_in_some_order(emulator: Emulator) -> None:
    x = np.arange(256, dtype=np.float32)
    for kernel, right in (("shift__1", True), ("shift__0", False)):
        results = []
        for order in ORDERS:
            y = poisoned(256)
            emulator.run(one(kernel, "PP", x, y, block=256), order)
            results.append(np.array_equal(y, np.roll(x, -37)))
        assert all(results) if right else not any(results)


def test_missing_wait_for_cp_async(emulator: Emulator) -> None:
    x = guarded(np.arange(1024, dtype=np.uint32).astype(np.uint8))
    for kernel, right in (("fetch__0", True), ("fetch__1", False)):
        y = poisoned(1024, np.uint8)
        assert emulator.run(one(kernel, "PP", x, y, shared=1024)) == 1024
        assert np.array_equal(x, y) is right


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize(
    ("kernel", "says"),
    [
        ("diverge", r"diverge: .*__syncthreads"),
        ("leave", r"leave: .*(has returned|never come to __syncthreads)"),
        ("apart", r"apart: lane \d+ is at .*samples.cuh:\d+ .*, lane \d+ at"),
    ],
)
def test_threads_that_do_not_meet(emulator: Emulator, kernel: str, says: str, order: int) -> None:
    with pytest.raises(KernelError, match=says):
        emulator.run(one(kernel, "P", np.zeros(64, np.float32), block=64), order)


@pytest.mark.parametrize("order", ORDERS)
def test_halves_of_a_warp(emulator: Emulator, order: int) -> None:
    y = np.zeros(32, np.int32)
    emulator.run(one("half_warps", "P", y), order)
    assert y.tolist() == [15] * 16 + [sum(range(16, 32))] * 16


def test_memory_faults(emulator: Emulator) -> None:
    x, y = guarded(np.zeros(32, np.float32)), guarded(np.zeros(32, np.float32))
    with pytest.raises(KernelError, match=r"behind: access outside memory at address 0x\w+ in block \(0,0,0\), thread \(0,0,0\)"):
        emulator.run(one("behind", "PPi", x, y, 32))
    with pytest.raises(KernelError, match=r"crooked: access at address \w+ is not aligned, or null \(.*thread \(1,0,0\)"):
        emulator.run(one("crooked", "PP", x, y))


def test_weight_bytes_are_counted(emulator: Emulator) -> None:
    x, y = guarded(np.arange(512, dtype=np.uint32).astype(np.uint8)), np.zeros(32, np.uint32)
    assert emulator.run(one("loads", "PP", x, y)) == 32 * (1 + 2 + 4 + 4 + 16)
    i = np.arange(32)
    words = x.view(np.uint32)
    halves = x.view(np.uint16).astype(np.uint64)
    pairs = halves[i] + (halves[i + 1] << 16)
    assert np.array_equal(y, (x[i] + halves[i] + pairs + words[i] + words[4 * i + 3]).astype(np.uint32))


@pytest.mark.parametrize("order", ORDERS)
def test_tensor_cores(emulator: Emulator, order: int) -> None:
    rng = np.random.default_rng(1)
    a, b = guarded(rng.integers(-128, 128, (16, 128), np.int8)), guarded(rng.integers(-128, 128, (8, 128), np.int8))
    c = np.zeros((16, 8), np.int32)
    emulator.run(one("mma_s8", "PPPi", a, b, c, 128), order)
    assert np.array_equal(c, a.astype(np.int32) @ b.astype(np.int32).T)
    ah, bh = rng.standard_normal((16, 64)).astype(np.float16), rng.standard_normal((8, 64)).astype(np.float16)
    ch = np.zeros((16, 8), np.float32)
    emulator.run(one("mma_f16", "PPPi", ah, bh, ch, 64, shared=768), order)
    assert np.allclose(ch, ah.astype(np.float64) @ bh.astype(np.float64).T, rtol=1e-5, atol=1e-5)

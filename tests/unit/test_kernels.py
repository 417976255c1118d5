"""Every format on every tier: products against exact arithmetic, quantizers and row look-ups against NumPy to the bit."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest

from quant import cpu
from quant.cpu.blocks import BLOCK_FORMATS
from quant.reference import dequantize
from quant.simd import TARGETS
from tests.unit import kernels
from tests.unit.kernels import NAMES, activation_of, activations, expected, fmt, multiply, product, random_rows, random_weights, read_back

TIERS = cpu.tiers()
every_tier = pytest.mark.parametrize("tier", kernels.each_tier())
every_format = pytest.mark.parametrize("name", NAMES)


def lengths(name: str) -> list[int]:
    """Row lengths to try: one block, a few, odd groups, many."""
    return {1: [1, 7, 40, 64, 255, 896, 2085], 32: [32, 64, 224, 256, 288, 896, 2048], 256: [256, 512, 768, 2048]}[fmt(name).block_elements]


@every_tier
@every_format
def test_product_is_exact_up_to_float_rounding(name: str, tier: str) -> None:
    for k in lengths(name):
        w = random_weights(name, 53, k, seed=k)
        x = random_rows(33, k, seed=k + 1)
        for n in (1, 2, 3, 4, 5, 8, 17, 33):
            acts = activations(activation_of(name), tier, x[:n])
            exact, magnitude = expected(name, tier, w, x[:n], acts)
            got = multiply(name, tier, w, k, acts, n)
            worst = np.max(np.abs(got - exact) / magnitude)
            assert worst < 1e-6, f"k={k}, {n} tokens: off by {worst:.1e} of the terms' sum"


@every_tier
@pytest.mark.parametrize("name", [name for name in NAMES if name not in BLOCK_FORMATS])
def test_rows_too_long_for_the_cache(name: str, tier: str) -> None:
    k = 33001
    w, x = random_weights(name, 23, k), random_rows(6, k)
    exact, magnitude = expected(name, tier, w, x, activations("f32", tier, x))
    got = product(name, tier, w, x)
    assert np.max(np.abs(got - exact) / magnitude) < 1e-6
    assert np.array_equal(got[4:5], product(name, tier, w, x[4:5]))


@every_tier
@every_format
def test_product_is_close_to_the_unquantized(name: str, tier: str) -> None:
    k = 1024
    w, x = random_weights(name, 40, k), random_rows(9, k)
    exact = x.astype(np.float64) @ dequantize(fmt(name), w).astype(np.float64).T
    got = product(name, tier, w, x)
    nmse = np.sum((got - exact) ** 2, axis=1) / np.sum(exact**2, axis=1)
    assert nmse.max() < (1e-12 if activation_of(name) == "f32" else 2e-4)


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(BLOCK_FORMATS))
def test_fused_tiers_agree_to_the_bit(name: str) -> None:
    k = 2048
    w, x = random_weights(name, 40, k), random_rows(6, k)
    for n in (1, 6):
        products = {tier: product(name, tier, w, x[:n]).tobytes() for tier in TIERS if TARGETS[tier].fma}
        assert len(set(products.values())) <= 1, f"{n} tokens: {list(products)} differ"


@every_tier
@every_format
def test_ragged_rows(name: str, tier: str) -> None:
    k = 256
    w, x = random_weights(name, 70, k), random_rows(5, k)
    for n in (1, 5):
        whole = product(name, tier, w, x[:n])
        for r0, r1 in ((0, 1), (3, 4), (15, 17), (1, 70), (31, 33), (69, 70), (0, 64)):
            part = product(name, tier, w, x[:n], r0, r1)
            assert np.array_equal(part, whole[:, r0:r1]), f"rows {r0}..{r1} of {n} tokens"


@every_tier
@pytest.mark.parametrize("name", sorted(BLOCK_FORMATS))
def test_extreme_quants_do_not_overflow(name: str, tier: str) -> None:
    k = 512
    x = np.ones((6, k), np.float32)
    x[1::2] = -1
    for byte in (0x00, 0x7F, 0x80, 0xFF):
        w = random_weights(name, 20, k)
        scales = {at for at in (BLOCK_FORMATS[name].d_at, BLOCK_FORMATS[name].m_at) if at is not None}
        keep = [i for i in range(fmt(name).block_bytes) if not {i, i - 1} & scales]
        w.reshape(-1, fmt(name).block_bytes)[:, keep] = byte
        for n in (1, 6):
            acts = activations(activation_of(name), tier, x[:n])
            exact, magnitude = expected(name, tier, w, x[:n], acts)
            got = multiply(name, tier, w, k, acts, n)
            assert np.all(np.abs(got - exact) <= 1e-6 * magnitude), f"bytes {byte:#x}, {n} tokens"


@every_tier
@every_format
def test_get_row_equals_the_reference(name: str, tier: str) -> None:
    kernel = cpu.get_row_kernel(fmt(name), tier)
    for k in lengths(name):
        w = random_weights(name, 3, k, seed=k)
        for row, wanted in zip(w, dequantize(fmt(name), w)):
            got = np.full(k + 16, np.nan, np.float32)
            kernels.call(kernel.address, kernels.address(row), k, kernels.address(got))
            assert np.array_equal(got[:k].view(np.uint32), wanted.view(np.uint32)), f"k={k}"
            assert np.isnan(got[k:]).all(), "wrote beyond the row"


@every_tier
def test_every_half_is_widened_exactly(tier: str) -> None:
    halves = np.arange(1 << 16, dtype=np.uint16)
    kernel, got = cpu.get_row_kernel(fmt("F16"), tier), np.empty(1 << 16, np.float32)
    kernels.call(kernel.address, kernels.address(halves), len(halves), kernels.address(got))
    assert np.array_equal(got, halves.view(np.float16).astype(np.float32), equal_nan=True)
    assert np.array_equal(np.signbit(got), halves >= 0x8000)


@every_tier
@pytest.mark.parametrize("kind", ["q8_0", "q8_k"])
def test_quantizer_equals_numpy(kind: str, tier: str) -> None:
    block = 32 if kind == "q8_0" else 256
    k = 864 if kind == "q8_0" else 768
    x = random_rows(11, k)
    x[3] = 0
    x[4, :block] = 0
    x[5] *= np.float32(1e-38)
    blocks = x.reshape(len(x), -1, block)
    largest = np.abs(blocks).max(axis=2)
    with np.errstate(divide="ignore", over="ignore"):
        inverse = np.where(largest < 2.0**-120, np.float32(0), np.float32(127) / largest).astype(np.float32)
    wanted = np.rint(np.clip(blocks * inverse[..., None], -127, 127)).astype(np.int8).reshape(x.shape)
    for n in (1, 2, 4, 7, 11):
        quants, scales = read_back(kind, tier, activations(kind, tier, x[:n]), n, k)
        assert np.array_equal(quants, wanted[:n])
        assert np.array_equal(scales, (largest * np.float32(1 / 127))[:n])


@every_tier
@pytest.mark.parametrize("kind", ["f32", "q8_0", "q8_k"])
def test_quantizer_in_pieces_and_by_index(kind: str, tier: str) -> None:
    x = random_rows(13, 512)
    tile = cpu.activation_kernel(kind, tier).tile
    whole = activations(kind, tier, x)
    assert np.array_equal(activations(kind, tier, x, cuts=(tile, 2 * tile)), whole)
    index = np.array([12, 0, 5, 5, 7, 1], np.int32)
    picked = activations(kind, tier, np.ascontiguousarray(x[index]))
    assert np.array_equal(activations(kind, tier, x, index), picked)


@every_tier
@every_format
def test_nan_and_infinity_stay_in_their_token(name: str, tier: str) -> None:
    k = 512
    w, x = random_weights(name, 24, k), random_rows(6, k)
    clean = product(name, tier, w, x)
    x[1, 7], x[2, 9], x[5, 300] = np.nan, np.inf, -np.inf
    got = product(name, tier, w, x)
    assert np.array_equal(got[[0, 3, 4]], clean[[0, 3, 4]])
    assert not np.isfinite(got[[1, 2, 5]]).any()


def test_tier_override(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu.tiers.cache_clear()
    try:
        monkeypatch.setenv("GGRUN_CPU_TIER", "plain")
        assert cpu.tiers() == ("plain",)
        cpu.tiers.cache_clear()
        monkeypatch.setenv("GGRUN_CPU_TIER", "sse9")
        with pytest.raises(ValueError, match="sse9"):
            cpu.tiers()
    finally:
        cpu.tiers.cache_clear()


def test_sources_exist() -> None:
    names = {path.name for path in cpu.source_files()}
    assert {"simd.py", "panel.py", "gemv.py", "iq.py"} <= names
    assert all(path.is_file() for path in cpu.source_files())


_GUARDED = """
import ctypes, mmap, sys
import numpy as np
from quant import cpu
from quant.format import format_by_name
from tests.unit.kernels import NAMES, activation_of, activations, address, call, product, random_rows, random_weights

tier, libc = sys.argv[1], ctypes.CDLL(None, use_errno=True)
maps = []

def guarded(n_bytes, content=None, at_end=True):
    '''n_bytes between pages that fault, touching the one behind (or the one before).'''
    pages = -(-n_bytes // 4096)
    region = mmap.mmap(-1, 4096 * (pages + 2))
    maps.append(region)
    memory = np.frombuffer(region, np.uint8)
    start = 4096 + (4096 * pages - n_bytes if at_end else 0)
    view = memory[start : start + n_bytes]
    if content is not None:
        view[:] = content.reshape(-1).view(np.uint8)
    for page in (0, pages + 1):
        assert libc.mprotect(ctypes.c_void_p(address(memory) + 4096 * page), ctypes.c_size_t(4096), 0) == 0
    return view

for name in NAMES:
    fmt = format_by_name(name)
    kernel, quantizer = cpu.matmul_kernel(fmt, tier), cpu.activation_kernel(activation_of(name), tier)
    get_row = cpu.get_row_kernel(fmt, tier)
    for k in {1: (3, 40, 256), 32: (32, 96, 288), 256: (256, 512)}[fmt.block_elements]:
        for n_rows in (1, 17, 35):
            w = random_weights(name, n_rows, k)
            for n in (1, 3, 4):
                x = random_rows(n, k)
                wanted = product(name, tier, w, x)
                for at_end in (True, False):
                    print(name, k, n_rows, n, at_end, flush=True)
                    W, X = guarded(w.size, w, at_end), guarded(x.nbytes, x, at_end)
                    A, S = guarded(quantizer.bytes(k, n), None, at_end), guarded(kernel.scratch_bytes(k, n), None, at_end)
                    O, R = guarded(4 * n * n_rows, None, at_end), guarded(4 * k, None, at_end)
                    call(quantizer.address, address(X), 4 * k, 0, 0, n, k, n, address(A))
                    call(kernel.address, address(W), w.shape[1], 0, n_rows, k, address(A), n, address(O), 4 * n_rows, address(S))
                    assert O.view(np.float32).reshape(n, n_rows).tobytes() == np.ascontiguousarray(wanted).tobytes()
                    call(get_row.address, address(W) + (n_rows - 1) * w.shape[1], k, address(R))
    del W, X, A, S, O, R
print("done")
"""


def run_python(code: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Runs code in a process of its own from the checkout's root."""
    root = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    env = {**os.environ, "PYTHONPATH": root, **environment}
    return subprocess.run([sys.executable, "-c", code, *arguments], cwd=root, env=env, capture_output=True, text=True, timeout=600)


@every_tier
def test_nothing_is_touched_outside_the_buffers(tier: str) -> None:
    result = run_python(_GUARDED, tier)
    assert result.stdout.endswith("done\n"), f"exit {result.returncode} after {result.stdout.splitlines()[-1:]}: {result.stderr[-2000:]}"


_LESSER = {
    "plain": {"NUMBA_CPU_NAME": "generic", "NUMBA_CPU_FEATURES": ""},
    "avx2": {"NUMBA_CPU_NAME": "haswell", "NUMBA_CPU_FEATURES": "+avx,+avx2,+fma,+f16c,+bmi,+bmi2,+popcnt,+sse4.2"},
}

_BITS = """
import sys
from quant import cpu
from tests.unit.kernels import NAMES, product, random_rows, random_weights
assert cpu.tiers()[0] == sys.argv[1], cpu.tiers()
for name in NAMES:
    for n in (1, 6):
        print(name, n, product(name, sys.argv[1], random_weights(name, 20, 512), random_rows(n, 512)).tobytes().hex())
"""


@pytest.mark.slow
@pytest.mark.parametrize("tier", [tier for tier in TIERS if tier in _LESSER])
def test_lesser_processors_compute_the_same(tier: str, tmp_path: object) -> None:
    """A tier compiled for a processor that has nothing more gives the bits it gives when compiled for this one."""
    result = run_python(_BITS, tier, **_LESSER[tier], GGRUN_CACHE_DIR=str(tmp_path))
    assert result.returncode == 0, result.stderr
    for line in result.stdout.splitlines():
        name, n, bits = line.split()
        here = product(name, tier, random_weights(name, 20, 512), random_rows(int(n), 512))
        assert here.tobytes().hex() == bits, f"{name}, {n} tokens"
    assert len(result.stdout.splitlines()) == 2 * len(NAMES)

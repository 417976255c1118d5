"""Random weights and activations for matrix kernels, NumPy models of what comes out, and the comparison.

The model of a block format is exact: it takes the same quantized activations, multiplies in float64, and what the kernel may differ by is
float32 rounding: 1e-5 of the sum of the products' magnitudes. Against the product with the float activations the bound is 2e-2 in norm.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np
import pytest
from numpy.typing import NDArray

from ggrun.runtime.cuda import matmul
from ggrun.runtime.cuda.launch import Arch, Launch
from quant import reference
from quant.cpu.blocks import BLOCK_FORMATS
from quant.format import FORMATS, format_by_name
from tests.gpu.emulation.kernels import ORDERS, Emulator, guarded, poisoned

__all__ = ["ORDERS", "guarded", "poisoned"]

NAMES = [fmt.name for fmt in FORMATS.values()]
FLOATS = ("F32", "F16", "BF16")
USUAL = ("F16", "Q4_K", "Q6_K", "Q8_0", "Q2_K")
"""Formats that quick tests try in every kernel; they have among them every way that blocks differ in. Slow tests take the others."""

SHARED_BYTES = {61: 49152, 75: 65536, 80: 166912, 86: 101376, 90: 232448}
ROUNDING = 1e-5
Floats = NDArray[np.float32]
Bytes = NDArray[np.uint8]


class Q8(NamedTuple):
    """Quantized rows: int8[n, k], float32[n, k / 32], float32[n, k / 16]."""

    quants: NDArray[np.int8]
    scales: Floats
    sums: Floats


def at(array: NDArray[Any]) -> int:
    return int(array.ctypes.data)


def usual_first() -> list[Any]:
    """Parameters: every format, those beyond USUAL where slow tests run."""
    return [name if name in USUAL else pytest.param(name, marks=pytest.mark.slow) for name in NAMES]


def arch(cc: int, n_sm: int = 16) -> Arch:
    return Arch(cc, n_sm, SHARED_BYTES[cc])


@functools.cache
def emulator(cc: int) -> Emulator:
    return Emulator(cc)


@functools.cache
def prepare(name: str) -> None:
    """Compile the kernels of a format that the quick tests use on sm_80 together: quicker than one by one."""
    kernels = [f"embed__{name}", f"gemv__{name}__1", f"gemv__{name}__2", f"gemm__{name}__{64 if name in FLOATS else 16}"]
    if name in USUAL:
        kernels += [f"gemv__{name}__8", f"gated__{name}__1", f"gated__{name}__4", f"expert_gemv__{name}", f"expert_gemm__{name}__64"]
    emulator(80).prepare(kernels)


def run(launches: Launch | Iterable[Launch], order: int = 0, cc: int = 80) -> int:
    launches = [launches] if isinstance(launches, Launch) else list(launches)
    for launch in launches:
        if cc == 80 and "__" in launch.kernel:
            prepare(launch.kernel.split("__")[1])
    return emulator(cc).run(launches, order)


def block_of(name: str) -> int:
    return format_by_name(name).block_elements


def odd_k(name: str) -> int:
    """A length of rows with a tail: an odd number of blocks, a part of 128 elements, no whole number of units."""
    return {1: 77, 32: 160, 256: 768}[block_of(name)]


def dequantize(name: str, w: Bytes) -> Floats:
    return reference.dequantize(format_by_name(name), np.ascontiguousarray(w))


def random_weights(name: str, n_rows: int, k: int, seed: int = 0, extreme: bool = False) -> Bytes:
    """uint8[n_rows, row_bytes]: any bytes, float16 scales of either sign between 0.5 and 1, or (extreme) from the smallest to 60000."""
    fmt, rng = format_by_name(name), np.random.default_rng(seed)
    if name not in BLOCK_FORMATS:
        spread = 10.0 ** rng.uniform(-4, 4, (n_rows, k)) if extreme else 1.0
        return reference.quantize(fmt, (rng.standard_normal((n_rows, k)) * spread).astype(np.float32))
    blocks = rng.integers(0, 256, (n_rows, k // fmt.block_elements, fmt.block_bytes), dtype=np.uint8)
    for place in (BLOCK_FORMATS[name].d_at, BLOCK_FORMATS[name].m_at):
        if place is not None:
            size = 10.0 ** rng.uniform(-7, 4.7, blocks.shape[:2]) if extreme else rng.uniform(0.5, 1, blocks.shape[:2])
            scale = size * rng.choice([-1, 1], blocks.shape[:2])
            blocks[:, :, place : place + 2] = scale.astype(np.float16)[..., None].view(np.uint8)
    return blocks.reshape(n_rows, -1)


def random_rows(n: int, k: int, seed: int = 1) -> Floats:
    """float32[n, k], of very different magnitudes from row to row."""
    rng = np.random.default_rng(seed)
    return (rng.standard_normal((n, k)) * 10.0 ** rng.uniform(-3, 3, (n, 1))).astype(np.float32)


def quantized(x: Floats) -> Q8:
    """The model of quant/cuda/q8.cuh."""
    blocks = x.reshape(len(x), -1, 32)
    largest = np.abs(blocks).max(-1)
    scales = largest / np.float32(127)
    inverse = np.divide(np.float32(127), largest, out=np.zeros_like(largest), where=largest > 0)
    quants = np.rint(blocks * inverse[..., None]).astype(np.int8).reshape(x.shape)
    sums = quants.reshape(len(x), -1, 16).sum(-1, dtype=np.int32).astype(np.float32) * np.repeat(scales, 2, axis=1)
    return Q8(quants, scales, sums)


def pack_q8(q: Q8) -> Bytes:
    n, k = q.quants.shape
    rows = np.zeros((n, matmul.q8_row_bytes(k)), np.uint8)
    parts = np.concatenate([part.view(np.uint8).reshape(n, -1) for part in q], axis=1)
    rows[:, : parts.shape[1]] = parts
    return rows


def read_q8(rows: Bytes, k: int) -> Q8:
    quants, scales, sums = np.split(rows[:, : k + k // 8 + k // 4], [k, k + k // 8], axis=1)
    return Q8(quants.view(np.int8), scales.copy().view(np.float32), sums.copy().view(np.float32))


def activations(name: str, x: Floats) -> NDArray[Any]:
    """x as the kernels of a format want it, guarded."""
    return guarded(x if matmul.activation(name) == "f32" else pack_q8(quantized(x)))


class Product(NamedTuple):
    """x @ w.T float64[n, rows] of what the kernel is given, the magnitudes of its terms added up, and the same of the float activations."""

    value: NDArray[np.float64]
    magnitude: NDArray[np.float64]
    exact: NDArray[np.float64]


def product(name: str, w: Bytes, x: Floats) -> Product:
    weights, exact = dequantize(name, w).astype(np.float64), x.astype(np.float64)
    given = exact
    if matmul.activation(name) == "q8":
        q = quantized(x)
        given = q.quants * np.repeat(q.scales.astype(np.float64), 32, axis=1)
    magnitude = np.abs(given) @ np.abs(weights).T
    if name in ("Q4_1", "Q5_1", "Q2_K", "Q4_K", "Q5_K"):  # scale * q and the minimum are rounded apart
        magnitude *= 4
    return Product(given @ weights.T, magnitude, exact @ weights.T)


def compare(got: Floats, want: Product) -> None:
    """float32[n, rows] as `product` has it."""
    assert np.isfinite(got).all()
    assert (np.abs(got - want.value) <= ROUNDING * want.magnitude).all()
    bound = 2e-2 * np.linalg.norm(want.exact, axis=1) + ROUNDING * np.linalg.norm(want.magnitude, axis=1)
    error = np.linalg.norm(got - want.exact, axis=1)
    assert (error <= np.maximum(bound, 2e-2 * np.linalg.norm(want.magnitude, axis=1) / np.sqrt(want.magnitude.shape[1]))).all()


def check_matmul(
    name: str,
    n_out: int,
    n_tokens: int,
    k: int,
    bias: bool = False,
    cc: int = 80,
    n_sm: int = 16,
    order: int = 1234567,
    extreme: bool = False,
) -> Floats:
    """Runs one product in guarded arrays and compares it. A: the result."""
    w = guarded(random_weights(name, n_out, k, extreme=extreme))
    rows = random_rows(n_tokens, k)
    x, y = activations(name, rows), poisoned((n_tokens, n_out))
    add = guarded(random_rows(1, n_out, seed=2)[0])
    run(matmul.matmul(name, at(w), w.shape[1], at(x), at(y), at(add) if bias else 0, k, n_out, n_tokens, arch(cc, n_sm)), order, cc)
    want = product(name, w, rows)
    if bias:
        want = Product(want.value + add, want.magnitude + np.abs(add), want.exact + add)
    compare(y, want)
    return y.copy()


def check_gated(name: str, n_out: int, n_tokens: int, k: int) -> None:
    gate, up = guarded(random_weights(name, n_out, k)), guarded(random_weights(name, n_out, k, seed=5))
    rows = random_rows(n_tokens, k) * np.float32(1e-3)
    x, y = activations(name, rows), poisoned((n_tokens, n_out))
    launches = matmul.gated(name, at(gate), name, at(up), gate.shape[1], at(x), at(y), k, n_out, n_tokens, arch(80))
    assert launches is not None
    run(launches, 7)
    g, u = product(name, gate, rows), product(name, up, rows)
    with np.errstate(over="ignore"):
        silu = g.value / (1 + np.exp(-g.value))
    slack = ROUNDING * (1.2 * g.magnitude * np.abs(u.value) + np.abs(silu) * u.magnitude + np.abs(silu * u.value))
    assert (np.abs(y - silu * u.value) <= slack + 1e-30).all()

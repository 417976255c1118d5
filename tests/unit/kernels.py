"""Calls of the CPU kernels from NumPy arrays, random weights that use every bit, and an exact model of what comes out."""

from __future__ import annotations

import ctypes
import functools
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from ggrun.runtime.cpu import cache
from quant import cpu
from quant.cpu.activations import layout
from quant.cpu.blocks import BLOCK_FORMATS
from quant.format import FORMATS, Format, format_by_name
from quant.reference import dequantize, quantize
from quant.simd import TARGETS

cache.use()  # a kernel is compiled once, not in every run of the tests
NAMES = [fmt.name for fmt in FORMATS.values()]
Floats = NDArray[np.float32]
Bytes = NDArray[np.uint8]


def each_tier() -> list[Any]:
    """Parameters: the best tier of this processor always, the lesser ones where slow tests run."""
    best, *rest = cpu.tiers()
    return [best, *(pytest.param(tier, marks=pytest.mark.slow) for tier in rest)]


def call(address: int, *arguments: int) -> None:
    """Calls a kernel."""
    ctypes.CFUNCTYPE(None, *[ctypes.c_int64] * len(arguments))(address)(*arguments)


def address(array: NDArray[Any]) -> int:
    return int(array.ctypes.data)


def random_weights(name: str, n_rows: int, k: int, seed: int = 0) -> Bytes:
    """uint8[n_rows, row_bytes]: any bytes at all, with float16 scales between 0.5 and 1 in magnitude."""
    fmt, rng = format_by_name(name), np.random.default_rng(seed)
    if name not in BLOCK_FORMATS:
        return quantize(fmt, rng.standard_normal((n_rows, k)).astype(np.float32))
    block_format = BLOCK_FORMATS[name]
    blocks = rng.integers(0, 256, (n_rows, k // fmt.block_elements, fmt.block_bytes), dtype=np.uint8)
    for at in (block_format.d_at, block_format.m_at):
        if at is not None:
            scale = rng.uniform(0.5, 1, blocks.shape[:2]) * rng.choice([-1, 1], blocks.shape[:2])
            blocks[:, :, at : at + 2] = scale.astype(np.float16)[..., None].view(np.uint8)
    return blocks.reshape(n_rows, -1)


def random_rows(n: int, k: int, seed: int = 1) -> Floats:
    """float32[n, k] of very different magnitudes from row to row."""
    rng = np.random.default_rng(seed)
    return (rng.standard_normal((n, k)) * 10.0 ** rng.uniform(-3, 3, (n, 1))).astype(np.float32)


def activations(kind: str, tier: str, x: Floats, index: NDArray[np.int32] | None = None, cuts: tuple[int, ...] = ()) -> Bytes:
    """x[n, k] (or the rows of it that `index` picks) as the kernel lays it out, quantized in pieces cut at token `cuts`."""
    kernel = cpu.activation_kernel(kind, tier)
    n = len(x if index is None else index)
    dst = np.full(kernel.bytes(x.shape[1], n), 0xEE, np.uint8)
    for t0, t1 in zip((0, *cuts), (*cuts, n)):
        call(kernel.address, address(x), x.strides[0], 0 if index is None else address(index), t0, t1, x.shape[1], n, address(dst))
    return dst


def multiply(name: str, tier: str, w: Bytes, k: int, x: Bytes, n: int, r0: int = 0, r1: int | None = None) -> Floats:
    """float32[n, r1 - r0] of weights w and activations x."""
    kernel = cpu.matmul_kernel(format_by_name(name), tier)
    r1 = len(w) if r1 is None else r1
    out = np.full((n, len(w) + 3), np.nan, np.float32)
    scratch = np.full(kernel.scratch_bytes(k, n), 0xEE, np.uint8)
    call(kernel.address, address(w), w.strides[0], r0, r1, k, address(x), n, address(out), out.strides[0], address(scratch))
    assert np.isnan(out[:, :r0]).all(), "wrote rows before r0"
    assert np.isnan(out[:, r1:]).all(), "wrote rows from r1 on"
    return out[:, r0:r1]


def product(name: str, tier: str, w: Bytes, x: Floats, r0: int = 0, r1: int | None = None) -> Floats:
    """`multiply` from float32 rows."""
    return multiply(name, tier, w, x.shape[1], activations(activation_of(name), tier, x), len(x), r0, r1)


def activation_of(name: str) -> str:
    return str(format_by_name(name).activation)


@functools.cache
def fmt(name: str) -> Format:
    return format_by_name(name)


def read_back(kind: str, tier: str, dst: Bytes, n: int, k: int) -> tuple[NDArray[np.int8], Floats]:
    """Quants int8[n, k] and scales float32[n, k / (32 or 256)] of a byte kind of activations."""
    tokens = 1 if n == 1 else cpu.activation_kernel(kind, tier).tile
    place, n_groups, n_tiles = layout(kind, tokens), -(-k // 256), -(-n // tokens)
    groups = dst.reshape(n_groups, n_tiles, place.n_bytes)
    quants = groups[:, :, : 256 * tokens].reshape(n_groups, n_tiles, 64, tokens, 4).transpose(1, 3, 0, 2, 4)
    if n > 1 and TARGETS[tier].vnni:
        quants = quants ^ np.uint8(0x80)
    per_group = 8 if kind == "q8_0" else 1
    scales = groups[:, :, place["scale"] : place["scale"] + 4 * tokens * per_group].copy().view(np.float32)
    scales = scales.reshape(n_groups, n_tiles, per_group, tokens).transpose(1, 3, 0, 2)
    n_scales = k * per_group // 256
    return quants.reshape(n_tiles * tokens, -1)[:n, :k].view(np.int8), scales.reshape(n_tiles * tokens, -1)[:n, :n_scales]


def expected(name: str, tier: str, w: Bytes, x: Floats, dst: Bytes) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The exact product of the dequantized weights and activations, and the sum of its terms' magnitudes: float64[n, rows]."""
    kind = activation_of(name)
    if kind == "f32":
        values = x.astype(np.float64)
    else:
        quants, scales = read_back(kind, tier, dst, *x.shape)
        values = quants * np.repeat(scales.astype(np.float64), x.shape[1] // scales.shape[1], axis=1)
    weights = dequantize(format_by_name(name), w).astype(np.float64)
    return values @ weights.T, np.abs(values) @ np.abs(weights).T

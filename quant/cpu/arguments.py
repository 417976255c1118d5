"""The arguments of the kernels, by name, as the emitting code passes them around. All are LLVM i64 values."""

from __future__ import annotations

from dataclasses import dataclass

from quant.simd import Value


@dataclass(frozen=True, slots=True)
class Source:
    """float32 rows to turn into activations: rows t0..t1-1 of n_tokens, at src + (index ? index[t] : t) * stride, k elements each."""

    src: Value
    stride: Value
    index: Value
    t0: Value
    t1: Value
    k: Value
    n_tokens: Value
    dst: Value


@dataclass(frozen=True, slots=True)
class Product:
    """Rows r0..r1-1 of the weights at w times n_tokens activations at x, to out[token * stride + 4 * row]."""

    w: Value
    row_bytes: Value
    r0: Value
    r1: Value
    k: Value
    x: Value
    n_tokens: Value
    out: Value
    stride: Value
    scratch: Value

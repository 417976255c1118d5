"""Kernels as functions that Numba compiles: the one place where emitted code meets it.

A kernel is a function around one intrinsic whose first arguments are literal numbers (which kernel, which tier).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from quant.cpu import activations, floats, gemv, get_row, panel
from quant.cpu.arguments import Product, Source
from quant.cpu.blocks import BLOCK_FORMATS
from quant.cpu.floats import FLOAT_FORMATS
from quant.simd import TARGETS, Emitter, Value

_TIERS = tuple(TARGETS)
_KINDS = ("f32", "q8_0", "q8_k")
_FORMATS = (*FLOAT_FORMATS, *BLOCK_FORMATS)
_INT = types.int64


def emit_activation(e: Emitter, kind: str, source: Source) -> None:
    """The body of a quantizer."""
    if kind == "f32":
        activations.emit_f32(e, source)
    else:
        activations.emit_bytes(e, kind, source)


def emit_matmul(e: Emitter, fmt: str, product: Product) -> None:
    """The body of a matrix product."""
    if fmt in FLOAT_FORMATS:
        floats.emit(e, FLOAT_FORMATS[fmt], product)
        return
    with e.b.if_else(e.b.icmp_signed("==", product.n_tokens, e.const(1))) as (single, several):
        with single:
            gemv.emit(e, BLOCK_FORMATS[fmt], product)
        with several:
            panel.emit(e, BLOCK_FORMATS[fmt], product)


def emit_get_row(e: Emitter, fmt: str, row: Value, k: Value, dst: Value) -> None:
    """The body of a row decoder."""
    if fmt in FLOAT_FORMATS:
        get_row.emit_floats(e, FLOAT_FORMATS[fmt], row, k, dst)
    else:
        get_row.emit_blocks(e, BLOCK_FORMATS[fmt], row, k, dst)


def _emitter(builder: ir.IRBuilder, tier: Any) -> Emitter:
    return Emitter(builder, TARGETS[_TIERS[tier.literal_value]])


@intrinsic(prefer_literal=True)
def _quantize(context, kind, tier, src, stride, index, t0, t1, k, n_tokens, dst):
    def generate(context: Any, builder: ir.IRBuilder, signature: Any, values: list[Value]) -> Any:
        emit_activation(_emitter(builder, tier), _KINDS[kind.literal_value], Source(*values[2:]))
        return context.get_dummy_value()

    return types.void(kind, tier, *[_INT] * 8), generate


@intrinsic(prefer_literal=True)
def _rows(context, fmt, tier, w, row_bytes, r0, r1, k, x, n_tokens, out, stride, scratch):
    def generate(context: Any, builder: ir.IRBuilder, signature: Any, values: list[Value]) -> Any:
        emit_matmul(_emitter(builder, tier), _FORMATS[fmt.literal_value], Product(*values[2:]))
        return context.get_dummy_value()

    return types.void(fmt, tier, *[_INT] * 10), generate


@intrinsic(prefer_literal=True)
def _row(context, fmt, tier, row, k, dst):
    def generate(context: Any, builder: ir.IRBuilder, signature: Any, values: list[Value]) -> Any:
        emit_get_row(_emitter(builder, tier), _FORMATS[fmt.literal_value], *values[2:])
        return context.get_dummy_value()

    return types.void(fmt, tier, *[_INT] * 3), generate


def activation_function(kind: str, tier: str) -> Callable[..., None]:
    """The quantizer of a kind of activations."""
    which, target = _KINDS.index(kind), _TIERS.index(tier)

    def quantize(src, stride, index, t0, t1, k, n_tokens, dst):
        _quantize(which, target, src, stride, index, t0, t1, k, n_tokens, dst)  # type: ignore[call-arg]  # Numba passes the context

    return quantize


def matmul_function(fmt: str, tier: str) -> Callable[..., None]:
    """The matrix product of a format."""
    which, target = _FORMATS.index(fmt), _TIERS.index(tier)

    def rows(w, row_bytes, r0, r1, k, x, n_tokens, out, stride, scratch):
        _rows(which, target, w, row_bytes, r0, r1, k, x, n_tokens, out, stride, scratch)  # type: ignore[call-arg]  # Numba passes the context

    return rows


def get_row_function(fmt: str, tier: str) -> Callable[..., None]:
    """The row decoder of a format."""
    which, target = _FORMATS.index(fmt), _TIERS.index(tier)

    def get_one_row(row, k, dst):
        _row(which, target, row, k, dst)  # type: ignore[call-arg]  # Numba passes the context

    return get_one_row

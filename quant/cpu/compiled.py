"""Kernels as compiled C functions: the one place where emitted code meets Numba.

A kernel is a Numba cfunc around one intrinsic whose first arguments are literal numbers (which kernel, which tier). The cfunc
closes over nothing but those integers, which is what lets Numba's disk cache recognise it in the next process: closing over an
intrinsic or a function would miss every time.
"""

from __future__ import annotations

import functools
from typing import Any

from llvmlite import ir
from numba import cfunc, types
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


@functools.cache
def activation_function(kind: str, tier: str) -> Any:
    """The compiled quantizer of a kind of activations."""
    which, target = _KINDS.index(kind), _TIERS.index(tier)

    @cfunc(types.void(*[_INT] * 8), cache=True)
    def quantize(src, stride, index, t0, t1, k, n_tokens, dst):
        _quantize(which, target, src, stride, index, t0, t1, k, n_tokens, dst)  # type: ignore[call-arg]  # Numba passes the context

    return quantize


@functools.cache
def matmul_function(fmt: str, tier: str) -> Any:
    """The compiled matrix product of a format."""
    which, target = _FORMATS.index(fmt), _TIERS.index(tier)

    @cfunc(types.void(*[_INT] * 10), cache=True)
    def rows(w, row_bytes, r0, r1, k, x, n_tokens, out, stride, scratch):
        _rows(which, target, w, row_bytes, r0, r1, k, x, n_tokens, out, stride, scratch)  # type: ignore[call-arg]  # Numba passes the context

    return rows


@functools.cache
def get_row_function(fmt: str, tier: str) -> Any:
    """The compiled row decoder of a format."""
    which, target = _FORMATS.index(fmt), _TIERS.index(tier)

    @cfunc(types.void(*[_INT] * 3), cache=True)
    def get_one_row(row, k, dst):
        _row(which, target, row, k, dst)  # type: ignore[call-arg]  # Numba passes the context

    return get_one_row

"""Vector code inside kernels: makes Numba intrinsics of bodies written with `quant.simd.Emitter`, and the float32 maths they share.

A body takes the emitter and LLVM values (addresses and counts are i64). Every lane is computed by the same operations whatever
its neighbours, so a result depends on neither chunking nor batch; exp has one definition, used by all kernels.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from quant.simd import F16, F32, I16, I32, TARGETS, Emitter, Target, Value, tiers, vec

_NUMBA = {"i": types.int64, "f": types.float32, "v": types.void}


def target() -> Target:
    """What this process's kernels are compiled for."""
    return TARGETS[tiers()[0]]


def vector_code(arguments: str, result: str = "v") -> Callable[[Callable[..., Any]], Any]:
    """Decorator: body(emitter, *values) becomes a function for compiled code; "i" int64, "f" float32, "v" nothing."""

    def make(body: Callable[..., Any]) -> Any:
        signature = _NUMBA[result](*(_NUMBA[letter] for letter in arguments))

        def define(typingctx, *args):
            def codegen(context, builder, _signature, values):
                value = body(Emitter(builder, target()), *values)
                return context.get_dummy_value() if result == "v" else value

            return signature, codegen

        names = ["typingctx", *list(inspect.signature(body).parameters)[1:]]
        define.__name__ = body.__name__
        define.__doc__ = body.__doc__
        define.__signature__ = inspect.Signature([inspect.Parameter(n, inspect.Parameter.POSITIONAL_OR_KEYWORD) for n in names])  # type: ignore[attr-defined]
        return intrinsic(define)

    return make


# -- loops ---------------------------------------------------------------------------------------------------------------------


def each(e: Emitter, n: Value, body: Callable[[Value, ir.Type], None]) -> None:
    """body(byte offset, type) over n float32: whole vectors first, then what is left one by one."""
    lanes = e.target.lanes
    whole = e.b.and_(n, e.const(-lanes))
    for start, stop, type_, step in ((e.const(0), whole, vec(F32, lanes), lanes), (whole, n, F32, 1)):

        def one(index: Value, _: list[Value], type_: ir.Type = type_) -> tuple[()]:
            body(e.b.shl(index, e.const(2)), type_)
            return ()

        e.loop(start, stop, one, step=step)


def spread(e: Emitter, scalar: Value, type_: ir.Type) -> Value:
    """The scalar in every lane of the type (which may be the scalar's own)."""
    return e.splat(scalar, type_.count) if isinstance(type_, ir.VectorType) else scalar


def _shape(type_: ir.Type, element: ir.Type) -> ir.Type:
    return vec(element, type_.count) if isinstance(type_, ir.VectorType) else element


# -- maths ---------------------------------------------------------------------------------------------------------------------

_ROUND = 1.5 * 2.0**23  # adding it rounds to whole numbers
_LOG2_E = 1.4426950408889634
_LN2_HIGH, _LN2_LOW = 0.693145751953125, 1.428606765330187e-06  # high part has few bits: n * high is exact
# of exp around 0, highest first, through the Chebyshev nodes of |r| <= ln2/2: 2e-8 relative besides rounding
_EXP_SERIES = (0.0013941119, 0.00837513432, 0.0416663513, 0.166664153, 0.5, 1.0, 1.0)
_EXP_LEAST, _EXP_MOST = -104.0, 89.0  # 0 and infinity in float32


def exp(e: Emitter, x: Value) -> Value:
    """e**x of float32 lanes, relative error at most 1.5e-7; -inf gives 0, large gives inf, NaN stays NaN."""
    b, type_ = e.b, x.type

    def c(value: float) -> Value:
        return e.const(value, type_)

    x = b.select(b.fcmp_ordered("<", x, c(_EXP_LEAST)), c(_EXP_LEAST), x)
    x = b.select(b.fcmp_ordered(">", x, c(_EXP_MOST)), c(_EXP_MOST), x)
    shifted = e.fma(x, c(_LOG2_E), c(_ROUND))
    n = b.fsub(shifted, c(_ROUND))
    r = e.fma(n, c(-_LN2_LOW), e.fma(n, c(-_LN2_HIGH), x))
    p = c(_EXP_SERIES[0])
    for coefficient in _EXP_SERIES[1:]:
        p = e.fma(p, r, c(coefficient))
    return e.times_power(p, n)


def silu(e: Emitter, x: Value) -> Value:
    """x / (1 + exp(-x))."""
    return e.b.fdiv(x, e.b.fadd(e.const(1.0, x.type), exp(e, e.b.fneg(x))))


def tanh(e: Emitter, x: Value) -> Value:
    """1 - 2 / (exp(2x) + 1): absolute error about 1e-7."""
    one = e.const(1.0, x.type)
    return e.b.fsub(one, e.b.fdiv(e.const(2.0, x.type), e.b.fadd(exp(e, e.b.fadd(x, x)), one)))


def narrow_half(e: Emitter, x: Value) -> Value:
    """float32 to float16 bits (i16), to nearest, ties to even; too large becomes inf, NaN stays NaN."""
    b = e.b
    if e.target.f16c:
        return e.cast(b.fptrunc(x, _shape(x.type, F16)), _shape(x.type, I16))
    whole = _shape(x.type, I32)

    def c(value: int) -> Value:
        return e.const(value, whole)

    bits = e.cast(x, whole)
    sign = b.and_(b.lshr(bits, c(16)), c(0x8000))
    size = b.and_(bits, c(0x7FFFFFFF))
    # Normal numbers: rebias the exponent and round the 13 bits that go.
    odd = b.and_(b.lshr(size, c(13)), c(1))
    normal = b.lshr(b.add(b.sub(size, c(112 << 23)), b.add(odd, c(0xFFF))), c(13))
    # Below 2**-14: adding 0.5 puts the last place at 2**-24, the unit of float16's denormals, and rounds there.
    tiny = b.sub(e.cast(b.fadd(e.cast(size, x.type), e.const(0.5, x.type)), whole), c(0x3F000000))
    half = b.select(b.icmp_unsigned("<", size, c(0x38800000)), tiny, normal)
    half = b.select(b.icmp_unsigned(">=", size, c(0x477FF000)), c(0x7C00), half)
    half = b.select(b.icmp_unsigned(">", size, c(0x7F800000)), c(0x7E00), half)
    return b.trunc(b.or_(half, sign), _shape(x.type, I16))


@vector_code("f", "f")
def exp1(e: Emitter, x: Value) -> Value:
    """exp of one number, the same bits as in a vector."""
    return exp(e, x)

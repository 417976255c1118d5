"""Atomic operations on int64 words, the pause of a spinning core, giving the core away, the clock, and libc functions; from compiled code.

All but `load_relaxed` are sequentially consistent: the sleep and wake protocol of `team` needs a store that later loads cannot pass.
"""

from __future__ import annotations

import platform

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from ggrun.runtime.cpu.words import I64

_PAUSE = {  # what tells a core that it spins; other machines get nothing
    "x86_64": "llvm.x86.sse2.pause",
}
_CLOCK_MONOTONIC = 1


def _word(builder, address):
    return builder.inttoptr(address, I64.as_pointer())


def extern(builder, name: str, result, args, var_arg: bool = False):
    """The declaration of an LLVM intrinsic or a C function of this process."""
    module = builder.module
    return module.globals.get(name) or ir.Function(module, ir.FunctionType(result, args, var_arg=var_arg), name)


def _rmw(operation: str):
    @intrinsic
    def rmw(typingctx, address, value):
        def codegen(context, builder, signature, args):
            return builder.atomic_rmw(operation, _word(builder, args[0]), args[1], "seq_cst")

        return types.int64(types.int64, types.int64), codegen

    return rmw


add = _rmw("add")  # returns the value before
exchange = _rmw("xchg")  # returns the value before


def _load(ordering: str):
    @intrinsic
    def load(typingctx, address):
        def codegen(context, builder, signature, args):
            return builder.load_atomic(_word(builder, args[0]), ordering, 8)

        return types.int64(types.int64), codegen

    return load


load = _load("seq_cst")
load_relaxed = _load("monotonic")


@intrinsic
def pause(typingctx):
    """Tell the core that this is a spin loop."""

    def codegen(context, builder, signature, args):
        name = _PAUSE.get(platform.machine())
        if name:
            builder.call(extern(builder, name, ir.VoidType(), []), [])
        return context.get_dummy_value()

    return types.void(), codegen


@intrinsic
def sched_yield(typingctx):
    """Let another runnable thread have this core."""

    def codegen(context, builder, signature, args):
        builder.call(extern(builder, "sched_yield", ir.IntType(32), []), [])
        return context.get_dummy_value()

    return types.void(), codegen


@intrinsic
def nanoseconds(typingctx):
    """A clock that never goes back; some tens of nanoseconds to read."""

    def codegen(context, builder, signature, args):
        time = cgutils.alloca_once(builder, ir.ArrayType(I64, 2))
        function = extern(builder, "clock_gettime", ir.IntType(32), [ir.IntType(32), time.type])
        builder.call(function, [ir.Constant(ir.IntType(32), _CLOCK_MONOTONIC), time])
        parts = builder.load(time)
        return builder.add(builder.mul(builder.extract_value(parts, 0), ir.Constant(I64, 10**9)), builder.extract_value(parts, 1))

    return types.int64(), codegen

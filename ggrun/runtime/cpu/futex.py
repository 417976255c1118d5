"""Waiting for a word to change: spin briefly, then yield the core, then sleep on a Linux futex; and waking those who sleep.

A pure spin collapses when another program wants the core, a pure sleep costs tens of microseconds between two steps.
"""

from __future__ import annotations

import platform

from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic

from ggrun.runtime.cpu import atomics
from ggrun.runtime.cpu.words import I64

_SYSCALL = {"x86_64": 202}.get(platform.machine(), 98)  # 98 on every machine with the generic table (Arm, RISC-V)
_WAIT_PRIVATE, _WAKE_PRIVATE = 128, 129
_ALL = 0x7FFFFFFF


@intrinsic
def _futex(typingctx, address, operation, value):
    """futex(2) on the low half of the little-endian word at `address`."""

    def codegen(context, builder, signature, args):
        function = atomics.extern(builder, "syscall", I64, [I64], var_arg=True)
        none = ir.Constant(I64, 0)
        return builder.call(function, [ir.Constant(I64, _SYSCALL), *args, none, none, none])

    return types.int64(types.int64, types.int64, types.int64), codegen


@njit
def wait(address, mask, seen, sleepers, spins, yields):
    """Return when the word at `address` masked is no longer `seen`; `mask` includes the low half.

    sleepers: address of the count of those that may need a wake.
    """
    for _ in range(spins):
        if atomics.load(address) & mask != seen:
            return
        atomics.pause()
    for _ in range(yields):
        if atomics.load(address) & mask != seen:
            return
        atomics.sched_yield()
    atomics.add(sleepers, 1)
    while atomics.load(address) & mask == seen:
        _futex(address, _WAIT_PRIVATE, seen & 0xFFFFFFFF)
    atomics.add(sleepers, -1)


@njit
def publish(address, value, sleepers):
    """Set the word and wake whoever sleeps on it. The exchange orders it before the look at `sleepers`, so no wake is lost."""
    atomics.exchange(address, value)
    if atomics.load(sleepers) > 0:
        _futex(address, _WAKE_PRIVATE, _ALL)

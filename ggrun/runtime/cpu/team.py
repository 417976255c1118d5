"""A persistent team of threads that walks a list of steps together; the caller is worker 0 and the others sleep in compiled code.

Between two steps there is a barrier. The last to arrive resets the chunk counter and decides for all whether the run stops, so
that the team never disagrees. Starting a run takes no lock of the interpreter. Knows nothing of what the steps compute.
"""

from __future__ import annotations

import threading
import weakref

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic

from ggrun.runtime.cpu import atomics, futex
from ggrun.runtime.cpu.layout import CONTROL, CONTROL_BYTES, LINE, STEP_BYTES
from ggrun.runtime.cpu.words import I64, control_field, field, store_i64, word

SPINS = 2000  # pauses before the core is offered to others: some tens of microseconds
YIELDS = 100  # offers before sleeping
_ACTIVE_BITS = 12  # the epoch word's low bits: how many threads take part, so that both are read at once
MAX_THREADS = (1 << _ACTIVE_BITS) - 1
NO_MORE = 1 << 40  # far more chunks than any step has, and times a chunk size still an int64


@intrinsic
def _call(typingctx, function, step, control, thread):
    """Call the kernel at an address."""

    def codegen(context, builder, signature, args):
        signature_ = ir.FunctionType(ir.VoidType(), [I64, I64, I64])
        builder.call(builder.inttoptr(args[0], signature_.as_pointer()), args[1:])
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, types.int64, types.int64), codegen


@njit
def claim(control):
    """The index of the next chunk of the running step; at least NO_MORE when the run is to stop."""
    if atomics.load_relaxed(word(control, "abort")) != 0:
        return NO_MORE
    return atomics.add(word(control, "claimed"), 1)


@njit
def _close_step(control):
    store_i64(word(control, "claimed"), 0)
    store_i64(word(control, "stopped"), atomics.load(word(control, "abort")))


@njit
def _barrier(control, active):
    """Wait for the whole team; returns non-zero when the run is to stop."""
    if active == 1:
        _close_step(control)
    else:
        generation = atomics.load(word(control, "generation"))
        if atomics.add(word(control, "arrived"), 1) == active - 1:
            store_i64(word(control, "arrived"), 0)
            _close_step(control)
            futex.publish(word(control, "generation"), generation + 1, word(control, "sleepers"))
        else:
            futex.wait(
                word(control, "generation"),
                generation,
                word(control, "sleepers"),
                control_field(control, "spins"),
                control_field(control, "yields"),
            )
    return control_field(control, "stopped")


@njit
def _walk(control, active, thread):
    step = control_field(control, "steps")
    end = control_field(control, "steps_end")
    while step < end:
        _call(field(step, "kernel"), step, control, thread)
        if _barrier(control, active) != 0:
            return
        step += STEP_BYTES


@njit(types.int64(types.int64, types.int64), nogil=True, cache=True)
def lead(control, active):
    """Run the steps with `active` threads as worker 0; returns non-zero when the run was stopped."""
    if atomics.load(word(control, "abort")) == 0:
        store_i64(word(control, "stopped"), 0)
        store_i64(word(control, "claimed"), 0)
        if active > 1:
            atomics.exchange(word(control, "done"), 0)
            epoch = atomics.load(word(control, "epoch"))
            epoch = (((epoch >> _ACTIVE_BITS) + 1) << _ACTIVE_BITS) | active
            futex.publish(word(control, "epoch"), epoch, word(control, "idle_sleepers"))
        _walk(control, active, 0)
        if active > 1:
            # the control block is free for the next run only when all have left this one; they are on their way
            spun = 0
            while atomics.load(word(control, "done")) < active - 1:
                if spun < SPINS:
                    atomics.pause()
                    spun += 1
                else:
                    atomics.sched_yield()
    else:
        store_i64(word(control, "stopped"), 1)
    return control_field(control, "stopped")


@njit(types.void(types.int64, types.int64), nogil=True, cache=True)
def serve(control, thread):
    """Worker `thread`'s life: sleep until a run that includes it, take part, until the team quits."""
    seen = np.int64(0)
    while True:
        futex.wait(
            word(control, "epoch"),
            seen,
            word(control, "idle_sleepers"),
            control_field(control, "spins"),
            control_field(control, "yields"),
        )
        seen = atomics.load(word(control, "epoch"))
        if control_field(control, "quit") != 0:
            return
        active = seen & MAX_THREADS
        if thread < active:
            _walk(control, active, thread)
            atomics.add(word(control, "done"), 1)


@njit(types.void(types.int64), nogil=True, cache=True)
def _quit(control):
    store_i64(word(control, "quit"), 1)
    epoch = ((atomics.load(word(control, "epoch")) >> _ACTIVE_BITS) + 1) << _ACTIVE_BITS
    futex.publish(word(control, "epoch"), epoch, word(control, "idle_sleepers"))


class Team:
    """`n_threads` workers around one control block; not for two callers at once."""

    def __init__(self, n_threads: int) -> None:
        assert 1 <= n_threads <= MAX_THREADS
        self.n_threads = n_threads
        self._memory = np.zeros(CONTROL_BYTES + LINE, np.uint8)
        self.control = -(-self._memory.ctypes.data // LINE) * LINE
        self.set(spins=SPINS, yields=YIELDS)
        threads = [threading.Thread(target=serve, args=(self.control, i), name=f"ggrun-cpu-{i}", daemon=True) for i in range(1, n_threads)]
        for thread in threads:
            thread.start()
        # also runs before the interpreter ends: the workers must not outlive the control block
        self._stop = weakref.finalize(self, _stop, self.control, self._memory, threads)

    def set(self, **fields: int) -> None:
        """Write control fields (see layout). Only between runs, but for `abort`."""
        for name, value in fields.items():
            offset = self.control - self._memory.ctypes.data + CONTROL[name]
            self._memory[offset : offset + 8].view(np.int64)[0] = value

    def run(self, active: int) -> bool:
        """Walk the steps with `active` threads; False when abort stopped it (which uses up the abort)."""
        assert 1 <= active <= self.n_threads
        stopped = lead(self.control, active)
        if stopped:
            self.set(abort=0)
        return not stopped

    def abort(self) -> None:
        """Stop the running or, when none runs, the next run; from any thread."""
        self.set(abort=1)

    def close(self) -> None:
        """End the threads; may be called twice."""
        self._stop()


def _stop(control: int, memory: np.ndarray, threads: list[threading.Thread]) -> None:
    """`memory` keeps the control block alive until the last worker has left it."""
    _quit(control)
    for thread in threads:
        thread.join()

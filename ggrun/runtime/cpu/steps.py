"""How a team's threads work through a list of steps, in compiled code: the leader's way, and the life of the others.

A step is so many chunks, claimed one by one. It is over when its chunks are done, not when every thread has come by: a thread that
lost its core to another program holds nobody up unless it is inside a chunk, so threads offer their cores between chunks. Whoever finishes
the last chunk goes on to the next step; steps of one chunk it does itself, without telling anyone. Knows nothing of what the steps compute.

The word `work` is what there is to claim: from its low end 20 bits of serial number, 22 bits number of chunks, 21 bits next chunk.
A claim adds to the last field; a chunk so claimed is of the step that `step` names until it is counted in `done`.
"""

from __future__ import annotations

from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic

from ggrun.runtime.cpu import atomics, futex
from ggrun.runtime.cpu.layout import STEP_BYTES
from ggrun.runtime.cpu.words import I64, control_field, field, store_i64, word

_SERIAL_BITS, _CHUNK_BITS = 20, 22
_NEXT_SHIFT = _SERIAL_BITS + _CHUNK_BITS
_SERIAL_MASK = (1 << _SERIAL_BITS) - 1
_CHUNK_MASK = (1 << _CHUNK_BITS) - 1
_STEP_MASK = (1 << _NEXT_SHIFT) - 1  # what stays the same while a step runs
_MOST_CHUNKS = 1 << 20
_EVERY_BIT = -1


@intrinsic
def _call(typingctx, function, step, control, thread, chunk):
    """Call the kernel at an address."""

    def codegen(context, builder, signature, args):
        kernel = ir.FunctionType(I64, [I64, I64, I64, I64])
        return builder.call(builder.inttoptr(args[0], kernel.as_pointer()), args[1:])

    return types.int64(types.int64, types.int64, types.int64, types.int64, types.int64), codegen


@njit
def _publish(control, chunks):
    """Let the team claim chunks of the step that `step` names; 0 says that there is nothing."""
    work = atomics.load(word(control, "work"))
    work = ((work + 1) & _SERIAL_MASK) | (chunks << _SERIAL_BITS)
    futex.publish(word(control, "work"), work, word(control, "sleepers"))


@njit
def _do_alone(control, thread, step, chunks):
    """A step that is not worth sharing, or has more chunks than can be counted."""
    for chunk in range(chunks):
        if atomics.load_relaxed(word(control, "abort")) != 0:
            return
        _call(field(step, "kernel"), step, control, thread, chunk)


@njit
def _go_on(control, thread, step):
    """Do steps from `step` on until one has chunks to share, and share it, or finish the run."""
    end = control_field(control, "steps_end")
    while True:
        if atomics.load(word(control, "abort")) != 0:  # also after the last step: some of its chunks may have been left out
            store_i64(word(control, "stopped"), 1)
            break
        if step >= end:
            break
        chunks = _call(field(step, "kernel"), step, control, thread, -1)
        if chunks == 1 or chunks > _MOST_CHUNKS:
            _do_alone(control, thread, step, chunks)
        elif chunks > 1:
            store_i64(word(control, "step"), step)
            atomics.exchange(word(control, "done"), 0)
            _publish(control, chunks)
            return
        step += STEP_BYTES
    _publish(control, 0)  # the last touch: the leader may start the next run at once


@njit
def _chunks(work):
    return (work >> _SERIAL_BITS) & _CHUNK_MASK


@njit
def _give_way(control, since):
    """Offer the core when the last offer was a stint ago; returns when that was.

    Beside a busy process a thread loses its core sooner or later: while it holds no chunk, nobody waits for it meanwhile.
    """
    if control_field(control, "active") == 1:  # nobody waits for its chunks
        return since
    now = atomics.nanoseconds()
    if now - since < control_field(control, "stint"):
        return since
    atomics.sched_yield()
    return atomics.nanoseconds()


@njit
def _work(control, thread, work, since):
    """Claim and do one chunk of what `work` offers, or wait until it offers something else; returns when it last offered its core."""
    if work >> _NEXT_SHIFT < _chunks(work):
        since = _give_way(control, since)
        if thread >= control_field(control, "active"):  # that took a while: this may be another run, with fewer threads
            return since
        work = atomics.add(word(control, "work"), 1 << _NEXT_SHIFT)
        chunk, chunks = work >> _NEXT_SHIFT, _chunks(work)
        if chunk < chunks:
            step = control_field(control, "step")
            if atomics.load_relaxed(word(control, "abort")) == 0:
                _call(field(step, "kernel"), step, control, thread, chunk)
            if atomics.add(word(control, "done"), 1) == chunks - 1:
                _go_on(control, thread, step + STEP_BYTES)
        return since  # also when the claim came too late: the word may be another by now, and say that the run is over
    futex.wait(
        word(control, "work"),
        _STEP_MASK,
        work & _STEP_MASK,
        word(control, "sleepers"),
        control_field(control, "spins"),
        control_field(control, "yields"),
    )
    return since


def lead(control, active):
    """Work through all steps with `active` threads as thread 0; returns non-zero when abort stopped the run."""
    if control_field(control, "active") != active:
        store_i64(word(control, "active"), active)
        futex.publish(word(control, "roster"), atomics.load(word(control, "roster")) + 1, word(control, "absent"))
    store_i64(word(control, "stopped"), 0)
    _go_on(control, 0, control_field(control, "steps"))
    work = atomics.load(word(control, "work"))
    since = 0
    while _chunks(work) != 0:
        since = _work(control, 0, work, since)
        work = atomics.load(word(control, "work"))
    return control_field(control, "stopped")


def serve(control, thread):
    """A worker's life: work when on the roster, else sleep, until the team quits."""
    since = 0
    while True:
        work = atomics.load(word(control, "work"))
        roster = atomics.load(word(control, "roster"))
        if control_field(control, "quit") != 0:  # set before both words change: looked at after both were read
            return
        if thread < control_field(control, "active"):
            since = _work(control, thread, work, since)
        else:
            futex.wait(word(control, "roster"), _EVERY_BIT, roster, word(control, "absent"), 0, 0)


def dismiss(control):
    """Make every worker return from `serve`."""
    store_i64(word(control, "quit"), 1)
    _publish(control, 0)
    futex.publish(word(control, "roster"), atomics.load(word(control, "roster")) + 1, word(control, "absent"))

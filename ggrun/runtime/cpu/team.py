"""A persistent team of threads that works through a list of steps; the caller is thread 0, the others sleep in compiled code.

What the threads do is `steps`, of which this module calls three functions. Knows nothing of what the steps compute.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from ggrun.errors import GgrunError
from ggrun.runtime.cpu import compile
from ggrun.runtime.cpu.layout import CONTROL, CONTROL_BYTES, LINE

SPINS = 2000  # pauses before the core is offered to others: some tens of microseconds
YIELDS = 100  # offers before sleeping
STINT = 1_000_000  # nanoseconds of work between offers: well below what a kernel grants before it takes the core away
MAX_THREADS = 1 << 12


class Team:
    """`n_threads` threads around one control block; not for two callers at once."""

    def __init__(self, n_threads: int) -> None:
        assert 1 <= n_threads <= MAX_THREADS
        self.n_threads = n_threads
        memory = np.zeros(CONTROL_BYTES + LINE, np.uint8)
        skip = -memory.ctypes.data % LINE
        self._words: NDArray[np.int64] = memory[skip : skip + CONTROL_BYTES].view(np.int64)
        self.control = self._words.ctypes.data
        self.set(spins=SPINS, yields=YIELDS, stint=STINT, active=1)
        self._lead, serve, dismiss = compile.function("lead", 2), compile.function("serve", 2), compile.function("dismiss", 1)
        threads = [threading.Thread(target=serve, args=(self.control, i), name=f"ggrun-cpu-{i}", daemon=True) for i in range(1, n_threads)]
        # also runs before the interpreter ends: the workers must not outlive the control block
        self._stop = weakref.finalize(self, _stop, dismiss, self._words, threads)
        try:
            for thread in threads:
                thread.start()
        except RuntimeError as error:
            self._stop()
            raise GgrunError(f"the system refuses to start {n_threads} threads ({error}); ask for fewer with -t and -tb") from error

    def set(self, **fields: int) -> None:
        """Write control fields (see `layout`). Only between runs, but for `abort`."""
        for name, value in fields.items():
            self._words[CONTROL[name] // 8] = value

    def run(self, active: int) -> bool:
        """Do the steps with `active` threads; False when abort stopped it (which uses up the abort)."""
        assert 1 <= active <= self.n_threads
        stopped = self._lead(self.control, active)
        if stopped:
            self.set(abort=0)
        return not stopped

    def abort(self) -> None:
        """Stop the running or, when none runs, the next run; from any thread."""
        self.set(abort=1)

    def close(self) -> None:
        """End the threads; may be called twice."""
        self._stop()


def _stop(dismiss: Callable[[int], int], words: NDArray[np.int64], threads: list[threading.Thread]) -> None:
    """`words` keeps the control block alive until the last worker has left it."""
    dismiss(words.ctypes.data)
    for thread in threads:
        if thread.ident is not None:  # it was started
            thread.join()

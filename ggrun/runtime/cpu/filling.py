"""Makes the pages of reserved memory exist in the background, in the order in which they will be wanted.

The first touch of a gigabyte takes from a tenth of a second to some seconds. Nobody waits for it: what is touched too early
by a kernel costs that kernel a page fault, and a thread of the lowest priority does the rest while cores are idle.
"""

from __future__ import annotations

import mmap
import os
import threading
import weakref
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from ggrun.runtime.cpu import compile
from ggrun.runtime.cpu.memory import Memory

_NICE = 19


class Filling:
    """Fills the ranges (offset, n_bytes) of a memory one after the other; offsets are multiples of 8."""

    def __init__(self, memory: Memory, ranges: Iterable[tuple[int, int]]) -> None:
        stop = np.zeros(1, np.int64)
        thread = threading.Thread(target=_fill, args=(memory, ranges, stop), name="ggrun-pages", daemon=True)
        self._thread = thread
        self._stop = weakref.finalize(self, _end, stop, thread)  # also before the interpreter ends
        thread.start()

    def settle(self) -> None:
        """Wait until every page is there."""
        self._thread.join()

    def close(self) -> None:
        """Stop, and let go of the memory; may be called twice."""
        self._stop()


def _fill(memory: Memory, ranges: Iterable[tuple[int, int]], stop: NDArray[np.int64]) -> None:
    os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICE)  # on Linux, of this thread alone
    touch = compile.function("touch", 5)
    for offset, n_bytes in ranges:
        if stop[0]:
            return
        touch(memory.address + offset, n_bytes, mmap.PAGESIZE, 0, stop.ctypes.data)


def _end(stop: NDArray[np.int64], thread: threading.Thread) -> None:
    stop[0] = 1
    thread.join()

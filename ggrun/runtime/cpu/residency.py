"""Where weights reside: moves matrices from the file's pages to private huge pages while the engine works on either.

A core reads scattered 4 KB pages of a file more slowly than huge pages; copying takes longer than a user should wait. So the
executor starts on the file, a thread of the lowest priority copies matrix after matrix, and every descriptor that names a matrix
is then told its new address. That needs no lock: an address is one aligned word, and both places hold the same bytes.
Knows descriptors only as words among which addresses of weights are found.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

from ggrun.errors import GgrunError
from ggrun.plan.device import WeightCopy
from ggrun.plan.ledger import human
from ggrun.plan.memory import available_bytes
from ggrun.runtime.cpu.bind import Tensor
from ggrun.runtime.cpu.memory import Memory

PIECE_BYTES = 16 << 20  # copied between two looks at the memory that is left and at whether to stop
_NICE = 19


class Residency:
    """The copy that the plan counts: reserved when made, filled by `start`. Why it was left unfinished is added to `notes`.

    Raises GgrunError when there is no address range for it.
    """

    def __init__(self, copy: WeightCopy, tensors: Mapping[str, Tensor], notes: list[str]) -> None:
        self.n_bytes = copy.n_bytes
        self._copy, self._tensors, self._notes = copy, tensors, notes
        self._memory = Memory(copy.n_bytes, "a copy of the weights", "--load-mode mmap")
        self._moved: set[str] = set()  # tensors that are complete here
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self, steps: NDArray[np.int64], wait: Callable[[], None]) -> None:
        """Fill the copy in the background, after `wait`; `steps` are the words of all descriptors, changed in place."""
        self._thread = threading.Thread(target=self._fill, args=(steps, wait), name="ggrun-weights", daemon=True)
        self._thread.start()

    def read(self, name: str, start: int, target: memoryview) -> bool:
        """Fill `target` with a tensor's bytes from `start` on; False when they are not here yet."""
        if name not in self._moved:
            return False
        np.copyto(np.frombuffer(target, np.uint8), self._memory.view(self._copy.offsets[name] + start, len(target)))
        return True

    def settle(self) -> None:
        """Wait until the copy is complete or given up."""
        if self._thread:
            self._thread.join()

    def close(self) -> None:
        """Stop filling; the memory is freed with the last reference to this."""
        self._stop.set()
        self.settle()

    def _fill(self, steps: NDArray[np.int64], wait: Callable[[], None]) -> None:
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICE)  # on Linux, of this thread alone
        wait()
        places = self._copy.offsets
        for done, (name, offset) in enumerate(places.items()):
            tensor = self._tensors[name]
            target = self._memory.view(offset, tensor.n_bytes)
            problem = self._copy_pieces(tensor, target.data)
            if self._stop.is_set():
                return
            if problem:
                self._notes.append(f"{done} of {len(places)} matrices were copied to huge pages, the others stay mapped: {problem}")
                return
            for i in np.flatnonzero(steps == tensor.address):
                steps[i] = target.ctypes.data
            self._moved.add(name)
            tensor.release()

    def _copy_pieces(self, tensor: Tensor, target: memoryview) -> str:
        """Copy a tensor; returns why that was not possible, or "" (also when told to stop)."""
        for start in range(0, len(target), PIECE_BYTES):
            if self._stop.is_set():
                return ""
            if (available := available_bytes()) < self._copy.least_available:
                return f"only {human(available)} of memory is available"
            try:
                tensor.read(start, target[start : start + PIECE_BYTES])
            except GgrunError as error:
                return str(error)
        return ""

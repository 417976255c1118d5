"""The one block of memory an executor works in: scratch, the threads' scratch, KV. Reserved and populated once, then never grown."""

from __future__ import annotations

import errno
import mmap

import numpy as np
from numpy.typing import NDArray

from ggrun.errors import GgrunError
from ggrun.runtime.executor import Progress

_POPULATE_WRITE = 23  # MADV_POPULATE_WRITE, Linux 5.14; not yet named by the mmap module
_PIECE = 64 << 20  # bytes between two calls of progress


class Memory:
    """n_bytes of private, zeroed memory on huge pages where the system has them. Raises GgrunError when there is not enough."""

    def __init__(self, n_bytes: int, progress: Progress | None = None) -> None:
        self.n_bytes = n_bytes
        try:
            pages = mmap.mmap(-1, max(n_bytes, 1), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
            self._bytes: NDArray[np.uint8] = np.frombuffer(pages, np.uint8)
            self.address = self._bytes.ctypes.data
            if hasattr(mmap, "MADV_HUGEPAGE"):
                _advise(pages, mmap.MADV_HUGEPAGE, 0, len(pages))
            for start in range(0, n_bytes, _PIECE):
                if progress:
                    progress("load", start, n_bytes)
                length = min(_PIECE, n_bytes - start)
                if not _advise(pages, _POPULATE_WRITE, start, length):
                    self._bytes[start : start + length : mmap.PAGESIZE] = 0
        except (OSError, MemoryError) as error:
            raise GgrunError(f"cannot reserve {n_bytes / 2**20:.0f} MiB for activations and KV cache: {error}; try a smaller -c") from error
        if progress and n_bytes:
            progress("load", n_bytes, n_bytes)

    def view(self, offset: int, n_bytes: int) -> NDArray[np.uint8]:
        """uint8 [n_bytes] at an offset; keeps the memory alive."""
        assert 0 <= offset <= offset + n_bytes <= self.n_bytes
        return self._bytes[offset : offset + n_bytes]


def _advise(pages: mmap.mmap, advice: int, start: int, length: int) -> bool:
    """madvise; False when the system does not know the advice."""
    try:
        pages.madvise(advice, start, length)
    except OSError as error:
        if error.errno in (errno.EINVAL, errno.ENOSYS, errno.EPERM):
            return False
        raise
    return True

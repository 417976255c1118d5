"""The blocks of memory an executor works in, one for scratch and KV, one for copied weights: addresses reserved once, never grown."""

from __future__ import annotations

import contextlib
import mmap

import numpy as np
from numpy.typing import NDArray

from ggrun.errors import GgrunError


class Memory:
    """n_bytes of private, zeroed memory, on huge pages where the system has them; a page exists when it is first touched (`filling`).

    what: what it is for, and way_out: what to try; both for the GgrunError when there is not enough.
    """

    def __init__(self, n_bytes: int, what: str = "activations and KV cache", way_out: str = "a smaller -c") -> None:
        self.n_bytes = n_bytes
        try:
            pages = mmap.mmap(-1, max(n_bytes, 1), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        except (OSError, MemoryError, OverflowError) as error:
            raise GgrunError(f"cannot reserve {n_bytes / 2**20:.0f} MiB for {what}: {error}; try {way_out}") from error
        if hasattr(mmap, "MADV_HUGEPAGE"):
            with contextlib.suppress(OSError):  # a kernel without huge pages is only slower
                pages.madvise(mmap.MADV_HUGEPAGE)
        self._bytes: NDArray[np.uint8] = np.frombuffer(pages, np.uint8)
        self.address = self._bytes.ctypes.data

    def view(self, offset: int, n_bytes: int) -> NDArray[np.uint8]:
        """uint8 [n_bytes] at an offset; keeps the memory alive."""
        assert 0 <= offset <= offset + n_bytes <= self.n_bytes
        return self._bytes[offset : offset + n_bytes]

"""Where a file's bytes live: in a mapping of the file, locked there or not, or in private memory.

Knows files, pages and load modes; must not know what the bytes are. Whoever truncates a file while it is mapped kills the process
that reads the missing pages (SIGBUS, as with any mapping): sizes are checked again when the file is loaded, and after
`--load-mode none` the weights depend on the file no more.
"""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import os
import stat
from collections.abc import Callable
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from ggrun.gguf.error import GgufError

Progress: TypeAlias = Callable[[str, int, int], None]
"""progress(stage, done, total); the stage here is "load", the counts are bytes."""

LOAD_MODES = ("auto", "mmap", "none", "mlock", "mmap+mlock")

_CHUNK_BYTES = 16 << 20


class FileBytes:
    """The bytes of one regular file, addressed by their offset in it. Opening maps them all; nothing is read yet."""

    def __init__(self, path: str) -> None:
        self.path = path
        self._fd = -1
        try:
            mode = os.stat(path).st_mode
            if stat.S_ISDIR(mode):
                raise GgufError(f"{path} is a folder, not a GGUF file; name a .gguf file in it")
            if not stat.S_ISREG(mode):
                raise GgufError(f"{path} is not a regular file; a model is mapped into memory and cannot come from a pipe or device")
            self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            self.size = os.fstat(self._fd).st_size
            if self.size == 0:
                raise GgufError(f"{path} is not a GGUF file: it is empty")
            self._mapping: mmap.mmap | None = mmap.mmap(self._fd, self.size, access=mmap.ACCESS_READ)
        except FileNotFoundError:
            raise GgufError(f"{path}: there is no such file") from None
        except (OSError, ValueError, OverflowError) as error:  # ValueError: a null character in the path
            self._close_descriptor()
            raise GgufError(f"{path} cannot be opened: {getattr(error, 'strerror', None) or error}") from None
        except GgufError:
            self._close_descriptor()
            raise
        self._locked: tuple[int, int] | None = None
        self._hold(self._mapping, 0)

    def _hold(self, memory: mmap.mmap, first: int) -> None:
        """From now on the bytes from offset `first` on are those of `memory`."""
        self._view: NDArray[np.uint8] | None = np.frombuffer(memory, np.uint8)
        self._view.flags.writeable = False
        self._first = first
        self._base = int(self._view.__array_interface__["data"][0]) - first

    def header(self) -> memoryview:
        """All bytes of the file, mapped, for reading its header."""
        if self._mapping is None:
            raise GgufError(f"{self.path} is closed")
        return memoryview(self._mapping)

    def view(self, offset: int, n_bytes: int) -> NDArray[np.uint8]:
        """`n_bytes` bytes from `offset` on, uint8, read-only, not copied."""
        if self._view is None:
            raise GgufError(f"{self.path} is closed")
        start = offset - self._first
        return self._view[start : start + n_bytes]

    def address(self, offset: int) -> int:
        """The address of the byte at `offset`."""
        if self._view is None:
            raise GgufError(f"{self.path} is closed")
        return self._base + offset

    def check_size(self) -> None:
        """GgufError when the file is no longer as long as it was when it was opened."""
        size = os.fstat(self._fd).st_size
        if size != self.size:
            raise GgufError(
                f"{self.path} changed while it was open, from {self.size} to {size} bytes; wait until it is complete and try again"
            )

    def prefetch(self, start: int, end: int) -> None:
        """Tell the kernel that the bytes from `start` to `end` are wanted soon. Returns at once; they are read meanwhile."""
        if self._mapping is not None and hasattr(mmap, "MADV_WILLNEED") and end > start:
            first = start - start % mmap.PAGESIZE
            with contextlib.suppress(OSError):  # a hint only
                self._mapping.madvise(mmap.MADV_WILLNEED, first, end - first)

    def read_privately(self, start: int, end: int, progress: Callable[[int], None]) -> None:
        """Copy the bytes from `start` to `end` into private memory with huge pages, and use that from now on.

        `progress` is called with the number of bytes of every chunk read. GgufError when memory or the file runs out.
        """
        self.check_size()
        if end <= start:
            return
        try:
            memory = mmap.mmap(-1, end - start, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        except (OSError, ValueError, OverflowError):
            raise GgufError(f"{self.path}: there is no memory for a private copy of {end - start} bytes; use --load-mode mmap") from None
        if hasattr(mmap, "MADV_HUGEPAGE"):
            with contextlib.suppress(OSError):  # a kernel without huge pages is only slower
                memory.madvise(mmap.MADV_HUGEPAGE)
        with memoryview(memory) as target:
            self.read(start, target, progress)
        self._hold(memory, start)

    def read(self, start: int, target: memoryview, progress: Callable[[int], None] | None = None) -> None:
        """Fill `target` with the file's bytes from `start` on, past the mapping: no page of it is touched.

        `progress` is called with the number of bytes of every chunk read. GgufError when the file cannot be read or ends.
        """
        done = 0
        while done < len(target):
            try:
                n = os.preadv(self._fd, [target[done : done + _CHUNK_BYTES]], start + done)
            except OSError as error:
                raise GgufError(f"{self.path} cannot be read at byte {start + done}: {error.strerror}") from None
            if n == 0:
                raise GgufError(f"{self.path} ends at byte {start + done} while it is read: it was cut short after it was opened")
            done += n
            if progress:
                progress(n)

    def release(self, start: int, end: int) -> None:
        """Let go of the mapped pages within `start` and `end`: the process holds them no more; whoever looks at them maps them again."""
        first, last = start + -start % mmap.PAGESIZE, end - end % mmap.PAGESIZE
        if self._mapping is not None and first < last and hasattr(mmap, "MADV_DONTNEED"):
            with contextlib.suppress(OSError):  # locked pages stay
                self._mapping.madvise(mmap.MADV_DONTNEED, first, last - first)

    def lock(self, start: int, end: int) -> str:
        """Lock the bytes from `start` to `end` in RAM; "" or, when the system refuses, why (they stay mapped)."""
        if end <= start or self._locked:
            return ""
        first = self.address(start) & -mmap.PAGESIZE
        n_bytes = self.address(end) - first
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.mlock(ctypes.c_void_p(first), ctypes.c_size_t(n_bytes)) != 0:
            return os.strerror(ctypes.get_errno())
        self._locked = first, n_bytes
        return ""

    def close(self) -> None:
        """Let go of the bytes. Arrays that still look at them keep their memory alive until they are gone themselves."""
        if self._locked:
            ctypes.CDLL(None).munlock(ctypes.c_void_p(self._locked[0]), ctypes.c_size_t(self._locked[1]))
            self._locked = None
        self._view = None
        mapping, self._mapping = self._mapping, None
        if mapping is not None:
            with contextlib.suppress(BufferError):  # metadata arrays in use keep it; the last of them unmaps it
                mapping.close()
        self._close_descriptor()

    def _close_descriptor(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

"""The two blocks of memory an executor has: an arena on the device and a pinned one on the host. Made once, never grown, freed by name.

Both need the device's context to be current.
"""

from __future__ import annotations

import ctypes
import mmap
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ggrun.errors import GgrunError
from ggrun.plan.ledger import human
from ggrun.runtime.cuda import driver as cuda

_PORTABLE = 1  # CU_MEMHOSTREGISTER_PORTABLE: pinned for every context
_ALREADY = 712  # CUDA_ERROR_HOST_MEMORY_ALREADY_REGISTERED


class OutOfDeviceMemory(GgrunError):
    """The device, or what the system lets be pinned, has less than the plan needs: something else took it since."""


class Arena:
    """n_bytes on the device of the current context; `address` is a multiple of 256."""

    def __init__(self, driver: Any, n_bytes: int, device: str) -> None:
        self.n_bytes = n_bytes
        try:
            self._memory: Any = driver.mem_alloc(max(n_bytes, 1))
        except driver.MemoryError:
            free, total = driver.mem_get_info()
            raise OutOfDeviceMemory(
                f"{device}: the plan needs {human(n_bytes)} and the driver refuses it with {human(free)} of {human(total)} free; "
                "close what else uses the GPU, or take fewer layers (-ngl) or a smaller context (-c)"
            ) from None
        self.address = int(self._memory)

    def free(self) -> None:
        self._memory.free()


class Pinned:
    """n_bytes of host memory that the device copies from and to by itself; usable from every context."""

    def __init__(self, driver: Any, n_bytes: int, device: str) -> None:
        self.n_bytes = n_bytes
        try:
            self.bytes: NDArray[np.uint8] = driver.pagelocked_empty(n_bytes, np.uint8, mem_flags=driver.host_alloc_flags.PORTABLE)
        except driver.Error as error:
            raise OutOfDeviceMemory(
                f"{device}: the system refuses to pin {human(n_bytes)} of memory ({error}); a smaller -ub or -np needs less"
            ) from None
        self._memory: Any = self.bytes.base

    def part(self, offset: int, n_bytes: int) -> NDArray[np.uint8]:
        """uint8 [n_bytes] at an offset."""
        assert 0 <= offset <= offset + n_bytes <= self.n_bytes
        return self.bytes[offset : offset + n_bytes]

    def free(self) -> None:
        """Views handed out before must not be used any more."""
        self._memory.free()


def register(address: int, n_bytes: int) -> Callable[[], None]:
    """Pin memory that is there already, by whole pages; returns what undoes it. GgrunError when the driver refuses.

    Through the driver's own interface: PyCUDA's register_host_memory fails with current NumPy.
    """
    library = cuda.library()
    first = address - address % mmap.PAGESIZE
    size = -(-(address + n_bytes - first) // mmap.PAGESIZE) * mmap.PAGESIZE
    code = library.cuMemHostRegister_v2(ctypes.c_void_p(first), ctypes.c_size_t(size), ctypes.c_uint(_PORTABLE))
    if code == _ALREADY:  # another device's executor did
        return lambda: None
    if code:
        raise GgrunError(f"the driver refuses to pin {human(n_bytes)} of host memory (CUDA error {code})")
    return lambda: library.cuMemHostUnregister(ctypes.c_void_p(first))

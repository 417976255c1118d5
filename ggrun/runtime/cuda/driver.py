"""The NVIDIA driver's library through ctypes: just enough to learn, without PyCUDA, what driver and devices there are.

Knows nothing of ggrun but its error class.
"""

from __future__ import annotations

import ctypes
import functools
from dataclasses import dataclass

from ggrun.errors import GgrunError
from ggrun.runtime.cuda.launch import Arch

LIBRARY = "libcuda.so.1"
OLDEST = (12, 0)  # of the driver's CUDA versions: cubins of NVRTC 12.x load on every driver of 12.0 on ("minor version compatibility")
OLDEST_NAME = "525"  # the driver release that brought it

# CUdevice_attribute
_PROCESSORS, _MAJOR, _MINOR, _SHARED_OPTIN, _INTEGRATED, _CLOCK_MEMORY, _BUS_BITS = 16, 75, 76, 97, 18, 36, 37


class DriverError(GgrunError):
    """A call of the driver failed; `code` is its CUresult."""

    def __init__(self, text: str, code: int) -> None:
        super().__init__(text)
        self.code = code


@dataclass(frozen=True, slots=True)
class Device:
    """One GPU. cc: compute capability, 86 for 8.6. bandwidth: bytes a second by clock and bus, 0 when the driver does not say."""

    index: int
    name: str
    cc: int
    total_bytes: int
    n_sm: int
    shared_bytes: int
    pci: str
    integrated: bool
    bandwidth: int

    @property
    def label(self) -> str:
        """Its name in plans and flags."""
        return f"CUDA{self.index}"

    @property
    def arch(self) -> Arch:
        """What the choice of a kernel may depend on."""
        return Arch(self.cc, self.n_sm, self.shared_bytes)

    @property
    def capability(self) -> str:
        """8.6"""
        return f"{self.cc // 10}.{self.cc % 10}"


@functools.cache
def library() -> ctypes.CDLL:
    """The driver's library, loaded once. OSError when there is none."""
    return ctypes.CDLL(LIBRARY)


def call(function: str, *arguments: object) -> None:
    """Call one function of the driver. Raises DriverError, also when this driver lacks it."""
    try:
        address = getattr(library(), function)
    except AttributeError:
        raise DriverError(f"the NVIDIA driver has no {function}; a newer one has", 0) from None
    check(function, address(*arguments))


def check(function: str, code: int) -> None:
    """Raise DriverError for what a function of the driver answered, unless that is success."""
    if code:
        raise DriverError(f"{function}: {_text(code)}", code)


def _text(code: int) -> str:
    text = ctypes.c_char_p()
    library().cuGetErrorString(code, ctypes.byref(text))
    return f"{(text.value or b'unknown error').decode()} (CUDA error {code})"


def version() -> tuple[int, int]:
    """The newest CUDA that the driver knows, (12, 4) for 12.4."""
    number = ctypes.c_int()
    call("cuDriverGetVersion", ctypes.byref(number))
    return number.value // 1000, number.value % 1000 // 10


def devices() -> list[Device]:
    """Every GPU the driver shows this process. Raises DriverError."""
    call("cuInit", 0)
    count = ctypes.c_int()
    call("cuDeviceGetCount", ctypes.byref(count))
    return [_device(index) for index in range(count.value)]


def _device(index: int) -> Device:
    handle = ctypes.c_int()
    call("cuDeviceGet", ctypes.byref(handle), index)
    name, pci = ctypes.create_string_buffer(256), ctypes.create_string_buffer(32)
    call("cuDeviceGetName", name, len(name), handle)
    call("cuDeviceGetPCIBusId", pci, len(pci), handle)
    total = ctypes.c_size_t()
    call("cuDeviceTotalMem_v2", ctypes.byref(total), handle)

    def attribute(which: int) -> int:
        value = ctypes.c_int()
        call("cuDeviceGetAttribute", ctypes.byref(value), which, handle)
        return value.value

    return Device(
        index,
        name.value.decode(errors="replace"),
        attribute(_MAJOR) * 10 + attribute(_MINOR),
        total.value,
        attribute(_PROCESSORS),
        attribute(_SHARED_OPTIN),
        pci.value.decode(),
        bool(attribute(_INTEGRATED)),
        2 * attribute(_CLOCK_MEMORY) * 1000 * attribute(_BUS_BITS) // 8,
    )

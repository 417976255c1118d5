"""Kernels on NumPy arrays: compiled by the stand-in compiler, called in this process, no driver between. An address is an array's address.

    emulator = Emulator(cc=86)
    emulator.run(rows.add(a.ctypes.data, b.ctypes.data, y.ctypes.data, n))                  # a Launch or a list of them
    for order in ORDERS: emulator.run(launches, order)

What a GPU leaves undefined raises KernelError with the kernel's name, block and thread: a barrier that not all threads reach, a collective
met at different lines, memory outside an array made by `guarded`, an address that is not aligned.
"""

from __future__ import annotations

import ctypes
import mmap
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from ggrun.runtime.cuda import sources
from ggrun.runtime.cuda.launch import Launch
from ggrun.runtime.cuda.nvrtc import Nvrtc
from tests.gpu.emulation.build import standins

ORDERS = (0, 1, 7, 1234567)  # of threads and blocks: as numbered, backwards, shuffled
PAGE = mmap.PAGESIZE
POISON = 0xCB

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]


class KernelError(Exception):
    """What the emulation caught: the kernel, the block, the thread and what it did."""


def guarded(array: NDArray[Any]) -> NDArray[Any]:
    """A copy that ends at a page nobody may touch, so that reading or writing behind it raises KernelError. (Up to 15 bytes behind stay
    unseen where its size is no multiple of 16: it starts 16-byte aligned, as cudaMalloc's memory is at least.)"""
    size = max(1, array.nbytes)
    rounded = (size + 15) // 16 * 16
    pages = (rounded + PAGE - 1) // PAGE * PAGE
    memory = mmap.mmap(-1, pages + PAGE)
    start = np.frombuffer(memory, np.uint8).ctypes.data
    assert not _libc.mprotect(start + pages, PAGE, 0)
    flat = np.frombuffer(memory, np.uint8, rounded, pages - rounded)
    flat[:] = POISON
    copy: NDArray[Any] = flat[: array.nbytes].view(array.dtype).reshape(array.shape)
    copy[...] = array
    return copy


def poisoned(shape: int | tuple[int, ...], dtype: DTypeLike = np.float32) -> NDArray[Any]:
    """A guarded array full of 0xCB, as fresh device memory is on the stand-in driver."""
    count = int(np.prod(shape)) * np.dtype(dtype).itemsize
    return guarded(np.full(count, POISON, np.uint8)).view(dtype).reshape(shape)


class Emulator:
    """Runs launches for a device of compute capability cc."""

    def __init__(self, cc: int = 90, extra: dict[str, str] | None = None) -> None:
        """extra: more .cuh texts by name, for kernels that only tests have (their `#define KERNEL_...` counts first)."""
        self.cc = cc
        made = standins()
        self.compiler = Nvrtc(str(made.nvrtc))
        self._runtime = ctypes.CDLL(str(made.runtime))
        self._runtime.emulation_error.restype = ctypes.c_char_p
        self._runtime.emulation_weight_bytes.restype = ctypes.c_uint64
        self._sources = sources.texts() | (extra or {})
        self._bases = sources.bases() | {base: name for name, text in (extra or {}).items() for base in sources.bases_of(text)}
        self._functions: dict[str, Any] = {}
        self._folder = tempfile.TemporaryDirectory(prefix="ggrun-kernels-")

    def prepare(self, kernels: Iterable[str]) -> None:
        """Compile these now, those of one file together; `run` compiles what is missing."""
        wanted: dict[str, list[str]] = {}
        for kernel in dict.fromkeys(kernels):
            if kernel not in self._functions:
                wanted.setdefault(self._bases[kernel.split("__")[0]], []).append(kernel)
        for file, names in wanted.items():
            one = sources.unit(file, names, self._sources)
            module = sources.compile_unit(one, self.compiler.target(self.cc), self.compiler, Path(self._folder.name) / "kept")
            path = Path(self._folder.name) / f"{len(self._functions)}.so"
            path.write_bytes(module.image)
            library = ctypes.CDLL(str(path))
            self._functions |= {name: getattr(library, f"emulated_{name}") for name in names}

    def run(self, launches: Launch | Iterable[Launch], order: int = 0) -> int:
        """Run them one after the other. A: the weight bytes they read through the load helpers. Raises KernelError."""
        launches = [launches] if isinstance(launches, Launch) else list(launches)
        self.prepare(launch.kernel for launch in launches)
        self._runtime.emulation_order(ctypes.c_uint(order))
        self._runtime.emulation_weight_bytes(1)
        for launch in launches:
            grid, block = (ctypes.c_uint * 3)(*launch.grid), (ctypes.c_uint * 3)(*launch.block)
            function = self._functions[launch.kernel]
            failed = function(launch.args, ctypes.c_size_t(len(launch.args)), grid, block, ctypes.c_size_t(launch.shared_bytes))
            if failed == 2:
                raise KernelError(f"{launch.kernel}: {len(launch.args)} bytes of arguments are not what it takes")
            if failed:
                text = self._runtime.emulation_error().decode()
                self._runtime.emulation_clear()
                raise KernelError(text)
        return int(self._runtime.emulation_weight_bytes(1))

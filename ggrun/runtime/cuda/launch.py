"""One kernel launch as data: what the modules that choose kernels make, and the executor runs or captures."""

from __future__ import annotations

import struct
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Arch:
    """What the choice of a kernel may depend on: compute capability (61, 75, 80 ...), multiprocessors, shared bytes a block may have."""

    cc: int
    n_sm: int
    shared_bytes: int


@dataclass(frozen=True, slots=True)
class Launch:
    """A kernel by name (see `sources`), its grid and block, its arguments laid out as C does, and dynamic shared bytes."""

    kernel: str
    grid: tuple[int, int, int]
    block: tuple[int, int, int]
    args: bytes
    shared_bytes: int = 0


def pack(types: str, *values: int | float) -> bytes:
    """Arguments in C's layout. types: P pointer, i int, q long long, f float, one letter a value."""
    return struct.pack("@" + types, *values)

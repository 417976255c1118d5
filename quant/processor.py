"""The processor that kernels are compiled for: what Numba would answer, asked of LLVM, so that a start which compiles nothing
need not import Numba. Its variables NUMBA_CPU_NAME, NUMBA_CPU_FEATURES and NUMBA_ENABLE_AVX count here as they do there.
"""

from __future__ import annotations

import functools
import os
from pathlib import Path
from typing import NamedTuple

_AVX_OFF = {"corei7-avx", "core-avx-i", "sandybridge", "ivybridge", "nocona"}  # processors on which Numba leaves AVX unused


class Processor(NamedTuple):
    """LLVM's names: target triple, processor, and features such as "+avx2,-avx512f"."""

    triple: str
    name: str
    features: str


@functools.cache
def processor() -> Processor:
    """What this process's kernels are compiled for."""
    import llvmlite.binding as llvm

    name = os.environ.get("NUMBA_CPU_NAME", llvm.get_host_cpu_name())
    features = os.environ.get("NUMBA_CPU_FEATURES", "" if name.lower() == "generic" else None)
    if features is None:
        present = llvm.get_host_cpu_features()
        if not _avx(name):
            present.update((feature, False) for feature in present if feature.startswith("avx"))
        features = present.flatten()
    return Processor(llvm.get_process_triple(), name, features)


def _avx(name: str) -> bool:
    wanted = os.environ.get("NUMBA_ENABLE_AVX")
    if wanted is not None:
        return wanted != "0"
    if name in _AVX_OFF:
        return False
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return True
    return next((" avx " in f"{line} " for line in lines if line.startswith("flags")), True)

"""How fast this machine reads memory, measured in about a tenth of a second; an upper bound for generating tokens."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from time import perf_counter

import numpy as np

_BYTES = 96 << 20  # of each thread; larger than any cache share


def read_bandwidth(n_threads: int, repeats: int = 3) -> float:
    """Bytes a second that n_threads read together, the best of `repeats` passes."""
    arrays = [np.ones(_BYTES // 8, np.int64) for _ in range(n_threads)]
    best = 0.0
    with ThreadPoolExecutor(n_threads) as pool:
        for _ in range(repeats):
            start = perf_counter()
            list(pool.map(np.bitwise_or.reduce, arrays))  # NumPy lets go of the GIL in a reduction
            best = max(best, _BYTES * n_threads / (perf_counter() - start))
    return best

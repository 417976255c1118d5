"""Outputs with untouchable surroundings, for kernel tests: poison before, poison and then a page nobody may touch behind."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from tests.gpu.emulation.kernels import POISON, poisoned

FRAME = 256  # bytes before and behind: keeps the alignment that buffers have


class Frame:
    """An output array full of poison; `whole()` says that nothing around it was written."""

    def __init__(self, shape: int | tuple[int, ...], dtype: DTypeLike = np.float32) -> None:
        n_bytes = int(np.prod(shape)) * np.dtype(dtype).itemsize
        self._all = poisoned(FRAME + (n_bytes + 15) // 16 * 16 + FRAME, np.uint8)
        self._end = FRAME + n_bytes
        self.array: NDArray[Any] = self._all[FRAME : self._end].view(dtype).reshape(shape)

    @property
    def address(self) -> int:
        return self.array.ctypes.data

    def whole(self) -> bool:
        return bool((self._all[:FRAME] == POISON).all() and (self._all[self._end :] == POISON).all())


def error(found: NDArray[Any], right: NDArray[Any]) -> float:
    """Largest difference, relative to the largest magnitude of what is right. Infinite when something found is not finite."""
    if not np.isfinite(found).all():
        return float("inf")
    return float(np.abs(found.astype(np.float64) - right).max() / max(np.abs(right).max(), 1e-30))

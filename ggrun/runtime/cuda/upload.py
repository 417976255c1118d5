"""Weights from the file to the device through the two halves of a pinned block: one is read into while the other is being copied.

The file is read past its mapping, so that no page of it counts as this process's memory. Knows names and extents, not formats.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ggrun.runtime.cuda.bind import Tensor


def upload(
    driver: Any,
    stream: Any,
    halves: tuple[NDArray[np.uint8], NDArray[np.uint8]],
    offsets: Mapping[str, int],
    tensors: Mapping[str, Tensor],
    address: int,
    kept: frozenset[str],
    progress: Callable[[int], None],
) -> None:
    """Fill the weight arena at `address` and wait until it is there.

    halves: pinned, of the same size. offsets: tensor -> place in the arena. kept: names of tensors whose mapped pages the CPU goes on
    using. progress is told the bytes of every piece. GgrunError when the file cannot be read.
    """
    copied = [driver.Event(driver.event_flags.DISABLE_TIMING) for _ in halves]
    piece, n_pieces = len(halves[0]), 0
    try:
        for name, offset in sorted(offsets.items(), key=lambda item: item[1]):
            tensor = tensors[name]
            for start in range(0, tensor.n_bytes, piece):
                half, event = halves[n_pieces % 2], copied[n_pieces % 2]
                if n_pieces >= 2:
                    event.synchronize()  # its copy of two pieces ago
                part = half[: min(piece, tensor.n_bytes - start)]
                tensor.read(start, part.data)
                driver.memcpy_htod_async(address + offset + start, part, stream)
                event.record(stream)
                n_pieces += 1
                progress(len(part))
            if name not in kept:
                tensor.release()
    finally:
        stream.synchronize()  # also before an error leaves: the halves are about to be freed

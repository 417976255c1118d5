"""What a family module says of each of its formats: the block's fields in order, how to read blocks, how to make them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Blocks = NDArray[np.void]


@dataclass(frozen=True, slots=True)
class Codec:
    """Layout, reader and writer of one format.

    `layout` is a packed structured dtype of one block. `decode` maps layout[n] to float32[n, block_elements]; `encode`
    maps float32[n, block_elements] (finite for block formats) to layout[n].
    """

    layout: np.dtype[np.void]
    decode: Callable[[Blocks], Floats]
    encode: Callable[[Floats], Blocks]


def pack_fields(layout: np.dtype[np.void], **fields: NDArray[np.generic]) -> Blocks:
    """A block array from one array per field of `layout`, each with the blocks along its first axis."""
    blocks: Blocks = np.empty(len(next(iter(fields.values()))), layout)
    for name in layout.names or ():
        blocks[name] = fields[name]
    return blocks


def inverse(scale: Floats) -> Floats:
    """1 / scale, and 0 where the scale is zero or so small that its inverse overflows: such a block rounds to zeros."""
    with np.errstate(divide="ignore", over="ignore"):
        result = np.float32(1) / scale
    return np.where(np.isfinite(result), result, np.float32(0))

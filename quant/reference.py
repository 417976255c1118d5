"""Reading and writing any format with NumPy: the definition every kernel on every device is tested against.

Dispatches to the family modules and walks big arrays in slices, so that the working memory stays at a few megabytes beside the
result. Plain and exact rather than fast: kernels live in `quant.cpu`.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from quant import iq, k_quants, legacy
from quant.codec import Codec, Floats
from quant.format import Format

CODECS: Mapping[str, Codec] = MappingProxyType({**legacy.CODECS, **k_quants.CODECS, **iq.CODECS})
"""Layout, decoder and encoder of every format, by name."""

_SLICE_ELEMENTS = 1 << 17  # temporaries of a slice stay in the second-level cache


def dequantize(fmt: Format, raw: NDArray[np.uint8]) -> Floats:
    """uint8[..., row_bytes] as stored -> float32[..., n], bit for bit what GGML's own arithmetic gives.

    Signalling NaN scales and infinities pass through as IEEE arithmetic has it. ValueError when the last axis is not a whole
    number of blocks.
    """
    shape = (*raw.shape[:-1], fmt.row_elements(raw.shape[-1]))
    codec = CODECS[fmt.name]
    blocks = np.ascontiguousarray(raw, np.uint8).reshape(-1).view(codec.layout)
    out = np.empty((len(blocks), fmt.block_elements), np.float32)
    step = _SLICE_ELEMENTS // fmt.block_elements
    with np.errstate(invalid="ignore", over="ignore"):
        for start in range(0, len(blocks), step):
            out[start : start + step] = codec.decode(blocks[start : start + step])
    return out.reshape(shape)


def quantize(fmt: Format, x: NDArray[np.floating]) -> NDArray[np.uint8]:
    """Numbers [..., n] -> uint8[..., row_bytes].

    F16 and BF16 round to nearest even; the 32-element formats decide as GGML's reference quantizers do; the others search
    scales by least squares. ValueError when n is not a whole number of blocks, or when a block format is given NaN or infinity.
    """
    shape = (*x.shape[:-1], fmt.row_bytes(x.shape[-1]))
    codec = CODECS[fmt.name]
    rows = np.ascontiguousarray(x, np.float32).reshape(-1, fmt.block_elements)
    if fmt.block_elements > 1 and not np.isfinite(rows).all():
        raise ValueError(f"NaN or infinity cannot be stored as {fmt.name}")
    blocks = np.empty(len(rows), codec.layout)
    step = _SLICE_ELEMENTS // fmt.block_elements
    for start in range(0, len(rows), step):
        blocks[start : start + step] = codec.encode(rows[start : start + step])
    return blocks.view(np.uint8).reshape(shape)

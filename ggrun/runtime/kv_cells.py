"""Float32 vectors of cached cells to the runs of `runtime.kv_form` and back: how the reference executor, which keeps float32, does it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from quant.format import format_by_name
from quant.reference import dequantize, quantize

SCALE = 2  # bytes at the start of a GGUF block of q8_0 and q4_0; the quants follow
Bytes = NDArray[np.uint8]


def encode(kind: str, x: NDArray[np.float32], runs: Sequence[Bytes]) -> None:
    """x [heads, 32, dim] to the runs [heads, 32, bytes] of a kind of KV."""
    fmt = format_by_name(kind.upper())
    raw = quantize(fmt, x)
    if len(runs) == 1:
        runs[0][:] = raw
        return
    blocks = raw.reshape(*raw.shape[:-1], -1, fmt.row_bytes(fmt.block_elements))
    runs[0][:] = blocks[..., SCALE:].reshape(runs[0].shape)
    runs[1][:] = blocks[..., :SCALE].reshape(runs[1].shape)


def decode(kind: str, runs: Sequence[Bytes]) -> NDArray[np.float32]:
    """The other way: float32 [heads, 32, dim]."""
    fmt = format_by_name(kind.upper())
    raw = runs[0]
    if len(runs) == 2:
        heads, tokens, _ = runs[0].shape
        scales = runs[1].reshape(heads, tokens, -1, SCALE)
        quants = runs[0].reshape(heads, tokens, scales.shape[2], -1)
        raw = np.concatenate((scales, quants), -1).reshape(heads, tokens, -1)
    return dequantize(fmt, np.ascontiguousarray(raw))

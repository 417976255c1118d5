"""CPU kernels of every weight format: choose one by format and tier, get its address and the sizes of its buffers.

A kernel is a C function with int64 arguments (addresses and counts) that takes no lock and allocates nothing; it is compiled
on first request and kept where `quant.objects` was told. Key that folder by the contents of `source_files()` and the processor.
Knows nothing of tensors, threads or operations; `docs/kernels.md` has the layouts and the rules.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import quant
from quant import objects, simd
from quant.cpu import activations, floats, panel
from quant.cpu.blocks import BLOCK_FORMATS
from quant.cpu.floats import FLOAT_FORMATS
from quant.format import Format
from quant.simd import TARGETS, tiers

__all__ = [
    "ActivationKernel",
    "GetRowKernel",
    "MatmulKernel",
    "activation_bytes",
    "activation_kernel",
    "get_row_kernel",
    "matmul_kernel",
    "matmul_scratch_bytes",
    "source_files",
    "tiers",
]


def activation_bytes(name: str, tier: str, k: int, n_tokens: int) -> int:
    """Size of n_tokens rows of k elements as activations of kind `name`. Compiles nothing and imports no Numba."""
    return activations.activation_bytes(name, k, n_tokens, TARGETS[tier].tile_tokens)


def matmul_scratch_bytes(fmt: Format, tier: str, n_tokens: int) -> int:
    """Private memory one thread needs to multiply rows of `fmt` by n_tokens tokens. Compiles nothing and imports no Numba."""
    if fmt.name in FLOAT_FORMATS:
        return floats.scratch_bytes(TARGETS[tier])
    return panel.scratch_bytes(BLOCK_FORMATS[fmt.name], TARGETS[tier], n_tokens)


@dataclass(frozen=True, slots=True)
class ActivationKernel:
    """void quantize(src, src_stride_bytes, index, t0, t1, k, n_tokens, dst), all int64.

    Turns float32 rows t0..t1-1 of n_tokens into dst's layout; row t is read from src + (index ? int32 index[t] : t) * stride.
    t0 is a multiple of `tile`; the call with t1 == n_tokens also fills the last tile's padding.
    """

    name: str
    tier: str
    address: int
    tile: int

    def bytes(self, k: int, n_tokens: int) -> int:
        """Size of dst for n_tokens rows of k elements."""
        return activation_bytes(self.name, self.tier, k, n_tokens)


@dataclass(frozen=True, slots=True)
class MatmulKernel:
    """void rows(w, row_bytes, r0, r1, k, x, n_tokens, out, out_stride_bytes, scratch), all int64.

    out[t * stride + 4 * r] = W[r] . x[t] as float32 for r0 <= r < r1 and every token; x is in the layout that the activation
    kernel `activation` made for the same n_tokens. The bits of a result depend on its row and token only. Best with r0 a
    multiple of `row_tile`; any r0 < r1 is right. Reads nothing beyond the end of row r1 - 1 (of any row given).
    """

    format: Format
    tier: str
    address: int
    activation: str
    row_tile: int

    def scratch_bytes(self, k: int, n_tokens: int) -> int:
        """Private memory one thread needs for a call with rows of k elements and n_tokens tokens."""
        return matmul_scratch_bytes(self.format, self.tier, n_tokens)


@dataclass(frozen=True, slots=True)
class GetRowKernel:
    """void get_row(row_address, k, dst): k elements as float32, equal bit for bit to `quant.reference.dequantize`."""

    format: Format
    address: int


@functools.cache
def activation_kernel(name: str, tier: str) -> ActivationKernel:
    """The kernel that makes activations of kind "f32", "q8_0" or "q8_k" on a tier. Compiles on first use."""
    address = objects.address(f"quantize.{name}.{tier}", lambda: _compiled().activation_function(name, tier))
    return ActivationKernel(name, tier, address, 1 if name == "f32" else TARGETS[tier].tile_tokens)


@functools.cache
def matmul_kernel(fmt: Format, tier: str) -> MatmulKernel:
    """The matrix product of a format on a tier. Compiles on first use."""
    target = TARGETS[tier]
    address = objects.address(f"rows.{fmt.name}.{tier}", lambda: _compiled().matmul_function(fmt.name, tier))
    row_tile = floats.tile_shape(target)[0] if fmt.name in FLOAT_FORMATS else panel.panel(BLOCK_FORMATS[fmt.name], target).rows
    return MatmulKernel(fmt, tier, address, fmt.activation or "f32", row_tile)


@functools.cache
def get_row_kernel(fmt: Format, tier: str) -> GetRowKernel:
    """The row decoder of a format on a tier. Compiles on first use."""
    return GetRowKernel(fmt, objects.address(f"get_row.{fmt.name}.{tier}", lambda: _compiled().get_row_function(fmt.name, tier)))


def _compiled() -> Any:
    """What imports Numba."""
    from quant.cpu import compiled

    return compiled


def source_files() -> list[Path]:
    """Every source file that a compiled kernel depends on, for the key of the compilation cache."""
    package = Path(quant.__path__[0])
    return [Path(simd.__file__), *sorted(Path(__file__).parent.glob("*.py")), package / "iq.py", package / "compiler.py"]

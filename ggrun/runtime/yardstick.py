"""One small program with a step of every kind that matters: what devices are measured with (`ggrun tune`). Knows no device."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ggrun.plan.device import KV_BLOCK_TOKENS
from ggrun.program.builder import Builder
from ggrun.program.params import Attention
from ggrun.program.program import Program
from ggrun.program.verify import verify
from ggrun.runtime.executor import Batch
from quant.format import Format, format_by_name
from quant.reference import quantize

KINDS = {"q8_k": "Q4_K", "q8_0": "Q8_0", "f32": "F16"}  # activation -> the format that stands for it
ADDS = 16


@dataclass(frozen=True, slots=True)
class Sizes:
    """Widths and rows of matrices, tokens of a prompt, and of its context at its end."""

    width: int = 4096
    rows: int = 2048
    vocabulary: int = 65536  # the last matrix has 144 MiB: more than caches hold
    tokens: int = 256
    depth: int = 1024
    n_head: int = 32
    n_head_kv: int = 8

    @property
    def attention(self) -> Attention:
        dim = self.width // self.n_head
        return Attention("kv.0", self.n_head, self.n_head_kv, dim, dim, dim**-0.5)

    @property
    def product_flops(self) -> int:
        """Of one matrix with the prompt."""
        return 2 * self.tokens * self.width * self.rows

    @property
    def attention_flops(self) -> float:
        """Of the prompt's attention."""
        return 2 * self.n_head * 2 * (self.width // self.n_head) * self.tokens * (self.depth - self.tokens / 2)


class Weight:
    """A matrix of equal rows, in private memory."""

    def __init__(self, name: str, width: int, n_rows: int, fmt: Format) -> None:
        self.name, self.format, self.dims = name, fmt, (width, n_rows)
        row = np.sin(np.arange(width, dtype=np.float32))[None]
        self.raw: NDArray[np.uint8] = np.tile(quantize(fmt, row).reshape(1, -1).view(np.uint8), (n_rows, 1))
        self.row_bytes = fmt.row_bytes(width)

    @property
    def n_bytes(self) -> int:
        return int(self.raw.nbytes)

    @property
    def address(self) -> int:
        return int(self.raw.ctypes.data)

    def read(self, start: int, target: memoryview) -> None:
        target[:] = self.raw.reshape(-1).data[start : start + len(target)]

    def release(self) -> None:
        """There is no file to go back to."""


def weights_of(sizes: Sizes) -> dict[str, Weight]:
    """The program's matrices: one of each kind, named KIND.weight, and the largest, head.weight."""
    found = {f"{kind}.weight": (sizes.rows, fmt) for kind, fmt in KINDS.items()}
    k_rows = sizes.n_head_kv * sizes.attention.head_dim_k
    found |= {"embedding": (sizes.vocabulary, "Q4_K"), "k.weight": (k_rows, "Q8_0"), "head.weight": (sizes.vocabulary, "Q4_K")}
    return {name: Weight(name, sizes.width, rows, format_by_name(fmt)) for name, (rows, fmt) in found.items()}


def program_of(sizes: Sizes, weights: dict[str, Weight]) -> Program:
    """Every kind of product, an attention, and ADDS additions one after the other."""
    builder = Builder(weights, sizes.vocabulary)
    heads = sizes.attention
    with builder.unit("layer.0.attn"):
        x = builder.embed("embedding", sizes.width)
        for kind in KINDS:
            builder.linear(x, kind, sizes.rows)
        k = builder.linear(x, "k", heads.n_head_kv * heads.head_dim_k)
        y = builder.attention(x, k, k, heads)
        for _ in range(ADDS):
            y = builder.add(y, x)
    with builder.unit("head"):
        builder.output(builder.linear(builder.take_rows(y), "head", sizes.vocabulary))
    return verify(builder.build())


def batch_of(sizes: Sizes, n: int) -> Batch:
    """The last n tokens of a context of `depth`."""
    at = np.arange(sizes.depth - n, sizes.depth, dtype=np.int32)
    table = np.arange(1, 1 + sizes.depth // KV_BLOCK_TOKENS, dtype=np.int32)[None]
    return Batch(at % sizes.vocabulary, at, np.zeros(n, np.int32), table, np.array([n - 1], np.int32))

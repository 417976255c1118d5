"""A paged KV cache in NumPy, for tests: scattered blocks full of NaN and poison where nothing was stored, and attention in float64."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ggrun.program.params import Attention
from ggrun.runtime.cuda import attention
from quant.format import format_by_name
from quant.reference import dequantize, quantize
from tests.gpu.emulation.kernels import guarded

N = 32  # tokens of a block
F32 = NDArray[np.float32]


def parts(kind: str, x: F32) -> list[NDArray[np.uint8]]:
    """What the cache keeps of x [tokens][dim], a list of planes of bytes [tokens][...] that follow each other in a block."""
    raw = quantize(format_by_name(kind.upper()), x)
    if kind == "f16":
        return [raw]
    blocks = raw.reshape(len(x), -1, 34 if kind == "q8_0" else 18)
    return [blocks[..., 2:].reshape(len(x), -1), blocks[..., :2].reshape(len(x), -1)]


class Paged:
    """A layer's cache with sequences of given lengths, and one more row of tables, of zeros, for padding tokens.

    k, v: float32 [length][n_head_kv][dim] of each sequence, as the cache gives them back."""

    def __init__(self, params: Attention, type_k: str, type_v: str, lengths: Sequence[int], seed: int = 0, room: int = 2) -> None:
        """room: blocks of a table beyond those in use, whose ids are those of blocks full of NaN."""
        self.params, self.type_k, self.type_v = params, type_k, type_v
        rng = np.random.default_rng(seed)
        self.block_bytes = attention.kv_block_bytes(params, type_k, type_v) + 64  # blocks need not be adjacent
        needed = [-(-length // N) for length in lengths]
        n_blocks = sum(needed) + 3
        self.tables_stride = max(needed) + room
        ids = 1 + rng.permutation(n_blocks - 1).astype(np.int32)
        self.tables = guarded(np.full((len(lengths) + 1, self.tables_stride), ids[-1], np.int32))
        self.tables[-1] = 0
        self.memory = guarded(np.full((n_blocks, self.block_bytes), 0xFF, np.uint8))  # NaN as half; scales of NaN
        self.k: list[F32] = []
        self.v: list[F32] = []
        at = 0
        for seq, length in enumerate(lengths):
            self.tables[seq, : needed[seq]] = ids[at : at + needed[seq]]
            at += needed[seq]
            k = rng.standard_normal((length, params.n_head_kv, params.head_dim_k)).astype(np.float32)
            v = rng.standard_normal((length, params.n_head_kv, params.head_dim_v)).astype(np.float32)
            v += np.float32(0.5)
            self.put(self.memory, seq, np.arange(length), k, v)
            self.k.append(self.rounded(type_k, k))
            self.v.append(self.rounded(type_v, v))

    @staticmethod
    def rounded(kind: str, x: F32) -> F32:
        fmt = format_by_name(kind.upper())
        return dequantize(fmt, quantize(fmt, x))

    def put(self, memory: NDArray[np.uint8], seq: int, positions: NDArray[np.integer], k: F32, v: F32) -> None:
        """Store k, v [tokens][n_head_kv][dim] as the cache keeps them."""
        head_bytes = attention.kv_head_bytes(self.params.head_dim_k, self.params.head_dim_v, self.type_k, self.type_v)
        for head in range(self.params.n_head_kv):
            planes = parts(self.type_k, k[:, head]) + parts(self.type_v, v[:, head])
            for i, position in enumerate(positions):
                block = memory[self.tables[seq, position // N]]
                start = head * head_bytes
                for plane in planes:
                    width = plane.shape[1]
                    cell = start + position % N * width
                    block[cell : cell + width] = plane[i]
                    start += N * width

    def attend(self, q: F32, seqs: NDArray[np.int32], positions: NDArray[np.int32]) -> NDArray[np.float64]:
        """Attention of q [tokens][n_head][dim_k] in float64."""
        a = self.params
        out = np.zeros((len(q), a.n_head_kv, a.n_head // a.n_head_kv, a.head_dim_v))
        heads = q.reshape(len(q), a.n_head_kv, -1, a.head_dim_k).astype(np.float64)
        for t, (seq, position) in enumerate(zip(seqs, positions)):
            if seq >= len(self.k):
                continue  # padding
            seen = slice(max(0, position - a.window + 1) if a.window else 0, position + 1)
            scores = np.einsum("hgd,chd->hgc", heads[t], self.k[seq][seen].astype(np.float64)) * a.scale
            if a.softcap:
                scores = np.tanh(scores / a.softcap) * a.softcap
            weights = np.exp(scores - scores.max(-1, keepdims=True))
            out[t] = np.einsum("hgc,chd->hgd", weights / weights.sum(-1, keepdims=True), self.v[seq][seen].astype(np.float64))
        return out.reshape(len(q), a.n_head, a.head_dim_v)

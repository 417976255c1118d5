"""How a KV block looks outside of any device: what is kept in host memory, on disk and in a slot's file.

A block is its layers in the order of the program, without gaps. A layer is its KV heads, a head its 32 keys, then its 32 values.
32 vectors of `dim` numbers are
    f16     half [32][dim]
    q8_0    int8 [32][dim], then half d [32][dim / 32]          x = d * q
    q4_0    nibbles [32][dim / 2], then half d [32][dim / 32]   x = d * (n - 8); numbers i and i + 16 of 32 share a byte, low and high
    f32     float [32][dim]                                     the reference executor's, when no type is asked for
all little-endian: each is one or two *runs* of [32][bytes of a token]. It is how the GPU keeps them (ADR 12); other devices convert.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ggrun.plan.device import KV_BLOCK_TOKENS
from ggrun.program.program import KvState

VERSION = 1  # of the bytes above; part of what says that two blocks are alike
SCALED = 32  # numbers with one scale

# kind -> bytes of a token in each run, as (numerator, denominator) of dim
_RUNS: Mapping[str, tuple[tuple[int, int], ...]] = {
    "f16": ((2, 1),),
    "q8_0": ((1, 1), (2, SCALED)),
    "q4_0": ((1, 2), (2, SCALED)),
    "f32": ((4, 1),),
}


def runs(kind: str, dim: int) -> tuple[int, ...]:
    """Bytes of one token in each run of the keys, or the values, of a head."""
    return tuple(dim * up // down for up, down in _RUNS[kind])


@dataclass(frozen=True)
class KvForm:
    """The blocks of one model at some types. Blocks are uint8 [n_bytes], C-contiguous."""

    states: Mapping[str, KvState]
    type_k: str
    type_v: str

    def head_bytes(self, state: KvState) -> int:
        """One KV head of a layer, keys and values."""
        return KV_BLOCK_TOKENS * (sum(runs(self.type_k, state.head_dim_k)) + sum(runs(self.type_v, state.head_dim_v)))

    @property
    def n_bytes(self) -> int:
        """A whole block."""
        return sum(state.n_head_kv * self.head_bytes(state) for state in self.states.values())

    def layers(self, block: NDArray[np.uint8]) -> Iterator[tuple[KvState, NDArray[np.uint8]]]:
        """Each layer's state and its part of a block, a view [n_head_kv, head_bytes]."""
        at = 0
        for state in self.states.values():
            n_bytes = state.n_head_kv * self.head_bytes(state)
            yield state, block[at : at + n_bytes].reshape(state.n_head_kv, -1)
            at += n_bytes

    def layer(self, block: NDArray[np.uint8], name: str) -> NDArray[np.uint8]:
        """The part of one layer, a view [n_head_kv, head_bytes]."""
        return next(part for state, part in self.layers(block) if state.name == name)

    def views(self, state: KvState, part: NDArray[np.uint8]) -> tuple[list[NDArray[np.uint8]], list[NDArray[np.uint8]]]:
        """The runs of a layer's keys and of its values: views [n_head_kv, 32, bytes of a token]."""
        at = 0
        found: tuple[list[NDArray[np.uint8]], list[NDArray[np.uint8]]] = ([], [])
        for into, kind, dim in zip(found, (self.type_k, self.type_v), (state.head_dim_k, state.head_dim_v)):
            for n in runs(kind, dim):
                into.append(part[:, at : at + KV_BLOCK_TOKENS * n].reshape(-1, KV_BLOCK_TOKENS, n))
                at += KV_BLOCK_TOKENS * n
        return found

    def clear(self, block: NDArray[np.uint8], n_tokens: int) -> None:
        """Zero what follows the first n_tokens: cells that no token of this sequence has filled may hold another's."""
        for state, part in self.layers(block):
            for views in self.views(state, part):
                for run in views:
                    run[:, n_tokens:] = 0

    @property
    def signature(self) -> bytes:
        """What two forms must share for their blocks to be exchanged."""
        shapes = ((s.n_head_kv, s.head_dim_k, s.head_dim_v) for s in self.states.values())
        words = b"".join(struct.pack("<3I", *shape) for shape in shapes)
        return f"{VERSION} {KV_BLOCK_TOKENS} {self.type_k} {self.type_v} ".encode() + words

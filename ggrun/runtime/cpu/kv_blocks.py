"""KV blocks between the CPU's layout, with transposed keys (`kernels.attention`, `kernels.kv_quants`), and that of `runtime.kv_form`."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from ggrun.plan.device import KV_BLOCK_TOKENS
from ggrun.program.program import KvState
from ggrun.runtime.cpu.sizes import LANES, kv_part_bytes, up
from ggrun.runtime.kv_form import SCALED, KvForm

Bytes = NDArray[np.uint8]


def take(form: KvForm, state: KvState, block: Bytes, into: Bytes) -> None:
    """A layer's block as the CPU has it, to its part of a neutral block, [n_head_kv, head_bytes] both."""
    keys, values = _device(form, state, block)
    out_keys, out_values = form.views(state, into)
    for here, there in zip(keys, out_keys):
        there[:] = _bytes(here.transpose(0, 2, 1), there)
    if form.type_k == "q4_0":
        out_keys[0][:] = _halves_apart(out_keys[0])
    for here, there in zip(values, out_values):
        there[:] = here[:, :, : there.shape[2]]


def put(form: KvForm, state: KvState, part: Bytes, block: Bytes) -> None:
    """The other way."""
    keys, values = _device(form, state, block)
    in_keys, in_values = form.views(state, part)
    for index, (here, there) in enumerate(zip(keys, in_keys)):
        source = _neighbours(there) if form.type_k == "q4_0" and index == 0 else there
        here[:] = np.ascontiguousarray(source).view(here.dtype).transpose(0, 2, 1)
    for here, there in zip(values, in_values):
        here[:, :, : there.shape[2]] = there


def _device(form: KvForm, state: KvState, block: Bytes) -> tuple[list[NDArray[np.generic]], list[Bytes]]:
    """The runs of the CPU's keys, [heads, elements, 32] of their own width, and of its values, [heads, 32, bytes]."""
    n, heads, dim = KV_BLOCK_TOKENS, block.reshape(state.n_head_kv, -1), state.head_dim_k
    middle = kv_part_bytes(form.type_k, dim)
    keys = []
    at = 0
    for dtype, count in _KEY_RUNS[form.type_k](dim):
        n_bytes = count * n * np.dtype(dtype).itemsize
        keys.append(heads[:, at : at + n_bytes].view(dtype).reshape(len(heads), count, n))
        at += n_bytes
    wide = up(state.head_dim_v, LANES)  # of values, which are padded
    values = []
    at = middle
    for n_bytes in _VALUE_RUNS[form.type_v](wide):
        values.append(heads[:, at : at + n * n_bytes].reshape(len(heads), n, n_bytes))
        at += n * n_bytes
    return keys, values


_KEY_RUNS: dict[str, Callable[[int], tuple[tuple[type[np.generic], int], ...]]] = {
    "f16": lambda dim: ((np.uint16, dim),),
    "q8_0": lambda dim: ((np.uint8, dim), (np.uint16, dim // SCALED)),
    "q4_0": lambda dim: ((np.uint8, dim // 2), (np.uint16, dim // SCALED)),
}
_VALUE_RUNS: dict[str, Callable[[int], tuple[int, ...]]] = {
    "f16": lambda dim: (2 * dim,),
    "q8_0": lambda dim: (dim, dim // 16),
    "q4_0": lambda dim: (dim // 2, dim // 16),
}


def _bytes(array: NDArray[np.generic], like: Bytes) -> Bytes:
    return np.ascontiguousarray(array).view(np.uint8).reshape(like.shape)


def _halves_apart(pairs: Bytes) -> Bytes:
    """Nibbles of neighbours (2i low, 2i + 1 high) to nibbles of i and i + 16; of 32 each. [..., bytes]."""
    groups = pairs.reshape(*pairs.shape[:-1], -1, SCALED // 2)
    nibbles = np.stack((groups & 15, groups >> 4), -1).reshape(*groups.shape[:-1], SCALED)
    half = SCALED // 2
    return (nibbles[..., :half] | nibbles[..., half:] << 4).reshape(pairs.shape)


def _neighbours(halves: Bytes) -> Bytes:
    """The other way."""
    groups = halves.reshape(*halves.shape[:-1], -1, SCALED // 2)
    nibbles = np.concatenate((groups & 15, groups >> 4), -1)
    return (nibbles[..., 0::2] | nibbles[..., 1::2] << 4).reshape(halves.shape)

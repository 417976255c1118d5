"""Bytes of everything the CPU executor asks memory for, as arithmetic: what the planner counts and the kernels then use.

Imports no Numba. Sizes that depend on the tier are the largest of the tiers asked for, so that a plan can be made, and printed,
before anyone has looked which of them this processor runs.
"""

from __future__ import annotations

from collections.abc import Iterable

from ggrun.plan.device import KV_BLOCK_TOKENS
from ggrun.program.params import Attention
from quant.format import Format

LINE = 64  # bytes; parts of a thread's scratch start on one
LANES = 16  # the widest vector: rows of values and outputs are padded to it
TILE_TOKENS = 16  # consecutive tokens of a sequence that attention handles together
TILE_ROWS = 4  # their rows (a query head of a token each) are padded to a multiple
PARTITION = 256  # tokens of a sequence whose scores are weighed together, from a multiple of it on
SCORE_BYTES = 4 * (PARTITION + LANES)  # from one row's scores to the next: not a power of two, for the cache's sake
STATE_BYTES = 8  # of a row: maximum and sum
EXPERT_ROWS = 64  # rows of an expert's matrix handed out at once


def up(n: int, to: int = LINE) -> int:
    """n rounded up to a multiple."""
    return -(-n // to) * to


def _tile(activation: str, tier: str) -> int:
    from quant.simd import TARGETS

    return 1 if activation == "f32" else TARGETS[tier].tile_tokens


def activation_bytes(activation: str, tiers: Iterable[str], k: int, n_tokens: int) -> int:
    """Room for any number of rows of k elements up to n_tokens."""
    from quant.cpu import activation_bytes

    return max(activation_bytes(activation, tier, k, up(n_tokens, _tile(activation, tier))) for tier in tiers)


def expert_activation_bytes(activation: str, tiers: Iterable[str], k: int, n_entries: int, n_expert: int) -> int:
    """Room for n_entries rows in groups of any sizes, each group starting on a tile of its own."""
    from quant.cpu import activation_bytes

    most = 0
    for tier in tiers:
        tile = _tile(activation, tier)
        most = max(most, (n_entries // tile + min(n_expert, n_entries)) * activation_bytes(activation, tier, k, tile))
    return most


def matmul_scratch_bytes(fmt: Format, tiers: Iterable[str], n_tokens: int) -> int:
    """A thread's scratch in a product of up to n_tokens tokens with rows of the format."""
    from quant.cpu import matmul_scratch_bytes

    return max(up(matmul_scratch_bytes(fmt, tier, n)) for tier in tiers for n in {1, n_tokens})


def expert_lists_bytes(n_tokens: int, n_expert: int, n_used: int) -> int:
    """The lists of `kernels.experts`."""
    return 4 * (2 + 2 * n_expert + 2 * n_tokens * n_used)


def expert_stage_bytes(n_tokens: int) -> int:
    """Products of one expert's rows with a group of at most n_tokens tokens (a token uses an expert once)."""
    return up(4 * EXPERT_ROWS * n_tokens)


def query_tiles_bytes(n_tokens: int) -> int:
    """A count and a (first token, tokens) pair for each tile; in the worst batch every token is its own."""
    return 4 * (2 + 2 * n_tokens)


def attention_scratch(attention: Attention) -> tuple[dict[str, int], int]:
    """Byte offsets of the parts of a thread's scratch during attention, and their sum.

    queries [dim_k][rows] scaled, scores [rows][PARTITION], outputs [rows][dim_v] and state [rows] of all partitions so far, partial and
    partial_state of one; keys [dim_k][block] and values [block][dim_v] of a KV block that has to be converted first. All float32; a row
    is a query head of a token of the tile.
    """
    rows = up(TILE_TOKENS * (attention.n_head // attention.n_head_kv), TILE_ROWS)
    outputs = 4 * rows * up(attention.head_dim_v, LANES)
    parts = {
        "queries": 4 * rows * attention.head_dim_k,
        "scores": rows * SCORE_BYTES,
        "state": STATE_BYTES * rows,
        "outputs": outputs,
        "partial_state": STATE_BYTES * rows,
        "partial": outputs,
        "keys": 4 * attention.head_dim_k * KV_BLOCK_TOKENS,
        "values": 4 * KV_BLOCK_TOKENS * up(attention.head_dim_v, LANES),
    }
    offsets, at = {}, 0
    for name, n_bytes in parts.items():
        offsets[name] = at
        at += up(n_bytes)
    return offsets, at


KV_BITS = {"f16": 16, "q8_0": 8, "q4_0": 4}  # of an element, its scale apart
KV_GROUP = 32  # elements of q8_0 and q4_0 with one float16 scale


def kv_part_bytes(kind: str, dim: int) -> int:
    """Keys or values of one KV head of one block: the elements and, unless float16, their scales."""
    scales = 0 if kind == "f16" else 2 * (dim // KV_GROUP)
    return KV_BLOCK_TOKENS * (dim * KV_BITS[kind] // 8 + scales)


def kv_head_bytes(dim_k: int, dim_v: int, type_k: str, type_v: str) -> int:
    """One KV head of one block: keys, then values [block][dim_v padded to LANES]; see `kernels.attention` and `kernels.kv_quants`."""
    return kv_part_bytes(type_k, dim_k) + kv_part_bytes(type_v, up(dim_v, LANES))

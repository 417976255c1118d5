"""Launches of the matrix kernels: which kernel, which grid, which arguments, for dense matrices, embeddings and experts.

Addresses are ints on the device; sizes are counts of elements, rows or tokens. Weights are rows of a format's blocks, `row_bytes` apart.
Activations are float32 rows beside plain numbers (F32, F16, BF16) and q8 rows (`q8_row_bytes`) beside every block format, see
`activation`; results are float32 rows without gaps. Knows no driver: the same arguments always give the same launches, and which kernel
runs depends on the number of tokens by the steps of `TOKEN_STEPS` only, the rest being the matrix's shape and the device.

A launch may ask for more than 48 KiB of shared memory where `Arch.shared_bytes` allows it: the kernel's limit has to be raised first.
"""

from __future__ import annotations

from typing import NamedTuple

from ggrun.runtime.cuda.launch import Arch, Launch, pack
from quant.format import format_by_name

FEW_TOKENS = 8
"""Up to so many tokens each weight is multiplied as it is read (GEMV); above, weights are unpacked once for a tile of tokens (GEMM)."""

TOKEN_STEPS = (1, 2, 4, 8, 16, 32, 64, 128)
"""Representatives of the classes of token counts: a count uses the kernels of the next step up, beyond the last one those of the last."""

_GEMV_TOKENS = (1, 2, 4, 8)
_TILE_TOKENS = (16, 32, 64, 128)
_FLOAT_TILE = 64  # rows and tokens of gemm_float.cuh
_TILE_ROWS, _TILE_STRIDE = 128, 144  # gemm.cuh
_BLOCK = 128  # threads of a GEMV block
_PROMPT = 512  # tokens that tiles are chosen for
_MANY_ROWS = 2**31 - 1


class _Shape(NamedTuple):
    """What of quant/cuda's structs a launch depends on: elements of a unit of work, scales for 16 elements, minima."""

    unit: int
    halves: bool = False
    minima: bool = False


_FLOATS = ("F32", "F16", "BF16")
_SHAPES = {
    "F32": _Shape(8),
    "F16": _Shape(8),
    "BF16": _Shape(8),
    "Q4_0": _Shape(32),
    "Q4_1": _Shape(32, minima=True),
    "Q5_0": _Shape(32),
    "Q5_1": _Shape(32, minima=True),
    "Q8_0": _Shape(32),
    "Q2_K": _Shape(64, halves=True, minima=True),
    "Q3_K": _Shape(64, halves=True),
    "Q4_K": _Shape(32, minima=True),
    "Q5_K": _Shape(32, minima=True),
    "Q6_K": _Shape(64, halves=True),
    "IQ4_NL": _Shape(32),
    "IQ4_XS": _Shape(32),
}


FORMATS = frozenset(_SHAPES)
"""Formats there are kernels for."""


def up(n: int, step: int) -> int:
    """n rounded up to a multiple of step."""
    return -(-n // step) * step


def q8_row_bytes(k: int) -> int:
    """Bytes of a quantized row of k activations (quant/cuda/q8.cuh). ValueError unless k is a multiple of 32."""
    if k % 32:
        raise ValueError(f"rows of {k} activations cannot be quantized: blocks hold 32")
    return up(k + k // 32 * 4 + k // 16 * 4, 16)


def activation(fmt: str) -> str:
    """What weights of a format are multiplied with: "q8" (quantized rows) or "f32"."""
    return "f32" if fmt in _FLOATS else "q8"


def activation_row_bytes(fmt: str, k: int) -> int:
    """Bytes from one row of k activations to the next, beside weights of `fmt`."""
    return 4 * k if fmt in _FLOATS else q8_row_bytes(k)


def quantize(x: int, y: int, k: int, n_rows: int) -> Launch:
    """x float32 [n_rows, k] -> y q8 rows. k is a multiple of 32."""
    assert k % 32 == 0
    return Launch("quantize", (_blocks(k // 4, 128), n_rows, 1), (128, 1, 1), pack("PPi", x, y, k))


def embed(fmt: str, ids: int, w: int, row_bytes: int, y: int, n: int, scale: float, n_tokens: int, n_rows: int = _MANY_ROWS) -> Launch:
    """y float32 [n_tokens, n] = rows ids[t] (int32) of w, times scale. Ids are taken as at least 0 and at most n_rows - 1."""
    units = up(n, _SHAPES[fmt].unit) // _SHAPES[fmt].unit
    args = pack("PPqPiif", ids, w, row_bytes, y, n, n_rows, scale)
    return Launch(f"embed__{fmt}", (_blocks(units, 128), n_tokens, 1), (128, 1, 1), args)


def matmul(
    fmt: str, w: int, row_bytes: int, x: int, y: int, bias: int, k: int, n_out: int, n_tokens: int, arch: Arch
) -> list[Launch]:
    """y float32 [n_tokens, n_out], y[t, r] = dot(w[r], x[t]) + bias[r]; bias float32 [n_out], 0 for none.

    x: rows as `activation(fmt)` says. k is a whole number of the format's blocks.
    """
    _check(fmt, k)
    if n_tokens <= FEW_TOKENS:
        tokens = _step(n_tokens, _GEMV_TOKENS)
        lanes, blocks = _lanes(fmt, k, n_out, 1 if tokens == 1 else 2, arch)
        args = pack("PqPPPiiii", w, row_bytes, x, y, bias, k, n_out, n_tokens, lanes)
        return [Launch(f"gemv__{fmt}__{tokens}", (blocks, 1, 1), (_BLOCK, 1, 1), args)]
    tile = _tile(fmt, n_out, n_tokens, arch)
    grid = (_blocks(n_tokens, tile), _row_tiles(fmt, n_out), 1)
    args = pack("PqPPPiii", w, row_bytes, x, y, bias, k, n_out, n_tokens)
    return [Launch(f"gemm__{fmt}__{tile}", grid, (256, 1, 1), args, gemm_shared_bytes(fmt, tile))]


def gated(
    fmt_gate: str, w_gate: int, fmt_up: str, w_up: int, row_bytes: int, x: int, y: int, k: int, n_out: int, n_tokens: int, arch: Arch
) -> list[Launch] | None:
    """y float32 [n_tokens, n_out] = silu(w_gate x) * (w_up x) in one pass; None where there is no such kernel.

    There is one for up to FEW_TOKENS tokens and two matrices of one format (and so of the same row_bytes).
    """
    if fmt_gate != fmt_up or n_tokens > FEW_TOKENS:
        return None
    _check(fmt_gate, k)
    lanes, blocks = _lanes(fmt_gate, k, n_out, 1, arch)
    args = pack("PPqPPiiii", w_gate, w_up, row_bytes, x, y, k, n_out, n_tokens, lanes)
    return [Launch(f"gated__{fmt_gate}__{_step(n_tokens, _GEMV_TOKENS)}", (blocks, 1, 1), (_BLOCK, 1, 1), args)]


def expert_lists_bytes(n_tokens: int, n_used: int, n_expert: int) -> int:
    """Bytes of `lists`, which `group_experts` fills: int32, starts [n_expert + 1] and slots [n_tokens * n_used]. 0 for few tokens."""
    return 4 * (n_expert + 1 + n_tokens * n_used) if n_tokens > FEW_TOKENS else 0


def group_experts(ids: int, lists: int, n_tokens: int, n_used: int, n_expert: int) -> list[Launch]:
    """lists = the slots (token * n_used + place) of every expert, from ids int32 [n_tokens, n_used]. Nothing to do for few tokens."""
    if n_tokens <= FEW_TOKENS:
        return []
    return [Launch("group_experts", (n_expert, 1, 1), (32, 1, 1), pack("PPii", ids, lists, n_tokens * n_used, n_expert))]


def expert_matmul(
    fmt: str,
    w: int,
    row_bytes: int,
    expert_bytes: int,
    x: int,
    ids: int,
    lists: int,
    y: int,
    k: int,
    n_out: int,
    n_tokens: int,
    n_used: int,
    n_expert: int,
    shared_input: bool,
    arch: Arch,
) -> list[Launch]:
    """y float32 [n_tokens, n_used, n_out], y[t, s] = w[ids[t, s]] x[t] (shared_input) or w[ids[t, s]] x[t, s].

    w: n_expert matrices of n_out rows, expert_bytes apart. ids int32 [n_tokens, n_used]; lists from `group_experts` for more than
    FEW_TOKENS tokens, not read for fewer. A slot whose id names no expert gets some expert's result, or none.
    """
    _check(fmt, k)
    slots_per_row = n_used if shared_input else 1
    if n_tokens <= FEW_TOKENS:
        lanes, blocks = _lanes(fmt, k, n_out, 1, arch, copies=n_tokens * n_used)
        args = pack("PqqPPPiiiii", w, row_bytes, expert_bytes, x, ids, y, k, n_out, n_expert, slots_per_row, lanes)
        return [Launch(f"expert_gemv__{fmt}", (blocks, n_tokens * n_used, 1), (_BLOCK, 1, 1), args)]
    tile = _expert_tile(fmt, arch)
    grid = (_blocks(n_tokens, tile), _row_tiles(fmt, n_out), n_expert)
    args = pack("PqqPPPiiii", w, row_bytes, expert_bytes, x, lists, y, k, n_out, n_expert, slots_per_row)
    return [Launch(f"expert_gemm__{fmt}__{tile}", grid, (256, 1, 1), args, gemm_shared_bytes(fmt, tile))]


def work_bytes() -> int:
    """Workspace of any launch here: none, sums are complete within a block."""
    return 0


def kernels(fmt: str, arch: Arch) -> list[str]:
    """Names of all kernels that matrices of a format may need on a device, of every use and every number of tokens."""
    names = [f"{base}__{fmt}__{tokens}" for base in ("gemv", "gated") for tokens in _GEMV_TOKENS]
    names += [f"gemm__{fmt}__{tile}" for tile in _tiles(fmt, arch)]
    names += [f"embed__{fmt}", f"expert_gemv__{fmt}", f"expert_gemm__{fmt}__{_expert_tile(fmt, arch)}", "group_experts"]
    return names + ([] if fmt in _FLOATS else ["quantize"])


def gemm_shared_bytes(fmt: str, tile: int) -> int:
    """Dynamic shared memory of a tile of `tile` tokens; the layout is drawn in kernels/gemm.cuh."""
    if fmt in _FLOATS:
        return 0
    shape = _SHAPES[fmt]
    rows = _TILE_ROWS * _TILE_STRIDE + 4 * _TILE_ROWS * (8 if shape.halves else 4) * (1 + shape.minima)
    return rows + 2 * tile * (_TILE_STRIDE + 4 * 4 + 4 * 8 * shape.minima)


def _check(fmt: str, k: int) -> None:
    assert k % format_by_name(fmt).block_elements == 0, f"{k} elements are no whole number of {fmt} blocks"


def _blocks(n: int, size: int) -> int:
    return -(-n // size)


def _step(n: int, steps: tuple[int, ...]) -> int:
    """The smallest step that holds n, or the last."""
    return next((step for step in steps if n <= step), steps[-1])


def _lanes(fmt: str, k: int, n_out: int, rows: int, arch: Arch, copies: int = 1) -> tuple[int, int]:
    """(threads that share `rows` rows of weights, blocks of a GEMV).

    A warp; less for short rows, where lanes would idle; more where the device would have fewer than 16 warps a multiprocessor.
    """
    units = up(k, _SHAPES[fmt].unit) // _SHAPES[fmt].unit
    groups = _blocks(n_out, rows)
    lanes = 32
    while lanes > 8 and units <= lanes // 2:
        lanes //= 2
    while 32 <= lanes < _BLOCK and units >= 2 * lanes and groups * copies * lanes < 32 * 16 * arch.n_sm:
        lanes *= 2
    return lanes, _blocks(groups, _BLOCK // lanes)


def _row_tiles(fmt: str, n_out: int) -> int:
    return _blocks(n_out, _FLOAT_TILE if fmt in _FLOATS else _TILE_ROWS)


def _tiles(fmt: str, arch: Arch) -> list[int]:
    """Tiles of tokens that fit a block; without tensor cores wide ones take more registers than there are."""
    if fmt in _FLOATS:
        return [_FLOAT_TILE]
    widest = 128 if arch.cc >= 75 else 32
    return [tile for tile in _TILE_TOKENS if tile <= widest and gemm_shared_bytes(fmt, tile) <= arch.shared_bytes]


def _tile(fmt: str, n_out: int, n_tokens: int, arch: Arch) -> int:
    """Tokens of a tile: the smallest that holds them all, but no more than is best for a long prompt on this device.

    A tile costs its tokens and about 16 tokens' worth of unpacking; what counts is the multiprocessor with the most tiles.
    """

    def cost(tile: int) -> int:
        tiles = _row_tiles(fmt, n_out) * _blocks(_PROMPT, tile)
        return _blocks(tiles, arch.n_sm) * (tile + 16)

    tiles = _tiles(fmt, arch)
    return min(_step(n_tokens, tuple(tiles)), min(reversed(tiles), key=cost))


def _expert_tile(fmt: str, arch: Arch) -> int:
    return max(tile for tile in _tiles(fmt, arch) if tile <= _FLOAT_TILE)

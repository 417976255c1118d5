"""Attention over the paged KV cache: storing keys and values, single tokens (decode), prompts. Device addresses and sizes in, `Launch` out.

The cache's layout is drawn in kernels/kv.cuh. positions, seqs: int32 [n_tokens]; tables: int32 [n_seqs + 1][tables_stride], block ids.
Kernels read all lengths from these, so that a captured graph can be replayed at any length.
"""

from __future__ import annotations

from itertools import takewhile

from ggrun.plan.device import KV_BLOCK_TOKENS
from ggrun.program.params import Attention, Rope
from ggrun.runtime.cuda.launch import Arch, Launch, pack

TOKEN_STEPS: tuple[int, ...] = (1,)  # which kernels are needed depends on decode or prompt, not on the number of tokens

QUERY_TILE = 64  # a query tile of a prompt holds at most so many tokens
MAX_HEAD = 256
_MAX_SPLITS = 128  # kernels/attention.cuh
_ROWS = 64  # of a prompt's block: PROMPT_ROWS in kernels/attention_prompt.cuh
_BYTES_OF_DIM = {"f16": 2 * KV_BLOCK_TOKENS, "q8_0": 34, "q4_0": 18}  # of a block's keys or values, a dimension
_TENSOR_CORES = 75  # f16 products with float32 sums


def unsupported(params: Attention, type_k: str, type_v: str) -> str:
    """Why no kernel can compute this attention with such a cache; "" if one can."""
    if params.n_head % params.n_head_kv:
        return f"{params.n_head} query heads cannot share {params.n_head_kv} KV heads evenly"
    for what, dim, kind in (("keys", params.head_dim_k, type_k), ("values", params.head_dim_v, type_v)):
        multiple = 16 if kind == "f16" else 32
        if dim % multiple or not 0 < dim <= MAX_HEAD:
            return f"{what} of {dim} dimensions as {kind}: must be a multiple of {multiple}, at most {MAX_HEAD}"
    return ""


def kv_head_bytes(dim_k: int, dim_v: int, type_k: str, type_v: str) -> int:
    """Bytes of one KV head in one block of KV_BLOCK_TOKENS tokens."""
    return dim_k * _BYTES_OF_DIM[type_k] + dim_v * _BYTES_OF_DIM[type_v]


def kv_block_bytes(params: Attention, type_k: str, type_v: str) -> int:
    """Bytes of one block of a layer."""
    return params.n_head_kv * kv_head_bytes(params.head_dim_k, params.head_dim_v, type_k, type_v)


def _types(type_k: str, type_v: str) -> str:
    return f"{type_k.upper()}__{type_v.upper()}"


def kv_store(
    k: int,
    v: int,
    kv: int,
    positions: int,
    seqs: int,
    tables: int,
    tables_stride: int,
    params: Attention,
    type_k: str,
    type_v: str,
    block_bytes: int,
    n_tokens: int,
) -> Launch:
    """Keep k [n_tokens][n_head_kv][head_dim_k] and v [..][head_dim_v] (float32) in the cache: the bytes of quant.reference.quantize."""
    arguments = pack(
        "PPPPPPiiiiq",
        *(k, v, kv, positions, seqs, tables, tables_stride, params.n_head_kv, params.head_dim_k, params.head_dim_v, block_bytes),
    )
    grid = (-(-2 * params.n_head_kv // 4), n_tokens, 1)
    return Launch(f"kv_store__{_types(type_k, type_v)}", grid, (128, 1, 1), arguments)


def rope_store(
    q: int,
    q_out: int,
    k: int,
    v: int,
    table: int,
    kv: int,
    positions: int,
    seqs: int,
    tables: int,
    tables_stride: int,
    params: Attention,
    rope: Rope,
    type_k: str,
    type_v: str,
    block_bytes: int,
    n_tokens: int,
) -> Launch:
    """rows.rope of q to q_out (which may be q) and of k on its way to the cache, and kv_store, in one launch.

    table: rows.rope_table's. rope: of queries or keys, which differ only in n_heads."""
    arguments = pack(
        "PPPPPPPPPiiiiiiiq",
        *(q, q_out, k, v, table, kv, positions, seqs, tables, tables_stride, params.n_head, params.n_head_kv),
        *(params.head_dim_k, params.head_dim_v, rope.n_rot, rope.style == "neox", block_bytes),
    )
    grid = (-(-(params.n_head + 2 * params.n_head_kv) // 4), n_tokens, 1)
    return Launch(f"rope_store__{_types(type_k, type_v)}", grid, (128, 1, 1), arguments)


def attention(
    q: int,
    y: int,
    kv: int,
    positions: int,
    seqs: int,
    tables: int,
    tables_stride: int,
    tiles: int,
    n_tiles: int,
    work: int,
    params: Attention,
    type_k: str,
    type_v: str,
    block_bytes: int,
    n_tokens: int,
    decode: bool,
    arch: Arch,
) -> list[Launch]:
    """y [n_tokens][n_head][head_dim_v] from q [n_tokens][n_head][head_dim_k], both float32; their keys and values are stored before.

    decode: every token by itself, from its own sequence, position and table (tiles and n_tiles are not looked at); right for any batch,
    made for few tokens. Else tiles: int32 [n_tiles][2], (first token, tokens): consecutive tokens of one sequence at consecutive
    positions, at most QUERY_TILE; tokens of no tile get no output. work: `work_bytes`, for decode."""
    shape = (params.n_head, params.n_head_kv, params.window, params.scale, params.softcap, block_bytes)
    kernel = _decode_kernel(params, type_k, type_v, arch) if decode else _prompt_kernel(params, type_k, type_v, arch)
    parts = params.n_head_kv * _head_parts(kernel, params)
    splits = n_splits(params, n_tokens, arch) if decode else 1
    addresses = (q, y, kv, positions, seqs, tables)
    if kernel.startswith("attention_prompt"):
        grid = (-(-QUERY_TILE // _tokens_of_a_part(kernel, params)), parts, n_tiles)
        shared = _prompt_shared_bytes(params)
        return [Launch(kernel, grid, (128, 1, 1), pack("PPPPPPPiiiiffq", *addresses, tiles, tables_stride, *shape), shared)]
    if kernel.startswith("attention_decode"):
        arguments = pack("PPPPPPPiiiiffq", *addresses, work, tables_stride, *shape)
    else:
        arguments = pack("PPPPPPPPiiiiffq", *addresses, 0 if decode else tiles, work, tables_stride, *shape)
    grid = (parts, splits, n_tokens) if decode else (parts, -(-QUERY_TILE // _tokens_of_a_part(kernel, params)), n_tiles)
    launches = [Launch(kernel, grid, (128, 1, 1), arguments)]
    if splits > 1:
        arguments = pack("PPPiii", work, y, positions, params.window, splits, params.head_dim_v)
        threads = -(-params.head_dim_v // 32) * 32
        launches.append(Launch("attention_combine", (params.n_head, n_tokens, 1), (threads, 1, 1), arguments))
    return launches


def n_splits(params: Attention, n_tokens: int, arch: Arch) -> int:
    """Splits of the KV blocks of each token of a decode: as many blocks as run at once on the device, whatever the length."""
    kernel = _decode_kernel(params, "f16", "f16", arch)
    parts = params.n_head_kv * _head_parts(kernel, params)
    return max(1, min(_MAX_SPLITS, _resident_blocks(kernel, params, arch) // (parts * n_tokens)))


def work_bytes(params: Attention, n_tokens: int, arch: Arch) -> int:
    """Bytes of `attention`'s work area for decodes of up to n_tokens tokens."""
    splits = ((t, n_splits(params, t, arch)) for t in range(1, n_tokens + 1))
    rows = max((t * n for t, n in takewhile(lambda pair: pair[1] > 1, splits)), default=0)  # the more tokens, the fewer splits
    return rows * params.n_head * (params.head_dim_v + 2) * 4


def kernels(params: Attention, type_k: str, type_v: str, arch: Arch) -> set[str]:
    """Every kernel that this module may launch for such an attention on such a device, for any batch."""
    types = _types(type_k, type_v)
    prompt, decode = _prompt_kernel(params, type_k, type_v, arch), _decode_kernel(params, type_k, type_v, arch)
    return {f"kv_store__{types}", f"rope_store__{types}", prompt, decode, "attention_combine"}


def _resident_blocks(kernel: str, params: Attention, arch: Arch) -> int:
    """Blocks of a decode that the device runs at once: what their launch bounds allow (BLOCKS in kernels/attention_decode.cuh)."""
    wide = kernel.startswith("attention_decode") and params.head_dim_v * -(-_rows(kernel) // 8) > 128
    return arch.n_sm * (2 if wide else 3)


def _dims(params: Attention) -> str:
    return f"{params.head_dim_k}__{params.head_dim_v}"


def _decode_kernel(params: Attention, type_k: str, type_v: str, arch: Arch) -> str:
    group = params.n_head // params.n_head_kv
    if arch.cc < _TENSOR_CORES:
        return f"attention_float__{_types(type_k, type_v)}__{_dims(params)}__{8 if group <= 8 else 16}"
    most = 16 if params.head_dim_k <= 128 and params.head_dim_v <= 128 else 8  # what registers hold
    heads = next((heads for heads in (4, 8, 16) if group <= heads <= most), most)
    return f"attention_decode__{_types(type_k, type_v)}__{_dims(params)}__{heads}"


def _prompt_kernel(params: Attention, type_k: str, type_v: str, arch: Arch) -> str:
    if arch.cc < _TENSOR_CORES:
        return f"attention_float__{_types(type_k, type_v)}__{_dims(params)}__16"
    return f"attention_prompt__{_types(type_k, type_v)}__{_dims(params)}"


def _rows(kernel: str) -> int:
    """Query rows of one block."""
    return _ROWS if kernel.startswith("attention_prompt") else int(kernel.split("__")[-1])


def _head_parts(kernel: str, params: Attention) -> int:
    """Blocks that share the query heads of a KV head."""
    group = params.n_head // params.n_head_kv
    return -(-group // min(group, _rows(kernel)))


def _tokens_of_a_part(kernel: str, params: Attention) -> int:
    rows = _rows(kernel)
    return rows // min(rows, params.n_head // params.n_head_kv)


def _prompt_shared_bytes(params: Attention) -> int:
    """Of Prompt<...>::SHARED_BYTES in kernels/attention_prompt.cuh."""
    dims = params.head_dim_k + params.head_dim_v
    return (64 if dims <= 256 else 32 if dims <= 384 else 16) * (dims + 16) * 2

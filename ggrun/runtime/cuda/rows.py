"""Row kernels: norms, activations, rotary embeddings, routing, rows moved or added. Pure data: device addresses and sizes in, `Launch` out.

Arrays are contiguous float32 of [rows][n] on the device unless said otherwise, at addresses that are multiples of 256; 0 stands for "none"
where that is allowed. A q8 row is int8 quants [n], float32 d [n / 32], float32 s [n / 16], padded to 16 bytes: quant/cuda/q8.cuh.
Semantics: ggrun.runtime.reference, to float32 rounding.
"""

from __future__ import annotations

from collections.abc import Iterable

from ggrun.runtime.cuda.launch import Launch, pack

TOKEN_STEPS: tuple[int, ...] = (1,)  # which kernels are needed does not depend on the number of tokens

MAX_NORM = 16384  # widest row of a norm
MAX_EXPERTS = 512
MAX_USED = 32  # experts of a token
_THREADS = 256
_WARP = 32


def _up(n: int, multiple: int) -> int:
    return -(-n // multiple) * multiple


def _vector(n: int) -> int:
    """Floats that a thread reads at once: rows begin at multiples of 16 bytes when n is a multiple of 4."""
    return 4 if n % 4 == 0 else 1


def _check_q8(q8: int, n: int) -> None:
    if q8 and n % 32:
        raise ValueError(f"rows of {n} cannot be quantized: no multiple of 32")


def _pieces(n: int, vector: int) -> int:
    return -(-n // (_THREADS * vector))


def norm_kernel(n: int) -> str:
    """The kernel that `norm` uses for rows of n. ValueError beyond MAX_NORM."""
    if not 0 < n <= MAX_NORM:
        raise ValueError(f"norms of rows of {n} are not supported: at most {MAX_NORM}")
    if n % 4:
        return "norm__1__16"
    return f"norm__4__{next(pieces for pieces in (1, 2, 4) if n <= 4096 * pieces)}"


def norm(x: int, add: int, total: int, w: int, y: int, q8: int, n: int, eps: float, n_rows: int) -> Launch:
    """total = x (+ add); y = rms_norm(total) * w, as float32 and as q8 rows. One block a row.

    add, total, y, q8 may be 0; total may be x or add. w: float32 [n]. q8 needs n to be a multiple of 32."""
    _check_q8(q8, n)
    kernel = norm_kernel(n)
    vector, pieces = map(int, kernel.split("__")[1:])
    threads = _up(-(-n // (vector * pieces)), _WARP)
    return Launch(kernel, (n_rows, 1, 1), (threads, 1, 1), pack("PPPPPPif", x, add, total, w, y, q8, n, eps))


def rms_norm_groups(x: int, w: int, y: int, n: int, groups: int, eps: float, n_rows: int) -> Launch:
    """y = rms norm of each of `groups` equal parts of a row of n, times w [n / groups]. y may be x."""
    parts = n_rows * groups
    return Launch("rms_norm_groups", (-(-parts // 4), 1, 1), (128, 1, 1), pack("PPPifi", x, w, y, n // groups, eps, parts))


def add(a: int, b: int, y: int, n: int) -> Launch:
    """y = a + b, n elements in all. y may be a or b."""
    return Launch("add", (_pieces(n, 4), 1, 1), (_THREADS, 1, 1), pack("PPPi", a, b, y, n))


def glu(gate: int, up: int, y: int, q8: int, n: int, n_rows: int) -> Launch:
    """y = silu(gate) * up, as float32 and as q8 rows. y or q8 may be 0; y may be gate or up. q8 needs n to be a multiple of 32."""
    _check_q8(q8, n)
    vector = _vector(n)
    return Launch(f"glu__{vector}", (n_rows, _pieces(n, vector), 1), (_THREADS, 1, 1), pack("PPPPi", gate, up, y, q8, n))


def take_rows(x: int, rows: int, y: int, n: int, n_rows: int) -> Launch:
    """y[r] = x[rows[r]]. rows: int32 [n_rows]."""
    vector = _vector(n)
    return Launch(f"take_rows__{vector}", (n_rows, _pieces(n, vector), 1), (_THREADS, 1, 1), pack("PPPi", x, rows, y, n))


def rope_table(positions: int, freq: int, table: int, half: int, magnitude: float, n_tokens: int) -> Launch:
    """table[t][i] = magnitude * (cos, sin)(positions[t] * freq[i]), float32 [n_tokens][half][2].

    positions: int32; freq: float64 [half], radians a position (`program.rope.frequencies`)."""
    n = n_tokens * half
    return Launch("rope_table", (-(-n // 128), 1, 1), (128, 1, 1), pack("PPPifi", positions, freq, table, half, magnitude, n))


def rope(x: int, table: int, y: int, heads: int, head_dim: int, n_rot: int, neox: bool, n_tokens: int) -> Launch:
    """y = x [n_tokens][heads][head_dim] with the first n_rot elements of every head rotated by `rope_table`'s table. y may be x."""
    pieces = -(-heads * (head_dim // 2) // 128)
    return Launch("rope", (pieces, n_tokens, 1), (128, 1, 1), pack("PPPiiii", x, table, y, heads, head_dim, n_rot, neox))


def route_kernel(n_expert: int) -> str:
    """The kernel that `route` uses. ValueError beyond MAX_EXPERTS."""
    if not 0 < n_expert <= MAX_EXPERTS:
        raise ValueError(f"{n_expert} experts are not supported: at most {MAX_EXPERTS}")
    return f"route__{next(per for per in (1, 2, 4, 8, 16) if n_expert <= _WARP * per)}"


def route(logits: int, ids: int, weights: int, n_expert: int, n_used: int, normalize: bool, scale: float, n_tokens: int) -> Launch:
    """The n_used highest of softmax(logits) in falling order (ties: lower id first). A warp a token.

    logits [n_tokens][n_expert]; ids int32 and weights float32 [n_tokens][n_used], weights normalized to sum 1 if asked, times scale."""
    if not 0 < n_used <= min(MAX_USED, n_expert):
        raise ValueError(f"{n_used} of {n_expert} experts a token are not supported: at most {MAX_USED}")
    arguments = pack("PPPiiifi", logits, ids, weights, n_expert, n_used, normalize, scale, n_tokens)
    return Launch(route_kernel(n_expert), (-(-n_tokens // 4), 1, 1), (128, 1, 1), arguments)


def expert_sum(x: int, weights: int, y: int, n: int, n_used: int, n_tokens: int) -> Launch:
    """y[t] = sum over slots s, in order, of weights[t][s] * x[t][s]. x: [n_tokens][n_used][n]; weights: [n_tokens][n_used]."""
    vector = _vector(n)
    grid = (n_tokens, _pieces(n, vector), 1)
    return Launch(f"expert_sum__{vector}", grid, (_THREADS, 1, 1), pack("PPPii", x, weights, y, n, n_used))


def kernels(widths: Iterable[int], n_expert: int = 0) -> set[str]:
    """Every kernel that this module may launch for rows of these widths, and for n_expert experts if there are any."""
    widths = list(widths)
    names = {"rms_norm_groups", "add", "rope_table", "rope"} | {norm_kernel(n) for n in widths if n <= MAX_NORM}
    names |= {f"{base}__{_vector(n)}" for base in ("glu", "take_rows", "expert_sum") for n in widths}
    return names | ({route_kernel(n_expert)} if n_expert else set())

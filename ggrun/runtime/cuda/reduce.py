"""The highest logits of each row, so that sampling a token needs one small copy. Device addresses and sizes in, `Launch` out."""

from __future__ import annotations

from ggrun.runtime.cuda.launch import Launch, pack

TOKEN_STEPS: tuple[int, ...] = (1,)
KERNELS = ("top_k_parts", "top_k_merge")

MAX_K = 256
MAX_VOCAB = 1 << 18
_PART = 8192  # logits of a block: PART in kernels/reduce.cuh


def _parts(n_vocab: int) -> int:
    return -(-n_vocab // _PART)


def work_bytes(n_vocab: int, n_rows: int, k: int) -> int:
    """Bytes of `top_k`'s work area."""
    return n_rows * _parts(n_vocab) * k * 8


def out_bytes(n_rows: int, k: int) -> int:
    """Bytes of `top_k`'s result: for each row float32 logits [k], then int32 ids [k]."""
    return n_rows * k * 8


def top_k(logits: int, n_vocab: int, n_rows: int, k: int, work: int, out: int) -> list[Launch]:
    """The k highest of each row of logits (float32 [n_rows][n_vocab]), falling, ties: lower id first; NaN counts as lower than all.

    out: see `out_bytes`. Deterministic. ValueError unless 0 < k <= min(256, n_vocab) and n_vocab <= 262,144."""
    if not 0 < k <= min(MAX_K, n_vocab) or n_vocab > MAX_VOCAB:
        raise ValueError(f"the {k} highest of {n_vocab} logits are not supported: at most {MAX_K} of {MAX_VOCAB}")
    parts = _parts(n_vocab)
    return [
        Launch("top_k_parts", (parts, n_rows, 1), (1024, 1, 1), pack("PPii", logits, work, n_vocab, k)),
        Launch("top_k_merge", (1, n_rows, 1), (1024, 1, 1), pack("PPii", work, out, parts * k, k)),
    ]

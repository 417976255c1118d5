"""The highest logits of each row, so that sampling a token needs one small copy. Device addresses and sizes in, `Launch` out."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ggrun.runtime.cuda.launch import Launch, pack
from ggrun.runtime.executor import Highest

TOKEN_STEPS: tuple[int, ...] = (1,)
KERNELS = ("top_k_parts", "top_k_merge")

MAX_K = 256
MAX_VOCAB = 1 << 18
_PART = 8192  # logits of a block: PART in kernels/reduce.cuh


def most(n_vocab: int) -> int:
    """The largest k that `top_k` takes for rows of n_vocab logits; 0: none."""
    return min(MAX_K, n_vocab) if n_vocab <= MAX_VOCAB else 0


def _parts(n_vocab: int) -> int:
    return -(-n_vocab // _PART)


def work_bytes(n_vocab: int, n_rows: int, k: int) -> int:
    """Bytes of `top_k`'s work area."""
    return n_rows * _parts(n_vocab) * (k + 1) * 8


def out_bytes(n_rows: int, k: int) -> int:
    """Bytes of `top_k`'s result: for each row float32 logits [k], int32 ids [k], float32 greatest and total.

    total is the sum of exp(logit - greatest) over all logits of the row, not finite when one of them is not (-infinity apart).
    """
    return n_rows * (k + 1) * 8


def top_k(logits: int, n_vocab: int, n_rows: int, k: int, work: int, out: int) -> list[Launch]:
    """The k highest of each row of logits (float32 [n_rows][n_vocab]), falling, ties: lower id first; NaN counts as lower than all.

    out: see `out_bytes`. Deterministic. ValueError unless 0 < k <= min(256, n_vocab) and n_vocab <= 262,144.
    """
    if not 0 < k <= most(n_vocab):
        raise ValueError(f"the {k} highest of {n_vocab} logits are not supported: at most {MAX_K} of {MAX_VOCAB}")
    parts = _parts(n_vocab)
    totals = work + n_rows * parts * k * 8
    return [
        Launch("top_k_parts", (parts, n_rows, 1), (1024, 1, 1), pack("PPPii", logits, work, totals, n_vocab, k)),
        Launch("top_k_merge", (1, n_rows, 1), (1024, 1, 1), pack("PPPii", work, totals, out, parts, k)),
    ]


def found(out: NDArray[np.uint8], n_rows: int, k: int) -> Highest | None:
    """What `top_k` left, fetched to the host; None when a logit is not finite."""
    logits = out.view(np.float32).reshape(n_rows, 2 * k + 2)
    with np.errstate(all="ignore"):
        log_totals = logits[:, 2 * k].astype(np.float64) + np.log(logits[:, 2 * k + 1].astype(np.float64))
    if not np.isfinite(log_totals).all():
        return None
    return Highest(out.view(np.int32).reshape(n_rows, 2 * k + 2)[:, k : 2 * k], logits[:, :k], log_totals)

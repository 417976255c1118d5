"""Named byte offsets of the two blocks of memory that compiled code reads: a step's descriptor and the team's control block.

Every field is one int64. Kernels read them with `memory_ops.load`; the binder writes them with `pack`. Knows no kernels and no devices.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping

STEP_FIELDS = (
    "kernel",  # address of the kernel's C function
    "per_logit",  # rows of this step: 0 = tokens of the batch, 1 = wanted logit rows
    "x",  # first input
    "x_stride",  # bytes between its rows
    "z",  # second input
    "z_stride",
    "v",  # third input
    "v_stride",
    "y",  # output
    "y_stride",
    "w",  # weight
    "w_stride",  # bytes between its rows
    "bias",  # float32 vector or 0
    "k",  # elements of an input row
    "n",  # elements of an output row
    "call",  # address of a format's own function (quant.cpu)
    "tile",  # rows or tokens that function handles together
    "tile_bytes",  # bytes of one tile of quantized tokens
    "heads",
    "kv_heads",
    "dim_k",
    "dim_v",
    "window",
    "experts",
    "used",  # experts a token uses
    "flags",
    "f0",  # float64 parameters: scale, eps ...
    "f1",
    "kv",  # first block of the layer's KV arena
    "kv_stride",  # bytes between blocks
    "bits_k",  # of a cached key's element: 16 (float16), 8 (q8_0) or 4 (q4_0)
    "bits_v",
    "values_at",  # bytes from a KV head's keys to its values
    "lists",  # attention: the query tiles; experts: the entries by expert
    "keys",  # attention: where the parts of its scratch start
    "values",
    "queries",
    "scores",
    "state",
    "outputs",
    "partial_state",
    "partial",
    "stage",  # bytes at the start of the thread's scratch kept for the driver itself
)
STEP_BYTES = 8 * len(STEP_FIELDS)
STEP = {name: 8 * i for i, name in enumerate(STEP_FIELDS)}

LINE = 128  # two cache lines: what the prefetcher of x86 pulls together
_CONTROL_LINES = (
    # words that many threads write get a line of their own
    ("work",),  # futex: what there is to claim, see `team`
    ("done",),  # finished chunks of the running step
    ("sleepers",),  # threads asleep on `work`
    ("roster",),  # futex: raised when `active` changes
    ("absent",),  # threads asleep on `roster`
    ("abort",),  # set by anyone at any time, cleared by the run it stopped
    ("step", "stopped"),  # written by whoever ends a step, before it publishes the next
    # written by the caller between runs
    (
        "quit",
        "active",
        "spins",
        "yields",
        "stint",
        "steps",
        "steps_end",
        "scratch",
        "scratch_stride",
        "n_tokens",
        "n_logits",
        "ids",
        "positions",
        "seqs",
        "tables",
        "tables_stride",
        "out_rows",
    ),
)


def _lines() -> tuple[dict[str, int], int]:
    offsets: dict[str, int] = {}
    at = 0
    for names in _CONTROL_LINES:
        for i, name in enumerate(names):
            offsets[name] = at + 8 * i
        at += -(-8 * len(names) // LINE) * LINE
    return offsets, at


CONTROL, CONTROL_BYTES = _lines()


def float_bits(value: float) -> int:
    """The float64's bits as int64: how a real parameter travels in a descriptor."""
    return int(struct.unpack("<q", struct.pack("<d", value))[0])


def pack(fields: Mapping[str, int]) -> bytes:
    """A descriptor with these fields; the others are 0. KeyError for a name that is not a field."""
    words = [0] * len(STEP_FIELDS)
    for name, value in fields.items():
        words[STEP[name] // 8] = value
    return struct.pack(f"<{len(words)}q", *words)

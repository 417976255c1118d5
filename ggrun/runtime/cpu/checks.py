"""Is a batch one that the kernels can trust? They follow every number of it into memory, so all are looked at, in compiled code.

A wrong batch is a mistake of the program, not of its user.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from ggrun.plan.device import KV_BLOCK_TOKENS
from ggrun.runtime.cpu.words import control_field, load_i32


@njit
def _at(address, index):
    return np.int64(load_i32(address + 4 * index))


def broken_rule(control, n_vocab, n_tables, table_blocks, n_kv_blocks):
    """Index into `executor.RULES` of what is wrong with the batch in the control block, 0 when nothing is.

    tables: [n_tables, table_blocks]; only the entries that its positions reach are looked at.
    """
    tokens = control_field(control, "n_tokens")
    ids, positions, seqs = control_field(control, "ids"), control_field(control, "positions"), control_field(control, "seqs")
    for token in range(tokens):
        if not 0 <= _at(ids, token) < n_vocab:
            return 1
        seq = _at(seqs, token)
        position = _at(positions, token)
        if not 0 <= seq < n_tables:
            return 2
        if not 0 <= position < table_blocks * KV_BLOCK_TOKENS:
            return 3
        if token > 0 and _at(seqs, token - 1) == seq and _at(positions, token - 1) >= position:
            return 4
        if token + 1 == tokens or _at(seqs, token + 1) != seq:  # its last token
            table = control_field(control, "tables") + seq * control_field(control, "tables_stride")
            for block in range(position // KV_BLOCK_TOKENS + 1):
                if not 0 <= _at(table, block) < n_kv_blocks:
                    return 5
            for later in range(token + 1, tokens):
                if _at(seqs, later) == seq:
                    return 6
    for row in range(control_field(control, "n_logits")):
        if not 0 <= _at(control_field(control, "out_rows"), row) < tokens:
            return 7
    return 0

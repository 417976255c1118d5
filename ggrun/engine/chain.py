"""Names of blocks outside of the pool: a hash over all tokens that lead to a block and its own, so that equal prefixes have equal names."""

from __future__ import annotations

from array import array
from collections.abc import Iterable
from hashlib import blake2b

from ggrun.engine.kv import Block

KEY_BYTES = 16
ROOT = bytes(KEY_BYTES)  # before the first block


def key_after(parent: bytes, tokens: Iterable[int]) -> bytes:
    """The key of the block with these tokens behind the block whose key is `parent`."""
    return blake2b(parent + array("i", tokens).tobytes(), digest_size=KEY_BYTES).digest()


def key_of(block: Block | None) -> bytes:
    """The key of a published block; None and the pool's root have ROOT. Kept in the block once it was asked for."""
    unnamed: list[Block] = []
    while block is not None and block.parent is not None and not block.key:
        unnamed.append(block)
        block = block.parent
    key = ROOT if block is None or block.parent is None else block.key
    for node in reversed(unnamed):
        key = node.key = key_after(key, node.tokens)
    return key

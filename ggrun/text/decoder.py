"""Bytes of tokens back to text, a token at a time, never splitting a character.

Knows UTF-8; must not know vocabularies.
"""

from __future__ import annotations

from codecs import getincrementaldecoder
from collections.abc import Callable

_utf8 = getincrementaldecoder("utf-8")


class IncrementalDecoder:
    """push(id) returns the text that became certain, finish() what is left. Bytes that can no longer become a character are U+FFFD.

    piece: id -> bytes. strip_space: drop one space before the first text.
    """

    def __init__(self, piece: Callable[[int], bytes], strip_space: bool = False) -> None:
        self._piece = piece
        self._strip = strip_space
        self._decoder = _utf8(errors="replace")

    def push(self, id: int) -> str:
        """The text that this token completes; "" while a character is incomplete."""
        raw = self._piece(id)
        if self._strip and raw:
            self._strip = False
            raw = raw.removeprefix(b" ")
        return self._decoder.decode(raw)

    def finish(self) -> str:
        """U+FFFD for an incomplete character at the end, else ""."""
        return self._decoder.decode(b"", final=True)

"""How long a model may think: after so many tokens of a thought, the tokens that end it come next, whatever the model would say.

Knows token ids and the marks of a thought; must not know templates, logits or sequences.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from ggrun.text import Tokenizer

_TAIL: Final = 200  # bytes within which a mark is found


@dataclass(frozen=True, slots=True)
class ThoughtMarks:
    """How a thought is written. begin: the text it starts with, at the beginning of the answer; end: what finds its last mark, at most
    _TAIL bytes; closing: what is written to end one; opened: the prompt has the first mark already; again: thoughts may follow other text.
    """

    begin: str
    end: re.Pattern[bytes]
    closing: str
    opened: bool = False
    again: bool = False


class ThoughtBudget:
    """Follows one answer, token by token. n: tokens its thoughts may have together, without their marks."""

    def __init__(self, tokenizer: Tokenizer, n: int, marks: ThoughtMarks) -> None:
        self._tokenizer = tokenizer
        self._marks = marks
        self._left = n
        self._within = marks.opened
        self._over = False  # no thought comes any more
        self._tail = b""
        self._closing = ids_of(tokenizer, marks.closing)
        self._n_closed = 0

    @property
    def forced(self) -> int | None:
        """The token that must come next; None: any."""
        if not self._within or self._left > 0 or not _whole(self._tail):
            return None
        return self._closing[self._n_closed]

    def accept(self, id: int) -> None:
        """Note a token of the answer."""
        if self._over:
            return
        is_closing = id == self.forced
        self._tail = (self._tail + self._tokenizer.token_bytes(id))[-_TAIL:]
        if not self._within:
            self._look()
        elif is_closing:
            self._n_closed += 1
            if self._n_closed == len(self._closing):
                self._end()
        elif self._marks.end.search(self._tail):
            self._end()
        else:
            self._n_closed = 0
            self._left -= 1

    def _look(self) -> None:
        """Whether a thought begins."""
        begin, said = self._marks.begin.encode().strip(), self._tail.lstrip()
        if said.startswith(begin) or (self._marks.again and begin in said):
            self._within, self._tail = True, said.partition(begin)[2]
        elif not begin.startswith(said) and not self._marks.again:
            self._over = True

    def _end(self) -> None:
        self._within, self._over = False, not self._marks.again
        self._tail, self._n_closed = b"", 0


def ids_of(tokenizer: Tokenizer, mark: str) -> list[int]:
    """The tokens a model writes a mark with."""
    parts = tokenizer.split_special(mark)
    return [id_ for part in parts for id_ in ([part] if isinstance(part, int) else tokenizer.encode_part(part))]


def _whole(text: bytes) -> bool:
    """Whether it does not end within a character."""
    for n in range(1, min(4, len(text)) + 1):
        byte = text[-n]
        if byte & 0xC0 != 0x80:
            return n >= (byte >= 0xC0) + (byte >= 0xE0) + (byte >= 0xF0) + 1 or byte >= 0xF8
    return True

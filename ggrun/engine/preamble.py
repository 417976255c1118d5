"""A constraint that holds what follows a thought, and leaves the thought alone.

Knows masks, token ids and the marks of a thought; must not know templates or what the inner constraint demands.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final, Literal

import numpy as np

from ggrun.engine.budget import ids_of

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from ggrun.engine.constraint import Constraint
    from ggrun.text import Tokenizer

_TAIL: Final = 200
State = Literal["undecided", "beginning", "within", "after"]


class AfterThought:
    """A `Constraint`: an optional thought, free but for the end of the answer, and then what `inner` allows.

    begin: the mark a thought starts with; end: what finds its last one, at most _TAIL bytes; opened: the prompt has the first already,
    so that there must be one.
    """

    def __init__(self, inner: Constraint, tokenizer: Tokenizer, begin: str, end: re.Pattern[bytes], opened: bool) -> None:
        self._inner = inner
        self._tokenizer = tokenizer
        self._begin = ids_of(tokenizer, begin)
        self._begin_text, self._end = begin, end
        self._state: State = "within" if opened else "undecided"
        self._n_begun = 0
        self._tail = b""
        self._words: NDArray[np.uint32] | None = None
        self.done = False

    def mask(self) -> NDArray[np.uint32]:
        inner = self._inner.mask()
        if self._state == "after":
            self.done = self._inner.done
            return inner
        if self._words is None or len(self._words) != len(inner):
            self._words = np.empty_like(inner)
        words = self._words
        if self._state == "undecided":
            words[:] = inner
            _set(words, self._begin[0], True)
        elif self._state == "beginning":
            words[:] = 0
            _set(words, self._begin[self._n_begun], True)
        else:
            words[:] = 0xFFFFFFFF
            for id_ in self._tokenizer.end_of_generation:
                _set(words, id_, False)
        return words

    def accept(self, id: int) -> None:
        if self._state == "undecided" and (id != self._begin[0] or _has(self._inner.mask(), id)):
            self._state = "after"
        if self._state == "after":
            self._inner.accept(id)
            self.done = self._inner.done
            return
        if self._state != "within":
            self._n_begun += 1
            self._state = "within" if self._n_begun == len(self._begin) else "beginning"
            self._tail = self._begin_text.encode()
            return
        text = self._tail + self._tokenizer.token_bytes(id)
        found = self._end.search(text)
        if not found:
            self._tail = text[-_TAIL:]
            return
        self._state = "after"
        rest = text[found.end() :].strip()  # of a token that holds more than the mark
        for follower in self._tokenizer.encode_part(rest.decode("utf-8", "replace")):
            self._inner.accept(follower)

    def copy(self) -> AfterThought:
        twin = AfterThought(self._inner.copy(), self._tokenizer, self._begin_text, self._end, False)
        twin._state, twin._n_begun, twin._tail = self._state, self._n_begun, self._tail
        return twin


def _set(words: NDArray[np.uint32], id_: int, value: bool) -> None:
    if id_ < 32 * len(words):
        bit = np.uint32(1 << (id_ % 32))
        words[id_ // 32] = words[id_ // 32] | bit if value else words[id_ // 32] & ~bit


def _has(words: NDArray[np.uint32], id_: int) -> bool:
    return id_ < 32 * len(words) and bool(words[id_ // 32] >> np.uint32(id_ % 32) & np.uint32(1))

"""Texts as sequences of words that can be turned into ids one by one, and remembered.

Knows where a text may be cut without changing its tokens; must not know how one word becomes ids.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import Final

SPACE: Final = "▁"  # how vocabularies without a byte alphabet spell a space

_MAX_REMEMBERED_LENGTH = 64
_MAX_REMEMBERED = 1 << 16


def space_boundary(texts: Iterable[str]) -> re.Pattern[str]:
    """Matches the empty string before a space, wherever no text of `texts` has its first space after that character.

    When `texts` are all that merging may ever spell, cutting there changes nothing: no merge crosses the cut.
    """
    crossed = set(re.findall(f"([^{SPACE}\0]){SPACE}", "\0".join(texts)))
    excluded = "\0" + "".join(re.escape(character) for character in sorted(crossed))  # "\0" may be in a text as well
    return re.compile(f"(?<=[^{SPACE}{excluded}])(?={SPACE})")


class WordIds:
    """Ids of words by `compute`, remembered for short words."""

    def __init__(self, compute: Callable[[str], list[int]]) -> None:
        self._compute = compute
        self._known: dict[str, list[int]] = {}

    def of(self, words: Iterable[str]) -> list[int]:
        """The ids of all words, in order."""
        ids: list[int] = []
        known, compute = self._known, self._compute
        for word in words:
            found = known.get(word)
            if found is None:
                found = compute(word)
                if len(word) <= _MAX_REMEMBERED_LENGTH:
                    if len(known) >= _MAX_REMEMBERED:
                        known.clear()
                    known[word] = found
            ids += found
        return ids

"""Byte-pair encoding by a list of merges, over the byte alphabet or over UTF-8 with byte tokens.

Knows a vocabulary, its merges and a split rule; must not know special tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from itertools import chain
from re import Pattern

from ggrun.text.characters import to_byte_alphabet
from ggrun.text.error import TextError
from ggrun.text.merges import Merges
from ggrun.text.merging import merged_ids
from ggrun.text.pretokenizers import PreTokenizer
from ggrun.text.vocabulary import PREFIX, Vocabulary
from ggrun.text.words import SPACE, WordIds, space_boundary


class BytePairEncoder:
    """`merges`: "left right", best first. TextError for an entry without two parts."""

    def __init__(self, vocabulary: Vocabulary, merges: Sequence[str], pretokenizer: PreTokenizer) -> None:
        self._merges = Merges(merges)
        if (malformed := self._merges.malformed()) is not None:
            raise TextError(f'{PREFIX}merges[{malformed}] is {merges[malformed]!r:.60}; an entry must be two symbols, "left right"')
        self._ids = vocabulary.ids
        self._pre = pretokenizer
        self._words = WordIds(self._encode_word)

    def encode(self, text: str) -> list[int]:
        """The ids of ordinary text. Characters that no token spells are left out, as in the reference."""
        if self._pre.byte_level:
            return self._words.of(self._pre.split(text))
        lines = self._pre.split(text.replace(" ", SPACE))
        return self._words.of(chain.from_iterable(map(self._boundary.split, lines)))

    @cached_property
    def _boundary(self) -> Pattern[str]:
        return space_boundary(pair.replace(" ", "", 1) for pair in self._merges.pairs if SPACE in pair)

    def _encode_word(self, word: str) -> list[int]:
        if self._pre.byte_level:
            word = to_byte_alphabet(word)
        whole = self._ids.get(word)
        if whole is not None and (self._pre.whole_words or (self._pre.whole_newlines and not word.strip("\n"))):
            return [whole]
        return merged_ids(word, self._merges.rank, self._ids, self._fall_back)

    def _fall_back(self, symbol: str) -> list[int]:
        """Ids of the symbol's bytes, those that there are tokens for."""
        texts = symbol if self._pre.byte_level else [f"<0x{byte:02X}>" for byte in symbol.encode()]
        return [self._ids[text] for text in texts if text in self._ids]

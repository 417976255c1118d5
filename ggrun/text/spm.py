"""SentencePiece-style encoding: byte-pair merging by the score of what a merge spells, bytes for what no token spells.

Knows a vocabulary with scores; must not know special tokens.
"""

from __future__ import annotations

from functools import cached_property
from math import inf
from re import Pattern

from ggrun.text.error import TextError
from ggrun.text.merging import merged_ids
from ggrun.text.vocabulary import PREFIX, Vocabulary
from ggrun.text.words import SPACE, WordIds, space_boundary


class SentencePieceEncoder:
    """TextError when the vocabulary has no scores: nothing would say what to merge first."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        if not vocabulary.scores:
            raise TextError(f"the file has no {PREFIX}scores, which a vocabulary of tokenizer.ggml.model 'llama' needs")
        self._ids = vocabulary.ids
        self._unknown = vocabulary.special.get("unk")
        self._ranks = {text: -vocabulary.scores[id_] for text, id_ in vocabulary.ids.items()}
        self._words = WordIds(self._encode_word)

    def encode(self, text: str) -> list[int]:
        """The ids of ordinary text, which already begins with a space where it should."""
        return self._words.of(self._boundary.split(text.replace(" ", SPACE)))

    @cached_property
    def _boundary(self) -> Pattern[str]:
        return space_boundary(text for text in self._ids if SPACE in text)

    def _encode_word(self, word: str) -> list[int]:
        return merged_ids(word, self._rank, self._ids, self._fall_back)

    def _rank(self, left: str, right: str) -> float:
        return self._ranks.get(left + right, inf)

    def _fall_back(self, symbol: str) -> list[int]:
        """Byte tokens, else the unknown token for each byte, else nothing."""
        found = (self._ids.get(f"<0x{byte:02X}>", self._unknown) for byte in symbol.encode())
        return [id_ for id_ in found if id_ is not None]

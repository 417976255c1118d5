"""DRY ("don't repeat yourself"): penalties for tokens that would prolong a sequence the text has had before.

Knows token ids and the bytes they stand for; must not know logits. Definition: the DRY sampler of text-generation-webui (pull request
5677), with sequence breakers as llama.cpp reads them.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from ggrun.engine.sampling import Sampling
    from ggrun.text import Tokenizer

_MAX_TAIL = 20  # tokens of a breaker that follow its first
_MAX_LOG = 88.7228391  # logarithm of the largest float32

Breakers = dict[int, list[tuple[int, ...]]]  # first token -> the tokens that must follow


class Repetition:
    """The text so far, and what of it its end repeats.

    Compared once per token and not once per question: _run[d], int32, is how many tokens at the end of the compared text equal those
    that stand d + 1 places before them. Runs longer than `_longest` are penalized no more, so they need not be told apart, and text
    that came in one piece, such as a prompt, is compared over that length only.
    """

    def __init__(self, sampling: Sampling, tokenizer: Tokenizer | None) -> None:
        self._sampling = sampling
        self._tokenizer = tokenizer
        self._n = self._n_compared = 0
        self._tokens = np.zeros(0, np.int32)
        self._run = np.zeros(0, np.int32)
        steepness = math.log(max(sampling.dry_base, 1.0))
        self._longest = sampling.dry_allowed_length + (int(_MAX_LOG / steepness) if steepness > 1e-6 else 0)

    def accept(self, id: int) -> None:
        """Note that `id` is part of the text."""
        if self._n == len(self._tokens):
            room = np.zeros(max(1024, self._n), np.int32)
            self._tokens, self._run = np.append(self._tokens, room), np.append(self._run, room)
        self._tokens[self._n] = id
        self._n += 1

    def penalties(self) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Tokens [n] and what to take from their logits: multiplier * base ** (length of what they would prolong - allowed length)."""
        s, n, allowed = self._sampling, self._n, self._sampling.dry_allowed_length
        breakers, starts = _breakers(s.dry_sequence_breakers, self._tokenizer) if self._tokenizer else ({}, np.zeros(0, np.bool_))
        window = n if s.dry_penalty_last_n < 0 else min(n, s.dry_penalty_last_n)
        longest = min(self._since_breaker(window, breakers, starts), self._longest)
        self._compare()
        near = self._run[: max(0, window - allowed)] if longest >= allowed else self._run[:0]
        distance = np.flatnonzero(near >= allowed) + 1
        lengths = np.minimum(np.minimum(self._run[distance - 1], longest), window - distance)
        following = self._tokens[n - distance]
        order = np.lexsort((lengths, following))
        last = np.flatnonzero(np.diff(following[order], append=-1))  # of each token the longest
        ids, lengths = following[order][last], lengths[order][last]
        free = np.fromiter((() not in breakers.get(id_, ()) for id_ in ids.tolist()), np.bool_, len(ids))
        return ids[free].astype(np.int64), s.dry_multiplier * s.dry_base ** (lengths[free] - float(allowed))

    def _compare(self) -> None:
        start = max(self._n_compared, self._n - self._longest)
        if start > self._n_compared:
            self._run[:] = 0
        for end in range(start, self._n):
            run = self._run[:end]
            run += 1
            run *= self._tokens[:end][::-1] == self._tokens[end]
        self._n_compared = self._n

    def _since_breaker(self, window: int, breakers: Breakers, starts: NDArray[np.bool_]) -> int:
        """Tokens after the last sequence breaker in the window."""
        if not breakers:
            return window
        tokens = self._tokens[self._n - window : self._n]
        for place in np.flatnonzero(starts[tokens])[::-1]:
            after = int(place) + 1
            following = tuple(tokens[after : after + _MAX_TAIL].tolist())
            tails = [len(tail) for tail in breakers[int(tokens[after - 1])] if following[: len(tail)] == tail]
            if tails:
                return window - after - max(tails)
        return window


@lru_cache(maxsize=8)
def _breakers(texts: tuple[str, ...], tokenizer: Tokenizer) -> tuple[Breakers, NDArray[np.bool_]]:
    """Every way the vocabulary can spell a breaker: tokens that contain it, or begin it and are followed by its rest.

    Also which tokens these are, bool [n_vocab].
    """
    found: Breakers = {}
    wanted = [text.encode("utf-8", "replace") for text in texts]
    for id_ in range(tokenizer.n_vocab):
        word = tokenizer.token_bytes(id_)
        for text in wanted:
            if text in word:
                found.setdefault(id_, []).append(())
                continue
            for n in range(min(len(text) - 1, len(word)), 0, -1):
                if word.endswith(text[:n]):
                    rest = text[n:].decode("utf-8", "replace")
                    found.setdefault(id_, []).append(tuple(tokenizer.encode(rest, add_special=False)[:_MAX_TAIL]))
    starts = np.zeros(tokenizer.n_vocab, np.bool_)
    starts[list(found)] = True
    return found, starts

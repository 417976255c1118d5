"""DRY ("don't repeat yourself"): penalties for tokens that would prolong a sequence the text has had before.

Knows token ids and the bytes they stand for; must not know logits. Definition: the DRY sampler of text-generation-webui (pull request
5677), with sequence breakers as llama.cpp reads them.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from ggrun.engine.sampling import Sampling
    from ggrun.text import Tokenizer

_MAX_TAIL = 20  # tokens of a breaker that follow its first
_MAX_LOG = 88.7228391  # logarithm of the largest float32

Breakers = dict[int, list[tuple[int, ...]]]  # first token -> the tokens that must follow


def dry_penalties(history: list[int], sampling: Sampling, tokenizer: Tokenizer | None) -> dict[int, float]:
    """Token -> what to take from its logit: multiplier * base ** (length of the repetition it would prolong - allowed length)."""
    allowed = sampling.dry_allowed_length
    window = history if sampling.dry_penalty_last_n < 0 else history[-sampling.dry_penalty_last_n :]
    if len(window) <= allowed:
        return {}
    breakers = _breakers(sampling.dry_sequence_breakers, tokenizer) if tokenizer else {}
    longest = _since_breaker(window, breakers)
    if longest < allowed:
        return {}
    # Longer repetitions than this are penalized no more, so they need not be told apart.
    steepest = int(_MAX_LOG / math.log(sampling.dry_base)) if sampling.dry_base > 1.000001 else 1 << 30
    lengths: dict[int, int] = {}
    tokens = np.asarray(window)
    ends = np.flatnonzero(tokens[:-1] == tokens[-1])  # where the last token stood before; what followed might follow again
    length = 1
    while len(ends) and length <= min(longest, allowed + steepest):
        if length >= allowed:
            for token in np.unique(tokens[ends + 1]).tolist():
                lengths[token] = length
        ends = ends[ends >= length]
        ends = ends[tokens[ends - length] == tokens[len(tokens) - 1 - length]]
        length += 1
    return {
        token: sampling.dry_multiplier * sampling.dry_base ** (n - allowed)
        for token, n in lengths.items()
        if () not in breakers.get(token, ())
    }


def _since_breaker(window: list[int], breakers: Breakers) -> int:
    """Tokens after the last sequence breaker in the window."""
    for i, token in enumerate(reversed(window)):
        tails = [len(tail) for tail in breakers.get(token, ()) if len(tail) <= i and tuple(window[len(window) - i :][: len(tail)]) == tail]
        if tails:
            return i - max(tails)
    return len(window)


@lru_cache(maxsize=8)
def _breakers(texts: tuple[str, ...], tokenizer: Tokenizer) -> Breakers:
    """Every way the vocabulary can spell a breaker: tokens that contain it, or begin it and are followed by its rest."""
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
    return found

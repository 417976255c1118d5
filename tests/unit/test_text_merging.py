"""Merging, short and long, against the definition carried out step by step."""

import random
from itertools import pairwise
from math import inf

import pytest

from ggrun.text import merging
from ggrun.text.merging import Rank


def by_definition(symbols: list[str], rank: Rank) -> list[str]:
    symbols = list(symbols)
    while len(symbols) > 1:
        ranks = [rank(left, right) for left, right in pairwise(symbols)]
        if min(ranks) == inf:
            break
        i = ranks.index(min(ranks))
        symbols[i : i + 2] = [symbols[i] + symbols[i + 1]]
    return symbols


@pytest.mark.parametrize("by_text", [False, True])
def test_short_and_long_do_what_the_definition_says(by_text: bool) -> None:
    random.seed(5)
    for trial in range(1500):
        letters = "ab" if trial % 2 else "abcd"
        ranks: dict[tuple[str, ...], float] = {}
        for _ in range(random.randrange(1, 40)):
            left, right = ("".join(random.choices(letters, k=random.randrange(1, 4))) for _ in range(2))
            ranks[(left + right,) if by_text else (left, right)] = random.randrange(6 if trial % 3 else 100)

        def rank(left: str, right: str, ranks: dict[tuple[str, ...], float] = ranks) -> float:
            return ranks.get((left + right,) if by_text else (left, right), inf)

        symbols = random.choices(letters, k=random.randrange(60))
        wanted = by_definition(symbols, rank)
        assert merging._merge_short(list(symbols), rank) == wanted
        assert merging._merge_long(list(symbols), rank) == wanted


@pytest.mark.parametrize(
    ("rank", "text"),
    [
        (lambda left, right: 0.0 if len(left + right) < 9 else inf, "a"),  # all ties
        (lambda left, right: {"ab": 9, "abc": 5, "abcabc": 9}.get(left + right, inf), "abc"),  # better pairs appear while merging
        (lambda left, right: 1e6 - len(left + right), "ab"),  # one symbol swallows all
    ],
)
def test_no_ranks_make_it_quadratic(rank: Rank, text: str) -> None:
    n = 4_000 if rank("x", "y") == 1e6 - 2 else 150_000
    symbols = list(text * (n // len(text)))
    assert "".join(merging.merge(list(symbols), rank)) == "".join(symbols)

"""Cuts keep what a plain implementation keeps that sorts all tokens; DRY finds what comparing all pairs of places finds.

Float64 sums depend on their order, so a mass within 1e-6 of its bound may fall on either side.
"""

import math
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from ggrun.engine.candidates import Candidates
from ggrun.engine.sampling import Sampler, Sampling

Logits = NDArray[np.float32]
LARGE = 152_064


@st.composite
def many_logits(draw: st.DrawFn) -> Logits:
    """Up to 20,000 logits: peaked, flat or in few values, with ties and with some at -inf."""
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    n = draw(st.sampled_from([1, 2, 63, 64, 500, 4097, 20_000]))
    logits = (random.normal(size=n) * draw(st.sampled_from([0.0, 1e-6, 0.3, 4.0, 50.0]))).astype(np.float32)
    if draw(st.booleans()):
        logits = np.round(logits)
    logits += np.float32(draw(st.sampled_from([0.0, -1e4, 30.0])))
    logits[random.random(n) < draw(st.sampled_from([0.0, 0.1, 0.99]))] = -np.inf
    logits[random.integers(n)] = 0
    return logits


def probabilities(logits: Logits) -> NDArray[np.float64]:
    weights = np.exp(logits.astype(np.float64) - float(logits.max()))
    normal: NDArray[np.float64] = weights / weights.sum()
    return normal


def kept(candidates: Candidates) -> list[int]:
    return list(range(len(candidates))) if candidates.ids is None else candidates.ids.tolist()


def by_likelihood(logits: Logits) -> NDArray[np.intp]:
    return np.lexsort((np.arange(len(logits)), -logits))


def assert_fewest(ids: list[int], order: NDArray[np.intp], p: NDArray[np.float64], share: float) -> None:
    """ids are the first of the order, and with the last of them, but not without it, they reach the share."""
    head = order[: len(ids)]
    assert ids == np.sort(head).tolist()
    assert p[head].sum() >= share - 1e-6
    assert p[head[:-1]].sum() <= share + 1e-6


@given(many_logits(), st.integers(1, 25_000))
def test_top_k(logits: Logits, k: int) -> None:
    candidates = Candidates(logits)
    candidates.top(k)
    assert kept(candidates) == np.sort(by_likelihood(logits)[:k]).tolist()


@given(many_logits(), st.floats(0, 1))
def test_top_p(logits: Logits, share: float) -> None:
    candidates = Candidates(logits)
    candidates.hold(share)
    assert_fewest(kept(candidates), by_likelihood(logits), probabilities(logits), share)


@given(many_logits(), st.floats(0, 0.999))
def test_typical(logits: Logits, share: float) -> None:
    candidates = Candidates(logits)
    candidates.hold_near(candidates.mean(), share)
    p = probabilities(logits)
    with np.errstate(divide="ignore", invalid="ignore"):
        surprise = -np.log(p)
        entropy = np.nansum(p * surprise)
    ids = kept(candidates)
    near, far = np.abs(surprise - entropy), np.ones(len(p), np.bool_)
    far[ids] = False
    # float32 tells distances apart to seven digits; the chosen are the nearest and as few as will do
    if far.any():
        assert near[ids].max() <= near[far].min() + 1e-5 * (1 + abs(entropy) + near[ids].max())
    assert p[ids].sum() >= share - 1e-6
    farthest = max(ids, key=lambda id_: (near[id_], -p[id_]))
    assert p[ids].sum() - p[farthest] <= share + 1e-5


@pytest.mark.parametrize("spread", [0.0, 1e-7, 0.1, 4.0])
def test_the_nucleus_of_a_large_vocabulary(spread: float) -> None:
    logits = (np.random.default_rng(3).random(LARGE) * spread).astype(np.float32)
    order, p = by_likelihood(logits), probabilities(logits)
    for share in (0.0, 0.5, 0.95, 1.0):
        candidates = Candidates(logits)
        candidates.hold(share)
        assert_fewest(kept(candidates), order, p, share)
        assert kept(candidates) == np.sort(order[: len(candidates)]).tolist()


def test_a_draw_follows_the_probabilities_of_a_large_vocabulary() -> None:
    """Over parts of the vocabulary, drawn with evenly spaced numbers instead of random ones."""
    logits = (np.random.default_rng(3).normal(size=LARGE) * 2).astype(np.float32)
    candidates = Candidates(logits)

    class Even:
        at = 0.0

        def random(self) -> float:
            return self.at

    even, drawn = Even(), []
    for even.at in np.arange(2000) / 2000:
        drawn.append(candidates.draw(even))  # type: ignore[arg-type]
    assert drawn == sorted(drawn)
    ends = np.cumsum(probabilities(logits))
    for position, at in zip(drawn, np.arange(2000) / 2000, strict=True):
        assert ends[position - 1] - 1e-6 <= at <= ends[position] + 1e-6 or position == 0


def plain_dry(history: list[int], settings: Sampling) -> dict[int, float]:
    """Penalties by token, from comparing what stands before every place with the end."""
    window = history if settings.dry_penalty_last_n < 0 else history[-settings.dry_penalty_last_n :]
    longest: dict[int, int] = {}
    for place, _ in enumerate(pairwise(window)):
        length = 0
        while length <= place and window[place - length] == window[-1 - length]:
            length += 1
        following = window[place + 1]
        longest[following] = max(longest.get(following, 0), length)
    most = settings.dry_allowed_length + int(math.log(3.4028234e38) / math.log(settings.dry_base))
    return {
        token: settings.dry_multiplier * settings.dry_base ** (min(length, most) - settings.dry_allowed_length)
        for token, length in longest.items()
        if length >= settings.dry_allowed_length
    }


@settings(max_examples=50)
@given(st.lists(st.integers(0, 2), max_size=80), st.integers(0, 80), st.integers(1, 4), st.sampled_from([-1, 1, 7, 30]))
def test_dry(history: list[int], n_prompt: int, allowed: int, last_n: int) -> None:
    """Asked for only after the prompt, then after every token: the same as if it were computed from nothing."""
    sampling = Sampling(dry_multiplier=0.5, dry_base=30.0, dry_allowed_length=allowed, dry_penalty_last_n=last_n)
    sampler = Sampler(sampling, 3)
    for n, token in enumerate(history, 1):
        sampler.accept(token)
        if n >= n_prompt:
            ids, values = sampler.repetition.penalties()
            assert dict(zip(ids.tolist(), values.tolist(), strict=True)) == pytest.approx(plain_dry(history[:n], sampling))

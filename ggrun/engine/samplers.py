"""The steps a sampler is made of: each cuts or reweighs the candidates for the next token.

Knows arrays of logits; must not know where they come from. The definitions are the published ones, in llama.cpp's form: every step
sees what the step before it left. Mirostat: arXiv 2007.14966. Locally typical: arXiv 2202.00666. Top-n-sigma: arXiv 2411.07641.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from ggrun.engine.dry import dry_penalties
from ggrun.errors import GgrunError

if TYPE_CHECKING:
    from ggrun.engine.sampling import Sampler, Sampling

Step = Callable[["Candidates", "Sampler"], None]

_BLOCK: Final = 64
_MIROSTAT_TERMS: Final = 100


class Candidates:
    """Tokens that may come next. ids: int64 [n], or None while all tokens are candidates in order; logits: float32 [n].

    Sorted means by falling logit, equal logits by rising id; every step that cuts leaves them sorted or in the order they had.
    """

    def __init__(self, logits: NDArray[np.float32]) -> None:
        self.ids: NDArray[np.int64] | None = None
        self.logits = logits
        self._own = False  # whether logits may be written to
        self._sorted = False

    def __len__(self) -> int:
        return len(self.logits)

    def id_at(self, position: int) -> int:
        return position if self.ids is None else int(self.ids[position])

    def add(self, ids: NDArray[np.int64], values: NDArray[np.floating[Any]]) -> None:
        """Add to the logits of distinct tokens, those that are candidates."""
        self._write()
        positions, found = self._find(ids)
        self.logits[positions] += values[found].astype(np.float32)

    def logits_of(self, ids: NDArray[np.int64]) -> NDArray[np.float32]:
        """float32 [len(ids)]; -inf for tokens that are no longer candidates."""
        logits = np.full(len(ids), -np.inf, np.float32)
        positions, found = self._find(ids)
        logits[found] = self.logits[positions]
        return logits

    def _find(self, ids: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """Positions of those tokens that are candidates, and which these are."""
        if self.ids is None:
            found = ids < len(self)
            return ids[found], found
        order = np.argsort(self.ids)
        at = np.minimum(np.searchsorted(self.ids, ids, sorter=order), len(self) - 1)
        found = self.ids[order[at]] == ids
        return order[at[found]], found

    def scale(self, factor: float) -> None:
        """Multiply all logits by a positive number."""
        self.logits = self.logits * np.float32(factor)
        self._own = True

    def keep(self, positions: NDArray[np.intp] | slice) -> None:
        """Keep these positions, in their order."""
        self.ids = np.arange(len(self.logits))[positions] if self.ids is None else self.ids[positions]
        self.logits = self.logits[positions]
        self._own = not isinstance(positions, slice)

    def sort(self) -> None:
        self.top(len(self))

    def top(self, k: int) -> None:
        """Keep the k largest, sorted."""
        if not self._sorted:
            if k < len(self) // 8 and len(self) >= 16 * _BLOCK:
                self.keep(np.flatnonzero(self.logits >= self._bound(k)))
            self._sort()
        if k < len(self):
            self.keep(slice(0, k))

    def probabilities(self) -> NDArray[np.float64]:
        """Softmax of the logits, float64 [n]."""
        weights = np.exp(self.logits.astype(np.float64) - float(self.logits.max()))
        normal: NDArray[np.float64] = weights / weights.sum()
        return normal

    def draw(self, random: np.random.Generator) -> int:
        """A position, by probability. GgrunError when every candidate is forbidden."""
        if self.logits.max() == -np.inf:
            raise GgrunError("no token is left to choose from: --logit-bias or --ignore-eos forbid all that the model could say")
        if len(self) == 1:
            return 0
        bounds = np.cumsum(self.probabilities())
        position = int(np.searchsorted(bounds, random.random() * bounds[-1], side="right"))
        return min(position, int(np.flatnonzero(self.logits > -np.inf)[-1]))

    def _bound(self, k: int) -> float:
        """A value that at least k logits reach, and few more: the k-th largest of the largest of each block."""
        n_blocks = len(self) // _BLOCK
        if k > n_blocks:
            return float(np.partition(self.logits, len(self) - k)[len(self) - k])
        largest = self.logits[: n_blocks * _BLOCK].reshape(n_blocks, _BLOCK).max(axis=1)
        return float(np.partition(largest, n_blocks - k)[n_blocks - k])

    def _sort(self) -> None:
        """One sort of integers that order as (falling logit, rising id) do: ten times faster than sorting by two keys."""
        bits = (self.logits + np.float32(0)).view(np.int32)  # + 0 makes -0 equal to 0
        ordered = (bits ^ ((bits >> 31) & 0x7FFFFFFF)).astype(np.int64)
        keys = (-ordered << 32) | (np.arange(len(self)) if self.ids is None else self.ids)
        keys.sort()
        self.ids = keys & 0xFFFFFFFF
        ordered = -(keys >> 32)
        self.logits = (ordered ^ ((ordered >> 63) & 0x7FFFFFFF)).astype(np.int32).view(np.float32)
        self._own = self._sorted = True

    def _write(self) -> None:
        self._sorted = False
        if not self._own:
            self.logits = self.logits.copy()
            self._own = True


def _penalties(candidates: Candidates, sampler: Sampler) -> None:
    if not sampler.counts:
        return
    s = sampler.sampling
    ids = np.fromiter(sampler.counts.keys(), np.int64)
    counts = np.fromiter(sampler.counts.values(), np.float32)
    logits = candidates.logits_of(ids)
    known = np.isfinite(logits)
    ids, counts, logits = ids[known], counts[known], logits[known]
    changed = np.where(logits > 0, logits / s.repeat_penalty, logits * s.repeat_penalty)
    changed -= counts * s.frequency_penalty + s.presence_penalty
    if len(ids):
        candidates.add(ids, changed - logits)


def _dry(candidates: Candidates, sampler: Sampler) -> None:
    penalties = dry_penalties(sampler.history, sampler.sampling, sampler.tokenizer)
    if penalties:
        candidates.add(np.fromiter(penalties.keys(), np.int64), -np.fromiter(penalties.values(), np.float64))


def _top_n_sigma(candidates: Candidates, sampler: Sampler) -> None:
    if len(candidates) > 1:
        finite = candidates.logits[candidates.logits > -np.inf].astype(np.float64)
        least = float(finite.max()) - sampler.sampling.top_n_sigma * float(finite.std())
        candidates.keep(np.flatnonzero(candidates.logits >= np.float32(least)))


def _top_k(candidates: Candidates, sampler: Sampler) -> None:
    candidates.top(min(sampler.sampling.top_k, len(candidates)))


def _typical(candidates: Candidates, sampler: Sampler) -> None:
    candidates.sort()
    p = candidates.probabilities()
    with np.errstate(divide="ignore", invalid="ignore"):
        surprise = -np.log(p)
        entropy = float(np.nansum(p * surprise))
    order = np.argsort(np.abs(surprise - entropy), kind="stable")
    beyond = np.flatnonzero(np.cumsum(p[order]) > sampler.sampling.typical_p)
    candidates.keep(np.sort(order[: beyond[0] + 1] if len(beyond) else order))


def _top_p(candidates: Candidates, sampler: Sampler) -> None:
    wanted = sampler.sampling.top_p
    if len(candidates) > 4096 and wanted < 1:  # few of many usually suffice
        weights = np.exp(candidates.logits.astype(np.float64) - float(candidates.logits.max()))
        least = np.partition(weights, len(weights) - 2048)[-2048:].min()
        if weights[weights > least].sum() >= wanted * weights.sum() * (1 + 1e-9):
            total = weights.sum()
            candidates.top(2048)
            _cut_at(candidates, np.exp(candidates.logits.astype(np.float64) - float(candidates.logits[0])) / total, wanted)
            return
    candidates.sort()
    _cut_at(candidates, candidates.probabilities(), wanted)


def _cut_at(candidates: Candidates, probabilities: NDArray[np.float64], wanted: float) -> None:
    """Keep the fewest of the sorted candidates whose probabilities reach `wanted`."""
    candidates.keep(slice(0, int(np.searchsorted(np.cumsum(probabilities), wanted, side="left")) + 1))


def _min_p(candidates: Candidates, sampler: Sampler) -> None:
    least = float(candidates.logits.max()) + math.log(sampler.sampling.min_p)
    candidates.keep(np.flatnonzero(candidates.logits >= np.float32(least)))


def _xtc(candidates: Candidates, sampler: Sampler) -> None:
    s = sampler.sampling
    if len(candidates) < 2 or sampler.random.random() > s.xtc_probability:
        return
    candidates.sort()
    above = int(np.count_nonzero(candidates.probabilities() >= s.xtc_threshold))
    if above > 1:
        candidates.keep(slice(above - 1, None))


def _temperature(candidates: Candidates, sampler: Sampler) -> None:
    s = sampler.sampling
    temperature = s.temperature
    if s.dynatemp_range > 0 and len(candidates) > 1:
        low, high = max(0.0, temperature - s.dynatemp_range), temperature + s.dynatemp_range
        p = candidates.probabilities()
        entropy = -float(np.sum(p[p > 0] * np.log(p[p > 0])))
        temperature = low + (high - low) * (entropy / math.log(len(p))) ** s.dynatemp_exponent
    if temperature <= 0:
        _greedy(candidates, sampler)
    elif temperature != 1:
        candidates.scale(1.0 / max(temperature, 1e-30))


def _greedy(candidates: Candidates, sampler: Sampler) -> None:
    best = np.flatnonzero(candidates.logits == candidates.logits.max())
    position = best[0] if candidates.ids is None else best[np.argmin(candidates.ids[best])]
    candidates.keep(np.array([position]))


def _mirostat_1(candidates: Candidates, sampler: Sampler) -> None:
    """Estimates the exponent of a Zipf distribution from the likeliest tokens, and keeps as many as give the wished surprise."""
    n = len(candidates)
    candidates.sort()
    p = candidates.probabilities()[: min(_MIROSTAT_TERMS, n)]
    p = p[p > 0]
    if len(p) < 2:
        return candidates.top(1)
    t = np.log((np.arange(len(p) - 1) + 2) / (np.arange(len(p) - 1) + 1))
    exponent = float(np.sum(t * np.log(p[:-1] / p[1:])) / np.sum(t * t))
    excess = exponent - 1
    if abs(excess) < 1e-9 or exponent <= 0:
        k = float(n)
    else:
        try:
            k = ((excess * 2**sampler.mu) / (1 - n**-excess)) ** (1 / exponent)
        except (OverflowError, ZeroDivisionError):
            k = float(n)
    candidates.top(max(1, int(min(k.real, n))))


def _mirostat_2(candidates: Candidates, sampler: Sampler) -> None:
    """Keeps the tokens whose surprise is at most mu."""
    candidates.sort()
    p = candidates.probabilities()
    candidates.keep(slice(0, max(1, int(np.count_nonzero(p >= 2.0**-sampler.mu)))))


# name -> whether the settings ask for it, and the step
STEPS: Final[dict[str, tuple[Callable[[Sampling], bool], Step]]] = {
    "penalties": (lambda s: s.repeat_last_n != 0, _penalties),
    "dry": (lambda s: s.dry_multiplier != 0 and s.dry_base >= 1 and s.dry_penalty_last_n != 0, _dry),
    "top_n_sigma": (lambda s: s.top_n_sigma > 0, _top_n_sigma),
    "top_k": (lambda s: s.top_k > 0, _top_k),
    "typ_p": (lambda s: s.typical_p < 1, _typical),
    "top_p": (lambda s: s.top_p < 1, _top_p),
    "min_p": (lambda s: s.min_p > 0, _min_p),
    "xtc": (lambda s: s.xtc_probability > 0 and s.xtc_threshold <= 0.5, _xtc),
    "temperature": (lambda s: True, _temperature),
}


def _chain(sampling: Sampling) -> Sequence[Step]:
    steps = [STEPS[name][1] for name in sampling.samplers if STEPS[name][0](sampling)]
    return [*steps, _greedy] if sampling.temperature <= 0 and sampling.dynatemp_range <= 0 else steps


def _mirostat_chain(step: Step) -> Callable[[Sampling], Sequence[Step]]:
    return lambda sampling: (_temperature, step) if sampling.temperature > 0 else (_greedy,)


# --mirostat -> its steps
CHAINS: Final[tuple[Callable[[Sampling], Sequence[Step]], ...]] = (_chain, _mirostat_chain(_mirostat_1), _mirostat_chain(_mirostat_2))

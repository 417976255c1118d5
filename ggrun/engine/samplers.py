"""The steps a sampler is made of: each cuts or reweighs the candidates for the next token.

Knows arrays of logits; must not know where they come from. The definitions are the published ones, in llama.cpp's form: every step
sees what the step before it left. Mirostat: arXiv 2007.14966. Locally typical: arXiv 2202.00666. Top-n-sigma: arXiv 2411.07641.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Final

import numpy as np

from ggrun.engine.candidates import Candidates

if TYPE_CHECKING:
    from ggrun.engine.sampling import Sampler, Sampling

Step = Callable[[Candidates, "Sampler"], None]

_MIROSTAT_TERMS: Final = 100


def _penalties(candidates: Candidates, sampler: Sampler) -> None:
    s = sampler.sampling
    ids = np.flatnonzero(sampler.counts > 0)
    logits = candidates.logits_of(ids)
    known = np.isfinite(logits)
    if not known.any():
        return
    ids, logits = ids[known], logits[known]
    changed = np.where(logits > 0, logits / s.repeat_penalty, logits * s.repeat_penalty)
    changed -= sampler.counts[ids] * s.frequency_penalty + s.presence_penalty
    candidates.add(ids, changed - logits)


def _dry(candidates: Candidates, sampler: Sampler) -> None:
    ids, penalties = sampler.repetition.penalties()
    if len(ids):
        candidates.add(ids, -penalties)


def _top_n_sigma(candidates: Candidates, sampler: Sampler) -> None:
    logits = candidates.logits
    if len(logits) > 1:
        finite = logits if logits.min() > -np.inf else logits[logits > -np.inf]
        least = float(logits.max()) - sampler.sampling.top_n_sigma * float(finite.std(dtype=np.float64))
        candidates.keep(logits >= np.float32(least))


def _top_k(candidates: Candidates, sampler: Sampler) -> None:
    candidates.top(sampler.sampling.top_k)


def _typical(candidates: Candidates, sampler: Sampler) -> None:
    """A token's surprise is as far from the entropy as its logit is from the logits' mean."""
    candidates.hold_near(candidates.mean(), sampler.sampling.typical_p)


def _top_p(candidates: Candidates, sampler: Sampler) -> None:
    candidates.hold(sampler.sampling.top_p)


def _min_p(candidates: Candidates, sampler: Sampler) -> None:
    least = float(candidates.logits.max()) + math.log(sampler.sampling.min_p)
    candidates.keep(candidates.logits >= np.float32(least))


def _xtc(candidates: Candidates, sampler: Sampler) -> None:
    s = sampler.sampling
    if len(candidates) < 2 or sampler.random.random() > s.xtc_probability:
        return
    weights, total = candidates.weights()
    above = np.flatnonzero(weights >= s.xtc_threshold * total)
    if len(above) > 1:
        logits = candidates.logits[above]
        last = above[np.flatnonzero(logits == logits.min())[-1]]
        mask = np.ones(len(candidates), np.bool_)
        mask[above] = False
        mask[last] = True
        candidates.keep(mask)


def _temperature(candidates: Candidates, sampler: Sampler) -> None:
    s = sampler.sampling
    temperature = s.temperature
    if s.dynatemp_range > 0 and len(candidates) > 1:
        low, high = max(0.0, temperature - s.dynatemp_range), temperature + s.dynatemp_range
        entropy = math.log(candidates.weights()[1]) - candidates.mean()
        temperature = low + (high - low) * (entropy / math.log(len(candidates))) ** s.dynatemp_exponent
    if temperature <= 0:
        _greedy(candidates, sampler)
    elif temperature != 1:
        candidates.scale(1.0 / max(temperature, 1e-30))


def _greedy(candidates: Candidates, sampler: Sampler) -> None:
    candidates.top(1)


def _mirostat_1(candidates: Candidates, sampler: Sampler) -> None:
    """Estimates the exponent of a Zipf distribution from the likeliest tokens, and keeps as many as give the wished surprise."""
    n = len(candidates)
    weights, _ = candidates.weights()
    n_terms = min(_MIROSTAT_TERMS, n)
    p = np.sort(np.partition(weights, n - n_terms)[n - n_terms :])[::-1].astype(np.float64)
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
    weights, total = candidates.weights()
    mask = weights >= total * 2.0 ** -max(sampler.mu, 0.0)
    mask[candidates.best()] = True
    candidates.keep(mask)


# name -> whether the settings ask for it, and the step
STEPS: Final[dict[str, tuple[Callable[[Sampling], bool], Step]]] = {
    "penalties": (lambda s: s.penalizes, _penalties),
    "dry": (lambda s: s.looks_for_repetition, _dry),
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


def n_highest(sampling: Sampling) -> int:
    """How many of the highest logits are all that the chain looks at; 0: it needs every one."""
    chain = CHAINS[sampling.mirostat](sampling)
    first = chain[0] if chain else None
    if first is _top_k:
        return sampling.top_k
    greedy = first is _greedy or (first is _temperature and sampling.temperature <= 0 and sampling.dynatemp_range <= 0)
    return 1 if greedy else 0

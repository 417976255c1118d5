"""Choosing the next token: the settings a user may give, and the sampler that applies them to logits.

Knows logits, token ids and the tokens so far; must not know sequences, batches or devices. Names, defaults and meaning are llama.cpp's.
Deterministic: the same seed, settings, history and logits give the same tokens. What is cut or chosen never depends on the order of
equal logits in memory: of equals the lower id counts as larger.
"""

from __future__ import annotations

import math
import secrets
from collections import deque
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, Final

from ggrun.errors import GgrunError

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from numpy.typing import NDArray

    from ggrun.engine.budget import ThoughtBudget
    from ggrun.engine.candidates import Candidates
    from ggrun.engine.constraint import Constraint
    from ggrun.text import Tokenizer

# canonical name -> other names, and the letter it has in --sampling-seq
SAMPLER_NAMES: Final[dict[str, tuple[tuple[str, ...], str]]] = {
    "penalties": ((), "e"),
    "dry": ((), "d"),
    "top_n_sigma": (("top-n-sigma",), "s"),
    "top_k": (("top-k",), "k"),
    "typ_p": (("typ-p", "typ", "typical", "typical_p", "typical-p"), "y"),
    "top_p": (("top-p", "nucleus"), "p"),
    "min_p": (("min-p",), "m"),
    "xtc": ((), "x"),
    "temperature": (("temp",), "t"),
}
DEFAULT_SAMPLERS: Final = tuple(SAMPLER_NAMES)
_BY_NAME: Final = {alias: name for name, (aliases, _) in SAMPLER_NAMES.items() for alias in (name, *aliases)}
_BY_LETTER: Final = {letter: name for name, (_, letter) in SAMPLER_NAMES.items()}

# field -> flag, least and greatest value (None: no bound)
_RANGES: Final[dict[str, tuple[str, float | None, float | None]]] = {
    "seed": ("--seed", -1, 2**64 - 1),
    "temperature": ("--temp", None, None),
    "top_k": ("--top-k", None, None),
    "top_p": ("--top-p", 0, 1),
    "min_p": ("--min-p", 0, 1),
    "typical_p": ("--typical", 0, 1),
    "top_n_sigma": ("--top-n-sigma", None, None),
    "xtc_probability": ("--xtc-probability", 0, 1),
    "xtc_threshold": ("--xtc-threshold", 0, 1),
    "dynatemp_range": ("--dynatemp-range", 0, None),
    "dynatemp_exponent": ("--dynatemp-exp", 0, None),
    "repeat_penalty": ("--repeat-penalty", 1e-3, 1e3),
    "repeat_last_n": ("--repeat-last-n", -1, None),
    "presence_penalty": ("--presence-penalty", -1e6, 1e6),
    "frequency_penalty": ("--frequency-penalty", -1e6, 1e6),
    "dry_multiplier": ("--dry-multiplier", 0, None),
    "dry_base": ("--dry-base", 0, None),
    "dry_allowed_length": ("--dry-allowed-length", 1, None),
    "dry_penalty_last_n": ("--dry-penalty-last-n", -1, None),
    "mirostat": ("--mirostat", 0, 2),
    "mirostat_tau": ("--mirostat-ent", 0, None),
    "mirostat_eta": ("--mirostat-lr", 0, None),
}
_WHOLE: Final = ("seed", "top_k", "repeat_last_n", "dry_allowed_length", "dry_penalty_last_n", "mirostat")


@dataclass(frozen=True)
class Sampling:
    """How tokens are chosen. GgrunError, naming the flag, for a value outside its range.

    seed -1: a random one. temperature <= 0: always the most likely token. repeat_last_n and dry_penalty_last_n: -1 for all tokens so far.
    samplers: names in the order they are applied, also as one string ("top_k;min_p" or letters, "kmt"). logit_bias: (id, added logit)
    pairs; -inf forbids a token.
    """

    seed: int = -1
    temperature: float = 0.8
    top_k: int = 40
    top_p: float = 0.95
    min_p: float = 0.05
    typical_p: float = 1.0
    top_n_sigma: float = -1.0
    xtc_probability: float = 0.0
    xtc_threshold: float = 0.1
    dynatemp_range: float = 0.0
    dynatemp_exponent: float = 1.0
    repeat_penalty: float = 1.0
    repeat_last_n: int = 64
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    dry_multiplier: float = 0.0
    dry_base: float = 1.75
    dry_allowed_length: int = 2
    dry_penalty_last_n: int = -1
    dry_sequence_breakers: tuple[str, ...] = ("\n", ":", '"', "*")
    mirostat: int = 0
    mirostat_tau: float = 5.0
    mirostat_eta: float = 0.1
    samplers: tuple[str, ...] = DEFAULT_SAMPLERS
    logit_bias: tuple[tuple[int, float], ...] = ()
    ignore_eos: bool = False

    def __post_init__(self) -> None:
        for field in fields(self):
            if field.name in _RANGES:
                _check_range(field.name, getattr(self, field.name))
        object.__setattr__(self, "samplers", sampler_names(self.samplers))
        object.__setattr__(self, "dry_sequence_breakers", _breakers(self.dry_sequence_breakers))
        object.__setattr__(self, "logit_bias", tuple(_bias(entry) for entry in self.logit_bias))

    @property
    def penalizes(self) -> bool:
        """Whether tokens of the text so far are made less likely (or more)."""
        return self.repeat_last_n != 0 and (self.repeat_penalty != 1 or self.presence_penalty != 0 or self.frequency_penalty != 0)

    @property
    def looks_for_repetition(self) -> bool:
        """Whether DRY does anything."""
        return self.dry_multiplier != 0 and self.dry_base >= 1 and self.dry_penalty_last_n != 0


def _check_range(name: str, value: Any) -> None:
    flag, least, greatest = _RANGES[name]
    whole = name in _WHOLE
    if isinstance(value, bool) or not isinstance(value, int if whole else (int, float)) or (not whole and not math.isfinite(value)):
        raise GgrunError(f"{flag} must be {'a whole number' if whole else 'a number'}, not {value!r:.60}")
    if (least is not None and value < least) or (greatest is not None and value > greatest):
        bounds = f"between {least:g} and {greatest:g}" if greatest is not None and least is not None else f"at least {least:g}"
        raise GgrunError(f"{flag} must be {bounds}, not {value:g}")


def sampler_names(given: str | tuple[str, ...] | list[str]) -> tuple[str, ...]:
    """Canonical names of samplers given by name, alias or, in one string, by letters. GgrunError for an unknown one."""
    if isinstance(given, str):
        text = given.strip()
        if text and text.lower() not in _BY_NAME and all(letter in _BY_LETTER for letter in text):
            return tuple(_BY_LETTER[letter] for letter in text)
        given = [name for name in text.replace(",", ";").split(";") if name.strip()]
    names = []
    for name in given:
        canonical = _BY_NAME.get(name.strip().lower()) if isinstance(name, str) else None
        if canonical is None:
            letters = "".join(_BY_LETTER)
            raise GgrunError(f"--samplers: {name!r:.60} is no sampler; known are {', '.join(SAMPLER_NAMES)} (or letters of {letters!r})")
        names.append(canonical)
    return tuple(names)


def _breakers(given: Any) -> tuple[str, ...]:
    if isinstance(given, str) or not all(isinstance(text, str) for text in given):
        raise GgrunError("--dry-sequence-breaker must be strings")
    return tuple(text for text in given if text and text != "none")


def _bias(entry: Any) -> tuple[int, float]:
    try:
        id_, bias = entry
        if isinstance(id_, bool) or not isinstance(id_, int) or id_ < 0 or math.isnan(float(bias)) or bias > 1e6:
            raise ValueError
    except (TypeError, ValueError):
        raise GgrunError(f"--logit-bias must be a token id and a number to add (or -inf to forbid it), not {entry!r:.60}") from None
    return id_, float(bias)


@dataclass(frozen=True, slots=True)
class SampledToken:
    """logprob: natural logarithm of the token's probability under the model alone, before any setting changed it (0 with an n_top of -1).

    top: the likeliest tokens of the model alone, (id, logprob) in falling order.
    """

    id: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


def usable(logits: NDArray[np.float32]) -> tuple[NDArray[np.float32], float]:
    """Logits float32 [n_vocab] without NaN and infinity, and the greatest. GgrunError where none is left."""
    import numpy as np

    peak = float(logits.max())
    if math.isnan(peak):
        logits = np.where(np.isnan(logits), np.float32(-np.inf), logits)
        peak = float(logits.max())
    if peak == math.inf:
        logits = np.where(logits == np.inf, np.float32(0), np.float32(-np.inf))
        peak = 0.0
    if peak == -math.inf:
        raise GgrunError("the model gave no token a usable logit: the file's weights are damaged or not what its metadata says")
    return logits, peak


class Sampler:
    """The state of one sequence's sampling: random numbers, the tokens so far, mirostat's running estimate.

    Begin with the prompt, then accept every token of the answer, in order. `seed` is the one in use; n_top: how many likeliest tokens
    are told with each; -1: no logarithms at all, which saves half of the time. constraint: what the answer must look like; only tokens
    of its mask are candidates. budget: how long a thought may be; the token it forces comes, unless the constraint forbids it. The
    `accept` of both is the caller's to call, for tokens of the answer alone. GgrunError for a logit_bias outside the vocabulary.
    """

    def __init__(
        self,
        sampling: Sampling,
        n_vocab: int,
        tokenizer: Tokenizer | None = None,
        constraint: Constraint | None = None,
        n_top: int = 0,
        budget: ThoughtBudget | None = None,
    ) -> None:
        import numpy as np

        from ggrun.engine.dry import Repetition
        from ggrun.engine.samplers import CHAINS, n_highest

        self.sampling = sampling
        self.constraint = constraint
        self.budget = budget
        self._steps = CHAINS[sampling.mirostat](sampling)
        self._n_top = min(n_top, n_vocab)
        self.seed = sampling.seed if sampling.seed >= 0 else secrets.randbits(32)
        self.random = np.random.Generator(np.random.PCG64(self.seed))
        self.mu = 2.0 * sampling.mirostat_tau
        self.repetition = Repetition(sampling, tokenizer)
        self.counts = np.zeros(n_vocab if sampling.penalizes else 0, np.float32)  # of each token among the last repeat_last_n
        self._recent: deque[int] = deque()
        bias = dict.fromkeys(sorted(tokenizer.end_of_generation), -math.inf) if sampling.ignore_eos and tokenizer else {}
        for id_, value in sampling.logit_bias:
            if id_ >= n_vocab:
                raise GgrunError(f"--logit-bias names token {id_}, but the model has {n_vocab} tokens")
            bias[id_] = bias.get(id_, 0.0) + value
        self._bias_ids = np.fromiter((id_ for id_ in bias if id_ < n_vocab), np.int64)
        self._bias_values = np.fromiter((value for id_, value in bias.items() if id_ < n_vocab), np.float32)
        seen = 0 if len(self._bias_ids) or constraint is not None else n_highest(sampling)
        self._n_highest = max(seen, self._n_top) if seen else 0

    @property
    def n_highest(self) -> int:
        """How many of the highest logits are all that is looked at, for `sample_highest`; 0: every logit is."""
        return 0 if self.forced is not None else self._n_highest

    @property
    def forced(self) -> int | None:
        """The token that ends a thought which took too long, where it comes next."""
        return self.budget.forced if self.budget is not None else None

    def begin(self, prompt: Sequence[int]) -> None:
        """Note the tokens that the text begins with."""
        if self.sampling.looks_for_repetition or self.sampling.penalizes:
            for id_ in prompt:
                self.accept(id_)

    def accept(self, id: int) -> None:
        """Note that `id` is part of the text."""
        last_n = self.sampling.repeat_last_n
        if self.sampling.looks_for_repetition:
            self.repetition.accept(id)
        if self.sampling.penalizes:
            self.counts[id] += 1
            if last_n > 0:
                self._recent.append(id)
                if len(self._recent) > last_n:
                    self.counts[self._recent.popleft()] -= 1

    def sample(self, logits: NDArray[np.float32]) -> SampledToken:
        """The next token. logits: float32 [n_vocab], left as they are. GgrunError when nothing may be chosen."""
        from ggrun.engine.candidates import Candidates

        logits, peak = usable(logits)
        candidates = Candidates(logits)
        log_total = peak + math.log(candidates.weights()[1]) if self._n_top >= 0 else 0.0
        top = Candidates(logits).likeliest(self._n_top) if self._n_top > 0 else ()
        if self.constraint is not None:
            candidates.allow(self.constraint.mask())
        if (forced := self.forced) is not None and (candidates.ids is None or forced in candidates.ids):
            return self._token(forced, float(logits[forced]), log_total, top)
        if len(self._bias_ids):
            candidates.add(self._bias_ids, self._bias_values)
        id_ = self._choose(candidates)
        return self._token(id_, float(logits[id_]), log_total, top)

    def sample_highest(self, ids: NDArray[np.int32], logits: NDArray[np.float32], log_total: float) -> SampledToken:
        """What `sample` chooses, from the n_highest highest logits alone. ids: int32 [k], logits: float32 [k], any order, all finite.

        log_total: the logarithm of the sum of exp over all logits.
        """
        from ggrun.engine.candidates import Candidates

        order = ids.argsort()
        candidates = Candidates(logits[order], ids[order].astype("int64"))
        top = candidates.likeliest(self._n_top) if self._n_top > 0 else ()
        id_ = self._choose(candidates)
        return self._token(id_, float(logits[ids == id_][0]), log_total, top)

    def _token(self, id: int, logit: float, log_total: float, top: Sequence[tuple[int, float]]) -> SampledToken:
        if self._n_top < 0:
            return SampledToken(id, 0.0)
        return SampledToken(id, logit - log_total, tuple((other, value - log_total) for other, value in top if value > -math.inf))

    def _choose(self, candidates: Candidates) -> int:
        for step in self._steps:
            step(candidates, self)
        return self._draw(candidates)

    def _draw(self, candidates: Candidates) -> int:
        position = candidates.draw(self.random)
        if self.sampling.mirostat and self.sampling.temperature > 0:
            weights, total = candidates.weights()
            surprise = -math.log2(float(weights[position]) / total)
            self.mu -= self.sampling.mirostat_eta * (surprise - self.sampling.mirostat_tau)
        return candidates.id_at(position)

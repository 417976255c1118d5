"""The tokens that may come next, and what the samplers ask of them: weights, the likeliest, the fewest that hold a mass, one at random.

Knows arrays of logits; must not know settings. Nothing here sorts a whole vocabulary: a cut is a bound found by partitioning values,
and candidates stay in the order of their ids.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

from ggrun.errors import GgrunError

if TYPE_CHECKING:
    Mask = NDArray[np.bool_]
    Ids = NDArray[np.int64]

_COLUMN: Final = 64  # logits whose greatest stands for them all when few are wanted
_FEW: Final = 4096  # values that are sorted rather than parted again
_HEAP: Final = 4 << 20  # bytes that one choice may take in passing
_LEAST: Final = np.float32(-200)  # exp of it is 0 in float32, and 0 times it is no NaN


class Candidates:
    """Tokens that may come next, by rising id. ids: int64 [n], or None while all tokens are candidates; logits: float32 [n].

    Likelier means a greater logit, of equal ones the lower id.
    """

    def __init__(self, logits: NDArray[np.float32], ids: Ids | None = None) -> None:
        np.empty(_HEAP, np.uint8)  # glibc keeps freed memory up to twice the largest block freed; getting it anew for each array took 2 ms
        self.ids = ids
        self.logits = logits
        self._own = False  # whether logits may be written to
        self._weights: tuple[NDArray[np.float32], float] | None = None

    def __len__(self) -> int:
        return len(self.logits)

    def id_at(self, position: int) -> int:
        return position if self.ids is None else int(self.ids[position])

    def weights(self) -> tuple[NDArray[np.float32], float]:
        """exp(logit - greatest logit), float32 [n], and their sum, added up in float64: the probabilities are the one over the other."""
        if self._weights is None:
            weights = self.logits - self.logits.max()
            np.exp(weights, out=weights)
            self._weights = weights, float(weights.sum(dtype=np.float64))
        return self._weights

    def mean(self) -> float:
        """The logits' mean by probability, less the greatest logit."""
        weights, total = self.weights()
        distances = self.logits - self.logits.max()
        np.maximum(distances, _LEAST, out=distances)
        distances *= weights
        return float(distances.sum(dtype=np.float64)) / total

    def add(self, ids: Ids, values: NDArray[np.floating[Any]]) -> None:
        """Add to the logits of distinct tokens, those that are candidates. GgrunError when that forbids every candidate."""
        positions, found = self._find(ids)
        if not self._own:
            self.logits = self.logits.copy()
            self._own = True
        self.logits[positions] += values[found].astype(np.float32)
        self._weights = None
        if self.logits.max() == -np.inf:
            raise GgrunError("no token is left to choose from: --logit-bias or --ignore-eos forbid all that the model could say")

    def logits_of(self, ids: Ids) -> NDArray[np.float32]:
        """float32 [len(ids)]; -inf for tokens that are no candidates."""
        logits = np.full(len(ids), -np.inf, np.float32)
        positions, found = self._find(ids)
        logits[found] = self.logits[positions]
        return logits

    def _find(self, ids: Ids) -> tuple[Ids, Mask]:
        """Positions of those tokens that are candidates, and which these are."""
        if self.ids is None:
            found = ids < len(self)
            return ids[found], found
        at = np.minimum(np.searchsorted(self.ids, ids), len(self) - 1)
        found = self.ids[at] == ids
        return at[found], found

    def scale(self, factor: float) -> None:
        """Multiply all logits by a positive number."""
        self.logits = self.logits * np.float32(factor)
        self._own = True
        self._weights = None

    def keep(self, mask: Mask) -> None:
        """Keep the candidates that are marked, bool [n]."""
        if mask.all():
            return
        positions = np.flatnonzero(mask)  # indexing by the mask itself takes ten times as long where it changes often
        self.ids = positions if self.ids is None else self.ids.take(positions)
        self.logits = self.logits.take(positions)
        self._own = True
        self._weights = None

    def allow(self, words: NDArray[np.uint32]) -> None:
        """Keep the tokens whose bits are set: bit i % 32 of word i / 32 is token i's; tokens past the last word are dropped.

        For all tokens as candidates. GgrunError when none is left that has a usable logit.
        """
        bits = np.unpackbits(words.view(np.uint8), count=min(len(self), 32 * len(words)), bitorder="little")
        ids = np.flatnonzero(bits.view(np.bool_))
        self.ids, self.logits = ids, self.logits.take(ids)
        self._own = True
        self._weights = None
        if not len(ids) or self.logits.max() == -np.inf:
            raise GgrunError("the answer cannot follow its grammar or schema: the model can say no token that may come next")

    def best(self) -> int:
        """Position of the likeliest."""
        return int(self.logits.argmax())

    def likeliest(self, k: int) -> list[tuple[int, float]]:
        """Ids and logits of the k likeliest, the likeliest first; leaves the candidates as they are."""
        few = Candidates(self.logits, self.ids)
        few.top(k)
        order = np.argsort(-few.logits, kind="stable")
        return [(few.id_at(int(i)), float(few.logits[i])) for i in order]

    def top(self, k: int) -> None:
        """Keep the k >= 1 likeliest."""
        n_columns = len(self) // _COLUMN
        if k <= n_columns // 2:  # at least k logits reach the k-th of the columns' greatest, and few more do
            greatest = self.logits[: n_columns * _COLUMN].reshape(_COLUMN, n_columns).max(axis=0)
            self.keep(self.logits >= np.partition(greatest, n_columns - k)[n_columns - k])
        if k < len(self):
            self.keep(_first(-self.logits, k))

    def hold(self, share: float) -> None:
        """Keep the fewest of the likeliest whose probabilities add up to at least a share."""
        weights, total = self.weights()
        # the bits of floats that are not negative order as they do; inverted, the greatest comes first
        self.top(_rank(~weights.view(np.uint32), lambda keys: (~keys).view(np.float32), share * total, "left"))

    def hold_near(self, center: float, share: float) -> None:
        """Keep the fewest of those whose logits, less the greatest, lie nearest to a center and whose probabilities exceed a share."""
        total = self.weights()[1]
        shift = np.float32(center)
        distances = self.logits - self.logits.max()
        distances -= shift
        bits = distances.view(np.uint32)
        keys = (bits << 1) | (bits >> 31)  # by distance; of two as far, the greater logit first
        rank = _rank(keys, lambda keys: np.exp(((keys >> 1) | (keys << 31)).view(np.float32) + shift), share * total, "right")
        self.keep(_first(keys, rank))

    def draw(self, random: np.random.Generator) -> int:
        """A position, by probability."""
        if len(self) == 1:
            return 0
        weights, total = self.weights()
        left = random.random() * total
        start, stop = 0, len(self)
        while stop - start > _FEW:
            middle = (start + stop) // 2
            mass = float(weights[start:middle].sum(dtype=np.float64))
            if left < mass:
                stop = middle
            else:
                start, left = middle, left - mass
        bounds = np.cumsum(weights[start:stop].astype(np.float64))
        position = min(start + int(np.searchsorted(bounds, left, side="right")), stop - 1)
        while not weights[position]:  # rounding led past the last that has any weight
            position -= 1
        return position


def _first(keys: NDArray[Any], k: int) -> Mask:
    """Marks the k smallest keys, of equal ones the first."""
    if k >= len(keys):
        return np.ones(len(keys), np.bool_)
    bound = np.partition(keys, k - 1)[k - 1]
    mask: Mask = keys <= bound
    surplus = int(np.count_nonzero(mask)) - k
    if surplus:
        mask[np.flatnonzero(keys == bound)[-surplus:]] = False
    return mask


def _rank(
    keys: NDArray[np.uint32], weights_of: Callable[[NDArray[np.uint32]], NDArray[np.float32]], mass: float, side: Literal["left", "right"]
) -> int:
    """How many of the smallest keys it takes until their weights add up to at least ("left") or to more than ("right") a mass.

    All keys when rounding keeps them from it. Parts the keys in halves and goes on in the half where the mass is reached: n + n/2 + ...
    """
    before = 0
    while len(keys) > _FEW:
        middle = len(keys) // 2
        keys = np.partition(keys, middle)
        half = float(weights_of(keys[:middle]).sum(dtype=np.float64))
        if half > mass or (half == mass and side == "left"):
            keys = keys[:middle]
        else:
            keys, mass, before = keys[middle:], mass - half, before + middle
    bounds = np.cumsum(weights_of(np.sort(keys)).astype(np.float64))
    return before + min(int(np.searchsorted(bounds, mass, side=side)) + 1, len(keys))

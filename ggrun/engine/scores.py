"""What the model thought of a prompt's own tokens: each one's log probability after those before it.

Knows logits and token ids; must not know sequences, batches or devices.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from ggrun.engine.candidates import Candidates
from ggrun.engine.sampling import SampledToken, usable

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


class PromptScores:
    """Takes the logits of a prompt's rows, in order and each once. found: of the second token and those that follow it.

    n_top: how many likeliest tokens are told with each.
    """

    def __init__(self, tokens: Sequence[int], n_top: int) -> None:
        self._tokens = list(tokens)
        self._n_top = max(0, n_top)
        self.found: list[SampledToken] = []

    @property
    def n_left(self) -> int:
        """Rows that are still wanted; the next is that of position len(found). The last token's row says nothing of the prompt."""
        return len(self._tokens) - 1 - len(self.found)

    def add(self, logits: NDArray[np.float32]) -> None:
        """The next rows, float32 [n, n_vocab]. GgrunError where the model gave no token a usable logit."""
        for row in logits:
            row, peak = usable(row)
            candidates = Candidates(row)
            log_total = peak + math.log(candidates.weights()[1])
            top = candidates.likeliest(self._n_top) if self._n_top else ()
            told = tuple((id_, value - log_total) for id_, value in top if value > -math.inf)
            id_ = self._tokens[len(self.found) + 1]
            self.found.append(SampledToken(id_, float(row[id_]) - log_total, told))

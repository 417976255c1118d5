"""A Constraint says which tokens may come next, so that the whole answer has a given form."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


class Constraint(Protocol):
    """The state of one answer's form. Used by one sampler; `mask` and `accept` are called in turns."""

    def mask(self) -> NDArray[np.uint32]:
        """Which tokens may come: bit i % 32 of word i // 32 is token i's, ceil(n_vocab / 32) words. Waits until that is computed."""
        ...

    def accept(self, id: int) -> None:
        """Token `id` came; begins to compute the next mask on another thread, while the model runs."""
        ...

    @property
    def done(self) -> bool:
        """Whether the answer is complete, so that only an end of generation may follow."""
        ...

    @property
    def error(self) -> str | None:
        """Why it cannot go on, in a sentence; None while it can."""
        ...

"""A constraint that is one of several, until the answer has shown which.

Knows masks; must not know what they are made of.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from ggrun.engine.constraint import ConstraintError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from ggrun.engine.constraint import Constraint


class Either:
    """A `Constraint`: what any of `ways` allows, and of these only the ones that allowed every token so far."""

    def __init__(self, ways: Sequence[Constraint]) -> None:
        self._ways = list(ways)
        self.done = False

    def mask(self) -> NDArray[np.uint32]:
        masks = [way.mask() for way in self._ways]
        self._note()
        if len(masks) == 1:
            return masks[0]
        words = np.zeros(max(map(len, masks)), np.uint32)
        for mask in masks:
            words[: len(mask)] |= mask
        return words

    def accept(self, id: int) -> None:
        allowing = [way for way in self._ways if _allows(way.mask(), id)]
        if not allowing:
            raise ConstraintError(f"the answer cannot follow its grammar or schema: token {id} does not follow it")
        self._ways = allowing
        for way in allowing:
            way.accept(id)
        self._note()

    def copy(self) -> Either:
        return Either([way.copy() for way in self._ways])

    def _note(self) -> None:
        self.done = all(way.done for way in self._ways)


def _allows(words: NDArray[np.uint32], id_: int) -> bool:
    return id_ < 32 * len(words) and bool(words[id_ // 32] >> np.uint32(id_ % 32) & np.uint32(1))

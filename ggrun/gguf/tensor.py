"""One tensor: its description and its bytes, wherever they were loaded to.

Knows extents and addresses; must not know what the tensor is for, nor how its format encodes numbers.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from quant.format import FORMATS, Format

if TYPE_CHECKING:
    from ggrun.gguf.mapping import FileBytes


@dataclass(frozen=True, slots=True, eq=False)
class Tensor:
    """A tensor of an open file. `dims` are in GGUF's order: `dims[0]` is the length of a row, whose bytes lie together."""

    name: str
    dims: tuple[int, ...]
    format: Format
    offset: int
    """Of its first byte in its file, absolute."""
    n_bytes: int
    file_index: int
    """Which file of a split it lies in, from 0."""
    _bytes: FileBytes = field(repr=False)

    @property
    def n_elements(self) -> int:
        """Numbers in the tensor."""
        return math.prod(self.dims)

    @property
    def n_rows(self) -> int:
        """Rows of `dims[0]` numbers."""
        return self.n_elements // self.dims[0]

    @property
    def row_bytes(self) -> int:
        """Bytes of one row."""
        return self.format.row_bytes(self.dims[0])

    @property
    def readable(self) -> bool:
        """Whether the format can be computed with; the others can only be described."""
        return self.format.id in FORMATS

    @property
    def raw(self) -> NDArray[np.uint8]:
        """The bytes, uint8 [n_bytes], read-only, not copied. GgufError when the file is closed."""
        return self._bytes.view(self.offset, self.n_bytes)

    @property
    def address(self) -> int:
        """Address of the first byte, valid until the file is closed or loaded in another mode."""
        return self._bytes.address(self.offset)

    def read(self, start: int, target: memoryview) -> None:
        """Fill `target` with the tensor's bytes from `start` on, read from its file. GgufError when it cannot be read."""
        assert 0 <= start <= start + len(target) <= self.n_bytes
        self._bytes.read(self.offset + start, target)

    def release(self) -> None:
        """Say that its mapped pages are not needed for now: they no longer count as this process's memory."""
        self._bytes.release(self.offset, self.offset + self.n_bytes)

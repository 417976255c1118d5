"""A bounded reader over the bytes of a header: nothing is read, skipped or allocated that the file does not hold.

Knows bytes, lengths and the sentences for what is wrong with them; must not know what the fields are for.
"""

from __future__ import annotations

import struct

import numpy as np
from numpy.typing import NDArray

from ggrun.gguf.error import GgufError, quoted
from ggrun.gguf.strings import find_starts

_U32 = struct.Struct("<I")
_U64 = struct.Struct("<Q")
_DAMAGED = "it is cut short or damaged; download or convert it again"

# Bytes of all keys, names and strings outside arrays in one header, which are read whole. The longest real ones are chat
# templates of some 100 KB; without a bound a file of many gigabytes could have them all copied.
MAX_STRING_BYTES = 1 << 26
# Strings in arrays that one header may hold. The largest real vocabularies with their merges stay under 1.5 million; without
# a bound a sparse file full of zeros would keep the walk busy for minutes. A nested array takes as long as many strings.
MAX_WALKED = 1 << 24
NESTED_ARRAY_COST = 64


class Cursor:
    """Reads little-endian fields of `buffer` in order.

    `context` says what is being read ("key 'general.name'") and starts every error, so that readers set it once a field.
    """

    __slots__ = ("buffer", "context", "path", "position", "size", "string_bytes_left", "walk_left")

    def __init__(self, buffer: memoryview, path: str) -> None:
        self.buffer = buffer
        self.size = len(buffer)
        self.path = path
        self.position = 0
        self.context = "header"
        self.string_bytes_left = MAX_STRING_BYTES
        self.walk_left = MAX_WALKED

    @property
    def left(self) -> int:
        """Bytes between here and the end of the file."""
        return self.size - self.position

    def error(self, problem: str) -> GgufError:
        """The error that says `problem` of what is being read."""
        return GgufError(f"{self.path}: {self.context}: {problem}")

    def skip(self, n_bytes: int, what: str) -> int:
        """Step over `n_bytes` bytes of the field `what`; where they start."""
        start = self.position
        if n_bytes > self.size - start:
            raise self.error(f"{what} takes {n_bytes} bytes at byte {start}, but the file ends after {self.size - start} more: {_DAMAGED}")
        self.position = start + n_bytes
        return start

    def fixed(self, layout: struct.Struct, what: str) -> int | float:
        """One number of the given layout."""
        value: int | float = layout.unpack_from(self.buffer, self.skip(layout.size, what))[0]
        return value

    def u32(self, what: str) -> int:
        """One unsigned 32-bit number."""
        value: int = _U32.unpack_from(self.buffer, self.skip(4, what))[0]
        return value

    def u64(self, what: str) -> int:
        """One unsigned 64-bit number."""
        value: int = _U64.unpack_from(self.buffer, self.skip(8, what))[0]
        return value

    def string(self, what: str, limit: int = MAX_STRING_BYTES) -> bytes:
        """One string of at most `limit` bytes, undecoded. All of a header together have MAX_STRING_BYTES."""
        length = self.u64(f"the length of {what}")
        if length > self.left:
            raise self.error(f"{what} is said to be {length} bytes long, but the file has only {self.left} bytes left: {_DAMAGED}")
        if length > min(limit, self.string_bytes_left):
            raise self.error(f"{what} is said to be {length} bytes long; no more than {min(limit, self.string_bytes_left)} are accepted")
        self.string_bytes_left -= length
        start = self.skip(length, what)
        return bytes(self.buffer[start : start + length])

    def name(self, what: str, limit: int) -> str:
        """One string that must be UTF-8 and not empty."""
        raw = self.string(what, limit)
        if not raw:
            raise self.error(f"{what} is empty")
        try:
            return raw.decode("utf-8")
        except UnicodeDecodeError:
            raise self.error(f"{what} {quoted(raw)} is not valid UTF-8") from None

    def count(self, what: str, least_bytes: int) -> int:
        """A number of things that take at least `least_bytes` bytes each, refused when the file cannot hold so many."""
        n = self.u64(what)
        if n * least_bytes > self.left:
            raise self.error(f"{what} is {n}, but the file has only {self.left} bytes left, too few for so many: {_DAMAGED}")
        return n

    def walk(self, n: int, what: str, cost: int = 1) -> None:
        """Account for stepping over `n` things one by one, refused when a header holds more than any model needs."""
        self.walk_left -= n * cost
        if self.walk_left < 0:
            raise self.error(f"{what} has {n} entries; with those before, that is more than a header may hold")

    def skip_strings(self, n: int, what: str) -> NDArray[np.int64]:
        """Step over `n` strings in a row; where each begins, its length included. Nothing but their lengths is looked at."""
        self.walk(n, what)
        if n == 0:
            return np.empty(0, np.int64)
        known = find_starts(self.buffer, self.position, n)
        starts = np.empty(n, np.int64)
        starts[: len(known)] = known
        unpack, buffer, position = _U64.unpack_from, self.buffer, int(known[-1])
        i = 0
        try:
            for i in range(len(known) - 1, n):
                starts[i] = position
                (length,) = unpack(buffer, position)
                position += 8 + length
        except (struct.error, OverflowError):
            i -= position > self.size  # the string before leads out of the file, or this one's length is cut
            position = self.size + 1
        if position > self.size:
            raise self.error(f"string {i} of {n} in {what} reaches beyond the end of the file: {_DAMAGED}")
        self.position = position
        return starts

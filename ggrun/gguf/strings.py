"""Arrays of strings as a header has them, 8 bytes of length before each: where they begin, and all of them at once.

Half a million strings one by one take longer than all else that opening a model does, so both look at many bytes with one
NumPy operation, and leave a text that is too unusual for that to the caller, who then goes one by one.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

_WINDOW = 1 << 20  # bytes looked at together: the work stays in the cache
_LONGEST = 1 << 16
_LENGTH = "<u8"


def find_starts(buffer: memoryview, start: int, n: int) -> NDArray[np.int64]:
    """Where strings that follow one another from `start` on begin, their lengths included: at least one, at most n > 0 of them.

    All but the last end in the buffer. Fewer than n when a string is longer than usual, contains what looks like lengths, or leads out.
    """
    found, n_found = [np.array([start])], 1
    while n_found < n:
        last = int(found[-1][-1])
        window = buffer[last : last + _WINDOW]
        if len(window) < 8:
            break
        lengths = np.ndarray(len(window) - 7, _LENGTH, window, strides=(1,))  # at every byte, as if a length stood there
        at = np.flatnonzero(lengths < _LONGEST)
        at = at[np.diff(at, append=-1) != 1]  # the byte before a small length looks like one as well
        follows = at[1:] == at[:-1] + 8 + lengths[at[:-1]].astype(np.int64)
        n_right = len(follows) if follows.all() else int(follows.argmin())
        if n_right == 0 or at[0] != 0:
            break
        found.append(last + at[1 : n_right + 1])
        n_found += n_right
    return np.concatenate(found)[:n]


def decode_all(buffer: memoryview, starts: NDArray[np.int64], end: int) -> list[str] | None:
    """The strings that begin at `starts`, up to `end`, undecodable bytes as lone surrogates. None when that takes one by one."""
    first = int(starts[0])
    raw = np.frombuffer(buffer[first:end], np.uint8).copy()
    np.ndarray(len(raw) - 7, _LENGTH, raw, strides=(1,))[starts - first] = 0
    content = raw.tobytes()
    if content.count(0) != 8 * len(starts):  # a string contains NUL
        return None
    return content.decode("utf-8", "surrogateescape").split("\0" * 8)[1:]

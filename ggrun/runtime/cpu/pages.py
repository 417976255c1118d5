"""Touching pages from compiled code, while others work in them."""

from __future__ import annotations

from ggrun.runtime.cpu import atomics


def touch(address, n_bytes, page_bytes, nothing, stop):
    """Make every page of n_bytes exist without changing a byte of it, until the word at `stop` is set.

    nothing: 0, which the compiler must not know: it would read instead of writing, and reading makes no page.
    """
    for at in range(address, address + n_bytes, page_bytes):
        if atomics.load_relaxed(stop) != 0:
            return
        atomics.add(at, nothing)

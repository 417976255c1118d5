"""Strings of a header found and decoded together are those found and decoded one by one."""

import itertools
import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ggrun.gguf import strings
from ggrun.gguf.strings import decode_all, find_starts

TEXTS = st.lists(
    st.one_of(st.binary(max_size=12), st.just(b""), st.just(b"\0"), st.just(bytes(9)), st.just(b"x" * 70000)), min_size=1, max_size=30
)


def packed(texts: list[bytes], before: bytes = b"") -> tuple[memoryview, list[int]]:
    parts = [struct.pack("<Q", len(text)) + text for text in texts]
    starts = list(itertools.accumulate(map(len, parts), initial=len(before)))[:-1]
    return memoryview(before + b"".join(parts)), starts


@pytest.mark.parametrize("window", [8, 64, 1 << 20])
@given(texts=TEXTS)
def test_what_is_found_is_where_strings_begin(window: int, texts: list[bytes]) -> None:
    buffer, starts = packed(texts, b"before")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(strings, "_WINDOW", window)
        found = find_starts(buffer, starts[0], len(starts)).tolist()
    assert found == starts[: len(found)]
    assert found


def test_ordinary_strings_are_all_found() -> None:
    buffer, starts = packed([b"token%d" % i * (i % 20) for i in range(100_000)])
    assert find_starts(buffer, 0, len(starts)).tolist() == starts


@pytest.mark.parametrize("cut", [1, 7, 8, 9, 100])
def test_nothing_is_found_beyond_the_end(cut: int) -> None:
    buffer, starts = packed([b"a string"] * 20)
    found = find_starts(buffer[:-cut], 0, 1000).tolist()
    assert found == starts[: len(found)]


@given(texts=TEXTS)
def test_decoded_together_or_not_at_all(texts: list[bytes]) -> None:
    buffer, starts = packed(texts)
    decoded = decode_all(buffer, np.array(starts), len(buffer))
    assert (decoded is None) == any(0 in text for text in texts)
    assert decoded is None or decoded == [text.decode("utf-8", "surrogateescape") for text in texts]

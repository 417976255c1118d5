"""Merges are found where they lie, in a file's array as in a list."""

from math import inf

import numpy as np
import pytest

from ggrun.text.merges import Merges
from ggrun.text.vocabulary import PREFIX
from tests.conftest import shared_path


class Packed(list[str]):
    """What a file's array offers: bytes with something between the strings."""

    def packed(self):
        parts = [text.encode("utf-8", "surrogateescape") for text in self]
        ends = np.cumsum([8 + len(part) for part in parts])
        content = b"".join(b"\x01 \x03\x04\x05\x06 \x08" + part for part in parts)
        return np.frombuffer(content, np.uint8), ends - [len(part) for part in parts], ends


PAIRS = ["a b", "é x", "a b", "ab c", "\udc80 z", "x" * 300 + " y", "x" * 400 + " y", "  b", "a  b"]


@pytest.mark.parametrize("kind", [list, Packed])
def test_the_first_of_equal_pairs_counts(kind: type) -> None:
    merges = Merges(kind(PAIRS))
    asked = [("a", "b"), ("é", "x"), ("ab", "c"), ("\udc80", "z"), ("x" * 300, "y"), ("x" * 400, "y"), (" ", "b"), ("a", " b")]
    assert [merges.rank(*pair) for pair in asked] == [0, 1, 3, 4, 5, 6, 7, 8]
    assert [merges.rank(*pair) for pair in [("b", "a"), ("a", "bc"), ("x" * 300, "z"), ("", "")]] == [inf] * 4
    assert merges.malformed() is None


@pytest.mark.parametrize("kind", [list, Packed])
@pytest.mark.parametrize("wrong", ["", "ab", " ab", "é"])
def test_the_first_entry_without_two_parts(kind: type, wrong: str) -> None:
    assert Merges(kind(["a b", wrong, "c d", "x"])).malformed() == 1
    assert Merges(kind([wrong])).malformed() == 0


def test_none_at_all() -> None:
    assert Merges([]).rank("a", "b") == inf
    assert Merges([]).malformed() is None


def test_every_rank_of_a_real_vocabulary() -> None:
    from ggrun.gguf import open_gguf

    with open_gguf(shared_path("vocab", "ggml-vocab-qwen2.gguf")) as file:
        array = file.metadata[PREFIX + "merges"]
        pairs = array.tolist()
        merges = Merges(array)
        ranks = dict(zip(reversed(pairs), range(len(pairs) - 1, -1, -1)))
        assert all(merges.rank(*pair.split(" ")) == ranks[pair] for pair in pairs)

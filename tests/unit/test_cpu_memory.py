"""The executor's one reservation: of the asked size or refused in words, its pages made in the background."""

import itertools
import threading
from pathlib import Path

import numpy as np
import pytest

from ggrun.errors import GgrunError
from ggrun.runtime.cpu.filling import Filling
from ggrun.runtime.cpu.memory import Memory


def resident_bytes() -> int:
    fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines() if ":" in line)
    return 1024 * int(fields["RssAnon"].split()[0])


def test_pages_are_filled_in_the_background_and_keep_their_bytes() -> None:
    n = 150 << 20
    memory = Memory(n)
    whole = memory.view(0, n)
    whole[:: 50 << 20] = 7
    before = resident_bytes()
    filling = Filling(memory, [(64 << 20, 64 << 20), (0, n)])
    filling.settle()
    assert resident_bytes() - before >= n - (10 << 20)
    assert (whole[:: 50 << 20] == 7).all()
    whole[:: 50 << 20] = 0
    assert not whole.any()
    filling.close()
    filling.close()


def test_filling_stops_when_told() -> None:
    threads = threading.active_count()
    filling = Filling(Memory(1 << 20), itertools.repeat((0, 1 << 20)))
    assert threading.active_count() == threads + 1
    filling.close()
    assert threading.active_count() == threads


def test_views_stay_inside_and_keep_the_memory() -> None:
    memory = Memory(10000)
    view = memory.view(9000, 1000)
    view[:] = 7
    for offset, length in ((9001, 1000), (-1, 10), (0, 10001)):
        with pytest.raises(AssertionError):
            memory.view(offset, length)
    del memory
    np.testing.assert_array_equal(view, 7)


def test_nothing_is_a_size() -> None:
    assert Memory(0).view(0, 0).size == 0


def test_too_much_is_an_error_in_words() -> None:
    with pytest.raises(GgrunError, match="cannot reserve .* MiB .* -c"):
        Memory(1 << 60)

"""The executor's one reservation: there at once, of the asked size, or refused in words."""

import errno
import mmap
from pathlib import Path

import numpy as np
import pytest

from ggrun.errors import GgrunError
from ggrun.runtime.cpu import memory as memory_module
from ggrun.runtime.cpu.memory import Memory


def resident_bytes() -> int:
    fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines() if ":" in line)
    return 1024 * int(fields["RssAnon"].split()[0])


@pytest.mark.parametrize("knows_populate", [True, False])
def test_every_page_is_there_before_use(knows_populate: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not knows_populate:
        monkeypatch.setattr(memory_module, "_advise", lambda pages, advice, start, length: False)
    before = resident_bytes()
    calls: list[tuple[str, int, int]] = []
    n = (150 << 20) + 12345
    memory = Memory(n, lambda *call: calls.append(call))
    assert resident_bytes() - before >= n - (1 << 20)
    assert [call[1] for call in calls] == [0, 64 << 20, 128 << 20, n]
    assert {(stage, total) for stage, _, total in calls} == {("load", n)}
    assert memory.n_bytes == n
    whole = memory.view(0, n)
    assert whole.ctypes.data == memory.address
    assert not whole.any()


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


def test_pages_the_system_will_not_give(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(pages: mmap.mmap, advice: int, start: int, length: int) -> bool:
        raise OSError(errno.ENOMEM, "Cannot allocate memory")

    monkeypatch.setattr(memory_module, "_advise", refuse)
    with pytest.raises(GgrunError, match="Cannot allocate memory"):
        Memory(1 << 20)

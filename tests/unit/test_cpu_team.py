"""The thread team: every chunk once, steps in order, stops when told, sleeps when idle. Kernels here only count."""

import gc
import threading
from collections.abc import Iterator

import numpy as np
import pytest
from numba import cfunc, types

from ggrun.errors import GgrunError
from ggrun.runtime.cpu import atomics
from ggrun.runtime.cpu.layout import CONTROL, CONTROL_BYTES, LINE, STEP_BYTES, STEP_FIELDS, float_bits, pack
from ggrun.runtime.cpu.team import Team
from ggrun.runtime.cpu.words import control_field, field, load_i64, store_i64, word

KERNEL = types.int64(*[types.int64] * 4)


@cfunc(KERNEL)
def count(step, control, thread, chunk):
    """y[chunk] += 1; z[thread] += 1."""
    if chunk < 0:
        return field(step, "n")
    atomics.add(field(step, "y") + 8 * chunk, 1)
    atomics.add(field(step, "z") + 8 * thread, 1)
    return 0


@cfunc(KERNEL)
def chain(step, control, thread, chunk):
    """y[chunk] = 1 + the sum of x, which the step before wrote: wrong when steps overlap."""
    if chunk < 0:
        return field(step, "n")
    total = 0
    for i in range(field(step, "k")):
        total += load_i64(field(step, "x") + 8 * i)
    store_i64(field(step, "y") + 8 * chunk, (total + 1) % 1000003)
    return 0


@cfunc(KERNEL)
def abort(step, control, thread, chunk):
    """Sets the abort word in its chunk `k`."""
    if chunk < 0:
        return field(step, "n")
    if chunk == field(step, "k"):
        store_i64(word(control, "abort"), 1)
    return 0


@pytest.fixture(params=[1, 2, 5])
def team(request: pytest.FixtureRequest) -> Iterator[Team]:
    team = Team(request.param)
    yield team
    team.close()


def program(team: Team, *steps: dict[str, int]) -> np.ndarray:
    memory = np.frombuffer(b"".join(pack(step) for step in steps), np.uint8).copy()
    team.set(steps=memory.ctypes.data, steps_end=memory.ctypes.data + memory.nbytes)
    return memory


def test_every_chunk_is_done_once(team: Team) -> None:
    chunks = [0, 1, 2, 3, 17, 1000, 0, 1]
    seen = np.zeros((len(chunks), 1000), np.int64)
    threads = np.zeros(8, np.int64)
    steps = [{"kernel": count.address, "n": n, "y": row.ctypes.data, "z": threads.ctypes.data} for n, row in zip(chunks, seen)]
    memory = program(team, *steps)
    for _ in range(1000):
        assert team.run(team.n_threads)
    for n, row in zip(chunks, seen):
        assert (row[:n] == 1000).all()
        assert not row[n:].any()
    assert threads.sum() == 1000 * sum(chunks)
    assert memory.nbytes == len(chunks) * STEP_BYTES


def test_cores_are_offered_before_every_chunk() -> None:
    team = Team(3)
    team.set(stint=0)
    seen, threads = np.zeros(64, np.int64), np.zeros(3, np.int64)
    memory = program(team, *[{"kernel": count.address, "n": 64, "y": seen.ctypes.data, "z": threads.ctypes.data}] * 10)
    for active in (3, 1, 2):
        assert team.run(active)
    assert (seen == 30).all()
    assert memory.size
    team.close()


def test_more_chunks_than_can_be_counted(team: Team) -> None:
    seen, threads = np.zeros((1 << 22) + 3, np.int64), np.zeros(8, np.int64)
    memory = program(team, {"kernel": count.address, "n": len(seen), "y": seen.ctypes.data, "z": threads.ctypes.data})
    assert team.run(team.n_threads)
    assert (seen == 1).all()
    assert memory.size


def test_a_step_sees_all_of_the_one_before(team: Team) -> None:
    chunks = [7, 1, 30, 2, 1, 1, 64, 3] * 200
    a, b = np.zeros(64, np.int64), np.zeros(64, np.int64)
    steps, want, last = [], np.zeros(1, np.int64), 0
    for n in chunks:
        a, b = b, a
        steps.append({"kernel": chain.address, "n": n, "k": last, "x": a.ctypes.data, "y": b.ctypes.data})
        want = np.full(n, (want[:last].sum() + 1) % 1000003)
        last = n
    memory = program(team, *steps)
    for _ in range(5):
        assert team.run(team.n_threads)
        np.testing.assert_array_equal(b[:last], want)
    assert memory.size


def test_only_the_active_threads_work() -> None:
    team = Team(4)
    seen, threads = np.zeros(64, np.int64), np.zeros(4, np.int64)
    memory = program(team, *[{"kernel": count.address, "n": 64, "y": seen.ctypes.data, "z": threads.ctypes.data}] * 100)
    for active in (4, 1, 2, 1):
        team.run(active)
    before = threads.copy()
    for _ in range(20):
        team.run(1)
    assert threads[0] == before[0] + 20 * 6400
    assert (threads[1:] == before[1:]).all()
    assert memory.size
    team.close()


@pytest.mark.parametrize("n", [1, 4, 40])
def test_abort_in_the_last_step_is_no_finished_run(team: Team, n: int) -> None:
    """Whoever saw it left chunks out: what the step wrote is not to be used."""
    memory = program(team, {"kernel": abort.address, "n": n, "k": 0})
    assert not team.run(team.n_threads)
    assert memory.nbytes == STEP_BYTES


@pytest.mark.parametrize("at", [0, 5])
def test_abort_ends_the_run_and_is_used_up(team: Team, at: int) -> None:
    seen, threads = np.zeros(10, np.int64), np.zeros(8, np.int64)
    tail = {"kernel": count.address, "n": 10, "y": seen.ctypes.data, "z": threads.ctypes.data}
    memory = program(team, tail, {"kernel": abort.address, "n": at + 1, "k": at}, tail)
    assert not team.run(team.n_threads)
    assert (seen == 1).all()
    team.abort()
    assert not team.run(team.n_threads)
    assert (seen == 1).all()
    team.set(steps=memory.ctypes.data + 2 * STEP_BYTES)
    assert team.run(team.n_threads)
    assert (seen == 2).all()


def test_nothing_to_do(team: Team) -> None:
    assert team.run(team.n_threads)


def test_close_ends_the_threads_and_so_does_forgetting() -> None:
    before = threading.active_count()
    team = Team(3)
    assert threading.active_count() == before + 2
    team.close()
    team.close()
    assert threading.active_count() == before
    team = Team(3)
    del team
    gc.collect()
    assert threading.active_count() == before


def test_threads_that_cannot_start_leave_none_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    before, start = threading.active_count(), threading.Thread.start

    def refuse(thread: threading.Thread) -> None:
        if thread.name == "ggrun-cpu-3":
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", refuse)
    with pytest.raises(GgrunError, match="-t"):
        Team(5)
    assert threading.active_count() == before


def test_control_words_that_many_write_share_no_line() -> None:
    hot = ["work", "done", "sleepers", "roster", "absent", "abort", "step", "quit"]
    assert len({CONTROL[name] // LINE for name in hot}) == len(hot)
    assert len(set(CONTROL.values())) == len(CONTROL)
    assert max(CONTROL.values()) < CONTROL_BYTES


def test_pack_refuses_unknown_fields() -> None:
    assert len(pack({name: i for i, name in enumerate(STEP_FIELDS)})) == STEP_BYTES
    assert np.frombuffer(pack({"f0": float_bits(1.5)}), np.float64)[STEP_FIELDS.index("f0")] == 1.5
    with pytest.raises(KeyError):
        pack({"nonsense": 1})


def test_compiled_code_refuses_unknown_fields() -> None:
    from numba import njit

    @njit
    def wrong(control):
        return control_field(control, "nonsense")

    with pytest.raises(Exception, match="nonsense"):
        wrong(0)

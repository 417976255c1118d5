"""How many cores a process may use, on machines made of files."""

import os
from pathlib import Path

import pytest

from ggrun.engine import loading
from ggrun.runtime.cpu.cores import n_cores


def write(root: Path, path: str, text: str) -> None:
    (root / path).parent.mkdir(parents=True, exist_ok=True)
    (root / path).write_text(text)


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Eight hardware threads on four cores."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)))
    for cpu in range(8):
        write(tmp_path, f"sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list", f"{cpu % 4},{cpu % 4 + 4}\n")
    return tmp_path


def test_one_thread_a_core(machine: Path) -> None:
    assert n_cores(machine) == 4


def test_affinity(machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {1, 5, 6})
    assert n_cores(machine) == 2


def test_unknown_topology_counts_threads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1, 2})
    assert n_cores(tmp_path) == 3


@pytest.mark.parametrize(
    ("quota", "cores"), [("max 100000", 4), ("200000 100000", 2), ("150000 100000", 2), ("10000 100000", 1), ("900000 100000", 4), ("", 4)]
)
@pytest.mark.parametrize("folder", ["sys/fs/cgroup/a/b", "sys/fs/cgroup/a", "sys/fs/cgroup"])
def test_quota_of_control_groups_2(machine: Path, quota: str, cores: int, folder: str) -> None:
    write(machine, "proc/self/cgroup", "0::/a/b\n")
    write(machine, f"{folder}/cpu.max", quota)
    assert n_cores(machine) == cores


@pytest.mark.parametrize(("quota", "cores"), [(-1, 4), (250000, 3), (50000, 1)])
def test_quota_of_control_groups_1(machine: Path, quota: int, cores: int) -> None:
    write(machine, "proc/self/cgroup", "3:memory:/x\n2:cpu,cpuacct:/docker/1\n1:name=systemd:/y\n")
    write(machine, "sys/fs/cgroup/cpu,cpuacct/docker/1/cpu.cfs_quota_us", f"{quota}\n")
    write(machine, "sys/fs/cgroup/cpu,cpuacct/docker/1/cpu.cfs_period_us", "100000\n")
    assert n_cores(machine) == cores


def test_this_machine() -> None:
    assert 1 <= n_cores() <= len(os.sched_getaffinity(0))


@pytest.mark.parametrize(
    ("asked", "given"),
    [((0, 0), (4, 4)), ((3, 0), (3, 3)), ((1, 4), (1, 4)), ((64, 2), (4, 2)), ((2, 64), (2, 4)), ((-1, -1), (4, 4))],
)
def test_threads_asked_for_never_exceed_the_cores(asked: tuple[int, int], given: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    """-t is for tokens, -tb for prompts and by default the same; the memory is planned for the larger."""
    monkeypatch.setattr(loading, "n_cores", lambda: 4)
    planned = loading.plan_model(None, loading.Options(n_threads=asked[0], n_threads_batch=asked[1]))
    planned.file.close()
    assert (planned.n_threads, planned.n_threads_batch) == given
    assert planned.plan.shape.n_threads == max(given)
    told = {note.partition(":")[0] for note in planned.plan.notes}
    assert told & {"-t 64", "-tb 64"} == {f"{flag} 64" for flag, n in zip(("-t", "-tb"), asked) if n == 64}

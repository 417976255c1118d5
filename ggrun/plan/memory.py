"""How much memory this process may still take (the machine's, or its control group's where that is tighter), and on which pages."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Protocol
from weakref import WeakSet

import psutil

CGROUP = Path("/sys/fs/cgroup")
HUGE_PAGES = Path("/sys/kernel/mm/transparent_hugepage/enabled")


def available_bytes(cgroup: Path = CGROUP, machine: Callable[[], int] = lambda: int(psutil.virtual_memory().available)) -> int:
    """Bytes that can be allocated without swapping. A cgroup's reclaimable file cache counts as available."""
    limits = [machine()]
    for limit_file, used_file, stat_key in (
        ("memory.max", "memory.current", "inactive_file"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "total_inactive_file"),
    ):
        limit, used = _number(cgroup / limit_file), _number(cgroup / used_file)
        if limit is not None and used is not None:
            limits.append(limit - used + _stat((cgroup / limit_file).parent / "memory.stat", stat_key))
    return max(0, min(limits))


class Promised(Protocol):
    """Memory that was reserved and takes pages as it fills."""

    @property
    def unfilled_bytes(self) -> int: ...


_promised: WeakSet[Promised] = WeakSet()


def promise(memory: Promised) -> None:
    """Count what it has not filled yet as taken, as long as it lives: the system does not."""
    _promised.add(memory)


def promised_bytes() -> int:
    """What this process may still fill of memory that it has reserved."""
    return sum(memory.unfilled_bytes for memory in tuple(_promised))


def has_huge_pages(switch: Path = HUGE_PAGES) -> bool:
    """Whether private memory gets huge pages when it asks for them."""
    try:
        return "[never]" not in switch.read_text()
    except OSError:
        return False


def _number(path: Path) -> int | None:
    try:
        return int(path.read_text())
    except (OSError, ValueError):  # no such file, or "max"
        return None


def _stat(path: Path, key: str) -> int:
    try:
        pairs = (line.split() for line in path.read_text().splitlines())
        return next((int(value) for name, value in pairs if name == key), 0)
    except (OSError, ValueError):
        return 0

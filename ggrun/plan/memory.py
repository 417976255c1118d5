"""How much memory this process may still take (the machine's, or its control group's where that is tighter), and on which pages."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

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

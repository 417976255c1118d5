"""How many cores this process may use: what it is allowed to run on, one thread a physical core, within its control group's quota."""

from __future__ import annotations

import math
import os
from pathlib import Path


def n_cores(root: Path = Path("/")) -> int:
    """The largest sensible team, at least 1. Two hardware threads of one core count once: they share what limits the kernels."""
    allowed = os.sched_getaffinity(0)
    siblings = set()
    for cpu in allowed:
        try:
            siblings.add((root / f"sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list").read_text())
        except OSError:
            siblings.add(str(cpu))
    return max(1, math.ceil(min(len(siblings), _quota(root))))


def _quota(root: Path) -> float:
    """Cores' worth of time the tightest control group above this process grants; inf when none limits it."""
    best = math.inf
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return best
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            folder, read = root / "sys/fs/cgroup", _read_v2
        elif "cpu" in controllers.split(","):
            folder, read = root / "sys/fs/cgroup" / controllers, _read_v1
        else:
            continue
        parts = [part for part in path.split("/") if part and part != ".."]
        for depth in range(len(parts) + 1):  # inside a container the group's own folder is often mounted as the root
            best = min(best, read(folder.joinpath(*parts[:depth])))
    return best


def _read_v2(folder: Path) -> float:
    try:
        quota, period = (folder / "cpu.max").read_text().split()
        return math.inf if quota == "max" else int(quota) / int(period)
    except (OSError, ValueError):
        return math.inf


def _read_v1(folder: Path) -> float:
    try:
        quota, period = (int((folder / f"cpu.cfs_{name}_us").read_text()) for name in ("quota", "period"))
        return quota / period if quota > 0 and period > 0 else math.inf
    except (OSError, ValueError):
        return math.inf

"""The ledger: every byte a plan takes, by device and purpose. It is a contract: what is allocated later equals these lines."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Purpose = Literal["weights", "kv", "scratch", "process", "staging", "driver", "stream", "cache"]


@dataclass(frozen=True, slots=True)
class Line:
    """n_bytes on a device for a purpose; `what` says it in words."""

    device: str
    purpose: Purpose
    what: str
    n_bytes: int


@dataclass(frozen=True)
class Ledger:
    lines: tuple[Line, ...]

    def total(self, device: str | None = None, purpose: Purpose | None = None) -> int:
        """Sum of the lines of a device (None: all) and purpose (None: all), in bytes."""
        return sum(line.n_bytes for line in self.lines if device in (None, line.device) and purpose in (None, line.purpose))


def human(n_bytes: float) -> str:
    """Bytes as a person reads them: 1.50 GiB, 12.3 MiB, 640 B."""
    for unit, size in (("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)):
        if abs(n_bytes) >= size:
            return f"{n_bytes / size:.2f} {unit}"
    return f"{int(n_bytes)} B"

"""How fast a machine is: bandwidths and throughputs, measured once by `ggrun tune` and kept as JSON, or guessed before that.

Measuring is the runtimes' work: each hands in a function that returns a Speeds. This module knows the numbers, guesses and the file.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

GIGA = 1e9
ACTIVATIONS = ("q8_k", "q8_0", "f32")  # what a format's other factor is turned into: each has kernels of its own speed


@dataclass(frozen=True, slots=True)
class Speeds:
    """Of one device. All per second; `step`, `latency`: seconds. flops: 2 x multiplications of a matrix product of many tokens.

    step: what one step takes beside its work (a barrier, a launch). to_device, from_device: copies between it and pinned host memory;
    latency: of one crossing. start: seconds from asking for a GPU's stage to its end, beside its steps. copy: by one of the CPU's threads
    into pinned memory; within: in a GPU's memory. driver_bytes: what a GPU's driver takes of its memory for itself (0: not measured);
    code_bytes: the part of it that comes with kernels.
    """

    read: float
    flops: Mapping[str, float]
    step: float
    attention: float
    to_device: float = 0.0
    from_device: float = 0.0
    latency: float = 0.0
    driver_bytes: int = 0
    code_bytes: int = 0
    copy: float = 0.0  # 0: not measured
    within: float = 0.0
    start: float = 0.0
    measured: str = ""  # when, in ISO 8601; empty: guessed


@dataclass(frozen=True, slots=True)
class Machine:
    """The processor, and the GPUs by their cards' names."""

    cpu: Speeds
    gpus: Mapping[str, Speeds] = field(default_factory=dict)


# compute capability, up to GiB of memory: GB/s of its memory, dense int8 TOPS (dp4a before 7.5) that our kernels are expected to reach.
# Typical cards, not measured here: half of the vendors' peak for products, 80% for memory.
_CARDS: tuple[tuple[int, int, float, float], ...] = (
    (60, 999, 500, 8),
    (61, 6, 150, 6),
    (61, 12, 250, 12),
    (61, 999, 280, 16),
    (70, 999, 700, 25),
    (75, 6, 230, 25),
    (75, 999, 350, 50),
    (80, 999, 1250, 150),
    (86, 6, 220, 30),
    (86, 8, 340, 60),
    (86, 12, 300, 45),
    (86, 999, 700, 110),
    (89, 8, 220, 80),
    (89, 12, 400, 110),
    (89, 16, 560, 150),
    (89, 999, 800, 250),
    (90, 999, 3300, 500),
    (100, 999, 6000, 1000),
    (120, 12, 500, 130),
    (120, 16, 700, 200),
    (120, 999, 1400, 350),
)


def guessed_gpu(compute_capability: int, total_bytes: int) -> Speeds:
    """A typical card of that compute capability (86 is 8.6) and memory, on a PCIe 4.0 x8 link."""
    gib = total_bytes / (1 << 30)
    known = max((cc for cc, *_ in _CARDS if cc <= compute_capability), default=_CARDS[0][0])
    read, tops = next((bandwidth, tops) for cc, most, bandwidth, tops in _CARDS if cc == known and gib <= most + 0.5)
    int8 = tops * 1e12
    f32 = int8 / 8
    products = {"q8_k": int8, "q8_0": int8, "f32": f32}
    link = 12 * GIGA
    return Speeds(read * GIGA, products, 2.5e-6, int8 / 6, to_device=link, from_device=link, latency=15e-6, start=15e-6)


def guessed_cpu(n_threads: int) -> Speeds:
    """A desktop processor of today with two channels of memory."""
    n = max(1, n_threads)
    return Speeds(min(12 * n, 40) * GIGA, {"q8_k": 250 * GIGA * n, "q8_0": 250 * GIGA * n, "f32": 60 * GIGA * n}, 3e-6, 60 * GIGA * n)


GUESSED_COPY = 8 * GIGA  # one thread's, from the file's pages into pinned memory


def gpu_speeds(machine: Machine, name: str, compute_capability: int, total_bytes: int) -> Speeds:
    """What was measured of the card, or the guess."""
    return machine.gpus.get(name) or guessed_gpu(compute_capability, total_bytes)


def read_machine(path: Path, n_threads: int) -> Machine:
    """The stored figures; guesses for whatever is missing, or where the file cannot be understood."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        cpu = _speeds(content["cpu"]) if content.get("cpu") else guessed_cpu(n_threads)
        return Machine(cpu, {str(name): _speeds(values) for name, values in content.get("gpus", {}).items()})
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return Machine(guessed_cpu(n_threads))


def write_machine(path: Path, machine: Machine) -> None:
    """Keep the figures that were measured; cards that are not in the machine now stay in the file."""
    old = read_machine(path, 1)
    merged = replace(machine, gpus={**old.gpus, **machine.gpus})
    content = {"cpu": asdict(merged.cpu), "gpus": {name: asdict(speeds) for name, speeds in merged.gpus.items()}}
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(f".{os.getpid()}")
    unfinished.write_text(json.dumps(content, indent=1), encoding="utf-8")
    os.replace(unfinished, path)


def _speeds(values: Mapping[str, Any]) -> Speeds:
    """Raises TypeError or ValueError for anything that is no Speeds."""
    speeds = Speeds(**values)
    numbers = (speeds.read, *speeds.flops.values(), speeds.attention)
    if set(speeds.flops) < set(ACTIVATIONS) or not all(isinstance(n, int | float) and n > 0 for n in numbers):
        raise ValueError("no speeds")
    return speeds

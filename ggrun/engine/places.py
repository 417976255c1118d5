"""The devices that plans are made for, and how fast they are: this machine's, or those of a machine that is only described."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from pathlib import Path

import psutil

from ggrun.errors import GgrunError
from ggrun.plan.device import Place
from ggrun.plan.machine import Machine, read_machine
from ggrun.plan.memory import available_bytes, promised_bytes
from ggrun.runtime.cpu.device import CpuDevice
from ggrun.runtime.cuda.device import CudaDevice
from ggrun.runtime.cuda.launch import Arch

# Shared memory one block may have, by compute capability; between two, the lower one's.
_SHARED_KIB = {60: 48, 70: 96, 75: 64, 80: 163, 86: 99, 87: 163, 89: 99, 90: 227, 100: 227, 120: 99}
MULTIPROCESSORS = 30  # of a described card


def gpus() -> tuple[Place, ...]:
    """The GPUs ggrun can use."""
    from ggrun.engine import gpus as cards

    return cards.measured(cards.found(), read_machine(machine_file(), 1))


def cpu(available: int | None = None) -> Place:
    """The processor, with so much memory (None: all that this process may still take)."""
    if available is not None:
        return Place(CpuDevice(), available, available)
    return Place(CpuDevice(), int(psutil.virtual_memory().total), max(0, available_bytes() - promised_bytes()))


def described(vram: Sequence[int], ram: int | None, compute_capability: int) -> tuple[Place, ...]:
    """A machine with GPUs of so many bytes each, all of them free; ram None: as much as this machine has available."""
    known = max((cc for cc in _SHARED_KIB if cc <= compute_capability), default=0)
    if not known:
        text = f"{compute_capability // 10}.{compute_capability % 10}"
        raise GgrunError(f"--gpu-arch {compute_capability}: kernels are made for compute capability 6.0 and later, not {text}")
    arch = Arch(compute_capability, MULTIPROCESSORS, _SHARED_KIB[known] << 10)
    devices = (CudaDevice(f"CUDA{index}", arch) for index in range(len(vram)))
    return (cpu(ram), *(Place(device, n, n, "a described card", compute_capability) for device, n in zip(devices, vram)))


def machine_file() -> Path:
    """Where `ggrun tune` keeps what it measured; a folder may be shared by machines, so the file has the machine's name."""
    from platformdirs import user_state_path

    return user_state_path("ggrun") / f"speeds-{platform.node() or 'machine'}.json"


def machine(n_threads: int) -> Machine:
    """How fast this machine is, as measured or guessed."""
    return read_machine(machine_file(), n_threads)

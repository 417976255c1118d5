"""`ggrun tune` without its words: measures every device with the function its runtime brings, and keeps what was measured."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

from ggrun.engine import places
from ggrun.errors import GgrunError
from ggrun.plan.device import Place
from ggrun.plan.machine import Machine, Speeds, write_machine
from ggrun.runtime.cpu.cores import n_cores
from ggrun.runtime.executor import Progress

Measure = Callable[[Place, int, Progress | None], Speeds]  # (the device, threads of the CPU's team, who is told of compiling)


def _cpu(place: Place, n_threads: int, progress: Progress | None) -> Speeds:
    from ggrun.runtime.cpu.tuning import measure

    return measure(n_threads, progress)


def _cuda(place: Place, n_threads: int, progress: Progress | None) -> Speeds:
    from ggrun.runtime.cuda.tuning import measure

    return measure(place, progress)


MEASURES: Mapping[str, Measure] = {"cpu": _cpu, "cuda": _cuda}
"""By kind of device. A GPU's also measures copies to and from pinned memory, the latency of one, and the driver's own share of memory;
what has no entry is guessed."""


def tune(progress: Progress | None = None, n_threads: int = 0) -> tuple[Machine, Path, list[str]]:
    """Measure the CPU with a team of n_threads (0: every core) and every GPU; the figures, their file, and why some were not taken.

    A GPU's figures are kept under its card's name, so that two cards, or a card and what stands in for one, never share any.
    """
    n_threads = min(n_threads, n_cores()) if n_threads > 0 else n_cores()
    machine = Machine(_cpu(places.cpu(), n_threads, progress))
    skipped = []
    for place in places.gpus():
        name, measure = place.device.name, MEASURES.get(place.device.kind)
        try:
            if measure is None:
                raise GgrunError("this version cannot measure it")
            machine = replace(machine, gpus={**machine.gpus, place.gpu: measure(place, n_threads, progress)})
        except GgrunError as error:
            skipped.append(f"{str(error).removeprefix(f'{name}: ')}; the speeds of {name} stay as they were")
    path = places.machine_file()
    write_machine(path, machine)
    return machine, path, skipped

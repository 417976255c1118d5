"""Which of a machine's devices a plan may use, and how much of each one's memory: the user's pins meet what is there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from ggrun.errors import GgrunError
from ggrun.plan.device import Place
from ggrun.plan.pins import Pins
from ggrun.plan.planner import Room


def usable(places: Sequence[Place], pins: Pins) -> list[Place]:
    """The CPU and the GPUs that the pins leave. Raises GgrunError for a device, or a number of them, that is not there."""
    cpu, *gpus = places
    names = [place.device.name for place in gpus]
    there = f"there {'is' if len(names) == 1 else 'are'} {', '.join(names)}" if names else "there is no GPU"
    if pins.devices is not None:
        for name in pins.devices:
            if name not in names:
                raise GgrunError(f"-dev {name}: {there}")
        gpus = [gpus[names.index(name)] for name in pins.devices]
    for pattern, device in pins.overrides:
        if device != cpu.device.name and device not in [place.device.name for place in gpus]:
            raise GgrunError(f"-ot {pattern}={device}: {there if device not in names else 'the device is left out by -dev'}")
    if gpus and pins.split_mode == "none":
        if pins.main_gpu >= len(gpus):
            raise GgrunError(f"-mg {pins.main_gpu}: {there}, counted from 0")
        gpus = [gpus[pins.main_gpu]]
    if gpus and len(pins.split) > len(gpus):
        raise GgrunError(f"-ts has {len(pins.split)} shares for {len(gpus)} GPU{'s' * (len(gpus) != 1)}")
    return [cpu, *gpus]


def rooms_of(places: Sequence[Place], pins: Pins) -> tuple[Room, ...]:
    """The room of each place, the CPU first. A budget is the limit, and nothing is left free of it; else a margin is."""
    cpu, *gpus = places
    if pins.ram_budget:
        rooms = [Room(cpu.device.name, "memory", cpu.total_bytes, min(cpu.free_bytes, pins.ram_budget))]
    else:
        rooms = [Room(cpu.device.name, "memory", cpu.total_bytes, cpu.free_bytes, cpu.free_bytes // 4)]
    for flag, values in (("--vram-budget", pins.vram_budget), ("-fitt", pins.fit_target)):
        if len(values) > 1 and len(values) != len(gpus):
            raise GgrunError(
                f"{flag} has {len(values)} sizes for {len(gpus)} GPU{'s' * (len(gpus) != 1)}; give one for all, or one for each"
            )
    for i, place in enumerate(gpus):
        what = place.gpu + (f", {place.compute_capability // 10}.{place.compute_capability % 10}" if place.compute_capability else "")
        if pins.vram_budget:
            limit, margin = min(place.free_bytes, _nth(pins.vram_budget, i)), 0
        else:
            limit, margin = place.free_bytes, min(_nth(pins.fit_target, i), place.free_bytes)
        rooms.append(Room(place.device.name, what, place.total_bytes, limit, margin))
    return tuple(rooms)


def limited(places: Sequence[Place], rooms: Sequence[Room]) -> list[Place]:
    """The places with no more free than their rooms' limits."""
    return [replace(place, free_bytes=room.limit_bytes) for place, room in zip(places, rooms, strict=True)]


def _nth(values: Sequence[int], i: int) -> int:
    return values[i] if len(values) > 1 else values[0]

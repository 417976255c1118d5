"""Lays a program out over several devices: segments, stages, what crosses between them, arenas, and the ledger. Judges nothing.

Every device has one scratch arena over all its stages. A buffer that crosses lives on the device that wrote it until it has been taken, and
on the other from its arrival to its last use.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import groupby

from ggrun.plan.arena import align, pack, spans
from ggrun.plan.device import Device, KvPlace, Lowered, Place, Segment, Shape, Stage, Take
from ggrun.plan.ledger import Ledger, Line, human
from ggrun.plan.planner import NO_COPY, Plan, Request, Room, copy_lines, kv_words, shape_of, weight_copy
from ggrun.program.program import Program

MAPPED = ("auto", "mmap")  # load modes in which only the pages that are used come to memory


def lay_out(
    program: Program,
    places: Sequence[Place],
    where: Mapping[str, str],
    request: Request,
    n_ctx: int,
    file_weights: tuple[str, int],
    rooms: Sequence[Room] = (),
    notes: tuple[str, ...] = (),
) -> Plan:
    """The plan of one placement and one context; memory is not judged here.

    places: the CPU first. where: unit -> device. file_weights: in which form the file's weights are on the CPU, in words, and their
    bytes, all of them.
    """
    shape = shape_of(request, n_ctx)
    names = list(dict.fromkeys(where[unit] for unit in program.units))
    devices = {place.device.name: place.device for place in places}
    units = {name: tuple(unit for unit in program.units if where[unit] == name) for name in names}
    lowered = {name: devices[name].lower(program, units[name], shape) for name in names}
    stages = _stages(program, where, names, lowered)
    crossing = _crossing(stages, lowered, names)
    segments: list[Segment] = []
    lines: list[Line] = []
    cpu = places[0]
    for index, name in enumerate(names):
        device = devices[name]
        moved = _crossing_bytes(program, stages, index, shape)
        parts = _Parts(program, device, units[name], lowered[name], shape)
        segment = parts.segment(crossing[index], request.reuse, moved)
        if device.kind == "cpu":
            own, segment, note = _cpu_lines(parts, segment, request, cpu.free_bytes, file_weights)
            notes += (note,) * bool(note)
        else:
            own = _gpu_lines(parts, segment)
        segments.append(segment)
        lines += own
    if cpu.device.name not in names:
        lines.append(_process_line(cpu.device, program))
    order = [place.device.name for place in places]
    lines.sort(key=lambda line: order.index(line.device))
    limit = next((room.limit_bytes for room in rooms if room.device == cpu.device.name), cpu.free_bytes)
    return Plan(program, shape, tuple(segments), Ledger(tuple(lines)), limit, request.load_mode, notes, stages, tuple(rooms))


def _stages(program: Program, where: Mapping[str, str], names: Sequence[str], lowered: Mapping[str, Lowered]) -> tuple[Stage, ...]:
    """Runs of units on one device, as steps of its segment, each with the buffers it is the first on its device to need from another."""
    index = {name: i for i, name in enumerate(names)}
    made_by = {name: index[where[op.unit]] for op in program.ops for name in op.outputs}
    read = [{name for step in lowered[device].steps for name in step.inputs} for device in names]
    counts: dict[str, int] = {}
    for device in names:
        order = [unit for unit, _ in groupby(step.unit for step in lowered[device].steps)]
        assert order == [unit for unit in program.units if unit in set(order)], "steps follow the program's order of units"
        for step in lowered[device].steps:
            counts[step.unit] = counts.get(step.unit, 0) + 1
    done = [0] * len(names)
    held: list[set[str]] = [set() for _ in names]
    stages = []
    for device, run in groupby(program.units, key=lambda unit: where[unit]):
        own, units = index[device], set(run)
        last = done[own] + sum(counts.get(unit, 0) for unit in units)
        needed = dict.fromkeys(name for op in program.ops if op.unit in units for name in op.inputs)
        takes = tuple(
            Take(name, made_by[name]) for name in needed if made_by.get(name, own) != own and name in read[own] and name not in held[own]
        )
        held[own].update(take.buffer for take in takes)
        if last > done[own]:
            stages.append(Stage(own, done[own], last, takes))
        done[own] = last
    return tuple(stages)


def _crossing(stages: Sequence[Stage], lowered: Mapping[str, Lowered], names: Sequence[str]) -> list[dict[str, tuple[int, int]]]:
    """Of each segment: buffer -> the steps that it must live through because it crosses."""
    result: list[dict[str, tuple[int, int]]] = [{} for _ in names]
    reached = [0] * len(names)  # steps of each segment that have run
    for stage in stages:
        for take in stage.takes:
            last = reached[take.source] - 1
            first, _ = result[take.source].get(take.buffer, (last, last))
            result[take.source][take.buffer] = (first, last)
            result[stage.segment][take.buffer] = (stage.first, stage.first)
        reached[stage.segment] = stage.last
    return result


def _crossing_bytes(program: Program, stages: Sequence[Stage], segment: int, shape: Shape) -> int:
    """The most bytes that come to or go from a segment before one stage."""
    rows = {"T": shape.n_ubatch, "R": shape.n_logits}
    most = 0
    for stage in stages:
        n_bytes = 0
        for take in stage.takes:
            if segment in (stage.segment, take.source):
                buffer = program.buffers[take.buffer]
                n_bytes += align(rows[buffer.rows] * buffer.row_bytes, 256)
        most = max(most, n_bytes)
    return most


class _Parts:
    """What the segment of one device is made of."""

    def __init__(self, program: Program, device: Device, units: tuple[str, ...], lowered: Lowered, shape: Shape) -> None:
        self.program, self.device, self.units, self.lowered, self.shape = program, device, units, lowered, shape
        self.tensors = list(dict.fromkeys(name for step in lowered.steps for name in step.weights))

    def segment(self, crossing: Mapping[str, tuple[int, int]], reuse: bool, crossing_bytes: int) -> Segment:
        d, shape, to = self.device, self.shape, self.device.alignment
        rows = {"T": shape.n_ubatch, "R": shape.n_logits}
        offsets, scratch = pack(spans(self.program, self.lowered, rows, reuse, crossing), to)
        kv: dict[str, KvPlace] = {}
        kv_bytes = 0
        for state in self.program.states.values():
            if state.unit in self.units:
                kv[state.name] = KvPlace(kv_bytes, d.kv_block_bytes(state, shape))
                kv_bytes = align(kv_bytes + shape.n_kv_blocks * kv[state.name].block_bytes, to)
        weights: dict[str, int] = {}
        weight_bytes = 0
        if d.kind != "cpu":
            for name in self.tensors:
                weights[name] = weight_bytes
                weight_bytes = align(weight_bytes + self.program.weights[name].n_bytes, to)
        return Segment(
            d.name,
            self.units,
            self.lowered,
            offsets,
            scratch,
            align(d.thread_bytes(self.lowered, self.program, shape)),
            kv,
            kv_bytes,
            None,
            weights,
            weight_bytes,
            dict(d.host_bytes(self.lowered, self.program, shape, crossing_bytes)),
        )


def _process_line(device: Device, program: Program) -> Line:
    return Line(device.name, "process", "Python, kernels, vocabulary (measured)", device.process_bytes(program.n_vocab))


def _arena_lines(parts: _Parts, segment: Segment) -> list[Line]:
    name, shape = parts.device.name, parts.shape
    lines = [Line(name, "kv", kv_words(shape), segment.kv_bytes)] if segment.kv else []
    return [*lines, Line(name, "scratch", f"activations of {shape.n_ubatch} tokens", segment.scratch_bytes)]


def _cpu_lines(
    parts: _Parts, segment: Segment, request: Request, available: int, file_weights: tuple[str, int]
) -> tuple[list[Line], Segment, str]:
    """The CPU's lines, its segment with the copy of its matrices where that fits, and what is to be said of it."""
    program, device, shape = parts.program, parts.device, parts.shape
    what, n_bytes = file_weights
    if request.load_mode in MAPPED:
        n_bytes = sum(program.weights[name].n_bytes for name in parts.tensors)
    weights = [Line(device.name, "weights", what, n_bytes)]
    lines = _arena_lines(parts, segment)
    lines.append(Line(device.name, "scratch", f"private scratch of {shape.n_threads} threads", segment.thread_bytes * shape.n_threads))
    lines.append(_process_line(device, program))
    copy = weight_copy(program, available, set(parts.units))
    if not request.copy_weights or not copy.offsets:
        return weights + lines, segment, ""
    copied = copy_lines(program, copy, weights)
    if sum(line.n_bytes for line in copied + lines) <= available - available // 4:
        return copied + lines, replace(segment, copy=copy), ""
    return weights + lines, segment, NO_COPY.format(human(available))


def _gpu_lines(parts: _Parts, segment: Segment) -> list[Line]:
    name = parts.device.name
    return [
        Line(name, "weights", f"{len(segment.weights)} tensors, uploaded", segment.weight_bytes),
        *_arena_lines(parts, segment),
        Line(name, "driver", "the driver's context and kernels", parts.device.process_bytes(parts.program.n_vocab)),
        *(Line("CPU", "staging", f"{what} ({name})", n_bytes) for what, n_bytes in segment.host.items() if n_bytes),
    ]

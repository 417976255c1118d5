"""Lays a program out over several devices: segments, stages, what crosses between them, arenas, and the ledger. Judges nothing.

Every device has one scratch arena over all its stages. A buffer that crosses lives on the device that wrote it until it has been taken, and
on the other from its arrival to its last use.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby

from ggrun.plan.arena import Span, align, either, pack, spans
from ggrun.plan.device import Device, KvPlace, Lowered, Place, Segment, Shape, Stage, Take
from ggrun.plan.ledger import Ledger, Line, human
from ggrun.plan.planner import NO_COPY, Plan, Request, Room, copy_lines, kv_words, shape_of, weight_copy
from ggrun.plan.streaming import split_stages, streams_of
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
    streamed: Mapping[str, str] | None = None,
    prompt_from: int = 0,
) -> Plan:
    """The plan of one placement and one context; memory is not judged here.

    places: the CPU first. where: unit -> device. file_weights: in which form the file's weights are on the CPU, in words, and their
    bytes, all of them. streamed: unit on the CPU -> GPU of the placement that computes it in batches of prompt_from tokens or more.
    """
    shape = shape_of(request, n_ctx)
    names = list(dict.fromkeys(where[unit] for unit in program.units))
    devices = {place.device.name: place.device for place in places}
    every = _Path.of(program, where, devices, names, shape)
    prompt = _Path.of(program, {**where, **streamed}, devices, names, shape) if streamed else None
    segments: list[Segment] = []
    lines: list[Line] = []
    cpu = places[0]
    for index, name in enumerate(names):
        device = devices[name]
        parts = _Parts(program, device, index, every, prompt, shape)
        segment = parts.segment(request.reuse, [unit for unit, gpu in (streamed or {}).items() if gpu == name])
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
    plan = Plan(program, shape, tuple(segments), Ledger(tuple(lines)), limit, request.load_mode, notes, every.stages, rooms=tuple(rooms))
    if prompt is None:
        return plan
    starts = [len(segment.lowered.steps) for segment in segments]
    after = [replace(s, first=s.first + starts[s.segment], last=s.last + starts[s.segment]) for s in prompt.stages]
    return replace(plan, prompt_stages=split_stages(after, segments), prompt_from=prompt_from, streamed=streamed or {})


@dataclass(frozen=True, slots=True)
class _Path:
    """One way through the program: each device's units and steps, the stages, and what crosses (of each segment, see `_crossing`)."""

    units: Mapping[str, tuple[str, ...]]
    lowered: Mapping[str, Lowered]
    stages: tuple[Stage, ...]
    crossing: Sequence[Mapping[str, tuple[int, int]]]

    @classmethod
    def of(cls, program: Program, where: Mapping[str, str], devices: Mapping[str, Device], names: Sequence[str], shape: Shape) -> _Path:
        units = {name: tuple(unit for unit in program.units if where[unit] == name) for name in names}
        lowered = {name: devices[name].lower(program, units[name], shape) for name in names}
        stages = _stages(program, where, names, lowered)
        return cls(units, lowered, stages, _crossing(stages, lowered, names))


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

    def __init__(self, program: Program, device: Device, index: int, every: _Path, prompt: _Path | None, shape: Shape) -> None:
        self.program, self.device, self.index, self.shape = program, device, index, shape
        self.every, self.prompt = every, prompt
        self.units, self.lowered = every.units[device.name], every.lowered[device.name]
        self.after = prompt.lowered[device.name] if prompt else Lowered((), {})
        self.tensors = list(dict.fromkeys(name for step in self.lowered.steps for name in step.weights))

    def _spans(self, path: _Path, reuse: bool) -> list[Span]:
        rows = {"T": self.shape.n_ubatch, "R": self.shape.n_logits}
        return spans(self.program, path.lowered[self.device.name], rows, reuse, path.crossing[self.index])

    def segment(self, reuse: bool, streamed: Sequence[str]) -> Segment:
        d, shape, to = self.device, self.shape, self.device.alignment
        items = self._spans(self.every, reuse)
        offsets, scratch = pack(either(items, self._spans(self.prompt, reuse)) if self.prompt else items, to)
        paths = [path for path in (self.every, self.prompt) if path]
        moved = max(_crossing_bytes(self.program, path.stages, self.index, shape) for path in paths)
        host = dict(d.host_bytes(self.lowered, self.program, shape, moved))
        streams, half = streams_of(self.program, streamed, to)
        if streams:
            host["pinned for weights streamed to prompts"] = 2 * d.piece_bytes
        kv: dict[str, KvPlace] = {}
        kv_bytes = 0
        for state in self.program.states.values():
            if state.unit in self.units:
                kv[state.name] = KvPlace(kv_bytes, d.kv_block_bytes(state, shape))
                kv_bytes = align(kv_bytes + shape.n_kv_blocks * kv[state.name].block_bytes, to)
        weights: dict[str, int] = {}
        weight_bytes = 0
        if d.kind != "cpu":
            brought = {name for stream in streams for name in stream.weights}
            after = (name for step in self.after.steps for name in step.weights)
            for name in dict.fromkeys(name for name in (*self.tensors, *after) if name not in brought):
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
            host,
            self.after,
            streams,
            half,
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
        *([Line(name, "stream", "weights streamed to prompts, the largest unit twice", segment.stream_bytes)] if segment.streams else []),
        Line(name, "driver", "the driver's context and kernels", parts.device.process_bytes(parts.program.n_vocab)),
        *(Line("CPU", "staging", f"{what} ({name})", n_bytes) for what, n_bytes in segment.host.items() if n_bytes),
    ]

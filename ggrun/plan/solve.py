"""Solves for what the user did not pin: layers on GPUs, experts on the CPU, the context; for speed, and within every device's memory.

Candidates come in families, each ordered from the least to the most on GPUs, so that the last one that fits is found by halving. Each is
laid out to the byte before it is believed; which family wins is `cost`'s to say. What is pinned is never changed: it fits or is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from ggrun.errors import GgrunError
from ggrun.plan.arena import pack, spans
from ggrun.plan.cost import Cost
from ggrun.plan.device import MissingKernels, Place
from ggrun.plan.machine import Machine
from ggrun.plan.pins import ALL, Pins
from ggrun.plan.placement import Choice, has_experts, override_notes, parts_of, place, summary
from ggrun.plan.planner import CTX_STEP, DEFAULT_CTX_LIMIT, Plan, Request, Room, paging_note, shape_of
from ggrun.plan.rooms import limited, rooms_of, usable
from ggrun.plan.segments import lay_out
from ggrun.plan.streaming import streamable, words
from ggrun.program.program import Program


@dataclass(frozen=True)
class Task:
    """What is to be planned, and where. places: the CPU first. file_weights: see `segments.lay_out`."""

    program: Program
    places: tuple[Place, ...]
    pins: Pins
    request: Request
    n_ctx_train: int
    file_weights: tuple[str, int]
    machine: Machine


def solve(task: Task) -> Plan:
    """The fastest plan that fits. Raises DoesNotFit with the numbers and the nearest plans, GgrunError for pins that cannot be met."""
    from ggrun.plan.refuse import refusal

    if task.request.n_ctx < 0:
        raise GgrunError(f"a context of {task.request.n_ctx} tokens makes no sense; -c takes a positive number, or 0 to choose")
    solver = Solver(task)
    plan = solver.solve()
    if plan is None:
        raise refusal(task, solver.nearest_miss())
    return plan


class Solver:
    """The search for one task. Layouts are remembered: a search looks at some of them twice."""

    def __init__(self, task: Task) -> None:
        self.task = task
        pins, program = task.pins, task.program
        places = usable(task.places, pins)
        self.rooms = rooms_of(places, pins)
        self._places = limited(places, self.rooms)
        self.gpus = tuple(p.device.name for p in self._places[1:])
        self.parts = parts_of(program)
        self.cost = Cost(program, self._places, task.machine, task.request.type_k, task.request.type_v, task.request.n_ubatch)
        self._notes = override_notes(program, pins)
        self._built: dict[object, Plan] = {}
        self._known: dict[tuple[str, str], bool] = {}
        self._sized: dict[int, dict[str, float]] = {}
        self._shares = self._free_shares() if len(self.gpus) > 1 and not pins.split else pins.split
        request = task.request
        wanted = request.holding(min(task.n_ctx_train, DEFAULT_CTX_LIMIT))
        self.wanted = request.n_tokens or wanted
        self.least = request.n_tokens or min(wanted, request.holding(max(CTX_STEP, pins.fit_ctx)))

    def solve(self) -> Plan | None:
        if not self.task.pins.fit:
            return self._told(self._best(self.wanted, self._families(fixed=True), margins=False))
        families = self._families()
        plan = self._best(self.wanted, families, margins=True)
        if self.task.request.n_tokens:
            return self._told(plan or self._best(self.wanted, families, margins=False))
        if plan and (self.task.pins.n_gpu_layers is not None or self._is_all(plan)):
            return self._told(plan)
        for margins in (True, False):
            smallest = self._best(self.least, families, margins)
            if smallest:
                return self._told(self._widened(smallest, margins))
        return None

    def nearest_miss(self) -> Plan:
        """What is shown when nothing fits: the least context with as much on the GPUs as was asked for, or with nothing there."""
        pins = self.task.pins
        n = pins.n_gpu_layers if pins.n_gpu_layers is not None else 0 if pins.fit else ALL
        return self.build(self.choice_of(n, pins.n_cpu_moe or 0), self.least if pins.fit else self.wanted)

    def build(self, choice: Choice, n_ctx: int) -> Plan:
        """The layout of one candidate, to the byte."""
        key = (choice.n_gpu_layers, choice.n_cpu_moe, choice.embed, choice.gpus, choice.stream, n_ctx)
        if key not in self._built:
            choice = (
                replace(choice, weights=self._unit_bytes(choice, n_ctx)) if len(choice.gpus) > 1 and not self.task.pins.split else choice
            )
            t = self.task
            where = place(t.program, t.pins, choice)
            streamed, least = self._streamed(where, choice)
            plan = lay_out(t.program, self._places, where, t.request, n_ctx, t.file_weights, self.rooms, (), streamed, least)
            prediction = self.cost.predict(where, plan.shape.n_ctx, streamed, least)
            self._built[key] = replace(plan, choice=choice, where=where, prediction=prediction)
        return self._built[key]

    def _streamed(self, where: Mapping[str, str], choice: Choice) -> tuple[dict[str, str], int]:
        """What a placement streams to GPUs, and for batches of how many tokens; nothing where that is not faster or cannot be."""
        if not choice.stream:
            return {}, 0
        streamed = {unit: gpu for unit, gpu in streamable(self.task.program, where).items() if self._runs(unit, gpu)}
        least = self.cost.prompt_from(where, streamed)
        return (streamed, least) if least else ({}, 0)

    def _runs(self, unit: str, device: str) -> bool:
        """Whether a device has kernels for a unit."""
        if (unit, device) not in self._known:
            found = next(p.device for p in self._places if p.device.name == device)
            try:
                found.lower(self.task.program, (unit,), shape_of(self.task.request, CTX_STEP))
                self._known[unit, device] = True
            except MissingKernels:
                self._known[unit, device] = False
        return self._known[unit, device]

    def fits(self, plan: Plan, margins: bool, rooms: Sequence[Room] | None = None) -> bool:
        return not any(self.excess(plan, room, margins) > 0 for room in (self.rooms if rooms is None else rooms))

    def excess(self, plan: Plan, room: Room, margins: bool) -> int:
        """Bytes a plan needs beyond a room; of weights that may be read again from the disk, none are needed."""
        need = plan.ledger.total(room.device)
        weights = plan.ledger.total(room.device, "weights")
        cpu = room.device == self._places[0].device.name
        if cpu and self.task.request.load_mode == "mmap" and weights > room.limit_bytes:
            need -= weights
        margin = room.margin_bytes if margins and (not cpu or not self.task.request.n_tokens) else 0
        return need - (room.limit_bytes - margin)

    def choice_of(self, n: int, n_cpu_moe: int = 0, embed: bool = False, gpus: tuple[str, ...] | None = None) -> Choice:
        """The candidate of so many layers, on these GPUs (None: on all)."""
        gpus = self.gpus if gpus is None else gpus
        shares = self._shares if gpus == self.gpus else ()
        shares += (0.0,) * (len(gpus) - len(shares)) if shares else ()
        return Choice(min(n, self.parts.most), min(n_cpu_moe, len(self.parts.layers)), embed, gpus, shares)

    def _families(self, fixed: bool = False) -> list[list[Choice]]:
        """Lists of candidates, each with more on GPUs than the one before it. fixed: what is not pinned takes its plain default."""
        pins, most, layers = self.task.pins, self.parts.most, len(self.parts.layers)
        if not self.gpus:
            return [[self.choice_of(0)]]
        n, experts = pins.n_gpu_layers, pins.n_cpu_moe
        if fixed:
            n, experts = ALL if n is None else n, experts or 0
        if n == 0 or not has_experts(self.task.program):
            experts = experts or 0
        subsets = [self.gpus] if pins.split or pins.devices or len(self.gpus) == 1 else [self.gpus, *((gpu,) for gpu in self.gpus)]
        families = []
        for gpus in subsets:
            counts = range(most + 1) if n is None else [min(n, most)]
            moe = [0] if experts is None else [min(experts, layers)]
            if experts is None:
                top = most if n is None else min(n, most)
                lines = [(k, layers) for k in counts if k < top] + [(top, m) for m in range(layers, -1, -1)]
                families.append(self._embedded(lines, gpus))
            if n is None or experts is not None:
                families.append(self._embedded([(k, m) for k in counts for m in moe], gpus))
        return families

    def _embedded(self, lines: Sequence[tuple[int, int]], gpus: tuple[str, ...]) -> list[Choice]:
        """The candidates, and after the last the same with the embedding's lookup, where all else is on GPUs."""
        family = [self.choice_of(n, moe, False, gpus) for n, moe in lines]
        whole = replace(family[-1], embed=True)
        where = place(self.task.program, self.task.pins, whole)
        return [*family, whole] if whole.n_gpu_layers == self.parts.most and "CPU" not in where.values() else family

    def _best(self, n_ctx: int, families: Sequence[Sequence[Choice]], margins: bool) -> Plan | None:
        """The fastest of the families' candidates that fit, each without and with weights streamed to long prompts."""
        best = self._fastest(n_ctx, families, margins)
        if best is None or not self.task.pins.op_offload or not self.gpus:
            return best
        streaming = [[replace(choice, stream=True) for choice in family] for family in families]
        return min([best, *filter(None, [self._fastest(n_ctx, streaming, margins)])], key=_seconds)

    def _fastest(self, n_ctx: int, families: Sequence[Sequence[Choice]], margins: bool) -> Plan | None:
        found: list[Plan] = []
        for family in families:

            def fits(i: int, family: Sequence[Choice] = family) -> bool:
                return self.fits(self.build(family[i], n_ctx), margins, self.rooms[1:])

            index = _last(len(family), fits, self._guess(family, n_ctx, margins))
            if index < 0:
                continue
            fitting = [self.build(family[index], n_ctx)]
            where = [(self._predicted(c, n_ctx), c) for c in family[:index]]
            faster = sorted((pair for pair in where if pair[0] < _seconds(fitting[0])), key=lambda pair: pair[0])
            fitting = [*(self.build(choice, n_ctx) for _, choice in faster[:3]), *fitting]
            found += [plan for plan in fitting if self.fits(plan, margins)][:1]
        return min(found, key=_seconds, default=None)

    def _predicted(self, choice: Choice, n_ctx: int) -> float:
        """Seconds of a candidate that need not be laid out for it."""
        where = place(self.task.program, self.task.pins, choice)
        return self.cost.predict(where, n_ctx, *self._streamed(where, choice)).seconds

    def _widened(self, plan: Plan, margins: bool) -> Plan:
        """The same placement with the largest context that fits."""
        assert plan.choice is not None
        choice, first = plan.choice, self.least // CTX_STEP
        after = self.build(choice, (first + 1) * CTX_STEP)  # a step's bytes say how many there may be
        more = [after.ledger.total(room.device) - plan.ledger.total(room.device) for room in self.rooms]
        steps = [-self.excess(plan, room, margins) // n for room, n in zip(self.rooms, more) if n > 0]
        n = self.wanted // CTX_STEP - first
        n = _last(n, lambda i: self.fits(self.build(choice, (first + 1 + i) * CTX_STEP), margins), min([n, *steps]) - 1)
        return self.build(choice, (first + 1 + n) * CTX_STEP) if n >= 0 else plan

    def _guess(self, family: Sequence[Choice], n_ctx: int, margins: bool) -> int:
        """Which of a family may be the last that fits, from weights and KV alone."""
        if not family[0].gpus:
            return 0
        rooms = [room for room in self.rooms if room.device in family[0].gpus]
        devices = [p.device for p in self._places[1:] if p.device.name in family[0].gpus]
        own = sum(device.process_bytes(self.task.program.n_vocab) for device in devices)
        room = sum(room.limit_bytes - (room.margin_bytes if margins else 0) for room in rooms) - own
        fitting = (i for i, choice in enumerate(family) if sum(self._unit_bytes(choice, n_ctx).values()) <= room)
        return max(fitting, default=0)

    def _is_all(self, plan: Plan) -> bool:
        return plan.choice is not None and plan.choice.n_gpu_layers == self.parts.most and not plan.choice.n_cpu_moe

    def _told(self, plan: Plan | None) -> Plan | None:
        """The plan with its notes: what runs where, and what was chosen."""
        if plan is None or plan.choice is None:
            return plan
        t, choice, notes = self.task, plan.choice, list(plan.notes)
        chosen = "" if t.pins.n_gpu_layers is not None else " (-ngl sets it)"
        if self.gpus:
            notes.append(f"-ngl {choice.n_gpu_layers} of {self.parts.most}: {summary(t.program, plan.where)}{chosen}")
        if choice.n_cpu_moe and t.pins.n_cpu_moe is None:
            notes.append(f"-ncmoe {choice.n_cpu_moe}: the experts of so many layers stay on the CPU, what does not fit the GPU")
        if plan.streamed:
            notes.append(words(t.program, plan.streamed, plan.prompt_from))
        notes += self._notes
        if not t.request.n_tokens:
            per_seq, trained = plan.shape.n_ctx, t.n_ctx_train
            if per_seq == min(trained, DEFAULT_CTX_LIMIT):
                why = "the trained context" if trained == per_seq else f"of {trained} trained"
                notes.append(f"context: {per_seq} tokens ({why}; -c sets it)")
            else:
                why = "so that more layers fit the GPU" if t.pins.n_gpu_layers is None and self.gpus else "what fits"
                notes.append(f"context: {per_seq} tokens of {trained} trained, {why} (-c sets it)")
        weights, room = plan.ledger.total("CPU", "weights"), self.rooms[0]
        if t.request.load_mode == "mmap" and weights > room.limit_bytes:
            notes.append(paging_note(weights, room.limit_bytes))
        return replace(plan, notes=tuple(dict.fromkeys(notes)))

    def _unit_bytes(self, choice: Choice, n_ctx: int) -> dict[str, float]:
        """Weights and KV of the units that the choice puts on GPUs: by these, layers are dealt to GPUs of different sizes."""
        sizes = self._sizes(n_ctx)
        where = place(self.task.program, self.task.pins, replace(choice, gpus=choice.gpus[:1]))
        return {unit: size for unit, size in sizes.items() if where[unit] != "CPU"}

    def _sizes(self, n_ctx: int) -> dict[str, float]:
        """Weights and KV of every unit."""
        if n_ctx not in self._sized:
            program, device = self.task.program, self._places[1].device
            shape = shape_of(self.task.request, n_ctx)
            sizes: dict[str, float] = dict.fromkeys(program.units, 0.0)
            for op in program.ops:
                sizes[op.unit] += sum(program.weights[name].n_bytes for name in op.weights)
            for state in program.states.values():
                sizes[state.unit] += shape.n_kv_blocks * device.kv_block_bytes(state, shape)
            self._sized[n_ctx] = sizes
        return self._sized[n_ctx]

    def _free_shares(self) -> tuple[float, ...]:
        """What each GPU has for weights and KV: its room without the driver's share and scratch."""
        program = self.task.program
        shape = shape_of(self.task.request, CTX_STEP)
        shares = []
        for p, room in zip(self._places[1:], self.rooms[1:]):
            lowered = p.device.lower(program, program.units, shape)
            scratch = pack(spans(program, lowered, {"T": shape.n_ubatch, "R": shape.n_logits}), p.device.alignment)[1]
            taken = scratch + p.device.process_bytes(program.n_vocab) + room.margin_bytes
            shares.append(float(max(1, room.limit_bytes - taken)))
        return tuple(shares)


def _seconds(plan: Plan) -> float:
    assert plan.prediction is not None
    return plan.prediction.seconds


def _last(n: int, fits: Callable[[int], bool], hint: int) -> int:
    """The last of 0..n-1 that fits when all before it do; -1: none. Looks around the hint first, then farther and farther, then halves."""
    low, high, step = -1, n - 1, 1
    at = max(0, min(hint, n - 1))
    if n > 0 and fits(at):
        low = at
        while low < high:
            probe = min(low + step, high)
            if not fits(probe):
                high = probe - 1
                break
            low, step = probe, 2 * step
    else:
        high = at - 1
        while low < high:
            probe = max(high - step + 1, 0)
            if fits(probe):
                low = probe
                break
            high, step = probe - 1, 2 * step
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(middle) else (low, middle - 1)
    return low

"""The sentence for a plan that does not fit: what it takes, what there is, and the nearest plans that do fit, as flags to paste."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from shlex import join

from ggrun.errors import GgrunError
from ggrun.plan.ledger import human
from ggrun.plan.pins import Pins, flags_of
from ggrun.plan.planner import CTX_STEP, DoesNotFit, Plan, Request
from ggrun.plan.solve import Solver, Task

KV_STEPS = ("q8_0", "q4_0")


def refusal(task: Task, plan: Plan) -> DoesNotFit:
    """The error for a task for which nothing fits; plan: what it asks for, laid out."""
    solver = Solver(task)
    near = [words(pins, request) for pins, request in nearest(task)]
    if near:
        advice = "these fit: " + "; ".join(join(flags) or "no flag at all" for flags in near)
    elif task.request.load_mode != "mmap" and solver.excess(plan, solver.rooms[0], margins=False) > 0:
        advice = "take a smaller quantization, or --load-mode mmap, which reads from the disk what does not fit, slowly"
    else:
        advice = "no smaller context or cache fits: take a smaller quantization"
    return DoesNotFit(_problem(solver, task, plan), advice, near, plan)


def words(pins: Pins, request: Request) -> list[str]:
    """The flags of a plan that differ from the defaults."""
    kinds = [("-ctk", request.type_k), ("-ctv", request.type_v)]
    parallel = ["-np", str(request.n_seqs)] if request.n_seqs > 1 else []
    return [*flags_of(pins), *request.context_words, *parallel, *(word for pair in kinds if pair[1] != "f16" for word in pair)]


def nearest(task: Task) -> Iterator[tuple[Pins, Request]]:
    """What fits and differs from the task in one thing: smaller KV, fewer layers, more experts on the CPU, a smaller context."""
    pins, request = task.pins, task.request
    for kind in KV_STEPS:
        bits = {"f16": 16, "q8_0": 8, "q4_0": 4}
        if bits[kind] < max(bits[request.type_k], bits[request.type_v]):
            smaller = replace(request, type_k=kind, type_v=kind)
            if _solved(replace(task, request=smaller)):
                yield pins, smaller
    if not pins.fit and _solved(replace(task, pins=replace(pins, fit=True))):
        yield replace(pins, fit=True), request
    if pins.n_gpu_layers:
        fewer = _fewer_layers(task)
        if fewer is not None:
            yield replace(pins, n_gpu_layers=fewer), request
    if pins.n_cpu_moe is not None:
        plan = _solved(replace(task, pins=replace(pins, n_cpu_moe=None)))
        if plan and plan.choice and plan.choice.n_cpu_moe > 0:
            yield replace(pins, n_cpu_moe=plan.choice.n_cpu_moe), request
    best = _smaller_context(task)
    if best:
        yield pins, request.sized(best)


def _solved(task: Task) -> Plan | None:
    try:
        return Solver(replace(task, pins=replace(task.pins, op_offload=False))).solve()  # streaming takes only room that is left over
    except GgrunError:  # e.g. heads that a KV type does not fit
        return None


def _fewer_layers(task: Task) -> int | None:
    """The most layers below the pinned number with which the rest of the pins fits."""
    most = min(task.pins.n_gpu_layers or 0, Solver(task).parts.most)
    low, high = -1, most - 1
    while low < high:
        middle = (low + high + 1) // 2
        solver = Solver(replace(task, pins=replace(task.pins, n_gpu_layers=middle)))
        plan = solver.build(solver.choice_of(middle, task.pins.n_cpu_moe or 0), solver.least)
        low, high = (middle, high) if solver.fits(plan, False, solver.rooms[1:]) else (low, middle - 1)
    return low if low >= 0 and _solved(replace(task, pins=replace(task.pins, n_gpu_layers=low))) else None


def _smaller_context(task: Task) -> int:
    """The largest context below the pinned one with which the rest of the pins fits; 0: none."""
    low, high = 0, (task.request.n_tokens - 1) // CTX_STEP
    while low < high:
        middle = (low + high + 1) // 2
        fits = _solved(replace(task, request=task.request.sized(middle * CTX_STEP)))
        low, high = (middle, high) if fits else (low, middle - 1)
    return low * CTX_STEP


def _problem(solver: Solver, task: Task, plan: Plan) -> str:
    """Which devices it does not fit, and what takes the room there."""
    asked = join(words(task.pins, task.request)) or "the smallest context"
    said = []
    for room in solver.rooms:
        if solver.excess(plan, room, margins=False) > 0:
            parts = (
                (purpose, plan.ledger.total(room.device, purpose))
                for purpose in ("weights", "kv", "scratch", "staging", "driver", "process")
            )
            names = {"kv": "KV"}
            listed = ", ".join(f"{names.get(purpose, purpose)} {human(n)}" for purpose, n in parts if n)
            said.append(
                f"{human(plan.ledger.total(room.device))} on {room.device} ({listed}), where {human(room.limit_bytes)} is available"
            )
    if not said:  # it would fit, with nothing left free
        return f"{asked} leaves no room to choose in; with -fit off it takes what there is"
    return f"{asked} takes {' and '.join(said)}"

"""From a path to a plan: open the file, read the spec, build and verify the program, plan it. Reads the header only.

The one place that knows which executor there is and how it is made.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib.resources import as_file, files
from pathlib import Path

from ggrun.engine import places
from ggrun.engine.tiers import CHOOSE, cache_lines
from ggrun.errors import GgrunError
from ggrun.gguf import GgufFile, open_gguf
from ggrun.models import ModelSpec, build_program
from ggrun.plan.cost import Cost
from ggrun.plan.device import KV_TYPES, Device, MissingKernels, Place
from ggrun.plan.ledger import Ledger
from ggrun.plan.memory import has_huge_pages
from ggrun.plan.pins import ALL, Pins
from ggrun.plan.planner import Plan, Request, Room, make_plan
from ggrun.plan.rooms import usable
from ggrun.plan.solve import Task, solve
from ggrun.program.program import Program
from ggrun.runtime.cpu.cores import n_cores
from ggrun.runtime.cpu.device import CpuDevice
from ggrun.runtime.executor import Executor, Progress


@dataclass(frozen=True, slots=True)
class Options:
    """How a model is opened; the names are the flags'. 0 means: choose.

    kv_tokens: 0: n_ctx counts the tokens of all parallel sequences together, and each gets an equal part; else n_ctx is what one may hold,
    and kv_tokens what all of them share (-1: as many as n_ctx). step_ms: about how long a step may take while prompts are computed beside
    answers; 0: as long as a full micro-batch takes.
    """

    n_ctx: int = 0
    n_threads: int = 0
    n_threads_batch: int = 0
    n_batch: int = 2048
    n_ubatch: int = 512
    n_parallel: int = 1
    kv_tokens: int = 0
    step_ms: float = 0
    n_logits: int = 0
    load_mode: str = "auto"
    type_k: str = "f16"
    type_v: str = "f16"
    executor: str = "auto"
    reuse: bool = True
    placement: Pins = field(default_factory=Pins)
    cram_mib: int = 0  # host memory for KV blocks that leave the pool; -1: choose, 0: none
    disk_cache: Path | None = None  # folder in which prompts' keys and values outlive the process; None: they do not
    disk_cache_mib: int = 4096  # the most it takes

    def __post_init__(self) -> None:
        for flag, value, least in (
            ("-c", self.n_ctx, 0),
            ("-b", self.n_batch, 1),
            ("-ub", self.n_ubatch, 1),
            ("-np", self.n_parallel, 1),
            ("-cram", self.cram_mib, CHOOSE),
            ("--disk-cache-mib", self.disk_cache_mib, 0),
            ("--kv-tokens", self.kv_tokens, -1),
            ("--step-ms", self.step_ms, 0),
        ):
            if not least <= value <= 1 << 30:
                raise GgrunError(f"{flag} {value} is out of range; it takes {least} or more")
        if 0 < self.kv_tokens < self.n_ctx:
            raise GgrunError(f"--kv-tokens {self.kv_tokens} is less than one conversation may grow to, -c {self.n_ctx}")
        for flag, kind in (("-ctk", self.type_k), ("-ctv", self.type_v)):
            if kind not in KV_TYPES:
                raise GgrunError(f"{flag} {kind} is not supported; the KV cache is kept as {', '.join(KV_TYPES)}")
        if self.executor not in EXECUTORS:
            raise GgrunError(f"there is no executor {self.executor!r} here; choose one of: {', '.join(EXECUTORS)}")


@dataclass(frozen=True)
class Planned:
    """An open file and all that is known of it before anything is loaded."""

    file: GgufFile
    spec: ModelSpec
    program: Program
    plan: Plan
    device: CpuDevice
    n_threads: int
    n_threads_batch: int
    devices: Mapping[str, Device]  # by the names of the plan's segments
    places: tuple[Place, ...]  # what was planned for


def embedded_model() -> Path:
    """The small model that comes with ggrun."""
    with as_file(files("ggrun") / "data" / "pydoc.gguf") as path:
        return path


def plan_model(path: str | Path | None, options: Options, where: Sequence[Place] | None = None) -> Planned:
    """Open (None: the embedded model) and plan. The caller closes `.file`. Raises GgrunError with a sentence.

    where: the devices of the machine to plan for, the CPU first; None: this one's. GPUs are left alone by executors that use none.
    """
    file = open_gguf(embedded_model() if path is None else path)
    try:
        spec, program = build_program(file.metadata, file.tensors)
        here = where is None
        if where is None:
            where = (places.cpu(), *(places.gpus() if options.executor in WITH_GPUS and options.reuse else ()))
            _check_gpus(options, where)
        where = usable(where, options.placement)
        n_threads, n_batch_threads, notes = _threads(options)
        plan = _plan(file, spec, program, options, where)
        device = where[0].device
        assert isinstance(device, CpuDevice)
        devices = {place.device.name: place.device for place in where}
        plan = replace(plan, notes=(*plan.notes, *notes, *(_gpu_notes(options, where) if here else ())))
        plan = _with_caches(plan, options)
        return Planned(file, spec, program, plan, device, n_threads, n_batch_threads, devices, tuple(where))
    except BaseException:
        file.close()
        raise


def replan(planned: Planned, options: Options) -> Plan:
    """The plan of an open model under other options, on the same machine."""
    return _with_caches(_plan(planned.file, planned.spec, planned.program, options, planned.places), options)


def _with_caches(plan: Plan, options: Options) -> Plan:
    """The plan with what is kept of keys and values beside the pool in its ledger."""
    lines, note = cache_lines(plan, options.cram_mib, options.disk_cache is not None)
    return replace(plan, ledger=Ledger((*plan.ledger.lines, *lines)), notes=(*plan.notes, *([note] if note else [])))


def _threads(options: Options) -> tuple[int, int, list[str]]:
    """Threads for one token and for several, and what is to be said of them."""
    cores = n_cores()
    n_threads = min(options.n_threads, cores) if options.n_threads > 0 else cores
    n_batch_threads = min(options.n_threads_batch, cores) if options.n_threads_batch > 0 else n_threads
    return n_threads, n_batch_threads, _thread_notes(options, cores)


def _plan(file: GgufFile, spec: ModelSpec, program: Program, options: Options, where: Sequence[Place]) -> Plan:
    pins = options.placement
    if options.executor == "cuda" and pins.n_gpu_layers is None:
        pins = replace(pins, n_gpu_layers=ALL)
    n_ctx, kv_tokens = options.n_ctx, options.kv_tokens
    if kv_tokens > 0:
        n_ctx = n_ctx or min(kv_tokens, spec.n_ctx_train)
    elif kv_tokens < 0 < n_ctx:
        kv_tokens = n_ctx
    request = Request(
        n_ctx=n_ctx,
        n_seqs=options.n_parallel,
        kv_tokens=kv_tokens,
        n_ubatch=max(min(options.n_ubatch, options.n_batch), options.n_parallel),
        n_logits=options.n_logits,
        n_threads=max(_threads(options)[:2]),
        load_mode=options.load_mode,
        type_k=options.type_k,
        type_v=options.type_v,
        copy_weights=options.load_mode == "auto" and options.executor != "reference" and has_huge_pages(),
        reuse=options.reuse,
    )
    return _planned(program, where, pins, request, spec.n_ctx_train, file)


def _planned(program: Program, where: Sequence[Place], pins: Pins, request: Request, n_ctx_train: int, file: GgufFile) -> Plan:
    """The plan on one device, or solved for several."""
    cpu, machine = where[0], places.machine(request.n_threads)
    weights = _weights(file, request.load_mode)
    note: tuple[str, ...] = ()
    if len(where) > 1 and (pins.n_gpu_layers != 0 or any(device != cpu.device.name for _, device in pins.overrides)):
        try:
            return solve(Task(program, tuple(where), pins, request, n_ctx_train, next(iter(weights.items())), machine))
        except MissingKernels as error:
            if pins.asks_for_gpu:
                raise
            note = (f"everything runs on the CPU: {error}",)
    available = min(cpu.free_bytes, pins.ram_budget or cpu.free_bytes)
    plan = make_plan(program, cpu.device, request, n_ctx_train, weights, available)
    cost = Cost(program, where[:1], machine, request.type_k, request.type_v, request.n_ubatch)
    prediction = cost.predict(dict.fromkeys(program.units, cpu.device.name), plan.shape.n_ctx)
    room = Room(cpu.device.name, "memory", cpu.total_bytes, available)
    return replace(plan, notes=(*note, *plan.notes), prediction=prediction, rooms=(room,))


def _thread_notes(options: Options, cores: int) -> list[str]:
    asked = {"-t": options.n_threads, "-tb": options.n_threads_batch}
    few = f"{cores} core{'s' * (cores > 1)}"
    return [f"{flag} {n}: this process may use {few}; no more threads than that run" for flag, n in asked.items() if n > cores]


def _weights(file: GgufFile, load_mode: str) -> Mapping[str, int]:
    where = {"none": "weights, private copy", "mlock": "weights, locked file pages", "mmap+mlock": "weights, locked file pages"}
    return {where.get(load_mode, "weights, mapped file pages"): file.data_bytes}


def _gpu_notes(options: Options, where: Sequence[Place]) -> list[str]:
    if len(where) > 1 or options.executor != "auto" or options.placement.n_gpu_layers == 0 or options.placement.devices == ():
        return []
    from ggrun.engine import gpus

    return [note] if (note := gpus.worth_saying()) else []


def _check_gpus(options: Options, where: Sequence[Place]) -> None:
    """GgrunError with the reason when only a GPU will do and there is none."""
    if options.executor == "cuda" and len(where) == 1:
        from ggrun.engine import gpus

        raise GgrunError(f"there is no CUDA executor without a GPU: {gpus.problem()}")


def _assembled(planned: Planned, progress: Progress | None) -> Executor:
    from ggrun.runtime.assembly import assemble

    p = planned
    return assemble(
        p.plan,
        {**p.devices, p.device.name: p.device},
        p.file.tensors,
        p.n_threads,
        p.n_threads_batch,
        progress,
        lambda: p.file.load(p.plan.load_mode, progress),
    )


def _reference(planned: Planned, progress: Progress | None) -> Executor:
    from ggrun.runtime.reference import ReferenceExecutor

    planned.file.load(planned.plan.load_mode, progress)
    shape = planned.plan.shape
    return ReferenceExecutor(planned.program, planned.file.tensors, shape.n_kv_blocks, shape.type_k, shape.type_v)


EXECUTORS: dict[str, Callable[[Planned, Progress | None], Executor]] = {
    "auto": _assembled,  # as planned: over whatever devices
    "cpu": _assembled,  # planned for the CPU alone
    "cuda": _assembled,  # planned for GPUs, or refused
    "reference": _reference,
}
WITH_GPUS = ("auto", "cuda")


def make_executor(name: str, planned: Planned, progress: Progress | None) -> Executor:
    """The executor of that name, its memory reserved and then its weights loaded as the plan says."""
    return EXECUTORS[name](planned, progress)


def load(planned: Planned, options: Options, progress: Progress | None) -> tuple[Planned, Executor]:
    """The executor that the options name, and the plan it follows.

    When a GPU cannot be had as planned (its memory went to something else, its driver fails) and the user did not ask for one, that is
    another plan, for the CPU alone.
    """
    try:
        return planned, make_executor(options.executor, planned, progress)
    except GgrunError as error:
        on_gpu = any(planned.devices[segment.device].kind == "cuda" for segment in planned.plan.segments)
        if not on_gpu or options.executor == "cuda" or options.placement.asks_for_gpu:
            raise
        where = planned.places[:1]
        alone = replace(planned, places=where, devices={place.device.name: place.device for place in where})
        plan = replan(alone, options)
        alone = replace(alone, plan=replace(plan, notes=(f"everything runs on the CPU: {error}", *plan.notes)))
        return alone, make_executor(options.executor, alone, progress)

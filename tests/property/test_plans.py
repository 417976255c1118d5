"""Plans over several devices: whatever the model and the flags, nothing is overwritten before it was read, every byte is listed once."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from hypothesis import given, settings
from hypothesis import strategies as st

from ggrun.errors import GgrunError
from ggrun.plan.device import Segment, Stage, Stream
from ggrun.plan.pins import read_pins
from ggrun.plan.placement import Choice, place
from ggrun.plan.planner import DoesNotFit, Plan, Request
from ggrun.plan.refuse import nearest
from ggrun.plan.segments import lay_out
from ggrun.plan.solve import solve
from ggrun.plan.streaming import streamable
from tests.plan_machines import machine, mixture, task

MODELS = st.builds(mixture, st.integers(1, 5), st.sampled_from([0, 4]), st.just(256), st.just(512), st.booleans())
PATTERNS = st.sampled_from(
    [r"blk\.1\.=CPU", r"blk\.[02]\.ffn=CUDA1", "attn_q=CPU", "token_embd=CUDA0", r"^output=CPU", "ffn_down=CUDA1", r"blk\.0\.attn=CUDA0"]
)
FLAGS = st.fixed_dictionaries(
    {},
    optional={
        "n_cpu_ffn": st.integers(0, 5),
        "kv_offload": st.booleans(),
        "override_tensor": st.lists(PATTERNS, max_size=2, unique=True),
    },
)
CHOICES = st.builds(
    Choice,
    st.integers(0, 6),
    st.integers(0, 5),
    st.booleans(),
    st.sampled_from([("CUDA0",), ("CUDA0", "CUDA1"), ("CUDA1", "CUDA0")]),
    st.just(()),
)
REQUESTS = st.builds(
    Request,
    n_seqs=st.integers(1, 3),
    n_ubatch=st.integers(4, 70),
    n_threads=st.integers(1, 4),
    load_mode=st.sampled_from(["auto", "none", "mlock"]),
    copy_weights=st.booleans(),
    type_k=st.sampled_from(["f16", "q8_0", "q4_0"]),
    type_v=st.sampled_from(["f16", "q8_0", "q4_0"]),
    reuse=st.booleans(),
)


@dataclass
class Arena:
    """Scratch as it would be written: who owns which bytes now."""

    segment: Segment
    sizes: dict[str, int]
    owned: dict[str, tuple[int, int]] = field(default_factory=dict)

    def write(self, name: str) -> None:
        start = self.segment.offsets[name]
        end = start + self.sizes[name]
        assert end <= self.segment.scratch_bytes
        self.owned = {other: (a, b) for other, (a, b) in self.owned.items() if b <= start or end <= a}
        self.owned[name] = (start, end)

    def read(self, name: str) -> None:
        assert name in self.owned, f"{name} on {self.segment.device} was written over, or never written"


def arenas_of(plan: Plan) -> list[Arena]:
    rows = {"T": plan.shape.n_ubatch, "R": plan.shape.n_logits}
    buffers = {name: rows[b.rows] * b.row_bytes for name, b in plan.program.buffers.items()}
    return [Arena(segment, {**buffers, **segment.lowered.work, **segment.prompt.work}) for segment in plan.segments]


def run(plan: Plan) -> None:
    """Go through the stages, and those of long prompts, with every buffer's bytes watched."""
    arenas = arenas_of(plan)
    run_batch(plan, plan.stages, arenas, first=True)
    if plan.prompt_stages:
        run_batch(plan, plan.prompt_stages, arenas)
        run_batch(plan, plan.stages, arenas)


def run_batch(plan: Plan, stages: Sequence[Stage], arenas: Sequence[Arena], first: bool = False) -> None:
    for arena in arenas:
        named = {name for step in arena.segment.lowered.steps for name in step.inputs + step.outputs}
        inputs = {name for name, b in plan.program.buffers.items() if b.role == "input"}
        for name in [*(inputs & named), *(set(arena.segment.lowered.work) - named)]:
            if first or name in inputs:
                arena.write(name)  # a batch's inputs, and areas that no step names, are there throughout
        arena.owned = {name: arena.owned[name] for name in arena.owned if name in inputs or name not in named}
    for stage in stages:
        arena = arenas[stage.segment]
        for take in stage.takes:
            arenas[take.source].read(take.buffer)
            arena.write(take.buffer)
        for step in arena.segment.steps[stage.first : stage.last]:
            for name in step.inputs:
                arena.read(name)
            for name in step.outputs:
                arena.write(name)
    (output,) = (name for name, b in plan.program.buffers.items() if b.role == "output")
    arenas[[segment.device for segment in plan.segments].index(plan.where["head"])].read(output)
    for arena in arenas:
        for name in set(arena.segment.lowered.work) - {n for s in arena.segment.lowered.steps for n in s.inputs + s.outputs}:
            arena.read(name)


def check_stages(plan: Plan) -> None:
    done = [0] * len(plan.segments)
    for stage in plan.stages:
        assert stage.first == done[stage.segment] < stage.last
        done[stage.segment] = stage.last
    assert done == [len(segment.lowered.steps) for segment in plan.segments]
    ran = [step.unit for stage in plan.stages for step in plan.segments[stage.segment].lowered.steps[stage.first : stage.last]]
    assert list(dict.fromkeys(ran)) == list(plan.program.units)
    assert all(a.segment != b.segment for a, b in zip(plan.stages, plan.stages[1:]))
    if plan.prompt_stages:
        check_prompt_stages(plan)


def check_prompt_stages(plan: Plan) -> None:
    """Every step once, each stream by one stage, in order; the streamed units on their GPUs, the others where they always are."""
    done = [len(segment.lowered.steps) for segment in plan.segments]
    streams: list[list[int]] = [[] for _ in plan.segments]
    for stage in plan.prompt_stages:
        assert stage.first == done[stage.segment] < stage.last
        done[stage.segment] = stage.last
        segment = plan.segments[stage.segment]
        needed = {
            i for i, s in enumerate(segment.streams) for step in segment.steps[stage.first : stage.last] if {*step.weights} & {*s.weights}
        }
        assert needed == {stage.stream} - {-1}
        streams[stage.segment] += needed
    assert done == [len(segment.steps) for segment in plan.segments]
    for segment, used in zip(plan.segments, streams):
        assert used == list(range(len(segment.streams)))
        assert {step.unit for step in segment.prompt.steps} == {
            unit for unit in plan.program.units if plan.streamed.get(unit, plan.where[unit]) == segment.device
        }
        for stream in segment.streams:
            check_spans([(at, plan.program.weights[name].n_bytes) for name, at in stream.weights.items()], used_bytes(plan, stream), 256)
            assert used_bytes(plan, stream) <= segment.half_bytes
    assert all(plan.where[unit] == "CPU" for unit in plan.streamed)


def used_bytes(plan: Plan, stream: Stream) -> int:
    return sum(-(-plan.program.weights[name].n_bytes // 256) * 256 for name in stream.weights)


def check_units(plan: Plan) -> None:
    units = [unit for segment in plan.segments for unit in segment.units]
    assert sorted(units) == sorted(plan.program.units)
    assert all(plan.where[unit] == segment.device for segment in plan.segments for unit in segment.units)
    assert sorted(name for segment in plan.segments for name in segment.kv) == sorted(plan.program.states)


def check_spans(starts: Sequence[tuple[int, int]], total: int, to: int) -> None:
    """(offset, bytes) side by side, aligned, in order, and `total` ends where the last one does."""
    end = 0
    for offset, n_bytes in starts:
        assert offset == end
        assert offset % to == 0
        end = -(-(offset + n_bytes) // to) * to
    assert end == total


def check_arenas(plan: Plan) -> None:
    for segment in plan.segments:
        to = 64 if segment.device == "CPU" else 256
        check_spans([(p.offset, plan.shape.n_kv_blocks * p.block_bytes) for p in segment.kv.values()], segment.kv_bytes, to)
        weights = plan.program.weights
        check_spans([(at, weights[name].n_bytes) for name, at in segment.weights.items()], segment.weight_bytes, to)
        read = {name for step in segment.steps for name in step.weights} - {name for stream in segment.streams for name in stream.weights}
        assert set(segment.weights) == (set() if segment.device == "CPU" else read)


def check_ledger(plan: Plan, file_bytes: int) -> None:
    listed = plan.ledger
    assert all(line.n_bytes >= 0 for line in listed.lines)
    for segment in plan.segments:
        device = segment.device
        assert listed.total(device, "kv") == segment.kv_bytes
        threads = plan.shape.n_threads if device == "CPU" else 0
        assert listed.total(device, "scratch") == segment.scratch_bytes + threads * segment.thread_bytes
        if device != "CPU":
            assert listed.total(device, "weights") == segment.weight_bytes
            assert listed.total(device, "stream") == segment.stream_bytes
        elif plan.load_mode != "auto":
            assert listed.total(device, "weights") - (segment.copy.n_bytes if segment.copy else 0) <= file_bytes
        else:
            read = {name for step in segment.lowered.steps for name in step.weights}
            copied = set(segment.copy.offsets) if segment.copy else set()
            mapped = sum(plan.program.weights[name].n_bytes for name in read - copied)
            assert listed.total(device, "weights") == mapped + (segment.copy.n_bytes if segment.copy else 0)
            assert copied <= read
    assert listed.total("CPU", "staging") == sum(sum(segment.host.values()) for segment in plan.segments)
    assert listed.total() == sum(listed.total(device) for device in {line.device for line in listed.lines})


@settings(deadline=None, max_examples=150)
@given(MODELS, FLAGS, CHOICES, REQUESTS, st.integers(1, 3000), st.booleans())
def test_plans_keep_their_promises(
    model: object, flags: dict[str, object], choice: Choice, request: Request, n_ctx: int, stream: bool
) -> None:
    program = model[1]  # type: ignore[index]
    try:
        where = place(program, read_pins(**flags), choice)  # type: ignore[arg-type]
    except Exception as error:
        assert "runs in one place" in str(error)
        return
    file_bytes = sum(w.n_bytes for w in program.weights.values())
    streamed = streamable(program, where) if stream else {}
    plan = lay_out(program, machine((6, 6)), where, request, n_ctx, ("weights", file_bytes), (), (), streamed, 16)
    plan = type(plan)(**{**vars(plan), "where": where})
    check_units(plan)
    check_stages(plan)
    check_arenas(plan)
    check_ledger(plan, file_bytes)
    run(plan)


SOLVABLE = st.fixed_dictionaries(
    {},
    optional={
        "n_gpu_layers": st.sampled_from(["auto", "all", "0", "1", "3", "5", "17"]),
        "n_cpu_moe": st.integers(0, 6),
        "n_cpu_ffn": st.integers(0, 6),
        "kv_offload": st.booleans(),
        "op_offload": st.booleans(),
        "tensor_split": st.sampled_from(["1", "3,1", "0,1"]),
        "split_mode": st.sampled_from(["layer", "none"]),
        "vram_budget": st.sampled_from(["700MiB", "1GiB"]),
        "fit": st.sampled_from(["on", "off"]),
        "fit_target": st.sampled_from(["0", "100"]),
        "fit_ctx": st.sampled_from([256, 4096]),
    },
)
LARGE = st.builds(mixture, st.integers(1, 5), st.sampled_from([0, 8]), st.just(1024), st.just(3584), st.booleans())


@settings(max_examples=60)
@given(LARGE, SOLVABLE, st.lists(st.floats(0.4, 1.5), max_size=2), st.floats(0.3, 3), st.sampled_from([0, 256, 5000, 32768, 200000]))
def test_what_is_found_fits_and_so_does_what_is_advised(
    model: object, flags: dict[str, object], vram: list[float], ram: float, n_ctx: int
) -> None:
    job = task(model, machine(vram, ram), n_ctx, **flags)  # type: ignore[arg-type]
    try:
        plan = solve(job)
    except DoesNotFit as refused:
        assert refused.plan is not None
        assert any(refused.plan.ledger.total(room.device) > room.limit_bytes - room.margin_bytes for room in refused.plan.rooms)
        for pins, request in nearest(job):
            assert solve(replace(job, pins=pins, request=request))
        return
    except GgrunError as error:
        assert str(error).startswith("-ts has 2 shares")
        return
    for room in plan.rooms:
        assert plan.ledger.total(room.device) <= room.limit_bytes
    if n_ctx:
        assert plan.shape.n_ctx == n_ctx
    check_units(plan)
    check_stages(plan)
    check_arenas(plan)
    run(plan)
    layers = flags.get("n_gpu_layers", "auto")
    if vram and layers not in ("auto", "all"):
        assert plan.choice is not None
        assert plan.choice.n_gpu_layers == min(int(str(layers)), len(model[1].states) + 1)  # type: ignore[index]

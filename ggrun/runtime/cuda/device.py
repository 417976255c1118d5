"""A GPU as the planner sees it: the steps a program becomes there, fused where it pays, and the bytes they take.

Imports neither PyCUDA nor Numba. A step names the program's ops it computes; `bind` makes launches of it for a number of tokens.
Activations of quantized matrices are quantized once per buffer, by whoever writes it where that can do so (norm, glu), else by a step
of its own; a buffer that nobody reads as float32 is then never written as such.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from ggrun.errors import GgrunError
from ggrun.plan.arena import align
from ggrun.plan.device import Lowered, Shape, Step, missing
from ggrun.program import params as p
from ggrun.program.program import KvState, Op, Program
from ggrun.program.rope import frequencies
from ggrun.runtime.cuda import attention, inputs, matmul, reduce, rows
from ggrun.runtime.cuda.launch import Arch

# What the driver takes for itself: guesses until `ggrun tune` has measured it.
CONTEXT_BYTES = 384 << 20  # its context
OWN_BYTES = CONTEXT_BYTES + (64 << 20)  # and the kernels' code and stacks
ALIGN = 256  # bytes; what the driver's own allocations start at
STAGING_BYTES = 8 << 20  # of each of the two halves of the pinned block that weights pass through
BATCH, SPLITS, KEPT, HIGHEST = "batch", "attention:work", "highest:work", "highest"  # work areas
HIGHEST_ROWS = 32  # rows of logits whose highest are found here; more are fetched whole


@dataclass(frozen=True, slots=True)
class CudaStep(Step):
    """`ops`: the program's ops that the step computes, in the order of the program; its inputs and outputs are what must be in memory."""

    ops: tuple[Op, ...] = ()


class CudaDevice:
    """Implements plan.Device. name: "CUDA0" for device 0. own_bytes: what the driver takes for itself, measured, or None."""

    kind: Literal["cpu", "cuda"] = "cuda"
    alignment = ALIGN
    piece_bytes = STAGING_BYTES

    def __init__(self, name: str, arch: Arch, own_bytes: int | None = None) -> None:
        self.name = name
        self.index = int(name.removeprefix("CUDA"))
        self.arch = arch
        self.own_bytes = OWN_BYTES if own_bytes is None else own_bytes

    def lower(self, program: Program, units: Sequence[str], shape: Shape) -> Lowered:
        """Steps and work areas for the units; raises MissingKernels naming every (op, format) that cannot run."""
        lowering = _Lowering(program, units, shape, self.arch)
        for op in lowering.ops:
            if id(op) not in lowering.absorbed:
                lower = _LOWER.get(op.kind)
                if lower is None:
                    lowering.missing.append((op.kind, ""))
                else:
                    lower(lowering, op)
        if lowering.missing:
            raise missing(self.name, lowering.missing)
        lowering.highest()
        return Lowered(tuple(lowering.steps), lowering.work)

    def thread_bytes(self, lowered: Lowered, program: Program, shape: Shape) -> int:
        """Blocks of threads have their own shared memory."""
        return 0

    def kv_block_bytes(self, state: KvState, shape: Shape) -> int:
        """See `attention` for the layout."""
        for flag, kind, dim in (("-ctk", shape.type_k, state.head_dim_k), ("-ctv", shape.type_v, state.head_dim_v)):
            if kind != "f16" and dim % 32:
                raise GgrunError(f"{flag} {kind} needs heads of a multiple of 32 numbers; this model's have {dim}: use {flag} f16")
        return state.n_head_kv * attention.kv_head_bytes(state.head_dim_k, state.head_dim_v, shape.type_k, shape.type_v)

    def process_bytes(self, n_vocab: int) -> int:
        """The driver's own share of the device's memory."""
        return self.own_bytes

    def host_bytes(self, lowered: Lowered, program: Program, shape: Shape, crossing_bytes: int) -> Mapping[str, int]:
        """One pinned block: weights pass through it to the device, and when they are there, batches, logits and what crosses a cut."""
        written = {name for step in lowered.steps for name in step.outputs}
        logits = [b for b in program.buffers.values() if b.role == "output" and b.name in written]
        running = pinned(shape, sum(b.row_bytes for b in logits), crossing_bytes)
        return {"pinned for uploads, then batches and results": max(2 * STAGING_BYTES, running.n_bytes)}


@dataclass(frozen=True, slots=True)
class Pinned:
    """Offsets in the pinned block while batches run: the batch, its logits, what crosses a cut."""

    logits: int
    crossing: int
    n_bytes: int


def pinned(shape: Shape, logit_row_bytes: int, crossing_bytes: int) -> Pinned:
    """How the pinned block is divided."""
    logits = align(inputs.block_bytes(shape), ALIGN)
    crossing = logits + align(shape.n_logits * logit_row_bytes, ALIGN)
    return Pinned(logits, crossing, crossing + align(crossing_bytes, ALIGN))


def q8_name(buffer: str, k: int) -> str:
    """The work area that holds a buffer's rows of k elements quantized."""
    return f"{buffer}:q8:{k}"


def rope_names(op: Op) -> tuple[str, str]:
    """The work areas of an op's angles: the table of a batch, and the frequencies, which stay."""
    assert isinstance(op.params, p.Rope)
    same = "/".join(map(str, (op.params.n_rot, op.params.freq_base, op.params.scaling, op.weights)))
    return f"rope_table:{same}", f"rope_frequencies:{same}"


class _Lowering:
    """Collects steps; knows who reads what, and which work areas already hold what a later op can share."""

    def __init__(self, program: Program, units: Sequence[str], shape: Shape, arch: Arch) -> None:
        self.program = program
        self.shape = shape
        self.arch = arch
        wanted = set(units)
        self.ops = [op for op in program.ops if op.unit in wanted]
        self.steps: list[CudaStep] = []
        self.work: dict[str, int] = {BATCH: inputs.block_bytes(shape)}
        self.missing: list[tuple[str, str]] = []
        self.absorbed: set[int] = set()  # ids of ops that a step of another computes
        self.filled: set[str] = set()  # shared work areas that an earlier step writes
        self._wanted = wanted
        self._order = {id(op): index for index, op in enumerate(program.ops)}
        self._writer = {name: op for op in self.ops for name in op.outputs}
        self._readers: dict[str, list[Op]] = {}
        for op in program.ops:
            for name in op.inputs:
                self._readers.setdefault(name, []).append(op)
        for op in self.ops:
            self._absorb(op)

    def _absorb(self, op: Op) -> None:
        """Find what can be computed along with an op that comes later."""
        if op.kind == "attention":
            ropes = [self._sole(name, op, "rope") for name in op.inputs[:2]]
            if all(ropes) and len({(rope_names(rope)[0], getattr(rope.params, "style", "")) for rope in ropes if rope}) == 1:
                self.absorbed.update(id(rope) for rope in ropes)
        elif op.kind == "glu":
            gate, up = (self._sole(name, op, "linear") for name in op.inputs)
            if gate and up and gate.inputs == up.inputs and len(gate.weights) == len(up.weights) == 1 and self.is_rows_t(gate):
                formats = {self.format(o) for o in (gate, up)}
                if len(formats) == 1 and matmul.activation(formats.pop()) == "q8":
                    self.absorbed.update((id(gate), id(up)))

    def is_rows_t(self, op: Op) -> bool:
        return self.program.buffers[op.outputs[0]].rows == "T"

    def _sole(self, buffer: str, reader: Op, kind: str) -> Op | None:
        """The op of that kind that writes a buffer which only the reader reads, in the reader's unit."""
        writer = self._writer.get(buffer)
        if writer is None or writer.kind != kind or writer.unit != reader.unit or len(self._readers[buffer]) != 1:
            return None
        return writer

    def follower(self, op: Op, kind: str) -> Op | None:
        """The op right after this one in the program, when it is of that kind, runs here, and reads what this one writes."""
        index = self._order[id(op)] + 1
        after = self.program.ops[index] if index < len(self.program.ops) else None
        if after is None or after.kind != kind or after.unit not in self._wanted or after.inputs[0] != op.outputs[0]:
            return None
        return after

    def writers(self, op: Op) -> list[Op]:
        """The absorbed ops whose outputs an op reads."""
        found = (self._writer.get(name) for name in op.inputs)
        return [writer for writer in found if writer and id(writer) in self.absorbed]

    def step(
        self, kernel: str, ops: Sequence[Op], inputs: Sequence[str], outputs: Sequence[str], weights: Sequence[str] | None = None
    ) -> None:
        """One step; its weights are those of its ops, its unit the first op's, its params the last op's."""
        names = tuple(name for op in ops for name in op.weights) if weights is None else tuple(weights)
        self.steps.append(CudaStep(kernel, tuple(inputs), tuple(outputs), names, ops[-1].params, ops[0].unit, tuple(ops)))

    def highest(self) -> None:
        """Room for the highest logits, where these are computed here."""
        output = next(b for b in self.program.buffers.values() if b.role == "output")
        if output.name in self._writer and (k := reduce.most(output.width)):
            n_rows = min(self.shape.n_logits, HIGHEST_ROWS)
            self.work |= {KEPT: reduce.work_bytes(output.width, n_rows, k), HIGHEST: reduce.out_bytes(n_rows, k)}

    def n_rows(self, buffer: str) -> int:
        return self.shape.n_ubatch if self.program.buffers[buffer].rows == "T" else self.shape.n_logits

    def format(self, op: Op) -> str:
        return self.program.weights[op.weights[0]].format.name

    def need_f32(self, op: Op, names: Sequence[str]) -> None:
        """Small vectors are read as float32."""
        self.missing += [(op.kind, fmt) for name in names if (fmt := self.program.weights[name].format.name) != "F32"]

    def need(self, op: Op, problem: str) -> None:
        """Remember why an op cannot run here, unless there is no problem."""
        if problem:
            self.missing.append((f"{op.kind} ({problem})", ""))

    def need_norm(self, op: Op) -> None:
        self.need_f32(op, op.weights)
        n = self.program.weights[op.weights[0]].dims[0]
        self.need(op, f"rows of {n}: at most {rows.MAX_NORM}" if n > rows.MAX_NORM else "")

    def need_kernel(self, op: Op) -> str:
        """The format of an op's matrix; remembered as missing when there are no kernels for it."""
        fmt = self.format(op)
        if fmt not in matmul.FORMATS:
            self.missing.append((op.kind, fmt))
        return fmt

    def _reads_q8(self, op: Op) -> bool:
        return op.kind in ("linear", "expert_linear") and self.format(op) in matmul.FORMATS and matmul.activation(self.format(op)) == "q8"

    def results(self, buffer: str) -> list[str]:
        """What whoever writes a buffer has to write: the buffer, its quantized rows, or both.

        Other devices read float32.
        """
        readers = self._readers.get(buffer, [])
        quantized = [op for op in readers if op.unit in self._wanted and op.inputs[0] == buffer and self._reads_q8(op)]
        names = [buffer] if len(quantized) < len(readers) or self.program.buffers[buffer].role == "output" else []
        for k in dict.fromkeys(self.program.weights[op.weights[0]].dims[0] for op in quantized):
            names.append(self._q8_area(buffer, k))
            self.filled.add(names[-1])
        return names

    def _q8_area(self, buffer: str, k: int) -> str:
        name = q8_name(buffer, k)
        rows = self.n_rows(buffer) * (self.program.buffers[buffer].width // k)
        self.work[name] = rows * matmul.q8_row_bytes(k)
        return name

    def activations(self, op: Op) -> str:
        """The area an op's matrix is multiplied with: its input or, quantized by now, that."""
        x = op.inputs[0]
        if not self._reads_q8(op):
            return x
        name = self._q8_area(x, self.program.weights[op.weights[0]].dims[0])
        if name not in self.filled:
            self.filled.add(name)
            self.step("quantize", (op,), (x,), (name,), ())
        return name

    def rope_table(self, op: Op) -> str:
        """The cosines and sines of a batch's positions."""
        assert isinstance(op.params, p.Rope)
        self.need_f32(op, op.weights)
        table, freq = rope_names(op)
        if table not in self.filled:
            self.filled.add(table)
            half = len(frequencies(op.params)[0])
            self.work[table] = 8 * half * self.shape.n_ubatch
            self.work[freq] = 8 * half
            self.step("rope_table", (op,), (), (table,))
        return table


def _embed(lowering: _Lowering, op: Op) -> None:
    lowering.step(f"embed.{lowering.need_kernel(op)}", (op,), (), op.outputs)


def _rms_norm(lowering: _Lowering, op: Op) -> None:
    assert isinstance(op.params, p.RmsNorm)
    lowering.need_norm(op)
    if op.params.groups == 1:
        lowering.step("norm", (op,), op.inputs, lowering.results(op.outputs[0]))
    else:
        lowering.step("norm_groups", (op,), op.inputs, op.outputs)


def _add(lowering: _Lowering, op: Op) -> None:
    norm = lowering.follower(op, "rms_norm")
    if norm is None or not isinstance(norm.params, p.RmsNorm) or norm.params.groups != 1:
        lowering.step("add", (op,), op.inputs, op.outputs)
        return
    lowering.absorbed.add(id(norm))
    lowering.need_norm(norm)
    lowering.step("add_norm", (op, norm), op.inputs, (*op.outputs, *lowering.results(norm.outputs[0])))


def _linear(lowering: _Lowering, op: Op) -> None:
    fmt = lowering.need_kernel(op)
    lowering.need_f32(op, op.weights[1:])
    lowering.step(f"matmul.{fmt}", (op,), (lowering.activations(op),), op.outputs)


def _glu(lowering: _Lowering, op: Op) -> None:
    writers = lowering.writers(op)
    results = lowering.results(op.outputs[0])
    if not writers:
        lowering.step("glu", (op,), op.inputs, results)
        return
    gate, up = writers
    fmt = lowering.need_kernel(gate)
    x = lowering.activations(gate)
    lowering.step(f"gated.{fmt}", (gate, up, op), (x,), (*gate.outputs, *up.outputs, *results))


def _rope(lowering: _Lowering, op: Op) -> None:
    lowering.step("rope", (op,), (op.inputs[0], lowering.rope_table(op)), op.outputs, ())


def _attention(lowering: _Lowering, op: Op) -> None:
    assert isinstance(op.params, p.Attention)
    lowering.need(op, attention.unsupported(op.params, lowering.shape.type_k, lowering.shape.type_v))
    q, k, v, _ = op.inputs
    ropes = lowering.writers(op)
    if ropes:
        table = lowering.rope_table(ropes[0])
        lowering.step("rope_store", (*ropes, op), (ropes[0].inputs[0], ropes[1].inputs[0], v, table), (q,), ())
    else:
        lowering.step("kv_store", (op,), (k, v), ())
    work = attention.work_bytes(op.params, lowering.shape.n_ubatch, lowering.arch)
    lowering.work[SPLITS] = max(work, lowering.work.get(SPLITS, 0), 4)
    lowering.step("attention", (op,), (q, SPLITS), op.outputs)


def _expert_linear(lowering: _Lowering, op: Op) -> None:
    assert isinstance(op.params, p.ExpertLinear)
    fmt, params, ids = lowering.need_kernel(op), op.params, op.inputs[1]
    x = lowering.activations(op)
    lists = f"{ids}:lists"
    if lists not in lowering.filled:
        lowering.filled.add(lists)
        lowering.work[lists] = max(4, matmul.expert_lists_bytes(lowering.shape.n_ubatch, params.n_used, params.n_expert))
        lowering.step("group_experts", (op,), (ids,), (lists,), ())
    lowering.step(f"expert_matmul.{fmt}", (op,), (x, ids, lists), op.outputs)


def _take_rows(lowering: _Lowering, op: Op) -> None:
    lowering.step("take_rows", (op,), op.inputs[:1], op.outputs)


def _route(lowering: _Lowering, op: Op) -> None:
    r = op.params
    assert isinstance(r, p.Route)
    fits = r.n_expert <= rows.MAX_EXPERTS and r.n_used <= rows.MAX_USED
    lowering.need(op, "" if fits else f"{r.n_used} of {r.n_expert} experts: at most {rows.MAX_USED} of {rows.MAX_EXPERTS}")
    _same(lowering, op)


def _same(lowering: _Lowering, op: Op) -> None:
    lowering.step(op.kind, (op,), op.inputs, op.outputs)


_LOWER: dict[str, Callable[[_Lowering, Op], None]] = {
    "embed": _embed,
    "rms_norm": _rms_norm,
    "linear": _linear,
    "rope": _rope,
    "attention": _attention,
    "add": _add,
    "glu": _glu,
    "route": _route,
    "expert_linear": _expert_linear,
    "expert_sum": _same,
    "take_rows": _take_rows,
}

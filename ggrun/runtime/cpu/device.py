"""The CPU as the planner sees it: which steps a program becomes and the bytes they take. Imports no Numba.

A linear op becomes a "quantize.ACTIVATION" step, shared by all that multiply the same buffer with formats of the same activation,
and a "matmul.FORMAT" step that also adds the bias. Angles of rotary embeddings and the tiles of attention are computed once per
batch and shared by all layers. A step's kernel name is its kernel, a dot, and the format it is for; `bind` has an entry for each.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Literal

from ggrun.errors import GgrunError
from ggrun.plan.device import Lowered, Shape, Step, missing
from ggrun.program import params as p
from ggrun.program.program import KvState, Op, Program
from ggrun.runtime.cpu import sizes
from quant.format import Format

# Measured by tests/e2e/test_process_memory.py: interpreter, NumPy, LLVM, kernels and descriptors take 31 MiB, on a first start,
# with Numba and what it compiled, 117 MiB; a token's text, type and merges and the way back from its text 240 bytes.
PROCESS_BYTES, VOCABULARY_BYTES = 144 << 20, 320
TILES = "query_tiles"


class CpuDevice:
    """Implements plan.Device. tier: a tier of quant.cpu's kernels, or None for the best this processor runs, found when loading."""

    name = "CPU"
    kind: Literal["cpu", "cuda"] = "cpu"
    alignment = sizes.LINE
    piece_bytes = 0

    def __init__(self, tier: str | None = None) -> None:
        self.tier = tier

    @property
    def tiers(self) -> tuple[str, ...]:
        """The tiers that sizes must do for."""
        from quant.simd import TARGETS

        return (self.tier,) if self.tier else tuple(TARGETS)

    def lower(self, program: Program, units: Sequence[str], shape: Shape) -> Lowered:
        """Steps and work areas for the units; raises MissingKernels naming every (op, format) that cannot run."""
        lowering = _Lowering(program, shape, self.tiers)
        wanted = set(units)
        for op in program.ops:
            if op.unit in wanted:
                lowering.add(op)
        if lowering.missing:
            raise missing(self.name, lowering.missing)
        return Lowered(tuple(lowering.steps), lowering.work)

    def thread_bytes(self, lowered: Lowered, program: Program, shape: Shape) -> int:
        """The scratch of the most demanding step."""
        need = 0
        for step in lowered.steps:
            match step.params:
                case p.Attention() as attention:
                    n = sizes.attention_scratch(attention)[1]
                case p.Route(n_expert=n_expert):
                    n = 4 * n_expert
                case p.Linear():
                    n = sizes.matmul_scratch_bytes(program.weights[step.weights[0]].format, self.tiers, shape.n_ubatch)
                case p.ExpertLinear(n_expert=n_expert):
                    n = 4 * n_expert
                    if step.weights:
                        n = sizes.matmul_scratch_bytes(program.weights[step.weights[0]].format, self.tiers, shape.n_ubatch)
                        n += sizes.expert_stage_bytes(shape.n_ubatch)
                case _:
                    n = 0
            need = max(need, n)
        return sizes.up(need)

    def kv_block_bytes(self, state: KvState, shape: Shape) -> int:
        """See `kernels.attention` for the layout."""
        for flag, kind, dim in (("-ctk", shape.type_k, state.head_dim_k), ("-ctv", shape.type_v, state.head_dim_v)):
            if kind != "f16" and dim % sizes.KV_GROUP:
                raise GgrunError(
                    f"{flag} {kind} needs heads of a multiple of {sizes.KV_GROUP} numbers; this model's have {dim}: use {flag} f16"
                )
        return state.n_head_kv * sizes.kv_head_bytes(state.head_dim_k, state.head_dim_v, shape.type_k, shape.type_v)

    def process_bytes(self, n_vocab: int) -> int:
        """Enough for a first start; later ones take 90 MiB less."""
        return PROCESS_BYTES + VOCABULARY_BYTES * n_vocab

    def host_bytes(self, lowered: Lowered, program: Program, shape: Shape, crossing_bytes: int) -> Mapping[str, int]:
        """Its own memory is the host's."""
        return {}


class _Lowering:
    """Collects steps; remembers which work areas already hold what a later op can share."""

    def __init__(self, program: Program, shape: Shape, tiers: Sequence[str]) -> None:
        self.program = program
        self.shape = shape
        self.tiers = tiers
        self.steps: list[Step] = []
        self.work: dict[str, int] = {}
        self.missing: list[tuple[str, str]] = []

    def add(self, op: Op) -> None:
        lower = _LOWER.get(op.kind)
        if lower is None:
            self.missing.append((op.kind, ""))
        else:
            lower(self, op)

    def step(self, op: Op, kernel: str, extra: tuple[str, ...] = ()) -> None:
        """The op itself as one step; `extra` are work areas it reads besides its inputs."""
        self.steps.append(Step(kernel, op.inputs + extra, op.outputs, op.weights, op.params, op.unit))

    def shared(self, name: str, n_bytes: int, step: Step) -> str:
        """A work area filled by a step that is added when the area is first asked for."""
        if name not in self.work:
            self.work[name] = n_bytes
            self.steps.append(replace(step, outputs=(name,)))
        return name

    def rows(self, buffer: str) -> int:
        return self.shape.n_ubatch if self.program.buffers[buffer].rows == "T" else self.shape.n_logits

    def format(self, op: Op) -> Format:
        return self.program.weights[op.weights[0]].format

    def need_f32(self, op: Op, names: Sequence[str]) -> None:
        """Small vectors are read as float32."""
        self.missing += [(op.kind, fmt) for name in names if (fmt := self.program.weights[name].format.name) != "F32"]


def _embed(lowering: _Lowering, op: Op) -> None:
    lowering.step(op, f"embed.{lowering.format(op).name}")


def _rms_norm(lowering: _Lowering, op: Op) -> None:
    lowering.need_f32(op, op.weights)
    lowering.step(op, "rms_norm")


def _linear(lowering: _Lowering, op: Op) -> None:
    lowering.need_f32(op, op.weights[1:])
    fmt, x = lowering.format(op), op.inputs[0]
    activation = fmt.activation or "f32"
    k = lowering.program.buffers[x].width
    n_bytes = sizes.activation_bytes(activation, lowering.tiers, k, lowering.rows(x))
    quantized = lowering.shared(f"{x}:{activation}", n_bytes, Step(f"quantize.{activation}", (x,), (), (), None, op.unit))
    lowering.steps.append(Step(f"matmul.{fmt.name}", (quantized,), op.outputs, op.weights, op.params, op.unit))


def _rope(lowering: _Lowering, op: Op) -> None:
    lowering.need_f32(op, op.weights)
    assert isinstance(op.params, p.Rope)
    same = (op.params.n_rot, op.params.freq_base, op.params.scaling, op.weights)
    name = f"rope_table:{'/'.join(map(str, same))}"
    n_bytes = 4 * lowering.shape.n_ubatch * op.params.n_rot
    table = lowering.shared(name, n_bytes, Step("rope_table", (), (), op.weights, op.params, op.unit))
    lowering.steps.append(Step("rope", (op.inputs[0], table), op.outputs, (), op.params, op.unit))


def _attention(lowering: _Lowering, op: Op) -> None:
    q, k, v, _ = op.inputs
    tiles = lowering.shared(TILES, sizes.query_tiles_bytes(lowering.shape.n_ubatch), Step("query_tiles", (), (), (), None, op.unit))
    lowering.steps.append(Step("kv_store", (k, v), (), (), op.params, op.unit))
    lowering.steps.append(Step("attention", (q, tiles), op.outputs, (), op.params, op.unit))


def _glu(lowering: _Lowering, op: Op) -> None:
    assert isinstance(op.params, p.Glu)
    lowering.step(op, f"glu_{op.params.act}")


def _expert_linear(lowering: _Lowering, op: Op) -> None:
    assert isinstance(op.params, p.ExpertLinear)
    params, fmt, (x, ids) = op.params, lowering.format(op), op.inputs
    activation = fmt.activation or "f32"
    tokens = lowering.shape.n_ubatch
    k = lowering.program.weights[op.weights[0]].dims[0]
    n_bytes = sizes.expert_lists_bytes(tokens, params.n_expert, params.n_used)
    lists = lowering.shared(f"{ids}:lists", n_bytes, Step("group_experts", (ids,), (), (), params, op.unit))
    n_bytes = sizes.expert_activation_bytes(activation, lowering.tiers, k, tokens * params.n_used, params.n_expert)
    step = Step(f"quantize_experts.{activation}", (x, lists), (), (), params, op.unit)
    quantized = lowering.shared(f"{x}:{lists}:{activation}", n_bytes, step)
    lowering.steps.append(Step(f"expert_matmul.{fmt.name}", (quantized, lists), op.outputs, op.weights, params, op.unit))


def _same(kernel: str) -> Callable[[_Lowering, Op], None]:
    return lambda lowering, op: lowering.step(op, kernel)


_LOWER: dict[str, Callable[[_Lowering, Op], None]] = {
    "embed": _embed,
    "rms_norm": _rms_norm,
    "linear": _linear,
    "rope": _rope,
    "attention": _attention,
    "add": _same("add"),
    "glu": _glu,
    "route": _same("route"),
    "expert_linear": _expert_linear,
    "expert_sum": _same("expert_sum"),
    "take_rows": _same("take_rows"),
}

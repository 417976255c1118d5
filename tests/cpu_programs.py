"""Small programs with random weights for tests of the CPU executor, and both executors ready to run them."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np

from ggrun.plan.device import KV_BLOCK_TOKENS
from ggrun.plan.planner import Plan, Request, make_plan
from ggrun.program.builder import Builder
from ggrun.program.params import Attention, Rope, Route
from ggrun.program.program import Program
from ggrun.program.verify import verify
from ggrun.runtime.cpu.device import CpuDevice
from ggrun.runtime.cpu.executor import CpuExecutor
from ggrun.runtime.executor import Batch
from ggrun.runtime.reference import ReferenceExecutor
from quant.format import Format, format_by_name
from quant.reference import quantize


@dataclass
class Tensor:
    """What executors need of a GGUF tensor."""

    name: str
    dims: tuple[int, ...]
    format: Format
    raw: np.ndarray

    @property
    def n_bytes(self) -> int:
        return int(self.raw.nbytes)

    @property
    def row_bytes(self) -> int:
        return self.format.row_bytes(self.dims[0])

    @property
    def address(self) -> int:
        return int(self.raw.ctypes.data)

    def read(self, start: int, target: memoryview) -> None:
        target[:] = memoryview(self.raw)[start : start + len(target)]

    def release(self) -> None:
        """There is no file to go back to."""


class Weights(dict[str, Tensor]):
    """Makes random tensors."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        self.rng = np.random.default_rng(seed)

    def random(self, name: str, dims: tuple[int, ...], fmt: str = "F32", mean: float = 0.0, scale: float | None = None) -> None:
        scale = dims[0] ** -0.5 if scale is None else scale
        values = (mean + scale * self.rng.standard_normal(dims[::-1])).astype(np.float32)
        self[name] = Tensor(name, dims, format_by_name(fmt), np.ascontiguousarray(quantize(format_by_name(fmt), values)).reshape(-1))


@dataclass(frozen=True)
class Model:
    """A transformer of `n_layer` layers over a vocabulary of 64."""

    fmt: str = "F32"
    n_embd: int = 64
    n_head: int = 4
    n_head_kv: int = 2
    head_dim: int = 16
    head_dim_v: int = 16
    n_ff: int = 96
    n_layer: int = 2
    n_rot: int = 16
    style: str = "norm"
    window: int = 0
    softcap: float = 0.0
    bias: bool = False
    n_expert: int = 0
    n_used: int = 2
    n_vocab: int = 64

    def build(self, seed: int = 0) -> tuple[Program, Weights]:
        w = Weights(seed)
        d, q, k, v = self.n_embd, self.n_head * self.head_dim, self.n_head_kv * self.head_dim, self.n_head_kv * self.head_dim_v
        w.random("token_embd.weight", (d, self.n_vocab), self.fmt, scale=1.0)
        for i in range(self.n_layer):
            for name in ("attn_norm", "ffn_norm"):
                w.random(f"{i}.{name}", (d,), mean=1.0, scale=0.1)
            for name, n in (("q", q), ("k", k), ("v", v)):
                w.random(f"{i}.{name}.weight", (d, n), self.fmt)
                if self.bias:
                    w.random(f"{i}.{name}.bias", (n,), scale=0.5)
            w.random(f"{i}.o.weight", (self.n_head * self.head_dim_v, d), self.fmt)
            if self.n_expert:
                w.random(f"{i}.route.weight", (d, self.n_expert), scale=1.0)
                w.random(f"{i}.gate", (d, self.n_ff, self.n_expert), self.fmt)
                w.random(f"{i}.up", (d, self.n_ff, self.n_expert), self.fmt)
                w.random(f"{i}.down", (self.n_ff, d, self.n_expert), self.fmt)
            else:
                w.random(f"{i}.gate.weight", (d, self.n_ff), self.fmt)
                w.random(f"{i}.up.weight", (d, self.n_ff), self.fmt)
                w.random(f"{i}.down.weight", (self.n_ff, d), self.fmt)
        w.random("norm", (d,), mean=1.0, scale=0.1)
        b = Builder(w, self.n_vocab)
        with b.unit("embed"):
            x = b.embed("token_embd.weight", d, scale=1.5)
        for i in range(self.n_layer):
            with b.unit(f"layer.{i}"):
                x = self._layer(b, x, i)
        with b.unit("head"):
            b.output(b.linear(b.rms_norm(b.take_rows(x), "norm", 1e-5), "out", self.n_vocab, "token_embd.weight"))
        return verify(b.build()), w

    def _layer(self, b, x, i):
        rope = [Rope(n, self.head_dim, self.n_rot, self.style, 10000.0) for n in (self.n_head, self.n_head_kv)]
        y = b.rms_norm(x, f"{i}.attn_norm", 1e-5)
        q = b.rope(b.linear(y, f"{i}.q", self.n_head * self.head_dim), rope[0])
        k = b.rope(b.linear(y, f"{i}.k", self.n_head_kv * self.head_dim), rope[1])
        v = b.linear(y, f"{i}.v", self.n_head_kv * self.head_dim_v)
        attention = Attention(
            f"kv.{i}", self.n_head, self.n_head_kv, self.head_dim, self.head_dim_v, self.head_dim**-0.5, self.window, self.softcap
        )
        x = b.add(x, b.linear(b.attention(q, k, v, attention), f"{i}.o", self.n_embd))
        y = b.rms_norm(x, f"{i}.ffn_norm", 1e-5)
        if not self.n_expert:
            gate, up = b.linear(y, f"{i}.gate", self.n_ff), b.linear(y, f"{i}.up", self.n_ff)
            return b.add(x, b.linear(b.glu(gate, up), f"{i}.down", self.n_embd))
        ids, weights = b.route(b.linear(y, f"{i}.route", self.n_expert), Route(self.n_expert, self.n_used))
        gate = b.expert_linear(y, ids, f"{i}.gate", self.n_expert, self.n_embd, self.n_ff)
        up = b.expert_linear(y, ids, f"{i}.up", self.n_expert, self.n_embd, self.n_ff)
        down = b.expert_linear(b.glu(gate, up), ids, f"{i}.down", self.n_expert, self.n_ff, self.n_embd)
        return b.add(x, b.expert_sum(down, weights))


def plan(program: Program, device: CpuDevice, **pins: object) -> Plan:
    request = Request(**{"n_ctx": 256, "n_ubatch": 64, "n_logits": 64, "n_threads": 1, **pins})  # type: ignore[arg-type]
    weights = {"mapped file pages": sum(weight.n_bytes for weight in program.weights.values())}
    return make_plan(program, device, request, 256, weights, 1 << 40)


@contextmanager
def executor(program: Program, tensors: Mapping[str, Tensor], tier: str | None = None, **pins: object) -> Iterator[CpuExecutor]:
    """A CPU executor; pins are the planner's (n_ctx counts all sequences together)."""
    device = CpuDevice(tier)
    made = plan(program, device, **pins)
    n = made.shape.n_threads
    result = CpuExecutor(program, made.segments[0], made.shape, tensors, n, n, device)
    try:
        yield result
    finally:
        result.close()


@dataclass
class Sequences:
    """Block tables for parallel sequences, and batches of their tokens. Blocks are dealt out interleaved, as a server would."""

    n_seqs: int
    n_ctx: int
    tables: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        per_seq = -(-self.n_ctx // KV_BLOCK_TOKENS)
        self.tables = 1 + np.arange(per_seq * self.n_seqs, dtype=np.int32).reshape(per_seq, self.n_seqs).T.copy()

    def batch(self, parts: Sequence[tuple[int, int, Sequence[int]]], rows: Sequence[int] | None = None) -> Batch:
        """parts: (sequence, first position, ids). rows: wanted logits, all by default."""
        ids = np.concatenate([np.asarray(ids, np.int32) for _, _, ids in parts])
        positions = np.concatenate([np.arange(at, at + len(ids), dtype=np.int32) for _, at, ids in parts])
        seqs = np.concatenate([np.full(len(ids), seq, np.int32) for seq, _, ids in parts])
        return Batch(ids, positions, seqs, self.tables, np.arange(len(ids), dtype=np.int32) if rows is None else np.array(rows, np.int32))


def compare_buffers(
    program: Program, tensors: Mapping[str, Tensor], batches: Sequence[Batch], check: Callable[..., None], **pins: object
) -> None:
    """Run batches on both executors; check(op, name, got, want) for every op output of the last."""
    reference = ReferenceExecutor(program, tensors, 1 << 8)
    with executor(program, tensors, reuse=False, **pins) as cpu:
        for batch in batches:
            cpu.run(batch)
            reference.run(batch)
        for op in program.ops:
            for name in op.outputs:
                want = reference.values[name]
                check(op, name, cpu.read_buffer(name, len(want)), want)
